//! The tracker with a directory for /proc: what it finds, and which requests are due. The pauses are real processes, because only those
//! have pidfds.

use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use pause_status::{CountError, Separator, Status};
use serde_json::{Value, json};

use super::super::report::Request;
use super::*;
use crate::crd::{RestartReason, SandboxHealth, SandboxHealthStatus, Source};
use crate::health::Metrics as _;
use crate::k8s::error::ApiError;
use crate::k8s::pod::{ContainerStates, KubeletMessage, PidNamespaces, Stage, WatchPods};
use crate::procfs::fake::{CONTAINER, FakePause, FakeProc, FakeProcess, NEXT_SANDBOX, SANDBOX, UID};
use crate::procfs::pidfd::ExitStatus;
use crate::procfs::scanner::{Scanner, Scope};
use rustix::io::Errno;

/// A container that started after [`CONTAINER`].
const NEXT_CONTAINER: &str = "3333333333333333333333333333333333333333333333333333333333333333";
/// Clock ticks of a process that started a second ago: the machine was booted an hour ago.
const NEW: u64 = 359_900;
/// Start time of the wall clock.
const EPOCH: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn pod(stage: Stage) -> NodePod {
    let mut pod: NodePod = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": UID},
        "spec": {"shareProcessNamespace": true, "nodeName": "n"},
    }))
    .unwrap();
    pod.states.is_running = true;
    NodePod { stage, has_sandbox: true, ..pod }
}

/// A running pod whose container is in its status.
fn unshared() -> NodePod {
    let containers = HashMap::from([(CONTAINER.to_owned(), "app".to_owned())]);
    NodePod { pid_namespaces: Some(PidNamespaces::PerContainer), containers, ..pod(Stage::Running) }
}

fn object(uid: &str, status: Value) -> SandboxHealth {
    serde_json::from_value(json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
        "metadata": {"name": "web", "namespace": "shop", "uid": uid},
        "spec": {"podName": "web", "podUID": UID, "nodeName": "n"},
        "status": status,
    }))
    .unwrap()
}

/// Three restarts, and a sandbox that is gone by now.
fn written() -> Value {
    json!({"restarts": 3, "sandbox": {"id": "gone", "startedAt": "2026-11-24T08:00:00Z", "bootID": "11111111-2222-4333-8444-555555555555"}})
}

/// A node with one pod.
struct Node {
    fake: FakeProc,
    scanner: Scanner,
    tracker: Tracker,
    pods: Writer<NodePod>,
    objects: Writer<GuardedObject>,
    metrics: AgentMetrics,
    start: Instant,
    /// Seconds by which the wall clock was set.
    clock_step: i64,
    pauses: Vec<FakePause>,
    waits: Vec<ExitWait>,
}

/// Beyond every PID that Linux gives out (2^22, `pid_max` of proc(5)): the pauses are real processes with any PID.
const PARENT: i32 = 5_000_000;
/// PID 1 of a container with a PID namespace of its own.
const CONTAINER_INIT: i32 = 6_000_000;

impl Node {
    fn new(pod: NodePod, object: Option<SandboxHealth>) -> Self {
        let fake = FakeProc::new();
        fake.add(FakeProcess::default());
        let mut node = Self {
            scanner: Scanner::new(fake.proc()),
            tracker: Tracker::new(fake.proc(), ZombieThreshold(5), WatchPods::All.into()),
            pods: Writer::default(),
            objects: Writer::default(),
            fake,
            metrics: AgentMetrics::default(),
            start: Instant::now(),
            clock_step: 0,
            pauses: Vec::new(),
            waits: Vec::new(),
        };
        if let Some(object) = object {
            node.apply(object, 0);
        }
        node.apply_pod(pod);
        node
    }

    fn running(object: Option<SandboxHealth>) -> Self {
        Self::new(pod(Stage::Running), object)
    }

    /// A running pod with an object that has no status yet.
    fn reporting() -> Self {
        Self::running(Some(object("o-1", json!({}))))
    }

    fn at(&self, ms: u64) -> Now {
        let step = jiff::SignedDuration::from_secs(self.clock_step);
        Now {
            instant: self.start + Duration::from_millis(ms),
            time: EPOCH + Duration::from_millis(ms) + step,
        }
    }

    /// A live pause; returns its PID.
    fn start_pause(&mut self, sandbox: &str, start_ticks: u64) -> i32 {
        let pause = self.fake.start_pause(sandbox, start_ticks);
        let pid = pause.pid();
        self.pauses.push(pause);
        pid
    }

    /// This pause writes its status.
    fn write_status(&self, pid: i32, zombies: u32) {
        let processes = 2 + zombies;
        self.write_pause_status(pid, Status { processes, threads: processes, zombies, ..Status::default() });
    }

    fn write_pause_status(&self, pid: i32, status: Status<'_>) {
        let mut buffer = [0; pause_status::ROOM];
        let status = Status { version: "0.1.0", ..status };
        let len = status.encode(Separator::Nul, &mut buffer);
        let cmdline = [b"/pause\0", &buffer[..len]].concat();
        std::fs::write(self.fake.path().join(format!("{pid}/cmdline")), cmdline).unwrap();
    }

    /// The pause of [`SANDBOX`] exits, and its pidfd reports it.
    fn end_pause(&mut self, pid: i32, ms: u64, status: Option<ExitStatus>) {
        self.fake.remove(pid);
        let Now { time, instant } = self.at(ms);
        let evidence = Evidence { status, ..Evidence::default() };
        self.tracker.pause_exited(UID, SANDBOX, time, evidence, instant);
    }

