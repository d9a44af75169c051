//! The whole agent with an API server that does not always answer: which requests it makes, and when. Time is simulated; /proc is a
//! directory, and the pauses are real processes.

use std::ffi::CString;
use std::sync::Mutex;

use futures::channel::mpsc::{UnboundedSender, unbounded};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::health::Metrics as _;
use crate::k8s::pod::{Stage, WatchPods};
use crate::procfs::fake::{CONTAINER, FakePause, FakeProc, FakeProcess, NEXT_SANDBOX, SANDBOX, UID};
use crate::testing::{self, Answer, Received};

const MINUTE: Duration = Duration::from_secs(60);
const READ_INTERVAL: Duration = Duration::from_millis(100);
/// Time in which a pod is found, counted and reported.
const COUNTED: Duration = Duration::from_secs(3);
/// Beyond every PID that Linux gives out (2^22, `pid_max` of proc(5)).
const PARENT: i32 = 5_000_000;

type Server = fn(&Received, &mut Value) -> Answer;

/// A node with one pod and its agent.
struct World {
    fake: FakeProc,
    pause: Option<FakePause>,
    /// The object as the server has it.
    object: Arc<Mutex<Value>>,
    server: Arc<Mutex<Server>>,
    requests: Arc<Mutex<Vec<Received>>>,
    metrics: Arc<AgentMetrics>,
    readiness: Arc<Readiness>,
    pods: UnboundedSender<Event<NodePod>>,
    objects: UnboundedSender<Event<GuardedObject>>,
    agent: JoinHandle<()>,
}

fn new_object(uid: &str, pod_uid: &str) -> Value {
    json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
        "metadata": {"name": "web", "namespace": "shop", "uid": uid},
        "spec": {"podName": "web", "podUID": pod_uid, "nodeName": "n"},
    })
}

fn guard(object: Value) -> GuardedObject {
    serde_json::from_value(object).unwrap()
}

/// It stores what is written.
fn up(request: &Received, object: &mut Value) -> Answer {
    if request.method == Method::PATCH {
        if request.body["status"]["podUID"] != object["spec"]["podUID"] {
            let message = "status belongs to another pod: status.podUID differs from spec.podUID";
            let invalid = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "Invalid", "code": 422});
            return Answer::RefusedWith(StatusCode::UNPROCESSABLE_ENTITY, invalid);
        }
        object["status"] = request.body["status"].clone();
    }
    if request.method == Method::POST {
        return Answer::Refused(StatusCode::CONFLICT);
    }
    Answer::Object(object.clone())
}

fn too_many_requests(_: &Received, _: &mut Value) -> Answer {
    Answer::Refused(StatusCode::TOO_MANY_REQUESTS)
}

fn unavailable(_: &Received, _: &mut Value) -> Answer {
    Answer::Refused(StatusCode::SERVICE_UNAVAILABLE)
}

fn hangs(_: &Received, _: &mut Value) -> Answer {
    Answer::Silence
}

fn unreachable(_: &Received, _: &mut Value) -> Answer {
    Answer::Broken
}

fn forbids(_: &Received, _: &mut Value) -> Answer {
    let message =
        "sandboxhealths \"web\" is forbidden: User \"agent\" cannot patch resource \"sandboxhealths/status\"";
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "Forbidden", "code": 403});
    Answer::RefusedWith(StatusCode::FORBIDDEN, status)
}

fn options(watch_pods: WatchPods) -> AgentOptions {
    AgentOptions {
        node_name: "n".to_owned(),
        proc: String::new(),
        read_interval: READ_INTERVAL,
        zombie_threshold: 5,
        watch: watch_pods.into(),
    }
}

impl World {
    /// A pod whose object has no status yet.
    fn new(server: Server) -> Self {
        let world = Self::without_object(server);
        world.object_event(Event::Apply(guard(new_object("o-1", UID))));
        world
    }

    fn without_object(server: Server) -> Self {
        let world = Self::unsynced(server);
        world.object_event(Event::Init);
        world.object_event(Event::InitDone);
        world
    }

