//! What users see: kubectl, Events, metrics, the commands of the docs; under hostile pods and at limits, too. They share the cluster `observability` and need root; elsewhere they are reported as ignored.

mod blame;
mod documented;
mod hostile;
mod kubectl;
mod limits;
mod monitoring;
mod rows;
mod writes;

use std::process::ExitCode;

use e2e::scenario::{Cluster, Group, Scenario};

fn main() -> ExitCode {
    Group::new("observability")
        .with(&[("kubectl_reads_well", kubectl::kubectl_reads_well)])
        .with(&[("the_commands_of_the_pages_work", documented::the_commands_of_the_pages_work)])
        .with(&[
            ("the_agent_has_no_privilege", rows::the_agent_has_no_privilege),
            ("a_pod_of_uid_1000_is_read_like_any_other", rows::a_pod_of_uid_1000_is_read_like_any_other),
            ("zombies_are_told_of_within_30_s_and_go_with_their_parent", rows::zombies_are_told_of),
            ("a_garbage_status_is_unknown_and_counted", rows::a_garbage_status_is_unknown_and_counted),
        ])
        .with(&[
            (
                "prometheus_has_nothing_against_the_metrics",
                monitoring::prometheus_has_nothing_against_the_metrics,
            ),
            (
                "prometheus_scrapes_both_and_each_panel_has_something",
                monitoring::prometheus_scrapes_both_and_each_panel_has_something,
            ),
            (
                "prometheus_sees_nothing_of_200_pods_that_went",
                monitoring::prometheus_sees_nothing_of_200_pods_that_went,
            ),
        ])
        .with(&[
            ("five_quiet_minutes_have_no_writes", writes::five_quiet_minutes_have_no_writes),
            ("somebody_edits_a_row_and_deletes_another", writes::somebody_edits_a_row_and_deletes_another),
            (
                "what_somebody_did_to_rows_is_made_right_once",
                writes::what_somebody_did_to_rows_is_made_right_once,
            ),
            ("a_status_of_another_pod_is_refused", writes::a_status_of_another_pod_is_refused),
            (
                "an_edited_row_is_made_right_by_an_agent_that_starts",
                writes::an_edited_row_is_made_right_by_an_agent_that_starts,
            ),
            ("a_restart_and_zombies_take_few_writes", writes::a_restart_and_zombies_take_few_writes),
            ("an_event_that_expired_is_not_told_again", writes::an_event_that_expired_is_not_told_again),
            ("a_restart_is_forgotten_with_one_write", writes::a_restart_is_forgotten_with_one_write),
            ("every_call_is_in_the_table", writes::every_call_is_in_the_table),
        ])
        .with(&hostile::STORIES)
        .with(&blame::STORIES)
        .with(&limits::STORIES)
        .run()
}
