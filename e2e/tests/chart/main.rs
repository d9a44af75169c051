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
        without_helm("schema_is_closed_and_has_keys_of_values", values::schema_is_closed),
        without_helm("schema_describes_every_value", values::schema_describes_every_value),
        with_helm("each_value_changes_rendered_objects", values::each_value_changes_rendered_objects),
        with_helm("null_removes_optional_value", values::null_removes_optional_value),
        with_helm("parent_chart_enables_and_disables_chart", values::parent_chart_enables_and_disables_chart),
        with_helm("renders_match_golden_files", golden::renders_match_golden_files),
        with_helm("template_unit_tests_pass", checkers::template_unit_tests_pass),
        with_helm("every_template_has_unit_tests", checkers::every_template_has_unit_tests),
        with_helm("kube_score_finds_only_explained_problems", checkers::kube_score),
        without_helm(
            "alerts_have_their_labels_and_a_runbook",
            monitoring::alerts_have_their_labels_and_a_runbook,
        ),
        without_helm(
            "alerts_page_keeps_the_dropped_metric",
            monitoring::alerts_page_keeps_the_dropped_metric,
        ),
        with_promtool(
            "documented_scrape_finds_pods_of_both_ip_families",
            monitoring::documented_scrape_finds_pods_of_both_ip_families,
        ),
        with_go("dashboard_is_valid_by_grafanas_schema", monitoring::dashboard_is_valid_by_grafanas_schema),
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
            "dashboard_shows_unobserved_pods_as_unknown",
            monitoring::dashboard_shows_unobserved_pods_as_unknown,
        ),
        with_promtool(
            "dashboard_counts_nodes_by_newest_pause_version",
            monitoring::dashboard_counts_nodes_by_newest_pause_version,
        ),
        with_promtool("alerts_fire_as_promtool_expects", monitoring::alerts_fire_as_promtool_expects),
        without_helm(
            "references_outside_package_name_source",
            objects::references_outside_package_name_source,
        ),
        with_helm("strict_lint_passes", objects::strict_lint_passes),
        with_helm("every_object_has_standard_labels", objects::every_object_has_standard_labels),
        with_helm("only_listed_objects_are_rendered", objects::only_listed_objects_are_rendered),
        with_helm("agent_has_host_pid_and_no_other_privilege", workloads::agent_privileges),
        with_helm("controller_has_no_privilege", workloads::controller_privileges),
        with_helm("preloaded_pause_has_no_privilege", workloads::preloaded_pause_has_no_privilege),
        with_helm("agent_runs_on_every_linux_node", workloads::agent_runs_on_every_node),
        with_helm(
            "probes_and_scrape_annotations_name_port",
            workloads::probes_and_scrape_annotations_name_port,
        ),
        with_helm("every_flag_is_known_to_binary", workloads::every_flag_is_known),
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
            "priority_class_and_quota_are_off_by_default",
            workloads::priority_class_and_quota_are_off_by_default,
        ),
        with_helm("null_removes_default", workloads::null_removes_default),
        with_helm("other_update_strategy_has_no_numbers", workloads::other_update_strategy_has_no_numbers),
        with_helm("rbac_grants_exactly_these_verbs", access::rbac_grants_exactly_these_verbs),
        with_helm(
            "pause_installer_has_exactly_these_rights",
            access::pause_installer_has_exactly_these_rights,
        ),
        with_helm("docs_have_rights_of_rbac", access::docs_have_rights_of_rbac),
        with_helm("each_role_is_bound_to_its_account", access::each_role_is_bound_to_its_account),
        with_helm("custom_account_gets_rights_and_policy", access::custom_account_gets_rights_and_policy),
        with_helm("disabled_rbac_renders_no_roles", access::disabled_rbac_renders_no_roles),
        with_helm(
            "admission_policy_matches_agent_account",
            admission::admission_policy_matches_agent_account,
        ),
        with_helm("only_operator_accounts_write_status", admission::only_operator_accounts_write_status),
        with_helm("admission_policy_denies_and_fails_closed", admission::policy_denies_and_fails_closed),
        with_helm(
            "admission_policy_is_rendered_only_if_enabled",
            admission::policy_is_rendered_only_if_enabled,
        ),
        with_helm(
            "controller_gets_name_of_agent_daemon_set",
            access::controller_gets_name_of_agent_daemon_set,
        ),
        with_helm("lease_is_created_by_controller", access::lease_is_created_by_controller),
        with_helm(
            "disruption_budget_needs_second_replica",
            workloads::disruption_budget_needs_second_replica,
        ),
        with_helm("user_labels_do_not_change_selectors", objects::user_labels_do_not_change_selectors),
        with_helm("long_release_name_gives_valid_names", objects::long_release_name_gives_valid_names),
        with_helm("crd_equals_generated_crd", objects::crd_equals_generated_crd),
        without_helm("artifact_hub_annotations_match_chart", objects::artifact_hub_annotations_match_chart),
        with_helm("crd_is_kept_only_if_enabled", objects::crd_is_kept_only_if_enabled),
        with_helm("crd_is_rendered_only_if_enabled", objects::crd_is_rendered_only_if_enabled),
        with_helm("monitoring_is_rendered_only_if_enabled", monitoring::each_is_rendered_only_if_enabled),
        with_helm(
            "pod_monitor_selects_both_and_keeps_the_labels_of_pods",
            monitoring::pod_monitor_selects_both_and_keeps_the_pods_labels,
        ),
        with_helm(
            "rules_are_the_file_with_labels_and_runbooks",
            monitoring::rules_are_the_file_with_labels_and_runbooks,
        ),
        with_helm("documented_upgrades_have_their_effect", monitoring::documented_upgrades_have_their_effect),
        with_helm("commands_of_alerts_select_their_pods", monitoring::commands_of_alerts_select_their_pods),
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
        with_helm("rendered_objects_have_no_comments", objects::rendered_objects_have_no_comments),
        with_helm("unknown_value_is_refused_by_name", values::unknown_value_is_refused_by_name),
        with_helm("invalid_value_is_refused_by_name", values::invalid_value_is_refused_by_name),
        without_helm(
            "oldest_kubernetes_is_that_of_k8s_openapi",
            values::oldest_kubernetes_is_that_of_k8s_openapi,
        ),
        with_helm("old_kubernetes_is_refused", values::old_kubernetes_is_refused),
        with_helm("notes_have_next_steps_in_15_lines", notes::notes_have_next_steps_in_15_lines),
        without_helm("node_settings_have_every_runtime", notes::node_settings_are_complete),
        with_helm("notes_name_what_uninstall_leaves", notes::notes_name_what_uninstall_leaves),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn without_helm(name: &str, test: fn() -> Result<()>) -> Trial {
    trial(name, nothing, test)
}

fn with_helm(name: &str, test: fn(&Helm) -> Result<()>) -> Trial {
    // An error during the search fails the test.
    let missing = || {
        let is_missing = Helm::find().is_ok_and(|helm| helm.is_none());
        is_missing.then(|| "Helm is not in the cache, and there is no Go to build it".to_owned())
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
    let missing =
        || prometheus::promtool().err().map(|error| format!("promtool is not available: {error:#}"));
    trial(name, missing, test)
}