    /// PID 1 of a container with a PID namespace of its own.
    fn start_container(&self, pid: i32, id: &str, start_ticks: u64) {
        let pids = format!("{pid} 1");
        let container = Some(id);
        self.fake.add(FakeProcess { pid, pids: &pids, container, start_ticks, ..FakeProcess::default() });
    }

    /// A shell in the pod with this number of zombies.
    fn start_parent(&self, pid: i32, comm: &str, zombies: i32) {
        self.start_parent_with_pids(pid, &format!("{pid} 7"), comm, zombies);
    }

    fn start_parent_with_pids(&self, pid: i32, pids: &str, comm: &str, zombies: i32) {
        self.fake.add(FakeProcess { pid, comm, pids, container: Some(CONTAINER), ..FakeProcess::default() });
        for zombie in 0..zombies {
            let zombie =
                FakeProcess { pid: pid + 1 + zombie, parent: pid, state: 'Z', ..FakeProcess::default() };
            self.fake.add(zombie);
        }
    }

    /// Scans all processes and reads all sandboxes, as the agent does every few seconds. Returns the due requests.
    fn tick(&mut self, ms: u64) -> Vec<Request> {
        let now = self.at(ms);
        let mut scan = self.scanner.scan(Scope::All, &HashSet::new()).unwrap();
        let processes = std::mem::take(&mut scan.processes);
        self.waits.extend(self.tracker.scanned(scan, now));
        self.tracker.observe(now, &self.metrics);
        self.tracker.counted(&ProcessCounts::of(&processes), now, &self.metrics);
        self.due(ms)
    }

    fn due(&mut self, ms: u64) -> Vec<Request> {
        let now = self.at(ms).instant;
        let mut due = Vec::new();
        for pod in self.tracker.pods.values_mut() {
            if let Some(request) = pod.request_due(now) {
                pod.report.requested(now);
                due.push(request);
            }
        }
        due
    }

    /// The status to write, which must be the only request.
    fn due_write(&mut self, ms: u64) -> Box<SandboxHealthStatus> {
        let mut due = self.tick(ms);
        assert_eq!(due.len(), 1, "{due:?}");
        let Some(Request::WriteStatus(status)) = due.pop() else { panic!("{due:?}") };
        status
    }

    fn answer(&mut self, request: Request, result: Result<(), ApiError>, ms: u64) {
        let now = self.at(ms).instant;
        self.tracker.pods.get_mut(UID).unwrap().report.answered(request, &result, now);
    }

    fn write(&mut self, ms: u64) -> Box<SandboxHealthStatus> {
        let status = self.due_write(ms);
        self.answer(Request::WriteStatus(status.clone()), Ok(()), ms);
        status
    }

    fn apply(&mut self, object: SandboxHealth, ms: u64) {
        self.object_event(Event::Apply(DeserializeGuard(Ok(object))), ms);
    }

    fn delete(&mut self, object: SandboxHealth, ms: u64) {
        self.object_event(Event::Delete(DeserializeGuard(Ok(object))), ms);
    }

    fn object_event(&mut self, event: Event<GuardedObject>, ms: u64) {
        self.objects.apply_watcher_event(&event);
        self.sync(ms);
    }

    fn apply_pod(&mut self, pod: NodePod) {
        self.apply_pod_at(pod, 0);
    }

    fn apply_pod_at(&mut self, pod: NodePod, ms: u64) {
        self.pods.apply_watcher_event(&Event::Apply(pod));
        self.sync(ms);
    }

    fn sync(&mut self, ms: u64) {
        let now = self.at(ms);
        self.tracker.sync(&self.pods.as_reader(), &self.objects.as_reader(), now);
    }

    /// Counts the writes while a parent has 6 and `low` zombies alternately, for 10 s each.
    fn writes_of_swinging_zombies(&mut self, low: i32, rounds: u64) -> usize {
        let mut writes = 0;
        for round in 1..=rounds {
            let zombies = if round % 2 == 0 { low } else { 6 };
            self.start_parent(PARENT, "sh", zombies);
            (zombies..6).for_each(|gone| self.fake.remove(PARENT + 1 + gone));
            for request in self.tick(round * 10_000) {
                assert!(matches!(request, Request::WriteStatus(_)), "{request:?}");
                self.answer(request, Ok(()), round * 10_000);
                writes += 1;
            }
        }
        writes
    }

    fn failure(&self) -> Option<&str> {
        self.status().read_failure.as_ref().map(|failure| failure.reason.as_str())
    }

    fn status(&self) -> &SandboxHealthStatus {
        self.tracker.pods[UID].sandbox.status()
    }

    fn metric(&self, start: &str) -> Option<String> {
        let text = self.metrics.render().unwrap();
        text.lines().find(|line| line.starts_with(start)).map(str::to_owned)
    }
}

fn refused(code: u16, reason: &str) -> ApiError {
    kube::Error::Api(Box::new(kube::core::Status::failure("no", reason).with_code(code))).into()
}

fn broken() -> ApiError {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    kube::Error::Service(Box::new(refused)).into()
}

#[test]
fn pod_continues_from_its_object() {
    let mut node = Node::running(Some(object("o-1", written())));
    assert_eq!(node.tick(0), []);
    node.start_pause(SANDBOX, 1200);
    let status = node.due_write(1);
    assert_eq!((status.restarts, status.restarts_at_least), (4, Some(true)));
}

#[test]
fn object_may_be_seen_after_its_pod() {
    let mut node = Node::running(None);
    node.apply(object("o-1", written()), 0);
    node.start_pause(SANDBOX, 1200);
    assert_eq!(node.due_write(1).restarts, 4);
}

