//! Scenarios: tests on a real cluster with the chart installed. A group of them shares one cluster and runs one after the other in
//! its own process, so groups can run side by side. What a scenario does is in `tests/scenarios`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use libtest_mimic::Arguments;

use crate::build::{Image, Setup, preflight, project_file};
use crate::cluster::{self, Node};
use crate::demo::{Reporter, Step};
use crate::doc_blocks;
use crate::host::retry::{self, TIMEOUT};
use crate::kube::install_chart;
use crate::names::RELEASE_NAMESPACE;
use crate::trial::trial;

/// After this number of consecutive failures the rest of a group is not run: the cluster or the build is broken, and each test would only
/// wait for its timeouts.
const FAILURES_IN_A_ROW: u32 = 3;

/// A cluster with the chart installed.
pub struct Cluster {
    /// Its node, which runs the control plane, too.
    pub node: Arc<Node>,
    /// Names of all objects before the chart was installed.
    pub objects_before: std::collections::BTreeSet<String>,
}

/// A test by its name.
pub type Scenario<C = Cluster> = (&'static str, fn(&C) -> Result<()>);

type Test<C> = Box<dyn FnOnce(&C) -> Result<()> + Send>;

/// The environment that the scenarios of a group share.
pub trait Environment: Sized + Send + 'static {
    /// Why this machine cannot run it; `None` if it can.
    fn missing() -> Option<String>;

    /// Starts it, for the first scenario that needs it.
    ///
    /// # Errors
    ///
    /// When it does not start.
    fn start(name: &str) -> Result<Self>;

    /// Text for the error of a failed scenario: where the logs are.
    fn logs(&self) -> String;
}

/// Scenarios that share a cluster.
pub struct Group<C = Cluster> {
    name: &'static str,
    tests: Vec<(String, Test<C>)>,
}

impl<C: Environment> Group<C> {
    /// A group whose cluster has this name; its logs are kept under it.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, tests: vec![] }
    }

    /// Adds scenarios, in the order in which they run.
    #[must_use]
    pub fn with(mut self, scenarios: &[Scenario<C>]) -> Self {
        for &(name, test) in scenarios {
            self.tests.push((name.to_owned(), Box::new(test)));
        }
        self
    }

    /// Runs the scenarios that the command line selects.
    #[must_use]
    pub fn run(self) -> ExitCode {
        cluster::run_if_node_process();
        let stage = Arc::new(Stage {
            name: self.name,
            state: Mutex::new(State { cluster: None, failures_in_a_row: 0 }),
        });
        let tests = self.tests.into_iter().map(|(name, test)| {
            let stage = Arc::clone(&stage);
            trial(&name, C::missing, move || stage.run(test))
        });
        let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
        let conclusion = libtest_mimic::run(&arguments, tests.collect());
        // Exiting drops no values, so the cluster is stopped here.
        drop(stage);
        conclusion.exit_code()
    }
}

impl Group {
    /// Adds steps of the demo, and a comparison of their output with the samples of the documentation. What they print is shown
    /// only when they fail.
    #[must_use]
    pub fn with_steps(mut self, steps: &'static [Step]) -> Self {
        let transcript = Arc::new(Mutex::new(String::new()));
        for &step in steps {
            let transcript = Arc::clone(&transcript);
            let test = move |cluster: &Cluster| run_step(cluster, step, &transcript);
            self.tests.push((step.name.to_owned(), Box::new(test)));
        }
        let test = move |cluster: &Cluster| {
            // Alone, without the steps before it.
            if transcript.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                steps.iter().try_for_each(|&step| run_step(cluster, step, &transcript))?;
            }
            compare_samples(&transcript.lock().unwrap_or_else(PoisonError::into_inner))
        };
        self.tests.push(("documented_samples_are_output_of_the_demo".to_owned(), Box::new(test)));
        self
    }
}

fn run_step(cluster: &Cluster, step: Step, transcript: &Mutex<String>) -> Result<()> {
    let mut text = Vec::new();
    let outcome = (step.run)(&mut Reporter::new(&cluster.node, &mut text));
    let text = String::from_utf8_lossy(&text);
    transcript.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    outcome.with_context(|| format!("{text}\n"))
}

fn compare_samples(transcript: &str) -> Result<()> {
    let project = PathBuf::from(project_file(".")?);
    let (mut compared, mut stale) = (0, vec![]);
    for page in doc_blocks::pages(&project)? {
        for sample in doc_blocks::samples(&page, &fs::read_to_string(project.join(&page))?) {
            compared += 1;
            if !sample.is_in(transcript) {
                stale.push(sample.to_string());
            }
        }
    }
    ensure!(compared > 0, "no page has a sample");
    ensure!(stale.is_empty(), "not what the demo prints:\n{}\nThe demo:\n{transcript}", stale.join("\n"));
    Ok(())
}

/// The group's cluster, started by the first test that needs it.
struct Stage<C> {
    name: &'static str,
    state: Mutex<State<C>>,
}

struct State<C> {
    /// The cluster, or why it did not start.
    cluster: Option<Result<C, String>>,
    failures_in_a_row: u32,
}

impl<C: Environment> Stage<C> {
    fn run(&self, test: Test<C>) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failures_in_a_row >= FAILURES_IN_A_ROW {
            bail!(
                "not run: {FAILURES_IN_A_ROW} tests in a row failed on the cluster {:?} before this one",
                self.name
            );
        }
        let cluster = state
            .cluster
            .get_or_insert_with(|| C::start(self.name).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))?;
        let outcome = test(cluster).with_context(|| cluster.logs());
        state.failures_in_a_row = if outcome.is_ok() { 0 } else { state.failures_in_a_row + 1 };
        outcome
    }
}

impl Environment for Cluster {
    fn missing() -> Option<String> {
        preflight::missing()
    }

    fn start(name: &str) -> Result<Self> {
        let node = Arc::new(Node::start(name, &Setup::prepare(&Image::ALL)?)?);
        node.kubectl(["create", "namespace", RELEASE_NAMESPACE])?;
        // The control plane creates them in each namespace, with a delay.
        for object in ["serviceaccount/default", "configmap/kube-root-ca.crt"] {
            retry::until(object, TIMEOUT, || node.kubectl(["-n", RELEASE_NAMESPACE, "get", object]))?;
        }
        let objects_before = crate::kube::object_names(&node)?;
        install_chart(&node)?;
        Ok(Self { node, objects_before })
    }

    /// Where the logs of a failed test are, and the last lines of agent and controller.
    fn logs(&self) -> String {
        let selector = "app.kubernetes.io/name=sandbox-health";
        let lines =
            self.node.kubectl(["-n", RELEASE_NAMESPACE, "logs", "-l", selector, "--prefix", "--tail=15"]);
        format!(
            "cluster {:?}; its logs while it runs: {}, afterwards: {}\n{}\n",
            self.node.name(),
            self.node.log_dir().display(),
            self.node.kept_log_dir().display(),
            lines.unwrap_or_default()
        )
    }
}
