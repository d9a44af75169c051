//! What users are promised, on a real Kubernetes: the story, and what else happens to sandboxes, agents and controllers.
//! One node serves all of it, so the tests run one after the other, in this order; each can be run alone, too, but for the
//! story's steps, which stand on each other, and the table of calls, which is about all of it. They need root; elsewhere they are
//! reported as ignored.

mod blame;
mod chaos;
mod components;
mod documented;
mod exact;
mod failover;
mod hostile;
mod kubectl;
mod limits;
mod monitoring;
mod outages;
mod pauses;
mod processes;
mod releases;
mod restarts;
mod rows;
mod security;
mod sight;
mod uninstall;
mod writes;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use e2e::images::Image;
use e2e::node::{self, Node};
use e2e::story::{PATIENCE, RELEASE_NAMESPACE, STEPS, Step, Telling, install_chart};
use e2e::{Setup, prerequisites, wait};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    node::run_if_node_process();
    let stage = Arc::new(Stage::default());
    let on_stage = |name: &str, test: fn(&Cluster) -> Result<()>| trial(&stage, name, test);
    let [installed, rest @ ..] =
        STEPS.map(|step| trial(&stage, step.name, move |cluster| told(cluster, step)));
    let mut tests = vec![installed];
    // Before anything else happens on the node.
    tests.push(on_stage("five_quiet_minutes_have_no_writes", writes::five_quiet_minutes_have_no_writes));
    tests.extend(rest);
    tests.extend([
        on_stage("kubectl_reads_well", kubectl::kubectl_reads_well),
        on_stage("the_commands_of_the_pages_work", documented::the_commands_of_the_pages_work),
        on_stage("the_agent_has_no_privilege", rows::the_agent_has_no_privilege),
        on_stage("each_account_has_its_rights_and_no_others", security::each_account_has_its_rights),
        on_stage(
            "who_has_view_in_a_namespace_reads_its_rows",
            security::who_has_view_in_a_namespace_reads_its_rows,
        ),
        on_stage("a_stolen_token_does_nothing_else", security::a_stolen_token_does_nothing_else),
        on_stage(
            "a_stolen_token_writes_rows_of_its_node_alone",
            security::a_stolen_token_writes_rows_of_its_node_alone,
        ),
        on_stage(
            "with_every_right_to_rows_a_token_still_reaches_its_node_alone",
            security::with_every_right_to_rows_a_token_still_reaches_its_node_alone,
        ),
        on_stage("a_token_ends_with_its_pod", security::a_token_ends_with_its_pod),
        // It is made right minutes later, while the tests between go on, by an agent that has been there all the time.
        on_stage(
            "somebody_edits_a_row_and_deletes_another",
            writes::somebody_edits_a_row_and_deletes_another,
        ),
        on_stage(
            "prometheus_has_nothing_against_the_metrics",
            monitoring::prometheus_has_nothing_against_the_metrics,
        ),
        on_stage(
            "prometheus_scrapes_both_and_each_panel_has_something",
            monitoring::prometheus_scrapes_both_and_each_panel_has_something,
        ),
        on_stage(
            "prometheus_sees_nothing_of_200_pods_that_went",
            monitoring::prometheus_sees_nothing_of_200_pods_that_went,
        ),
        on_stage("a_pod_of_uid_1000_is_read_like_any_other", rows::a_pod_of_uid_1000_is_read_like_any_other),
        on_stage("zombies_are_told_of_within_30_s_and_go_with_their_parent", rows::zombies_are_told_of),
        on_stage("a_garbage_status_is_unknown_and_counted", rows::a_garbage_status_is_unknown_and_counted),
        on_stage("a_pod_at_its_pids_limit_is_still_read", pauses::a_pod_at_its_pids_limit),
        on_stage("a_pod_at_its_memory_limit_keeps_its_pause", pauses::a_pod_at_its_memory_limit),
        on_stage("no_signal_from_the_pod_kills_pause", pauses::no_signal_from_the_pod_kills_pause),
        on_stage(
            "with_the_nodes_pids_pause_counts_nothing",
            pauses::with_the_node_s_pids_pause_counts_nothing,
        ),
        on_stage(
            "without_shared_pids_a_container_is_its_own_pid_1",
            pauses::without_shared_pids_a_container_is_its_own_pid_1,
        ),
        on_stage("pauses_of_two_versions_work_side_by_side", pauses::pauses_of_two_versions),
        on_stage("each_kill_of_pause_is_one_restart", restarts::each_kill_of_pause_is_one_restart),
        on_stage("deleting_a_pod_is_no_restart", restarts::deleting_a_pod_is_no_restart),
        on_stage(
            "what_somebody_did_to_rows_is_made_right_once",
            writes::what_somebody_did_to_rows_is_made_right_once,
        ),
        on_stage("a_status_of_another_pod_is_refused", writes::a_status_of_another_pod_is_refused),
        on_stage(
            "an_edited_row_is_made_right_by_an_agent_that_starts",
            writes::an_edited_row_is_made_right_by_an_agent_that_starts,
        ),
        on_stage("restarting_the_agent_loses_and_repeats_nothing", restarts::restarting_the_agent),
        on_stage("restarting_the_controller_loses_and_repeats_nothing", restarts::restarting_the_controller),
        // From here it takes ten minutes until the last write.
        on_stage("a_restart_and_zombies_take_few_writes", writes::a_restart_and_zombies_take_few_writes),
        on_stage("two_kills_in_a_second_are_two_restarts", exact::two_kills_in_a_second),
        on_stage(
            "a_kill_while_the_api_server_is_away_is_one_restart",
            exact::a_kill_while_the_api_server_is_away,
        ),
        on_stage("kills_while_no_controller_runs_are_told_later", exact::kills_while_no_controller_runs),
        on_stage(
            "kills_while_no_agent_runs_are_one_restart_and_marked_where_there_were_more",
            exact::kills_while_no_agent_runs,
        ),
        on_stage("the_end_of_a_job_is_no_restart", exact::the_end_of_a_job_is_no_restart),
        on_stage(
            "a_network_that_fails_20_times_is_no_restart",
            exact::a_network_that_fails_at_first_is_no_restart,
        ),
        on_stage("an_event_that_expired_is_not_told_again", writes::an_event_that_expired_is_not_told_again),
        on_stage("rows_and_events_equal_the_kills", chaos::rows_and_events_equal_the_kills),
        on_stage("a_killed_leader_is_followed_within_15_s", failover::a_killed_leader_is_followed),
        on_stage("a_storm_is_summed_up", failover::a_storm_is_summed_up),
        on_stage("a_restart_is_forgotten_with_one_write", writes::a_restart_is_forgotten_with_one_write),
        on_stage("without_the_api_server_both_wait_and_say_so", outages::without_the_api_server),
        on_stage("without_the_right_to_write_an_agent_says_so", outages::without_the_right_to_write),
        on_stage("with_an_older_crd_an_agent_says_so", outages::with_an_older_crd),
        on_stage("without_the_crd_both_wait_and_say_so", outages::without_the_crd),
    ]);
    let more =
        [&hostile::STORIES[..], &sight::STORIES, &blame::STORIES, &limits::STORIES, &releases::STORIES];
    for (name, told) in more.concat() {
        tests.push(on_stage(name, told));
    }
    // Of all that was done before.
    tests.push(on_stage("every_call_is_in_the_table", writes::every_call_is_in_the_table));
    tests.push(on_stage(
        "uninstall_leaves_the_crd_and_nothing_else",
        uninstall::leaves_the_crd_and_nothing_else,
    ));
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let conclusion = libtest_mimic::run(&arguments, tests);
    // The node is stopped here; what exits does not drop.
    drop(stage);
    conclusion.exit_code()
}