    /// Pods are listed, objects are not.
    fn unsynced(server: Server) -> Self {
        let fake = FakeProc::new();
        fake.add(FakeProcess::default());
        let pause = Some(fake.start_pause(SANDBOX, 1200));
        let object = Arc::new(Mutex::new(new_object("o-1", UID)));
        let server = Arc::new(Mutex::new(server));
        let (answers, stored) = (server.clone(), object.clone());
        let (client, requests) =
            testing::answering(move |request| answers.lock().unwrap()(request, &mut stored.lock().unwrap()));
        let (pods, pod_events) = unbounded();
        let (objects, object_events) = unbounded();
        let (metrics, readiness) = (Arc::new(AgentMetrics::default()), Arc::new(Readiness::default()));
        let options = options(WatchPods::SharedPidNamespace);
        let agent = Agent::new(&options, fake.proc(), client, readiness.clone(), metrics.clone());
        let agent = tokio::spawn(agent.run(pod_events, object_events));
        let world = Self { fake, pause, object, server, requests, metrics, readiness, pods, objects, agent };
        world.pod_event(Event::Init);
        world.pod_event(Event::InitApply(pod()));
        world.pod_event(Event::InitDone);
        world
    }

    fn server_is(&self, server: Server) {
        *self.server.lock().unwrap() = server;
    }

    fn pod_event(&self, event: Event<NodePod>) {
        self.pods.unbounded_send(event).unwrap();
    }

    fn object_event(&self, event: Event<GuardedObject>) {
        self.objects.unbounded_send(event).unwrap();
    }

    /// The sandbox exits, and another one starts.
    async fn restart_sandbox(&mut self) {
        self.end_sandbox().await;
        self.pause = Some(self.fake.start_pause(NEXT_SANDBOX, 1400));
    }

    async fn end_sandbox(&mut self) {
        let pid = self.pause.take().unwrap().pid();
        // In a directory, what is gone is another error than in /proc: the agent must know of the exit by then.
        self.pass(Duration::from_millis(10)).await;
        self.fake.remove(pid);
    }

    fn start_parent(&self, zombies: i32) {
        let parent =
            FakeProcess { pid: PARENT, comm: "sh", container: Some(CONTAINER), ..FakeProcess::default() };
        self.fake.add(parent);
        for zombie in 1..=zombies {
            let pid = PARENT + zombie;
            self.fake.add(FakeProcess { pid, parent: PARENT, state: 'Z', ..FakeProcess::default() });
        }
    }

    fn requests(&self) -> Vec<Received> {
        self.requests.lock().unwrap().clone()
    }

    /// The statuses that were sent after the first `before` requests.
    fn statuses_since(&self, before: usize) -> Vec<Value> {
        self.requests().split_off(before).into_iter().map(|request| request.body["status"].clone()).collect()
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
        assert!(!self.agent.is_finished(), "the agent ended");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

fn pod() -> NodePod {
    pod_of(UID)
}

fn pod_of(uid: &str) -> NodePod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": uid},
        "spec": {"shareProcessNamespace": true, "nodeName": "n", "containers": []},
        "status": {"phase": "Running"},
    }))
    .unwrap()
}

/// Seconds between requests.
fn gaps(requests: &[Received]) -> Vec<f64> {
    requests.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect()
}

