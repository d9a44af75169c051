//! Sandboxes, agents, controllers and API servers that come, go and are killed: what is counted and reported stays exact. They share the cluster `lifecycle` and need root; elsewhere they are reported as ignored.

mod chaos;
mod exact;
mod failover;
mod outages;
mod pauses;
mod restarts;
mod sight;

use std::process::ExitCode;

use e2e::demo::STEPS;
use e2e::scenario::{Cluster, Group, Scenario};

fn main() -> ExitCode {
    Group::new("lifecycle")
        .with_steps(&STEPS)
        .with(&[
            ("a_pod_at_its_pids_limit_is_still_read", pauses::a_pod_at_its_pids_limit),
            ("a_pod_at_its_memory_limit_keeps_its_pause", pauses::a_pod_at_its_memory_limit),
            ("no_signal_from_the_pod_kills_pause", pauses::no_signal_from_the_pod_kills_pause),
            ("with_the_nodes_pids_pause_counts_nothing", pauses::with_the_node_s_pids_pause_counts_nothing),
            (
                "without_shared_pids_a_container_is_its_own_pid_1",
                pauses::without_shared_pids_a_container_is_its_own_pid_1,
            ),
            ("pauses_of_two_versions_work_side_by_side", pauses::pauses_of_two_versions),
        ])
        .with(&[
            ("each_kill_of_pause_is_one_restart", restarts::each_kill_of_pause_is_one_restart),
            ("deleting_a_pod_is_no_restart", restarts::deleting_a_pod_is_no_restart),
            ("restarting_the_agent_loses_and_repeats_nothing", restarts::restarting_the_agent),
            ("restarting_the_controller_loses_and_repeats_nothing", restarts::restarting_the_controller),
        ])
        .with(&[
            ("two_kills_in_a_second_are_two_restarts", exact::two_kills_in_a_second),
            (
                "a_kill_while_the_api_server_is_away_is_one_restart",
                exact::a_kill_while_the_api_server_is_away,
            ),
            ("kills_while_no_controller_runs_are_told_later", exact::kills_while_no_controller_runs),
            (
                "kills_while_no_agent_runs_are_one_restart_and_marked_where_there_were_more",
                exact::kills_while_no_agent_runs,
            ),
            ("the_end_of_a_job_is_no_restart", exact::the_end_of_a_job_is_no_restart),
            (
                "a_network_that_fails_20_times_is_no_restart",
                exact::a_network_that_fails_at_first_is_no_restart,
            ),
        ])
        .with(&[("rows_and_events_equal_the_kills", chaos::rows_and_events_equal_the_kills)])
        .with(&[
            ("a_killed_leader_is_followed_within_15_s", failover::a_killed_leader_is_followed),
            ("a_storm_is_summed_up", failover::a_storm_is_summed_up),
        ])
        .with(&[
            ("without_the_api_server_both_wait_and_say_so", outages::without_the_api_server),
            ("without_the_right_to_write_an_agent_says_so", outages::without_the_right_to_write),
            ("with_an_older_crd_an_agent_says_so", outages::with_an_older_crd),
            ("without_the_crd_both_wait_and_say_so", outages::without_the_crd),
        ])
        .with(&sight::STORIES)
        .run()
}