#[test]
fn object_of_another_namespace_cannot_claim_the_pod() {
    let mut foreign = object("o-2", json!({"restarts": 77}));
    foreign.metadata.namespace = Some("elsewhere".to_owned());
    for is_first in [true, false] {
        let mut node = if is_first { Node::running(Some(foreign.clone())) } else { Node::running(None) };
        node.apply(foreign.clone(), 0);
        node.apply(object("o-1", written()), 0);
        node.start_pause(SANDBOX, 1200);
        assert_eq!(node.due_write(1).restarts, 4);
    }
}

#[test]
fn object_of_an_earlier_pod_is_not_written_to() {
    let mut earlier = object("o-0", written());
    earlier.spec.pod_uid = "another-pod".to_owned();
    let mut node = Node::running(Some(earlier.clone()));
    node.start_pause(SANDBOX, 1200);
    assert_eq!((node.tick(0), node.status().restarts), (vec![], 0));
    node.delete(earlier, 0);
    node.apply(object("o-1", json!({})), 1);
    assert_eq!(node.due_write(1).restarts, 0);
}

#[test]
fn object_that_was_deleted_or_replaced_is_written_again() {
    for is_deleted_first in [true, false] {
        let mut node = Node::running(Some(object("o-1", written())));
        node.start_pause(SANDBOX, 1200);
        let status = node.write(0);
        node.apply(object("o-1", json!(status)), 1_000);
        assert_eq!(node.tick(1_000), [], "our own write is no change");
        if is_deleted_first {
            node.delete(object("o-1", json!({})), 2_000);
            assert_eq!(node.tick(2_000), []);
        }
        node.apply(object("o-2", json!({})), 3_000);
        assert_eq!(node.write(3_000).restarts, 4);
    }
}

#[test]
fn object_missing_from_a_list_is_written_again_when_it_is_back() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.write(0);
    node.apply(object("o-1", json!({})), 1_000);
    assert_eq!(node.tick(1_000), []);
    for event in [Event::Init, Event::InitDone] {
        node.object_event(event, 1_000);
    }
    node.apply(object("o-1", json!({})), 2_000);
    node.write(2_000);
}

#[test]
fn object_that_cannot_be_deserialized_is_skipped() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.write(0);
    let mut newer = json!(object("o-1", json!({})));
    newer["status"]["restarts"] = json!("many");
    node.object_event(Event::Apply(serde_json::from_value(newer).unwrap()), 1_000);
    assert_eq!(node.tick(1_000), []);
    node.start_parent(PARENT, "sh", 9);
    assert_eq!(node.write(2_000).processes.as_ref().unwrap().zombies, 9);
}

#[test]
fn unhealthy_pod_without_object_gets_one_after_the_controller_had_time() {
    let mut node = Node::running(None);
    node.start_pause(SANDBOX, 1200);
    node.start_parent(PARENT, "sh", 9);
    assert_eq!((node.tick(0), node.tick(9_000)), (vec![], vec![]));
    assert_eq!(node.tick(10_000), [Request::CreateObject]);
    // Another object of the name is in the way, or the controller was faster.
    node.answer(Request::CreateObject, Err(refused(409, "AlreadyExists")), 10_000);
    assert_eq!(node.tick(10_500), []);
    node.apply(object("o-1", json!({})), 11_000);
    assert_eq!(node.due_write(11_000).processes.as_ref().unwrap().zombies, 9);
}

#[test]
fn unshared_pod_gets_an_object_only_once_it_is_unhealthy() {
    let mut node = Node::new(unshared(), None);
    node.start_pause(SANDBOX, 1200);
    node.start_container(CONTAINER_INIT, CONTAINER, 1300);
    for ms in [0, 20_000, 400_000] {
        assert_eq!(node.tick(ms), []);
    }
    node.start_parent(PARENT, "sh", 9);
    assert_eq!(node.tick(420_000), [Request::CreateObject]);
    let parent = &node.status().zombie_parents[0];
    assert_eq!((parent.pid, parent.zombies), (7, 9));
    node.answer(Request::CreateObject, Ok(()), 420_000);
    assert_eq!(node.tick(420_100), [], "the watch has yet to show it");
    node.apply(object("o-1", json!({})), 420_200);
    assert_eq!(node.write(420_200).processes.as_ref().unwrap().zombies, 9);
}

/// As on CRI-O.
#[test]
fn unshared_pod_without_pause_is_counted() {
    let mut node = Node::new(unshared(), None);
    node.start_container(CONTAINER_INIT, CONTAINER, 1300);
    for ms in [0, 100_000] {
        assert_eq!(node.tick(ms), []);
        assert!(!node.tracker.lacks_sandbox());
        assert_eq!((node.failure(), &node.status().sandbox), (None, &None));
    }
    node.start_parent(PARENT, "sh", 9);
    assert_eq!(node.tick(110_000), [Request::CreateObject]);
    node.answer(Request::CreateObject, Ok(()), 110_000);
    node.apply(object("o-1", json!({})), 110_100);
    let status = node.write(110_200);
    assert_eq!((status.processes.as_ref().unwrap().zombies, &status.sandbox), (9, &None));
}

#[test]
fn restart_of_unshared_pod_is_counted_from_its_first_observation() {
    let mut node = Node::new(unshared(), None);
    let pid = node.start_pause(SANDBOX, 1200);
    node.start_container(CONTAINER_INIT, CONTAINER, 1300);
    node.tick(0);
    node.end_pause(pid, 1_000, None);
    node.fake.remove(CONTAINER_INIT);
    assert!(node.tracker.lacks_sandbox(), "its successor is searched for");
    node.start_pause(NEXT_SANDBOX, 1400);
    node.start_container(CONTAINER_INIT, NEXT_CONTAINER, 1500);
    assert_eq!((node.tick(2_000), node.status().restarts), (vec![], 0), "one of them is a container");
    let mut restarted = unshared();
    restarted.containers.insert(NEXT_CONTAINER.to_owned(), "app".to_owned());
    node.apply_pod(restarted);
    assert_eq!(node.tick(3_000), [Request::CreateObject]);
    assert_eq!((node.status().restarts, node.status().history[0].reason), (1, RestartReason::PauseExited));
}