fn trial(
    stage: &Arc<Stage>,
    name: &str,
    test: impl FnOnce(&Cluster) -> Result<()> + Send + 'static,
) -> Trial {
    let stage = Arc::clone(stage);
    Trial::ignorable_test(name, move || match prerequisites::missing() {
        Some(lack) => Ok(Completion::ignored_with(lack)),
        None => stage
            .play(test)
            .map(|()| Completion::Completed)
            .map_err(|error| Failed::from(format!("{error:#}"))),
    })
}

/// A test by its name.
type Story = (&'static str, fn(&Cluster) -> Result<()>);

/// A step of the story, told to nobody unless it fails.
fn told(cluster: &Cluster, step: Step) -> Result<()> {
    let mut text = Vec::new();
    let outcome = (step.tell)(&mut Telling::new(&cluster.node, &mut text));
    outcome.with_context(|| format!("{}\n", String::from_utf8_lossy(&text)))
}

/// The cluster, from the first test that needs it on; or why there is none.
#[derive(Default)]
struct Stage(Mutex<Option<Result<Cluster, String>>>);

/// A node with the chart installed.
struct Cluster {
    node: Node,
    /// Names of all that there was before.
    before: BTreeSet<String>,
}

impl Stage {
    fn play(&self, test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
        let mut cluster = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cluster.is_none() {
            *cluster = Some(Cluster::new().map_err(|error| format!("{error:#}")));
        }
        let cluster = cluster.as_ref().context("no cluster")?.as_ref().map_err(|error| anyhow!("{error}"))?;
        test(cluster).with_context(|| cluster.logs())
    }
}

impl Cluster {
    fn new() -> Result<Self> {
        let images = [
            Image::Pause,
            Image::SandboxHealth,
            Image::Busybox,
            Image::Nginx,
            Image::OtherPause,
            Image::HostilePause,
        ];
        let node = Node::start("stories", &Setup::prepare(&images)?)?;
        node.kubectl(["create", "namespace", RELEASE_NAMESPACE])?;
        // Made by the control plane in each namespace, in its own time.
        for made in ["serviceaccount/default", "configmap/kube-root-ca.crt"] {
            wait::until(made, PATIENCE, || node.kubectl(["-n", RELEASE_NAMESPACE, "get", made]))?;
        }
        let before = uninstall::census(&node)?;
        install_chart(&node)?;
        Ok(Self { node, before })
    }

    /// What agent and controller said last, for a failed test.
    fn logs(&self) -> String {
        let selector = "app.kubernetes.io/name=sandbox-health";
        let said =
            self.node.kubectl(["-n", RELEASE_NAMESPACE, "logs", "-l", selector, "--prefix", "--tail=15"]);
        format!("logs of the components: {}\n{}\n", self.node.log_dir().display(), said.unwrap_or_default())
    }
}
