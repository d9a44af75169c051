//! Rights, stolen tokens, releases installed, upgraded and uninstalled. They share the cluster `security` and need root; elsewhere they are reported as ignored.

mod releases;
mod security;
mod uninstall;

use std::process::ExitCode;

use e2e::scenario::{Cluster, Group, Scenario};

fn main() -> ExitCode {
    Group::new("security")
        .with(&[
            ("each_account_has_its_rights_and_no_others", security::each_account_has_its_rights),
            (
                "who_has_view_in_a_namespace_reads_its_rows",
                security::who_has_view_in_a_namespace_reads_its_rows,
            ),
            ("a_stolen_token_does_nothing_else", security::a_stolen_token_does_nothing_else),
            (
                "a_stolen_token_writes_rows_of_its_node_alone",
                security::a_stolen_token_writes_rows_of_its_node_alone,
            ),
            (
                "with_every_right_to_rows_a_token_still_reaches_its_node_alone",
                security::with_every_right_to_rows_a_token_still_reaches_its_node_alone,
            ),
            ("a_token_ends_with_its_pod", security::a_token_ends_with_its_pod),
        ])
        .with(&releases::STORIES)
        .with(&[("uninstall_leaves_the_crd_and_nothing_else", uninstall::leaves_the_crd_and_nothing_else)])
        .run()
}