#[tokio::test(start_paused = true)]
async fn lists_come_unpaged_from_the_watch_cache() {
    let (client, requests) = testing::answering(|request| {
        let kind = if request.path.contains("pods") { "PodList" } else { "SandboxHealthList" };
        let version = if request.path.contains("pods") { "v1" } else { "sandboxhealth.dev/v1alpha1" };
        Answer::Object(
            json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": []}),
        )
    });
    let readiness = Arc::new(Readiness::default());
    let fake = FakeProc::new();
    let agent =
        tokio::spawn(run(options(WatchPods::All), fake.proc(), client, readiness.clone(), Arc::default()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.abort();
    let requests = requests.lock().unwrap();
    let lists: Vec<_> = requests.iter().filter(|request| !request.path.contains("watch=true")).collect();
    assert_eq!(lists.len(), 2, "{requests:?}");
    for list in lists {
        assert!(list.path.contains("resourceVersion=0") && !list.path.contains("limit="), "{}", list.path);
        assert!(list.path.contains("fieldSelector=spec.nodeName%3Dn"), "{}", list.path);
    }
    assert_eq!(readiness.reasons(), "");
}

#[tokio::test(start_paused = true)]
async fn healthy_idle_pod_is_written_once() {
    let world = World::new(up);
    world.pass(COUNTED).await;
    let requests = world.requests();
    let last = &requests.last().unwrap().body["status"];
    assert_eq!((&last["sandbox"]["id"], &last["processes"]["total"]), (&json!(SANDBOX), &json!(1)));
    world.pass(60 * MINUTE).await;
    assert_eq!(world.requests().len(), requests.len());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_observed_before_the_objects_are_known() {
    let world = World::unsynced(up);
    world.pass(MINUTE).await;
    assert!(world.requests().is_empty());
    let mut object = new_object("o-1", UID);
    object["status"] = json!({"restarts": 3, "sandbox": {"id": "gone", "startedAt": "2026-11-24T08:00:00Z"}});
    world.object_event(Event::Init);
    world.object_event(Event::InitApply(guard(object)));
    world.object_event(Event::InitDone);
    world.pass(COUNTED).await;
    assert_eq!(world.requests()[0].body["status"]["restarts"], 4);
}

#[tokio::test(start_paused = true)]
async fn object_created_late_is_written_within_a_second() {
    let world = World::without_object(up);
    world.pass(30 * MINUTE).await;
    assert!(world.requests().is_empty());
    world.object_event(Event::Apply(guard(new_object("o-1", UID))));
    world.pass(Duration::from_secs(1)).await;
    assert_eq!(world.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn unhealthy_pod_without_object_gets_one() {
    let world = World::without_object(up);
    world.start_parent(9);
    world.pass(Duration::from_secs(15)).await;
    let requests = world.requests();
    let [request, ..] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(request.method, Method::POST);
    assert_eq!(request.body["spec"], new_object("o-1", UID)["spec"]);
    assert_eq!(request.body["metadata"]["ownerReferences"][0]["uid"], UID);
}

#[tokio::test(start_paused = true)]
async fn overloaded_server_gets_ever_fewer_requests() {
    let world = World::new(too_many_requests);
    world.pass(10 * MINUTE).await;
    let gaps = gaps(&world.requests());
    let slack = READ_INTERVAL.as_secs_f64();
    for (gap, shortest) in gaps.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]) {
        assert!(*gap >= shortest && *gap <= 2.0 * shortest + slack, "{gaps:?}");
    }
    assert!((12..=24).contains(&gaps.len()), "at most two a minute in the end: {gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn server_that_is_back_gets_the_report_within_a_minute_once() {
    let world = World::new(unavailable);
    world.pass(10 * MINUTE).await;
    let before = world.requests().len();
    world.server_is(up);
    world.pass(MINUTE + 2 * READ_INTERVAL).await;
    assert_eq!(world.requests().len(), before + 1);
    world.pass(10 * MINUTE).await;
    assert_eq!(world.requests().len(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn request_that_hangs_is_ended_and_made_again() {
    let world = World::new(hangs);
    world.pass(Duration::from_secs(40)).await;
    let gaps = gaps(&world.requests());
    assert!((2..=4).contains(&gaps.len()) && gaps.iter().all(|gap| *gap > 10.0), "{gaps:?}");
    world.server_is(up);
    world.pass(2 * MINUTE).await;
    assert_eq!(world.requests().len(), gaps.len() + 2, "the one that hung, and the one that was answered");
}

#[tokio::test(start_paused = true)]
async fn refused_writes_make_the_agent_unready_until_one_is_accepted_or_none_waits() {
    for pod_is_deleted in [true, false] {
        let world = World::new(forbids);
        world.pass(COUNTED).await;
        assert!(world.readiness.reasons().contains("cannot patch"), "{}", world.readiness.reasons());
        if pod_is_deleted {
            world.pod_event(Event::Delete(pod()));
        } else {
            world.server_is(up);
        }
        world.pass(2 * MINUTE).await;
        assert_eq!(world.readiness.reasons(), "");
    }
}

#[tokio::test(start_paused = true)]
async fn restart_during_a_partition_is_written_once_afterwards() {
    let mut world = World::new(unreachable);
    world.pass(MINUTE).await;
    world.restart_sandbox().await;
    world.pass(2 * MINUTE).await;
    let before = world.requests().len();
    world.server_is(up);
    world.pass(10 * MINUTE).await;
    let statuses = world.statuses_since(before);
    let [status] = &statuses[..] else { panic!("{statuses:?}") };
    assert_eq!((&status["restarts"], &status["sandbox"]["id"]), (&json!(1), &json!(NEXT_SANDBOX)));
    assert_eq!(status["lastRestart"]["reason"], "PauseExited");
}

#[tokio::test(start_paused = true)]
async fn restart_is_written_although_deletion_was_requested() {
    let mut world = World::new(up);
    world.pass(MINUTE).await;
    world.server_is(unreachable);
    world.restart_sandbox().await;
    world.pass(MINUTE).await;
    let mut terminating = pod();
    terminating.stage = Stage::Terminating;
    world.pod_event(Event::Apply(terminating));
    world.end_sandbox().await;
    world.pass(READ_INTERVAL).await;
    let before = world.requests().len();
    world.server_is(up);
    world.pass(10 * MINUTE).await;
    let statuses = world.statuses_since(before);
    let [status] = &statuses[..] else { panic!("{statuses:?}") };
    assert_eq!(status["restarts"], 1);
}

#[tokio::test(start_paused = true)]
async fn successor_with_the_pid_of_a_known_process_is_found_by_the_next_reading() {
    let mut world = World::new(up);
    let next = world.fake.start_pause(NEXT_SANDBOX, 1400);
    let pid = next.pid();
    let pids = [format!("{pid} 7"), format!("{pid} 1")];
    world.fake.add(FakeProcess { pid, comm: "sh", pids: &pids[0], ..FakeProcess::default() });
    world.pass(COUNTED).await;
    world.end_sandbox().await;
    let pause =
        FakeProcess { pid, comm: "pause", pids: &pids[1], start_ticks: 1400, ..FakeProcess::default() };
    world.fake.add(FakeProcess { container: Some(NEXT_SANDBOX), cmdline: b"/pause\0", ..pause });
    world.pass(10 * READ_INTERVAL).await;
    assert_eq!(world.requests().last().unwrap().body["status"]["restarts"], 1);
}

#[tokio::test(start_paused = true)]
async fn zombies_that_came_and_went_during_an_outage_are_not_reported() {
    let world = World::new(up);
    world.pass(MINUTE).await;
    world.server_is(unavailable);
    world.start_parent(9);
    world.pass(MINUTE).await;
    let refused = world.requests();
    assert!(refused.last().unwrap().body["status"]["accumulatingSince"].is_string(), "{refused:?}");
    for zombie in 1..=9 {
        world.fake.remove(PARENT + zombie);
    }
    world.pass(MINUTE).await;
    let before = world.requests().len();
    world.server_is(up);
    world.pass(10 * MINUTE).await;
    let statuses = world.statuses_since(before);
    let [status] = &statuses[..] else { panic!("{statuses:?}") };
    assert!(status["accumulatingSince"].is_null() && status["processes"]["zombies"] == 0, "{status}");
}

#[tokio::test(start_paused = true)]
async fn pod_that_was_deleted_during_an_outage_gets_no_more_requests() {
    let world = World::new(unavailable);
    world.pass(MINUTE).await;
    world.pod_event(Event::Delete(pod()));
    world.pass(READ_INTERVAL).await;
    let before = world.requests().len();
    world.pass(10 * MINUTE).await;
    assert_eq!(world.requests().len(), before);
}

#[tokio::test(start_paused = true)]
async fn requests_of_forty_pods_are_limited() {
    let world = World::new(up);
    world.pass(COUNTED).await;
    world.server_is(unavailable);
    let before = world.requests().len();
    for number in 0..40 {
        let (name, uid) = (format!("web-{number}"), format!("u-{number}"));
        let mut pod = pod_of(&uid);
        pod.metadata.name = Some(name.clone());
        world.pod_event(Event::Apply(pod));
        let mut object = new_object(&format!("o-{number}"), &uid);
        object["metadata"]["name"] = json!(name);
        object["status"] =
            json!({"restarts": 0, "readFailure": {"reason": "StatusChecksumWrong", "message": ""}});
        world.object_event(Event::Apply(guard(object)));
    }
    // All of them become unknown at the same moment.
    world.pass(Duration::from_secs(31)).await;
    let requests = world.requests().split_off(before);
    let first = requests[0].at;
    let at_once = requests.iter().filter(|request| request.at < first + Duration::from_secs(1));
    assert!((20..=25).contains(&at_once.count()), "20 at once, and five a second: {requests:?}");
}

#[tokio::test(start_paused = true)]
async fn object_of_the_next_pod_of_the_name_is_not_changed() {
    let mut world = World::new(up);
    world.pass(COUNTED).await;
    // The agent has not seen it yet.
    *world.object.lock().unwrap() = new_object("o-2", "another-pod");
    world.restart_sandbox().await;
    world.pass(10 * MINUTE).await;
    assert_eq!(*world.object.lock().unwrap(), new_object("o-2", "another-pod"));
    world.object_event(Event::Delete(guard(new_object("o-1", UID))));
    world.object_event(Event::Apply(guard(new_object("o-2", "another-pod"))));
    world.pass(MINUTE).await;
    let before = world.requests().len();
    world.pass(10 * MINUTE).await;
    let writes =
        world.requests().split_off(before).iter().filter(|request| request.method == Method::PATCH).count();
    assert_eq!(writes, 0);
}

#[tokio::test(start_paused = true)]
async fn unreadable_proc_makes_the_agent_unready_and_does_not_end_it() {
    let world = World::new(up);
    world.pass(COUNTED).await;
    let uptime = world.fake.path().join("uptime");
    let text = std::fs::read(&uptime).unwrap();
    std::fs::remove_file(&uptime).unwrap();
    world.pass(2 * MINUTE).await;
    assert!(world.readiness.reasons().starts_with("/proc: "), "{}", world.readiness.reasons());
    std::fs::write(&uptime, text).unwrap();
    world.pass(2 * MINUTE).await;
    assert_eq!(world.readiness.reasons(), "");
}

/// A scan that blocks, as one of a very large /proc does, must not keep the agent from anything else.
#[tokio::test]
async fn slow_scan_does_not_block_the_agent() {
    let world = World::new(up);
    while world.requests().is_empty() {
        world.pass(Duration::from_millis(50)).await;
    }
    let blocking = world.fake.path().join("77");
    std::fs::create_dir(&blocking).unwrap();
    let fifo = blocking.join("stat");
    let path = CString::new(fifo.to_str().unwrap()).unwrap();
    nix::unistd::mkfifo(path.as_c_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // A change of the pod starts a scan.
    world.pod_event(Event::Apply(pod()));
    world.pass(Duration::from_secs(1)).await;
    let before = world.requests().len();
    world.object_event(Event::Delete(guard(new_object("o-1", UID))));
    world.object_event(Event::Apply(guard(new_object("o-2", UID))));
    world.pass(Duration::from_secs(1)).await;
    let after = world.requests().len();
    // Ends the read of the blocked thread, which the runtime waits for.
    let writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    drop(writer);
    std::fs::remove_dir_all(&blocking).unwrap();
    assert_eq!(after, before + 1, "the new object was written");
}

#[tokio::test(start_paused = true)]
async fn metrics_show_the_pod() {
    let world = World::new(up);
    world.pass(COUNTED).await;
    let text = world.metrics.render().unwrap();
    assert!(text.contains("pod_sandbox_processes{namespace=\"shop\",pod=\"web\",node=\"n\"} 1\n"), "{text}");
}

/// Of a process that exits at its end.
fn pidfd_of(child: &std::process::Child) -> OwnedFd {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
}

#[tokio::test]
async fn shim_that_exits_before_pause_is_evidence() {
    // What is killed when: at once, before the agent polls, or after a moment.
    for (first, second, is_evidence) in
        [("shim", "pause", true), ("pause", "shim", false), ("both", "", false)]
    {
        let sleep = || std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (mut pause, mut shim) = (sleep(), sleep());
        let observed = observe_exit(pidfd_of(&pause), Some(pidfd_of(&shim)));
        let mut end = |names: &str| {
            for (name, child) in [("pause", &mut pause), ("shim", &mut shim)] {
                if names == name || names == "both" {
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
            }
        };
        if first == "both" {
            end(first);
        }
        let ends = async {
            tokio::task::yield_now().await;
            end(first);
            tokio::time::sleep(Duration::from_millis(50)).await;
            end(second);
        };
        let (observed, ()) = futures::join!(observed, ends);
        assert_eq!(observed.unwrap().1.shim_exited, is_evidence, "{first} first");
        drop((pause.kill(), shim.kill(), pause.wait(), shim.wait()));
    }
}