#[test]
fn unshared_container_that_just_started_is_no_sandbox() {
    // The pod has a pause or, as on CRI-O, has none; another container runs, or has exited.
    for (has_pause, has_other) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut node = Node::new(unshared(), None);
        if has_pause {
            node.start_pause(SANDBOX, 1200);
        }
        if has_other {
            node.start_container(CONTAINER_INIT, CONTAINER, 1300);
        }
        node.start_container(CONTAINER_INIT + 1, NEXT_CONTAINER, 1400);
        for ms in [0, 5_000] {
            node.tick(ms);
            let sandbox = node.status().sandbox.as_ref().map(|sandbox| sandbox.id.as_str());
            let is_proven = has_pause && has_other;
            assert_eq!(sandbox, is_proven.then_some(SANDBOX), "{has_pause} {has_other}");
            assert_eq!(node.status().restarts, 0);
        }
    }
}

#[test]
fn pod_that_its_runtime_class_runs_without_pause_is_no_failure() {
    let mut node =
        Node::new(NodePod { has_runtime_class: true, ..pod(Stage::Running) }, Some(object("o-1", json!({}))));
    // What the runtime itself runs in the pod's cgroup.
    node.start_parent_with_pids(PARENT, &PARENT.to_string(), "exe", 0);
    let readable = "pod_sandbox_readable{";
    assert_eq!((node.tick(0), node.tracker.lacks_sandbox()), (vec![], true));
    assert_eq!(node.write(30_000).read_failure.as_ref().unwrap().reason, "NoPauseProcess");
    for ms in [40_000, 1_000_000] {
        assert_eq!(node.tick(ms), []);
        assert_eq!(
            (node.metric(readable), node.tracker.lacks_sandbox()),
            (None, false),
            "no alert, no search"
        );
        assert_eq!(node.status().processes, None, "0 zombies would say nothing about those inside");
    }
    node.start_parent_with_pids(PARENT, &PARENT.to_string(), "exe", 30);
    let status = node.write(1_010_000);
    let parent = &status.zombie_parents[0];
    assert_eq!((status.processes.as_ref().unwrap().zombies, parent.pid), (30, PARENT.into()));
    node.tick(1_020_000);
    assert_eq!(node.failure(), None);
    (1..=30).for_each(|zombie| node.fake.remove(PARENT + zombie));
    let status = node.write(1_030_000);
    assert_eq!((&status.processes, &status.accumulating_since), (&None, &None));
    assert_eq!(status.read_failure.as_ref().unwrap().reason, "NoPauseProcess");
}

#[test]
fn sandbox_that_cannot_be_created_is_unknown_after_grace() {
    for stage in [Stage::Pending, Stage::Running] {
        let waiting = NodePod { has_sandbox: false, has_runtime_class: true, ..pod(stage) };
        let mut node = Node::new(waiting, Some(object("o-1", json!({}))));
        assert_eq!([0, 29_999].map(|ms| node.tick(ms)), [vec![], vec![]]);
        let failure = node.write(30_000).read_failure.clone().unwrap();
        assert_eq!((failure.reason.as_str(), node.tick(600_000)), ("SandboxNotCreated", vec![]));
        node.start_pause(SANDBOX, 1200);
        let status = node.write(610_000);
        assert_eq!((status.restarts, &status.read_failure), (0, &None));
    }
}

#[test]
fn access_that_is_denied_is_neither_hidepid_nor_a_missing_sandbox() {
    for (pid, file) in [(1, "stat"), (40, "stat"), (40, "cgroup")] {
        for (mounts, reason) in [("", "ProcDenied"), ("hidepid=1", "ProcHidden")] {
            let mut node = Node::reporting();
            node.fake.add(FakeProcess { pid: 40, pids: "40 1", ..FakeProcess::default() });
            std::fs::create_dir(node.fake.path().join("self")).unwrap();
            let mounts = format!("proc {} proc rw,{mounts} 0 0\n", node.fake.path().display());
            std::fs::write(node.fake.path().join("self/mounts"), mounts).unwrap();
            if reason == "ProcHidden" && pid != 1 {
                continue;
            }
            let _denied = node.fake.deny(pid, file);
            node.tick(0);
            node.tick(30_000);
            assert_eq!(node.failure(), Some(reason), "{pid}/{file}");
        }
    }
    assert!(ReadError::Denied.to_string().contains("seLinuxOptions.type to spc_t"));
}

#[test]
fn container_named_pause_is_released_once_the_pod_names_it() {
    let mut node = Node::reporting();
    node.start_pause(CONTAINER, 1200);
    node.tick(0);
    assert!(node.status().sandbox.is_some());
    let mut named = pod(Stage::Running);
    named.containers.insert(CONTAINER.to_owned(), "app".to_owned());
    node.apply_pod(named);
    assert!(node.status().sandbox.is_none() && node.tracker.lacks_sandbox());
    node.start_pause(SANDBOX, 1100);
    node.tick(2_000);
    let status = node.status();
    assert_eq!((status.restarts, status.sandbox.as_ref().unwrap().id.as_str()), (0, SANDBOX));
}

