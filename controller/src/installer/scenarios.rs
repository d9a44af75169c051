//! The installer as a whole, on a temporary directory, against an API server and a systemd in memory. A test may end the process after
//! any effect: a write of a Lease, a change of a file, a restart.

use super::preflight::LABEL;
use super::*;
use crate::testing::{Answer, Received, answering};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

const STEP: &str = "sandboxhealth.dev/step";
const SINCE: &str = "sandboxhealth.dev/since";
const PROVEN: &str = "sandboxhealth.dev/proven";
const IMPORTS: &str = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n";
const OLD_IMAGE: &str = "registry.example/pause:0.1.0";
const NEW_IMAGE: &str = "registry.example/pause:0.2.0";
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DaemonSetState {
    Present,
    Terminating,
    Refused(u16),
}

#[derive(Debug)]
struct World {
    begin: (Timestamp, Instant),
    leases: BTreeMap<String, Value>,
    versions: u64,
    daemon_set: DaemonSetState,
    /// Runtime versions by node; a deleted node is absent.
    nodes: BTreeMap<String, &'static str>,
    has_label: bool,
    /// Whether the controller proves each switch.
    is_proving: bool,
    /// Whether the runtime starts, and with the installer's files.
    starts: bool,
    accepts_files: bool,
    /// Whether files can be changed.
    is_writable: bool,
    /// Whether files get times that are ahead of the clock.
    is_ahead: bool,
    effects: Vec<String>,
    /// Number of the effect after which the process is killed.
    kill_after: Option<usize>,
    is_killed: bool,
}

#[derive(Clone)]
struct Cluster(Arc<Mutex<World>>);

impl Cluster {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(World {
            begin: (Timestamp::now(), Instant::now()),
            leases: BTreeMap::new(),
            versions: 0,
            daemon_set: DaemonSetState::Present,
            nodes: ["a", "b"].map(|node| (node.to_owned(), "containerd://2.3.7")).into(),
            has_label: true,
            is_proving: true,
            starts: true,
            accepts_files: true,
            is_writable: true,
            is_ahead: false,
            effects: Vec::new(),
            kill_after: None,
            is_killed: false,
        })))
    }

    fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    fn effects(&self) -> Vec<String> {
        self.with(|world| world.effects.clone())
    }

    fn switch(&self, number: u32) -> Option<Switch> {
        let lease = self.with(|world| world.leases.get(&format!("pause-{number}")).cloned())?;
        Switch::read(&serde_json::from_value(lease).unwrap()).unwrap()
    }

    fn step(&self) -> Option<Step> {
        self.switch(0).map(|switch| switch.step)
    }

    fn client(&self) -> Client {
        let cluster = self.clone();
        answering(move |request| cluster.with(|world| world.answer(request))).0
    }
}

impl World {
    /// Records an effect. Returns whether the process lives on.
    fn effect(&mut self, effect: String) -> bool {
        self.effects.push(effect);
        self.is_killed = self.kill_after == Some(self.effects.len());
        !self.is_killed
    }

    fn answer(&mut self, request: &Received) -> Answer {
        if self.is_killed {
            return Answer::Silence;
        }
        let name = request.path.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
        let refused = |code| Answer::Refused(StatusCode::from_u16(code).unwrap());
        if request.path.contains("/daemonsets/") {
            let mut daemon_set = json!({"metadata": {"name": name, "uid": "u"}});
            match self.daemon_set {
                DaemonSetState::Present => {}
                DaemonSetState::Terminating => {
                    daemon_set["metadata"]["deletionTimestamp"] = json!("2026-11-29T11:00:00Z");
                }
                DaemonSetState::Refused(code) => return refused(code),
            }
            return Answer::Object(daemon_set);
        }
        if request.path.contains("/nodes/") {
            let Some(runtime) = self.nodes.get(&name) else { return refused(404) };
            let labels = if self.has_label { json!({LABEL.0: LABEL.1}) } else { json!({}) };
            return Answer::Object(json!({
                "metadata": {"name": name, "labels": labels},
                "status": {"nodeInfo": {
                    "containerRuntimeVersion": runtime, "kubeletVersion": "v1.37.0", "osImage": "Debian", "architecture": "amd64",
                    "bootID": "", "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "linux",
                    "systemUUID": "",
                }},
            }));
        }
        if matches!(self.daemon_set, DaemonSetState::Refused(401 | 403)) {
            return refused(403);
        }
        self.lease(request, name)
    }

