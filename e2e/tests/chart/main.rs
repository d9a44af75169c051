//! The Helm chart as Helm renders it: its objects and permissions, refused values, and notes. No cluster is needed; without Helm and
//! without Go to build it, the tests that need Helm are reported as ignored.

mod access;
mod admission;
mod checkers;
mod golden;
mod helm;
mod monitoring;
mod notes;
mod objects;
mod rendered;
mod values;
mod workloads;

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use e2e::monitoring::prometheus;
use e2e::trial::{nothing, trial};
use libtest_mimic::{Arguments, Trial};

use helm::Helm;

fn main() -> ExitCode {
    let tests = vec![
        without_helm("schema_is_closed_and_has_the_keys_of_the_values", values::schema_is_closed),
        without_helm(
            "schema_says_what_each_value_is_for_and_of_what_type",
            values::schema_describes_every_value,
        ),
        with_helm("each_value_changes_what_is_rendered", values::each_value_changes_what_is_rendered),
        with_helm("null_is_none_where_a_value_is_needless", values::null_is_none),
        with_helm("a_parent_chart_turns_it_on_and_off", values::a_parent_chart_turns_it_on_and_off),
        with_helm("renders_are_those_that_are_committed", golden::renders_are_those_that_are_committed),
        with_helm("unit_tests_of_the_templates_pass", checkers::unit_tests_of_the_templates_pass),
        with_helm("every_template_has_unit_tests", checkers::every_template_has_unit_tests),
        with_helm("kube_score_finds_what_is_explained_and_nothing_else", checkers::kube_score),
        without_helm(
            "alerts_tell_whom_they_are_about_and_have_a_page",
            monitoring::alerts_tell_whom_they_are_about_and_have_a_page,
        ),
        without_helm(
            "page_names_the_word_that_drops_an_alerts_metric",
            monitoring::page_names_the_word_that_drops_an_alerts_metric,
        ),
        with_promtool(
            "scrape_of_the_page_asks_pods_of_both_families",
            monitoring::scrape_of_the_page_asks_pods_of_both_families,
        ),
        with_go("dashboard_is_one_by_grafanas_schema", monitoring::dashboard_is_one_by_grafanas_schema),
        without_helm(
            "dashboard_needs_no_input_and_no_label_cluster",
            monitoring::dashboard_needs_no_input_and_no_label_cluster,
        ),
        with_promtool("dashboard_draws_each_restart_once", monitoring::dashboard_draws_each_restart_once),
        with_promtool(
            "dashboard_keeps_pods_of_one_name_apart",
            monitoring::dashboard_keeps_pods_of_one_name_apart,
        ),
        with_promtool(
            "dashboard_says_what_is_unknown_and_not_that_all_is_well",
            monitoring::dashboard_says_what_is_unknown,
        ),
        with_promtool(
            "dashboard_counts_nodes_by_the_pause_of_their_newest_sandbox",
            monitoring::dashboard_counts_nodes_by_the_pause_of_their_newest_sandbox,
        ),
        with_promtool(
            "alerts_fire_when_they_should_and_only_then",
            monitoring::alerts_fire_when_they_should_and_only_then,
        ),
        without_helm(
            "what_is_not_in_the_package_is_said_to_be_in_the_source",
            objects::what_is_not_in_the_package_is_said_to_be_in_the_source,
        ),
        with_helm("strict_lint_passes", objects::strict_lint_passes),
        with_helm("every_object_has_the_standard_labels", objects::every_object_has_the_standard_labels),
        with_helm(
            "nothing_but_the_listed_objects_is_installed",
            objects::nothing_but_the_listed_objects_is_installed,
        ),
        with_helm(
            "agent_sees_the_processes_of_its_node_and_has_no_other_privilege",
            workloads::agent_privileges,
        ),
        with_helm("controller_has_no_privilege", workloads::controller_privileges),
        with_helm("preloaded_pause_has_no_privilege", workloads::preloaded_pause_has_no_privilege),
        with_helm("agent_runs_on_every_linux_node", workloads::agent_runs_on_every_node),
        with_helm(
            "probes_and_the_scrape_annotations_name_the_port",
            workloads::probes_and_annotations_name_the_port,
        ),
        with_helm("every_flag_is_one_that_the_program_knows", workloads::every_flag_is_known),
        with_helm("values_reach_the_flags", workloads::values_reach_the_flags),
        with_helm(
            "image_has_registry_path_tag_and_digest",
            workloads::image_has_registry_path_tag_and_digest,
        ),
        with_helm(
            "default_registry_is_refused_until_it_has_images",
            workloads::default_registry_is_refused_until_it_has_images,
        ),
        with_helm(
            "priority_class_and_its_quota_are_the_users",
            workloads::priority_class_and_its_quota_are_the_users,
        ),
        with_helm("a_default_can_be_taken_out", workloads::a_default_can_be_taken_out),
        with_helm("another_update_strategy_has_no_numbers", workloads::another_strategy_has_no_numbers),
        with_helm("rbac_gives_these_verbs_and_no_others", access::rbac_gives_these_verbs),
        with_helm("pause_installer_has_these_rights_and_no_others", access::pause_installer_has_these_rights),
        with_helm("pages_give_the_rights_that_rbac_gives", access::pages_give_the_rights_that_rbac_gives),
        with_helm("each_role_is_bound_to_its_own_account", access::each_role_is_bound_to_its_own_account),
        with_helm(
            "an_account_of_the_user_gets_the_rights_and_the_policy",
            access::an_account_of_the_user_gets_the_rights,
        ),
        with_helm("without_rbac_there_are_no_roles", access::without_rbac_there_are_no_roles),
        with_helm(
            "admission_policy_is_asked_of_the_agents_account",
            admission::policy_is_asked_of_the_agents,
        ),
        with_helm("only_the_two_accounts_write_status", admission::only_the_two_accounts_write_status),
        with_helm("admission_policy_denies_and_fails_closed", admission::policy_denies_and_fails_closed),
        with_helm(
            "admission_policy_is_rendered_only_if_wanted",
            admission::policy_is_rendered_only_if_wanted,
        ),
        with_helm("controller_finds_the_agents_daemon_set", access::controller_finds_the_agents_daemon_set),
        with_helm("lease_is_left_to_the_controller", access::lease_is_left_to_the_controller),
        with_helm(
            "disruption_budget_comes_with_the_second_replica",
            workloads::budget_comes_with_the_second_replica,
        ),
        with_helm(
            "labels_of_a_user_cannot_break_the_selectors",
            objects::user_labels_cannot_break_the_selectors,
        ),
        with_helm("a_long_release_name_leaves_names_valid", objects::a_long_release_name_leaves_names_valid),
        with_helm("crd_is_the_generated_one_but_for_its_metadata", objects::crd_is_the_generated_one),
        without_helm("artifact_hub_is_told_what_is_so", objects::artifact_hub_is_told_what_is_so),
        with_helm("crd_is_kept_only_if_wanted", objects::crd_is_kept_only_if_wanted),
        with_helm("crd_is_rendered_only_if_wanted", objects::crd_is_rendered_only_if_wanted),
        with_helm("monitoring_is_rendered_only_if_wanted", monitoring::each_is_rendered_only_if_wanted),
        with_helm(
            "pod_monitor_selects_both_and_keeps_the_labels_of_pods",
            monitoring::pod_monitor_selects_both_and_keeps_the_pods_labels,
        ),
        with_helm(
            "rules_are_the_file_with_labels_and_runbooks",
            monitoring::rules_are_the_file_with_labels_and_runbooks,
        ),
        with_helm(
            "upgrades_of_the_pages_do_what_they_say",
            monitoring::upgrades_of_the_pages_do_what_they_say,
        ),
        with_helm(
            "commands_of_the_alerts_select_the_pods_that_they_are_about",
            monitoring::commands_of_the_alerts_select_the_pods_that_they_are_about,
        ),
        with_helm("dashboard_is_the_file", monitoring::dashboard_is_the_file),
        with_helm(
            "exported_dashboard_has_exported_labels",
            monitoring::exported_dashboard_has_exported_labels,
        ),
        with_promtool(
            "alerts_with_exported_labels_fire_too",
            monitoring::alerts_with_exported_labels_fire_too,
        ),
        with_helm("thresholds_reach_every_alert_that_has_one", monitoring::thresholds_reach_every_alert),
        with_helm("rendered_objects_have_no_prose", objects::rendered_objects_have_no_prose),
        with_helm("an_unknown_value_is_refused_by_name", values::an_unknown_value_is_refused_by_name),
        with_helm("a_bad_value_is_refused_by_name", values::a_bad_value_is_refused_by_name),
        without_helm(
            "the_oldest_kubernetes_is_that_of_the_operators_api",
            values::the_oldest_kubernetes_is_that_of_the_operators_api,
        ),
        with_helm("a_kubernetes_that_is_too_old_is_refused", values::an_old_kubernetes_is_refused),
        with_helm("notes_are_15_lines_with_the_next_steps", notes::notes_are_15_lines_with_the_next_steps),
        without_helm("node_settings_are_those_of_the_runtimes", notes::node_settings_are_complete),
        with_helm("notes_tell_what_an_uninstall_leaves", notes::notes_tell_what_an_uninstall_leaves),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn without_helm(name: &str, test: fn() -> Result<()>) -> Trial {
    trial(name, nothing, test)
}

fn with_helm(name: &str, test: fn(&Helm) -> Result<()>) -> Trial {
    // An error of the search fails the test.
    let missing = || {
        let is_missing = Helm::find().is_ok_and(|helm| helm.is_none());
        is_missing.then(|| "neither Helm in the cache nor Go to build it".to_owned())
    };
    trial(name, missing, move || test(&Helm::find()?.context("no Helm")?))
}

fn with_go(name: &str, test: fn() -> Result<()>) -> Trial {
    let missing = || {
        let version = Command::new("go").arg("version").output();
        version.is_err().then(|| "no Go".to_owned())
    };
    trial(name, missing, test)
}

fn with_promtool(name: &str, test: fn() -> Result<()>) -> Trial {
    let missing = || prometheus::promtool().err().map(|error| format!("no promtool: {error:#}"));
    trial(name, missing, test)
}