#[test]
fn youngest_of_two_live_sandboxes_is_used() {
    let mut node = Node::reporting();
    node.start_pause(NEXT_SANDBOX, 1300);
    node.start_pause(SANDBOX, 1200);
    assert_eq!(node.write(0).sandbox.as_ref().unwrap().id, NEXT_SANDBOX);
    assert_eq!((node.tick(5_000), node.status().restarts), (vec![], 0), "the older one changes nothing");
}

#[test]
fn sandbox_that_is_replaced_while_its_pause_runs_is_one_restart() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.write(0);
    node.start_pause(NEXT_SANDBOX, 1300);
    let status = node.write(5_000);
    let restart = status.last_restart.as_ref().unwrap();
    assert_eq!(
        (status.restarts, status.restarts_at_least, restart.reason),
        (1, None, RestartReason::Replaced)
    );
}

/// As on Linux before 5.3, or where a seccomp profile refuses it.
#[test]
fn sandbox_without_pidfd_is_polled() {
    let opens: [OpenPidfd; 3] = [|_| Err(Errno::NOSYS), |_| Err(Errno::INVAL), |_| Err(Errno::PERM)];
    for open in opens {
        let mut node = Node::reporting();
        node.tracker.open_pidfd = open;
        let first = node.start_pause(SANDBOX, 1200);
        node.start_parent(PARENT, "sh", 9);
        assert_eq!(node.write(0).processes.as_ref().unwrap().zombies, 9);
        assert!(node.waits.is_empty());
        is_polled(node, first);
    }
}

#[test]
fn sandbox_whose_pidfd_cannot_be_waited_for_is_polled() {
    let mut node = Node::reporting();
    let first = node.start_pause(SANDBOX, 1200);
    node.write(0);
    node.tracker.pods.get_mut(UID).unwrap().poll(SANDBOX, &"not permitted");
    assert_eq!(node.tick(1_000), []);
    is_polled(node, first);
}

/// The exits of two pauses are noticed: of the first by a reading, and of the second by the end of the pod.
fn is_polled(mut node: Node, first: i32) {
    node.fake.remove(first);
    let second = node.start_pause(NEXT_SANDBOX, 1700);
    let status = node.write(5_000);
    let restart = status.last_restart.as_ref().unwrap();
    assert_eq!(
        (status.restarts, status.restarts_at_least, restart.reason),
        (1, None, RestartReason::PauseExited)
    );
    node.tracker.pods.get_mut(UID).unwrap().poll(NEXT_SANDBOX, &"not permitted");
    node.fake.remove(second);
    let states = ContainerStates { is_running: false, killed_at: vec![node.at(7_000).time] };
    node.apply_pod_at(NodePod { states, ..pod(Stage::Finished) }, 8_000);
    assert_eq!(node.write(10_000).termination.as_ref().unwrap().sandbox_id, NEXT_SANDBOX);
}

/// Docker in a container has a PID namespace below that of the pod.
#[test]
fn parent_has_the_pid_that_the_pod_sees() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.start_parent_with_pids(PARENT, "5000000 40 1", "dockerd", 12);
    assert_eq!(node.write(0).zombie_parents[0].pid, 40);
}

#[test]
fn kubelet_message_between_two_readings_is_not_missed() {
    let mut node = Node::reporting();
    let pause = node.start_pause(SANDBOX, 1200);
    node.tick(0);
    let started = node.status().sandbox.as_ref().unwrap().started_at.0;
    node.end_pause(pause, 1_000, None);
    let message =
        KubeletMessage { at: started + Duration::from_secs(3), message: "it was evicted".to_owned() };
    node.apply_pod(NodePod { kubelet_message: Some(message), ..pod(Stage::Running) });
    node.apply_pod(pod(Stage::Running));
    node.start_pause(NEXT_SANDBOX, 1700);
    node.tick(2_000);
    assert!(node.status().last_restart.as_ref().unwrap().message.ends_with("it was evicted"));
}

#[test]
fn released_pause_is_not_waited_for() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.tick(0);
    let mut wait = node.waits.pop().unwrap();
    let is_closed = |wait: &mut ExitWait| {
        wait.released.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Closed)
    };
    assert!(!is_closed(&mut wait));
    // A mirror pod that is recreated has another UID, and the same pause.
    node.pods.apply_watcher_event(&Event::Delete(pod(Stage::Running)));
    node.sync(0);
    assert!(is_closed(&mut wait));
}

#[test]
fn terminating_pod_is_observed_until_its_sandbox_exits() {
    let mut node = Node::reporting();
    let pid = node.start_pause(SANDBOX, 1200);
    node.write(0);
    node.apply_pod(pod(Stage::Terminating));
    assert_eq!(node.tick(3_600_000), []);
    node.start_parent(PARENT, "sh", 9);
    let status = node.write(3_610_000);
    assert_eq!((status.processes.as_ref().unwrap().zombies, status.zombie_parents.len()), (9, 1));
    node.end_pause(pid, 3_620_000, None);
    for ms in [3_620_000, 3_700_000, 7_000_000] {
        assert_eq!(node.tick(ms), [], "its object is deleted with it");
        assert_eq!((&node.status().read_failure, node.status().restarts), (&None, 0));
    }
}

#[test]
fn terminating_pod_is_found_by_an_agent_that_starts() {
    let mut node = Node::new(pod(Stage::Terminating), Some(object("o-1", json!({}))));
    node.start_pause(SANDBOX, 1200);
    assert_eq!(node.write(0).sandbox.as_ref().unwrap().id, SANDBOX);
}