    fn lease(&mut self, request: &Received, name: String) -> Answer {
        let refused = |code| Answer::Refused(StatusCode::from_u16(code).unwrap());
        let is_create = request.method == Method::POST;
        let name =
            if is_create { request.body["metadata"]["name"].as_str().unwrap().to_owned() } else { name };
        self.versions += 1;
        let version = json!(self.versions.to_string());
        let stored = self.leases.get_mut(&name);
        if request.method == Method::GET {
            let Some(lease) = stored else { return refused(404) };
            let annotations = &mut lease["metadata"]["annotations"];
            if self.is_proving && annotations[STEP] == "Switched" {
                annotations[PROVEN] = annotations[SINCE].clone();
                lease["metadata"]["resourceVersion"] = version;
            }
            return Answer::Object(lease.clone());
        }
        match stored {
            Some(_) if is_create => return refused(409),
            None if !is_create => return refused(404),
            Some(lease)
                if lease["metadata"]["resourceVersion"] != request.body["metadata"]["resourceVersion"] =>
            {
                return refused(409);
            }
            _ => {}
        }
        let mut lease = request.body.clone();
        lease["metadata"]["resourceVersion"] = version;
        let before = self.leases.insert(name.clone(), lease.clone());
        let holder = |lease: &Value| lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        let node = [holder(&lease), before.as_ref().map(holder).unwrap_or_default()].concat();
        let node = node.chars().next().unwrap_or_default();
        let step = lease["metadata"]["annotations"][STEP].as_str().unwrap_or("released").to_owned();
        if self.effect(format!("{node} {step}")) { Answer::Object(lease) } else { Answer::Silence }
    }
}

/// A node with its files and its runtime. The times of files are the machine's, so those of the runtime are, too.
#[derive(Clone)]
struct FakeHost {
    cluster: Cluster,
    node: &'static str,
    directory: Directory,
    unit: Arc<Mutex<UnitState>>,
}

impl FakeHost {
    fn killed<T>(&self, result: T) -> io::Result<T> {
        if self.cluster.with(|world| world.is_killed) { Err(io::Error::other("killed")) } else { Ok(result) }
    }

    fn effect(&self, effect: &str) -> io::Result<()> {
        self.cluster.with(|world| world.effect(format!("{} {effect}", self.node)));
        self.killed(())
    }
}

/// The present time, apart from that of files before and after: theirs is that of the last tick of the clock.
fn started_now() -> Timestamp {
    let tick = Duration::from_millis(10);
    std::thread::sleep(tick);
    let now = Timestamp::now();
    std::thread::sleep(tick);
    now
}

impl Host for FakeHost {
    fn now(&self) -> Timestamp {
        let (time, instant) = self.cluster.with(|world| world.begin);
        time + jiff::SignedDuration::try_from(instant.elapsed()).unwrap()
    }

    fn change(&self, directory: &Directory, change: &Change) -> io::Result<()> {
        self.killed(())?;
        let (is_writable, is_ahead) = self.cluster.with(|world| (world.is_writable, world.is_ahead));
        if !is_writable {
            return Err(io::ErrorKind::StorageFull.into());
        }
        directory.change(change)?;
        if is_ahead && change.1.is_some() {
            let file = fs::File::options().write(true).open(directory.path(change.0))?;
            file.set_modified(std::time::SystemTime::now() + HOUR)?;
        }
        let verb = if change.1.is_some() { "write" } else { "remove" };
        self.effect(&format!("{verb} {:?}", change.0))
    }

