//! What users are promised, on a real Kubernetes: the story, and what else happens to sandboxes, agents and controllers.
//! One node serves all of it, so the tests run one after the other, in this order; each can be run alone, too, but for the
//! story's steps and the quiet minute, which stand on each other. They need root; elsewhere they are reported as ignored.

mod blame;
mod hostile;
mod outages;
mod pauses;
mod restarts;
mod rows;
mod security;
mod sight;
mod uninstall;

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
    let [installed, shared, rest @ ..] =
        STEPS.map(|step| trial(&stage, step.name, move |cluster| told(cluster, step)));
    let mut tests = vec![installed, shared];
    // Before anything else happens to the pod of the story.
    tests.push(on_stage("a_quiet_minute_has_no_writes", rows::a_quiet_minute_has_no_writes));
    tests.extend(rest);
    tests.extend([
        on_stage("the_agent_has_no_privilege", rows::the_agent_has_no_privilege),
        on_stage("each_account_has_its_rights_and_no_others", security::each_account_has_its_rights),
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
        on_stage("restarting_the_agent_loses_and_repeats_nothing", restarts::restarting_the_agent),
        on_stage("restarting_the_controller_loses_and_repeats_nothing", restarts::restarting_the_controller),
        on_stage("without_the_api_server_both_wait_and_say_so", outages::without_the_api_server),
        on_stage("without_the_crd_both_wait_and_say_so", outages::without_the_crd),
    ]);
    for (name, told) in [&hostile::STORIES[..], &sight::STORIES, &blame::STORIES].concat() {
        tests.push(on_stage(name, told));
    }
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