#[test]
fn restart_is_written_although_the_pod_is_terminating() {
    let mut node = Node::reporting();
    let pid = node.start_pause(SANDBOX, 1200);
    node.write(0);
    node.end_pause(pid, 1_000, None);
    node.start_pause(NEXT_SANDBOX, 1400);
    let status = node.due_write(2_000);
    node.answer(Request::WriteStatus(status), Err(broken()), 2_000);
    node.apply_pod(pod(Stage::Terminating));
    let pause = node.pauses.pop().unwrap();
    node.fake.remove(pause.pid());
    let time = node.at(3_000).time;
    node.tracker.pods.get_mut(UID).unwrap().pause_exited(NEXT_SANDBOX, time, Evidence::default());
    assert_eq!(node.write(60_000).restarts, 1);
    assert_eq!(node.tick(900_000), []);
}

#[test]
fn finished_pod_has_no_restart() {
    let mut node = Node::reporting();
    let pid = node.start_pause(SANDBOX, 1200);
    node.write(0);
    node.apply_pod(pod(Stage::Finished));
    node.end_pause(pid, 1_000, None);
    node.start_pause(NEXT_SANDBOX, 1400);
    for ms in [2_000, 40_000] {
        node.tick(ms);
        assert_eq!((node.status().restarts, &node.status().termination), (0, &None));
    }
    let line = node.metric(
        "pod_sandbox_restarts_total{namespace=\"shop\",pod=\"web\",node=\"n\",reason=\"PauseExited\"}",
    );
    assert!(line.unwrap().ends_with(" 0"));
}

#[test]
fn killed_sandbox_of_a_pod_that_is_not_restarted_is_written_once() {
    let mut node = Node::reporting();
    let pid = node.start_pause(SANDBOX, 1200);
    node.write(0);
    node.end_pause(pid, 10_000, Some(ExitStatus::Killed(9)));
    assert_eq!(node.tick(10_100), []);
    let states = ContainerStates { is_running: false, killed_at: vec![node.at(10_000).time] };
    node.apply_pod(NodePod { states, ..pod(Stage::Finished) });
    let status = node.write(11_000);
    let termination = status.termination.as_ref().unwrap();
    assert_eq!(
        (termination.sandbox_id.as_str(), termination.message.as_str()),
        (SANDBOX, "pause was killed by SIGKILL")
    );
    assert_eq!(node.tick(1_000_000), []);
}

#[test]
fn job_that_ends_normally_has_no_termination() {
    let mut node = Node::reporting();
    let pid = node.start_pause(SANDBOX, 1200);
    node.write(0);
    // The status may be late: the exit of pause is seen before those of the containers.
    node.end_pause(pid, 10_000, Some(ExitStatus::Killed(9)));
    node.apply_pod(NodePod { states: ContainerStates::default(), ..pod(Stage::Finished) });
    assert_eq!(node.write(11_000).termination, None);
}

#[test]
fn clock_step_changes_nothing() {
    for step in [-3600, 3600] {
        let mut node = Node::reporting();
        let pid = node.start_pause(SANDBOX, 1200);
        node.write(0);
        node.clock_step = step;
        assert_eq!(node.tick(5_000), []);
        // While a sandbox is missing as well.
        node.end_pause(pid, 6_000, None);
        assert_eq!(node.tick(7_000), []);
        node.clock_step = 0;
        assert_eq!(node.tick(8_000), []);
        assert_eq!((node.status().restarts, &node.status().read_failure), (0, &None), "{step}");
    }
}

#[test]
fn unreadable_boot_id_does_not_keep_sandboxes_from_being_reported() {
    let mut node = Node::reporting();
    node.fake.set_boot_id(None);
    node.start_pause(SANDBOX, 1200);
    let status = node.write(0);
    assert_eq!(status.sandbox.as_ref().unwrap().boot_id, None);
}

/// A pause is found as soon as it was executed, before it has written its status.
#[test]
fn new_sandbox_is_written_once_with_its_first_counts() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, NEW);
    for ms in [0, 1_000, 1_999] {
        assert_eq!(node.tick(ms), [], "pause may yet write its status");
    }
    assert_eq!(node.write(2_000).source, Some(Source::ProcScan));
    let mut node = Node::reporting();
    let pid = node.start_pause(SANDBOX, NEW);
    assert_eq!(node.tick(0), []);
    node.write_status(pid, 0);
    assert_eq!(node.write(1_000).source, Some(Source::PauseStatusFile));
    for ms in [2_000, 10_000] {
        assert_eq!(node.tick(ms), []);
    }
}

#[test]
fn zombies_are_written_without_parents_after_ten_seconds() {
    let mut node = Node::reporting();
    let pid = node.start_pause(SANDBOX, 1200);
    node.write_status(pid, 0);
    node.write(0);
    node.write_status(pid, 9);
    let mut due_without_scan = |ms| {
        let now = node.at(ms);
        node.tracker.observe(now, &node.metrics);
        node.due(ms)
    };
    assert_eq!([5_000, 14_999].map(&mut due_without_scan), [vec![], vec![]]);
    let [Request::WriteStatus(status)] = &due_without_scan(15_000)[..] else { panic!("not written") };
    assert_eq!((status.processes.as_ref().unwrap().zombies, status.zombie_parents.len()), (9, 0));
}

#[test]
fn zombies_are_written_immediately_with_their_parents() {
    let mut named = pod(Stage::Running);
    named.containers.insert(CONTAINER.to_owned(), "shell".to_owned());
    let mut node = Node::new(named, Some(object("o-1", json!({}))));
    node.start_pause(SANDBOX, 1200);
    assert_eq!(node.write(0).source, Some(Source::ProcScan));
    node.start_parent(PARENT, "a\nb", 9);
    let status = node.write(10_000);
    let [parent] = &status.zombie_parents[..] else { panic!("{status:?}") };
    assert_eq!((parent.command.as_str(), parent.container.as_str()), ("a?b", "shell"));
    assert_eq!(parent.oldest_seconds, None, "they may be of any age");
    for ms in [20_000, 30_000, 299_000, 1_000_000] {
        assert_eq!(node.tick(ms), [], "one write");
    }
    assert_eq!(node.status().zombie_parents[0].oldest_seconds, Some(990));
}