    async fn state(&self) -> anyhow::Result<UnitState> {
        Ok(self.killed(*self.unit.lock().unwrap())?)
    }

    async fn restart(&self, restart: Restart) -> anyhow::Result<()> {
        self.killed(())?;
        let has_files = self.directory.path(files::Target::DropIn).exists();
        let is_active = self.cluster.with(|world| world.starts && (!has_files || world.accepts_files));
        *self.unit.lock().unwrap() = UnitState { is_active, started: started_now() };
        self.effect(if restart == Restart::Reload { "reload" } else { "restart" })?;
        ensure!(is_active, "containerd.service is failed after RestartUnit");
        Ok(())
    }
}

impl InstallerOptions {
    /// For tests of this module and of its parts.
    pub(super) fn example(runtime: Runtime, image: &str) -> Self {
        Self {
            node_name: "a".to_owned(),
            namespace: "ops".to_owned(),
            runtime,
            image: image.parse().unwrap(),
            pause_version: "0.1.0".to_owned(),
            directory: PathBuf::new(),
            restart: Restart::Systemd,
            system_bus: PathBuf::new(),
            edit_config: false,
            concurrency: 1,
            proof_timeout: Duration::from_secs(180),
            lease: "pause".to_owned(),
            daemonset: "installer".to_owned(),
        }
    }
}

/// A node of the cluster, on which processes of the installer run one after another.
struct TestNode {
    host: FakeHost,
    options: InstallerOptions,
    _directory: tempfile::TempDir,
}

impl TestNode {
    fn new(cluster: &Cluster, node: &'static str, config: Option<&str>) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().to_owned();
        if let Some(config) = config {
            fs::write(path.join("config.toml"), config).unwrap();
        }
        let unit = UnitState { is_active: true, started: started_now() };
        let options = InstallerOptions {
            node_name: node.to_owned(),
            directory: path.clone(),
            ..InstallerOptions::example(Runtime::Containerd, OLD_IMAGE)
        };
        let host = FakeHost {
            cluster: cluster.clone(),
            node,
            directory: Directory { path, runtime: Runtime::Containerd },
            unit: Arc::new(Mutex::new(unit)),
        };
        Self { host, options, _directory: temporary }
    }

    fn process(&self) -> Installer<FakeHost> {
        Installer::new(
            self.options.clone(),
            self.host.cluster.client(),
            Arc::new(Readiness::default()),
            self.host.clone(),
        )
    }