/// A security module hides processes from pause, and not from the agent.
#[test]
fn agent_counts_where_pause_cannot_and_keeps_its_report() {
    for incomplete in [
        Status { unreadable: 1, ..Status::default() },
        Status { error: Some(CountError::HidePid), ..Status::default() },
    ] {
        let mut node = Node::reporting();
        let pid = node.start_pause(SANDBOX, 1200);
        node.start_parent(PARENT, "sh", 2);
        node.write_pause_status(pid, Status { reaped: 7, peak_zombies: 5, ..incomplete });
        let status = node.write(0);
        let processes = status.processes.as_ref().unwrap();
        assert_eq!((status.source, processes.zombies), (Some(Source::ProcScan), 2));
        assert_eq!((processes.reaped_total, processes.zombies_peak), (Some(7), 5));
        assert_eq!(status.sandbox.as_ref().unwrap().pause_version.as_deref(), Some("0.1.0"));
        node.write_status(pid, 3);
        node.tick(5_000);
        assert_eq!(node.status().source, Some(Source::PauseStatusFile));
        assert_eq!(node.status().processes.as_ref().unwrap().zombies, 3, "it counts again");
    }
}

#[test]
fn zombies_of_a_vanished_parent_have_no_parent_yet() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.start_parent(PARENT, "sh", 9);
    node.fake.remove(PARENT);
    let status = node.write(0);
    assert!(status.zombie_parents.is_empty(), "{status:?}");
    assert_eq!(status.processes.as_ref().unwrap().zombies, 0);
}

#[test]
fn zombies_around_the_threshold_are_written_once() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.write(0);
    assert_eq!(node.writes_of_swinging_zombies(3, 25), 1, "in four minutes");
}

#[test]
fn changes_that_the_pod_causes_are_written_at_a_limited_rate() {
    let mut node = Node::reporting();
    let pid = node.start_pause(SANDBOX, 1200);
    node.write(0);
    let writes = node.writes_of_swinging_zombies(0, 360);
    assert!((20..=23).contains(&writes), "10 at once and 12 in an hour: {writes}");
    node.end_pause(pid, 3_600_500, None);
    node.start_pause(NEXT_SANDBOX, 2400);
    assert_eq!(node.write(3_601_000).restarts, 1, "a restart is not limited");
}

#[test]
fn hidden_processes_are_not_counted() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.fake.remove(1);
    node.tick(0);
    node.tick(12_000);
    assert_eq!(node.status().read_failure.as_ref().unwrap().reason, "ProcHidden");
    assert_eq!(node.status().processes, None);
    assert_eq!(node.metric("sandboxhealth_node_zombie_processes"), None, "unknown is not 0");
}

#[test]
fn scan_interval_follows_what_is_counted() {
    let mut node = Node::reporting();
    assert_eq!(node.tracker.scan_interval(), HOST_INTERVAL);
    node.start_pause(SANDBOX, 1200);
    let scan = node.scanner.scan(Scope::New, &HashSet::new()).unwrap();
    let now = node.at(0);
    node.waits.extend(node.tracker.scanned(scan, now));
    node.tracker.observe(now, &node.metrics);
    let waiting = HashSet::from([UID.to_owned()]);
    assert_eq!((node.tracker.scan_interval(), node.tracker.waiting_pods()), (COUNT_INTERVAL, waiting));
    node.tick(1);
    assert_eq!(node.tracker.waiting_pods(), HashSet::new());
}

/// A shim that leaves a zombie of an exec probe, and a pod with 3 zombies that is watched or not.
#[test]
fn zombies_of_the_node_are_counted_where_their_parents_run() {
    for (watch_pods, watched_pods, other_pods) in
        [(WatchPods::All, 3, 0), (WatchPods::SharedPidNamespace, 0, 3)]
    {
        let mut node = Node::new(unshared(), None);
        node.tracker = Tracker::new(node.fake.proc(), ZombieThreshold(5), watch_pods.into());
        node.sync(0);
        node.start_parent(PARENT, "sleep", 3);
        node.fake.add(FakeProcess { pid: PARENT + 50, comm: "containerd-shim", ..FakeProcess::default() });
        node.fake.add(FakeProcess {
            pid: PARENT + 51,
            parent: PARENT + 50,
            state: 'Z',
            ..FakeProcess::default()
        });
        node.tick(0);
        for (place, number) in [("host", 1), ("watched_pods", watched_pods), ("other_pods", other_pods)] {
            let series = format!("sandboxhealth_node_zombie_processes{{where=\"{place}\"}}");
            assert_eq!(node.metric(&series).unwrap(), format!("{series} {number}"));
        }
    }
}

/// A restart at 10 s; the message of its cause.
fn cause_of_restart(prepare: fn(&mut Node)) -> String {
    let mut node = Node::reporting();
    // Scans read the real clock.
    node.clock_step = Timestamp::now().as_second() - EPOCH.as_second();
    let pid = node.start_pause(SANDBOX, 1200);
    node.write(0);
    prepare(&mut node);
    node.end_pause(pid, 10_000, None);
    node.start_pause(NEXT_SANDBOX, 2400);
    node.write(12_000).last_restart.unwrap().message
}

#[test]
fn likely_cause_of_a_restart_comes_from_the_node() {
    let unavailable = "pause exited; exit status unavailable (requires Linux 6.15)";
    assert_eq!(cause_of_restart(|_| ()), unavailable);
    let oom = cause_of_restart(|node| node.fake.set_oom_kills(1));
    let oom_killer = "the OOM killer (it killed a process on the node at that moment)";
    assert_eq!(oom, format!("{unavailable}; likely cause: {oom_killer}"));
    let oom_before = cause_of_restart(|node| {
        node.fake.set_oom_kills(1);
        node.tick(4_000);
    });
    assert_eq!(oom_before, unavailable, "the kill was found 6 s before");
    let containerd = cause_of_restart(|node| {
        node.fake.add(FakeProcess {
            pid: 70,
            comm: "containerd",
            start_ticks: 360_000,
            ..FakeProcess::default()
        });
    });
    assert_eq!(containerd, format!("{unavailable}; likely cause: containerd was restarted at that moment"));
}

/// Exec probes that hang leave no zombies.
#[test]
fn hanging_processes_show_in_processes_and_threads() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    for pid in PARENT..PARENT + 40 {
        node.fake.add(FakeProcess { pid, threads: 2, container: Some(CONTAINER), ..FakeProcess::default() });
    }
    let processes = node.write(0).processes.unwrap();
    assert_eq!((processes.total, processes.threads, processes.zombies), (41, 81, 0));
    node.tick(5_000);
    let threads = "pod_sandbox_threads{namespace=\"shop\",pod=\"web\",node=\"n\"} 81";
    assert_eq!(node.metric("pod_sandbox_threads{").as_deref(), Some(threads));
}

#[test]
fn scan_of_a_pod_finds_its_parents_and_changes_nothing_else() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.start_parent(PARENT, "sh", 9);
    node.fake.add(FakeProcess { pid: PARENT + 50, parent: 1, state: 'Z', ..FakeProcess::default() });
    node.tick(0);
    let pods = HashSet::from([UID.to_owned()]);
    let scan = node.scanner.scan(Scope::Pods, &pods).unwrap();
    let (counts, now) = (ProcessCounts::of_pods(&pods, &scan.processes), node.at(60_000));
    node.tracker.counted(&counts, now, &node.metrics);
    let [parent] = &node.status().zombie_parents[..] else { panic!("{:?}", node.status()) };
    assert_eq!((parent.zombies, parent.oldest_seconds), (9, Some(60)));
    let host = node.metric("sandboxhealth_node_zombie_processes{where=\"host\"}").unwrap();
    assert!(host.ends_with("} 1"), "{host}");
}

#[test]
fn failed_write_is_retried_with_growing_delays() {
    let errors: [fn() -> ApiError; 5] = [
        || refused(429, "TooManyRequests"),
        || refused(503, "ServiceUnavailable"),
        || refused(409, "Conflict"),
        || ApiError::TimedOut,
        broken,
    ];
    for error in errors {
        let mut node = Node::running(Some(object("o-1", written())));
        node.start_pause(SANDBOX, 1200);
        let (mut now, mut delays) = (0, Vec::new());
        for _ in 0..8 {
            let since = now;
            let status = loop {
                match node.tick(now).pop() {
                    Some(Request::WriteStatus(status)) => break status,
                    Some(other) => panic!("{other:?}"),
                    None => now += 250,
                }
            };
            delays.push(now - since);
            node.answer(Request::WriteStatus(status), Err(error()), now);
        }
        for (delay, shortest) in delays.iter().zip([0, 1, 2, 4, 8, 16, 30, 30].map(|seconds| seconds * 1000))
        {
            assert!((shortest..=2 * shortest + 250).contains(delay), "{delays:?}");
        }
        assert_eq!(node.write(now + 60_000).restarts, 4, "what still holds is not lost");
        assert_eq!(node.tick(now + 61_000), [], "and not written twice");
    }
}

#[test]
fn change_that_was_reverted_during_an_outage_is_not_written() {
    let mut node = Node::reporting();
    node.start_pause(SANDBOX, 1200);
    node.write(0);
    node.start_parent(PARENT, "sh", 9);
    let status = node.due_write(10_000);
    node.answer(Request::WriteStatus(status), Err(refused(503, "ServiceUnavailable")), 10_000);
    (PARENT..PARENT + 10).for_each(|pid| node.fake.remove(pid));
    assert_eq!(node.tick(30_000), []);
}

#[test]
fn write_that_may_have_been_stored_is_written_over() {
    for (error, again) in
        [(ApiError::TimedOut, true), (broken(), true), (refused(503, "ServiceUnavailable"), false)]
    {
        let mut node = Node::reporting();
        node.start_pause(SANDBOX, 1200);
        node.write(0);
        node.start_parent(PARENT, "sh", 9);
        let status = node.due_write(10_000);
        node.answer(Request::WriteStatus(status), Err(error), 10_000);
        (PARENT..PARENT + 10).for_each(|pid| node.fake.remove(pid));
        let due = node.tick(30_000);
        assert_eq!(!due.is_empty(), again, "the object may say that zombies accumulate: {due:?}");
    }
}

#[test]
fn restart_found_at_the_start_is_added_to_a_counter_at_zero() {
    let before = json!({"restarts": 0, "sandbox": {"id": "before", "startedAt": "2027-01-15T07:00:00Z"}});
    let mut node = Node::running(Some(object("o-1", before)));
    node.start_pause(SANDBOX, 1200);
    for (ms, count) in [(0, 0), (119_000, 0), (120_000, 1), (121_000, 1)] {
        node.tick(ms);
        assert_eq!(node.status().restarts, 1, "the object does not wait");
        let replaced =
            "pod_sandbox_restarts_total{namespace=\"shop\",pod=\"web\",node=\"n\",reason=\"Replaced\"}";
        assert_eq!(node.metric(replaced).unwrap(), format!("{replaced} {count}"), "after {ms} ms");
    }
}