    /// Starts a process, and returns it when its `/readyz` is like this or it is killed.
    async fn run_until(&self, is_expected: impl Fn(&str) -> bool) -> Installer<FakeHost> {
        let mut process = self.process();
        let readiness = process.readiness.clone();
        let expected = async {
            while !is_expected(&readiness.reasons()) && !self.host.cluster.with(|world| world.is_killed) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        let ended = async {
            tokio::select! {
                () = process.run() => {}
                () = expected => {}
            }
        };
        let result = tokio::time::timeout(2 * HOUR, ended).await;
        assert!(result.is_ok(), "{:?}: {}", self.host.cluster.effects(), readiness.reasons());
        process
    }

    async fn run_until_ready(&self) -> Installer<FakeHost> {
        self.run_until(str::is_empty).await
    }

    async fn run_until_failed(&self) -> Installer<FakeHost> {
        self.run_until(|reasons| reasons.contains("the switch failed")).await
    }

    fn files(&self) -> Files {
        self.host.directory.read().unwrap()
    }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(start_paused = true)]
async fn node_is_switched_proven_and_released() {
    let cluster = Cluster::new();
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    let installer = node.run_until_ready().await;
    assert_eq!(cluster.effects(), ["a Switching", "a write DropIn", "a restart", "a Switched", "a released"]);
    assert!(node.files().drop_in.unwrap().contains(OLD_IMAGE));
    assert_eq!(cluster.switch(0), None);
    let owner = cluster.with(|world| world.leases["pause-0"]["metadata"]["ownerReferences"][0].clone());
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("DaemonSet"), &json!("u")));
    // Another start finds nothing to do, and an upgrade, a drain or a reboot changes nothing.
    drop(installer);
    node.run_until_ready().await.stop().await;
    assert_eq!(cluster.effects().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn runtime_that_refuses_the_files_is_reverted() {
    let cluster = Cluster::new();
    cluster.with(|world| world.accepts_files = false);
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    let before = node.files();
    node.run_until_failed().await;
    let expected =
        ["Switching", "write DropIn", "restart", "Reverting", "remove DropIn", "restart", "Failed"];
    assert_eq!(cluster.effects(), expected.map(|effect| format!("a {effect}")));
    assert_eq!(node.files(), before);
    assert!(node.host.unit.lock().unwrap().is_active);
    let switch = cluster.switch(0).unwrap();
    assert_eq!((switch.node.as_str(), switch.step), ("a", Step::Failed));
    assert_eq!(
        switch.message,
        "the runtime does not run with the new files: containerd.service is failed after RestartUnit"
    );
}

#[tokio::test(start_paused = true)]
async fn files_that_cannot_be_written_stop_the_roll_out() {
    let cluster = Cluster::new();
    cluster.with(|world| world.is_writable = false);
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    let before = node.files();
    node.run_until_failed().await;
    assert_eq!(node.files(), before);
    let switch = cluster.switch(0).unwrap();
    let expected = "writing /etc/containerd/conf.d/50-sandbox-health.toml: ";
    assert!(switch.step == Step::Failed && switch.message.starts_with(expected), "{switch:?}");
}

#[tokio::test(start_paused = true)]
async fn proven_node_is_not_switched_again_whatever_the_times_of_its_files() {
    let cluster = Cluster::new();
    cluster.with(|world| world.is_ahead = true);
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    let mut installer = node.run_until_ready().await;
    let run = tokio::time::timeout(HOUR, installer.run()).await;
    assert!(run.is_err());
    assert_eq!(cluster.effects(), ["a Switching", "a write DropIn", "a restart", "a Switched", "a released"]);
}

#[tokio::test(start_paused = true)]
async fn missing_proof_reverts_after_the_timeout() {
    let cluster = Cluster::new();
    cluster.with(|world| world.is_proving = false);
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    let begun = Instant::now();
    node.run_until_failed().await;
    let elapsed = begun.elapsed().as_secs();
    assert!((180..200).contains(&elapsed), "{elapsed}");
    let expected = [
        "Switching",
        "write DropIn",
        "restart",
        "Switched",
        "Reverting",
        "remove DropIn",
        "restart",
        "Failed",
    ];
    assert_eq!(cluster.effects(), expected.map(|effect| format!("a {effect}")));
    assert_eq!(node.files().drop_in, None);
}

/// What must be the same, however often the process was killed.
async fn end_state(kill_after: Option<usize>, scenario: &Scenario) -> (Files, Option<Switch>, usize) {
    let cluster = Cluster::new();
    cluster.with(|world| {
        (world.accepts_files, world.is_proving) = (scenario.accepts_files, scenario.is_proving);
        world.nodes.insert("a".to_owned(), scenario.runtime);
        world.kill_after = kill_after;
    });
    let mut node = TestNode::new(&cluster, "a", scenario.config);
    (node.options.edit_config, node.options.restart) = (true, scenario.restart);
    let is_success = scenario.accepts_files && scenario.is_proving;
    let is_end = |reasons: &str| {
        if is_success { reasons.is_empty() } else { reasons.contains("the switch failed") }
    };
    node.run_until(is_end).await;
    let is_killed = cluster.with(|world| std::mem::take(&mut world.is_killed));
    assert_eq!(is_killed, kill_after.is_some());
    node.run_until(is_end).await;
    let restarts = cluster.effects().iter().filter(|effect| effect.ends_with(" restart")).count();
    let epoch = Timestamp::UNIX_EPOCH;
    let switch = cluster.switch(0).map(|switch| Switch { since: epoch, proven: None, ..switch });
    if is_success {
        assert_eq!(switch, None);
    } else {
        // Nothing is left but an empty directory.
        assert!(!names(&node.options.directory).iter().any(|name| name.contains("sandbox-health")));
    }
    let effects = if kill_after.is_some() { restarts } else { cluster.effects().len() };
    (node.files(), switch, effects)
}

struct Scenario {
    config: Option<&'static str>,
    runtime: &'static str,
    restart: Restart,
    accepts_files: bool,
    is_proving: bool,
    restarts: usize,
}

#[tokio::test(start_paused = true)]
async fn process_that_is_killed_after_any_effect_converges() {
    let switched = Scenario {
        config: Some(IMPORTS),
        runtime: "containerd://2.3.7",
        restart: Restart::Systemd,
        accepts_files: true,
        is_proving: true,
        restarts: 1,
    };
    let edited = Scenario { config: Some("version = 2\n"), ..switched };
    let created = Scenario { config: None, ..switched };
    let containerd1 = Scenario { runtime: "containerd://1.7.28", ..edited };
    let without_restart = Scenario { restart: Restart::None, restarts: 0, ..edited };
    let unproven = Scenario { is_proving: false, restarts: 2, ..edited };
    let unproven1 = Scenario { is_proving: false, restarts: 2, ..containerd1 };
    let uncreated = Scenario { is_proving: false, restarts: 2, ..created };
    // The one that failed may be repeated.
    let refused = Scenario { accepts_files: false, restarts: 3, ..edited };
    for scenario in
        [switched, edited, created, containerd1, without_restart, unproven, unproven1, uncreated, refused]
    {
        let (files, switch, effects) = end_state(None, &scenario).await;
        assert!(effects >= 4, "{effects}");
        for kill_after in 1..=effects {
            let (files_after, switch_after, restarts) = end_state(Some(kill_after), &scenario).await;
            assert_eq!((&files_after, &switch_after), (&files, &switch), "killed after {kill_after}");
            assert!(restarts <= scenario.restarts, "{restarts} restarts, killed after {kill_after}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_are_switched_one_at_a_time() {
    let cluster = Cluster::new();
    let (a, b) = (TestNode::new(&cluster, "a", Some(IMPORTS)), TestNode::new(&cluster, "b", Some(IMPORTS)));
    tokio::join!(a.run_until_ready(), b.run_until_ready());
    let effects = cluster.effects();
    let nodes: Vec<_> = effects.iter().map(|effect| &effect[..1]).collect();
    let (first, second) = nodes.split_at(5);
    assert!(first.iter().all(|node| *node == first[0]), "{effects:?}");
    assert!(second.len() == 5 && second.iter().all(|node| *node != first[0]), "{effects:?}");
}

#[tokio::test(start_paused = true)]
async fn nodes_are_switched_together_with_more_leases() {
    let cluster = Cluster::new();
    cluster.with(|world| world.is_proving = false);
    let (mut a, mut b) =
        (TestNode::new(&cluster, "a", Some(IMPORTS)), TestNode::new(&cluster, "b", Some(IMPORTS)));
    (a.options.concurrency, b.options.concurrency) = (2, 2);
    let waits = |reasons: &str| reasons.contains("waiting for a pod");
    tokio::join!(a.run_until(waits), b.run_until(waits));
    let holders = [0, 1].map(|number| cluster.switch(number).unwrap().node);
    assert!(holders.contains(&"a".to_owned()) && holders.contains(&"b".to_owned()), "{holders:?}");
    // With one Lease only, the holder of the second continues.
    a.options.concurrency = 1;
    b.options.concurrency = 1;
    cluster.with(|world| world.is_proving = true);
    tokio::join!(a.run_until_ready(), b.run_until_ready());
    assert_eq!((cluster.switch(0), cluster.switch(1)), (None, None));
}

#[tokio::test(start_paused = true)]
async fn failure_stops_the_roll_out_until_another_image() {
    let cluster = Cluster::new();
    cluster.with(|world| world.is_proving = false);
    let (mut a, mut b) =
        (TestNode::new(&cluster, "a", Some(IMPORTS)), TestNode::new(&cluster, "b", Some(IMPORTS)));
    a.run_until_failed().await;
    let before = cluster.effects();
    b.run_until(|reasons| reasons.contains("the switch of a failed, so the roll-out stops")).await;
    a.run_until_failed().await;
    assert_eq!(cluster.effects(), before);
    for node in [&mut a, &mut b] {
        node.options.image = NEW_IMAGE.parse().unwrap();
        node.options.pause_version = "0.2.0".to_owned();
    }
    cluster.with(|world| world.is_proving = true);
    b.run_until_ready().await;
    a.run_until_ready().await;
    for node in [a, b] {
        assert!(node.files().drop_in.unwrap().contains(NEW_IMAGE));
    }
}

#[tokio::test(start_paused = true)]
async fn deletion_of_the_failed_lease_tries_again() {
    let cluster = Cluster::new();
    cluster.with(|world| world.is_proving = false);
    let a = TestNode::new(&cluster, "a", Some(IMPORTS));
    a.run_until_failed().await;
    cluster.with(|world| {
        world.leases.clear();
        world.is_proving = true;
    });
    a.run_until_ready().await;
}

#[tokio::test(start_paused = true)]
async fn lease_of_a_deleted_or_unmanaged_node_is_taken() {
    for is_deleted in [true, false] {
        let cluster = Cluster::new();
        cluster.with(|world| world.is_proving = false);
        let (a, b) =
            (TestNode::new(&cluster, "a", Some(IMPORTS)), TestNode::new(&cluster, "b", Some(IMPORTS)));
        a.run_until(|reasons| reasons.contains("waiting for a pod")).await;
        cluster.with(|world| {
            world.is_proving = true;
            world.has_label = is_deleted;
            if is_deleted {
                world.nodes.remove("a");
            }
        });
        let begun = Instant::now();
        b.run_until_ready().await;
        assert!(begun.elapsed() > Duration::from_secs(590), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn refused_node_is_unchanged_and_checked_again() {
    let cluster = Cluster::new();
    let node = TestNode::new(&cluster, "a", Some("version = 3\n"));
    node.run_until(|reasons| reasons.contains("pauseInstaller.editConfig=true")).await;
    assert!(cluster.effects().is_empty());
    assert_eq!(names(&node.options.directory), ["config.toml"]);
    let (corrected, _) = tokio::join!(node.run_until_ready(), async {
        sleep(HOUR).await;
        fs::write(node.options.directory.join("config.toml"), IMPORTS).unwrap();
    });
    assert!(corrected.is_done);
}

#[tokio::test(start_paused = true)]
async fn switch_that_is_refused_later_is_reverted() {
    let cluster = Cluster::new();
    cluster.with(|world| world.is_proving = false);
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    node.run_until(|reasons| reasons.contains("waiting for a pod")).await;
    cluster.with(|world| world.nodes.insert("a".to_owned(), "cri-o://1.36.0"));
    node.run_until(|reasons| reasons.contains("is configured by crio")).await;
    sleep(HOUR).await;
    node.run_until_failed().await;
    assert_eq!(node.files().drop_in, None);
}

#[tokio::test(start_paused = true)]
async fn runtime_that_is_down_is_reverted_but_not_judged() {
    let cluster = Cluster::new();
    cluster.with(|world| world.is_proving = false);
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    node.run_until(|reasons| reasons.contains("waiting for a pod")).await;
    cluster.with(|world| world.nodes.insert("a".to_owned(), "containerd://Unknown"));
    let effects = cluster.effects();
    node.run_until(|reasons| reasons.contains("which may be starting")).await;
    assert_eq!(cluster.effects(), effects);
    cluster.with(|world| {
        let annotations = &mut world.leases.get_mut("pause-0").unwrap()["metadata"]["annotations"];
        annotations[STEP] = json!("Reverting");
    });
    node.run_until(|_| cluster.step() == Some(Step::Failed)).await;
    assert_eq!(node.files().drop_in, None);
}

#[tokio::test(start_paused = true)]
async fn files_changed_later_are_reported_and_kept() {
    let cluster = Cluster::new();
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    let mut installer = node.run_until_ready().await;
    let effects = cluster.effects();
    fs::remove_file(node.host.directory.path(files::Target::DropIn)).unwrap();
    installer.step().await.unwrap();
    assert!(installer.readiness.reasons().contains("were changed after the switch"));
    assert_eq!(cluster.effects(), effects);
    // The next process switches it again, as the message announces.
    node.run_until_ready().await;
    assert_eq!(cluster.effects().len(), 2 * effects.len());
}

#[tokio::test(start_paused = true)]
async fn written_files_are_loaded_when_restarts_are_permitted() {
    let cluster = Cluster::new();
    let mut node = TestNode::new(&cluster, "a", Some(IMPORTS));
    node.options.restart = Restart::None;
    node.run_until_ready().await;
    assert_eq!(cluster.effects(), ["a Switching", "a write DropIn", "a released"]);
    node.options.restart = Restart::Systemd;
    node.run_until_ready().await;
    assert_eq!(cluster.effects()[3..], ["a Switching", "a restart", "a Switched", "a released"]);
}

#[tokio::test(start_paused = true)]
async fn crio_is_reloaded() {
    let cluster = Cluster::new();
    cluster.with(|world| world.nodes.insert("a".to_owned(), "cri-o://1.36.0"));
    let mut node = TestNode::new(&cluster, "a", None);
    (node.options.runtime, node.options.restart) = (Runtime::Crio, Restart::Reload);
    node.host.directory.runtime = Runtime::Crio;
    node.run_until_ready().await;
    let expected = ["a Switching", "a write DropIn", "a reload", "a Switched", "a released"];
    assert_eq!(cluster.effects(), expected);
    cluster.with(|world| world.has_label = false);
    node.process().stop().await;
    assert_eq!(cluster.effects()[5..], ["a remove DropIn", "a reload"]);
}

#[tokio::test(start_paused = true)]
async fn terminating_daemon_set_gets_no_lease() {
    let cluster = Cluster::new();
    cluster.with(|world| world.daemon_set = DaemonSetState::Terminating);
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    let run = tokio::time::timeout(HOUR, node.run_until_ready()).await;
    assert!(run.is_err() && cluster.effects().is_empty(), "{:?}", cluster.effects());
}

#[tokio::test(start_paused = true)]
async fn node_is_restored_at_the_end_only_if_it_is_no_longer_managed() {
    use DaemonSetState::{Present, Refused, Terminating};
    for (daemon_set, has_label, is_restored) in [
        (Present, true, false),
        (Refused(404), true, true),
        (Terminating, true, true),
        (Refused(401), true, true),
        (Refused(403), true, true),
        (Refused(500), true, false),
        (Refused(503), false, false),
        (Present, false, true),
    ] {
        let cluster = Cluster::new();
        let node = TestNode::new(&cluster, "a", Some(IMPORTS));
        let before = node.files();
        let mut installer = node.run_until_ready().await;
        cluster.with(|world| (world.daemon_set, world.has_label) = (daemon_set, has_label));
        let begun = Instant::now();
        installer.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", begun.elapsed());
        assert_eq!(node.files() == before, is_restored, "{daemon_set:?} {has_label}");
        let expected: &[&str] = if is_restored { &["a remove DropIn", "a restart"] } else { &[] };
        assert_eq!(&cluster.effects()[5..], expected, "{daemon_set:?} {has_label}");
    }
}

#[tokio::test(start_paused = true)]
async fn node_is_restored_once_the_api_server_answers_and_the_files_can_be_changed() {
    let cluster = Cluster::new();
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    let before = node.files();
    let mut installer = node.run_until_ready().await;
    cluster.with(|world| {
        world.daemon_set = DaemonSetState::Refused(503);
        world.is_writable = false;
    });
    let recover = async {
        sleep(Duration::from_secs(40)).await;
        cluster.with(|world| world.daemon_set = DaemonSetState::Terminating);
        sleep(Duration::from_secs(60)).await;
        cluster.with(|world| world.is_writable = true);
    };
    tokio::join!(installer.stop(), recover);
    assert_eq!(node.files(), before);
    assert_eq!(cluster.effects()[5..], ["a remove DropIn", "a restart"]);
}

#[tokio::test(start_paused = true)]
async fn restore_whose_restart_fails_is_retried() {
    let cluster = Cluster::new();
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    let mut installer = node.run_until_ready().await;
    cluster.with(|world| (world.has_label, world.starts) = (false, false));
    let recover = async {
        sleep(Duration::from_secs(15)).await;
        cluster.with(|world| world.starts = true);
    };
    tokio::join!(installer.stop(), recover);
    assert_eq!(cluster.effects()[5..], ["a remove DropIn", "a restart", "a restart", "a restart"]);
    assert!(node.host.unit.lock().unwrap().is_active);
}

#[tokio::test(start_paused = true)]
async fn edited_config_is_restored_to_the_byte() {
    let config = "# by hand\r\nversion = 2\r\n";
    let cluster = Cluster::new();
    let mut node = TestNode::new(&cluster, "a", Some(config));
    node.options.edit_config = true;
    let mut installer = node.run_until_ready().await;
    cluster.with(|world| world.has_label = false);
    installer.stop().await;
    assert_eq!(fs::read_to_string(node.options.directory.join("config.toml")).unwrap(), config);
    assert_eq!(names(&node.options.directory), ["conf.d", "config.toml"]);
    assert!(names(&node.options.directory.join("conf.d")).is_empty());
}

#[tokio::test(start_paused = true)]
async fn unmanaged_node_frees_its_lease_unless_it_failed() {
    for is_failed in [false, true] {
        let cluster = Cluster::new();
        cluster.with(|world| world.is_proving = false);
        let node = TestNode::new(&cluster, "a", Some(IMPORTS));
        let mut installer = match is_failed {
            true => node.run_until_failed().await,
            false => node.run_until(|reasons| reasons.contains("waiting for a pod")).await,
        };
        cluster.with(|world| world.has_label = false);
        installer.stop().await;
        assert_eq!(node.files().drop_in, None);
        assert_eq!(cluster.step(), is_failed.then_some(Step::Failed));
        assert_eq!(cluster.switch(0).is_some(), is_failed);
    }
}

#[tokio::test(start_paused = true)]
async fn managed_node_keeps_its_switch_over_a_restart_of_the_pod() {
    let cluster = Cluster::new();
    cluster.with(|world| world.is_proving = false);
    let node = TestNode::new(&cluster, "a", Some(IMPORTS));
    node.run_until(|reasons| reasons.contains("waiting for a pod")).await.stop().await;
    assert_eq!(cluster.step(), Some(Step::Switched));
    cluster.with(|world| world.is_proving = true);
    node.run_until_ready().await;
    assert_eq!(cluster.effects().iter().filter(|effect| *effect == "a restart").count(), 1);
}
