//! The whole agent beside an API server that does not answer as it should: what it asks then, when, and how often. Time is
//! made up, and passes as soon as nothing else is to be done; /proc is a folder, and the pauses are processes of ours.

use std::sync::Mutex;

use futures::channel::mpsc::{UnboundedSender, unbounded};
use http::{Method, StatusCode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::proc::fake::{CONTAINER, FakePause, FakeProc, FakeProcess, SANDBOX, UID};
use super::*;
use crate::authorship::fake::{edit, note_as_ours};
use crate::mock_server::{self, Answer, Asked};
use crate::serve::Metrics as _;

const NEXT_SANDBOX: &str = "2222222222222222222222222222222222222222222222222222222222222222";
const MINUTE: Duration = Duration::from_secs(60);
/// Between readings: by so much may a request be later than it is due.
const READ_EVERY: Duration = Duration::from_millis(100);
/// By then a pod is found, counted and reported.
const COUNTED: Duration = Duration::from_secs(3);
/// Beyond every PID that Linux gives out (2^22, `pid_max` of proc(5)).
const PARENT: i32 = 5_000_000;

/// What is asked of the API, and what the server is to answer.
type Server = fn(&Asked, &mut Value) -> Answer;

/// A node with one pod, its row, its agent, and what that asked the API.
struct World {
    fake: FakeProc,
    pause: Option<FakePause>,
    /// The row as the server has it.
    row: Arc<Mutex<Value>>,
    /// Which answers the server gives.
    server: Arc<Mutex<Server>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    metrics: Arc<AgentMetrics>,
    pods: UnboundedSender<watcher::Result<watcher::Event<Pod>>>,
    agent: JoinHandle<std::io::Result<()>>,
}

/// A row that nobody has reported to.
fn new_row(uid: &str, pod_uid: &str) -> Value {
    json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
        "metadata": {"name": "web", "namespace": "shop", "uid": uid},
        "spec": {"podName": "web", "podUID": pod_uid, "nodeName": "n"},
    })
}

/// It has the row, and takes what is written into it.
fn up(asked: &Asked, row: &mut Value) -> Answer {
    if is_list(asked) {
        return Answer::Object(json!({
            "kind": "SandboxHealthList", "apiVersion": "sandboxhealth.dev/v1alpha1", "metadata": {}, "items": [row],
        }));
    }
    if asked.method == Method::POST {
        return Answer::Refused(StatusCode::CONFLICT);
    }
    if asked.method == Method::PATCH {
        if asked.body["status"]["podUID"] != row["spec"]["podUID"] {
            let message = "status is of another pod: its podUID is not that of spec";
            let invalid = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "Invalid", "code": 422});
            return Answer::RefusedWith(StatusCode::UNPROCESSABLE_ENTITY, invalid);
        }
        row["status"] = asked.body["status"].clone();
        note_as_ours(row);
    }
    Answer::Object(row.clone())
}

fn too_busy(_: &Asked, _: &mut Value) -> Answer {
    Answer::Refused(StatusCode::TOO_MANY_REQUESTS)
}

fn not_available(_: &Asked, _: &mut Value) -> Answer {
    Answer::Refused(StatusCode::SERVICE_UNAVAILABLE)
}

fn hangs(_: &Asked, _: &mut Value) -> Answer {
    Answer::Silence
}

fn out_of_reach(_: &Asked, _: &mut Value) -> Answer {
    Answer::Broken
}

/// It refuses the first write, and takes the next.
fn changed_meanwhile(asked: &Asked, row: &mut Value) -> Answer {
    if asked.method == Method::PATCH && row["metadata"]["generation"].is_null() {
        row["metadata"]["generation"] = json!(2);
        return Answer::Refused(StatusCode::CONFLICT);
    }
    up(asked, row)
}

fn is_list(asked: &Asked) -> bool {
    asked.method == Method::GET && asked.path.contains("fieldSelector")
}

impl World {
    fn new(server: Server) -> Self {
        let fake = FakeProc::new();
        fake.add(FakeProcess::default());
        let pause = Some(fake.start_pause(SANDBOX, 1200));
        let row = Arc::new(Mutex::new(new_row("o-1", UID)));
        let server = Arc::new(Mutex::new(server));
        let (answers, rows) = (server.clone(), row.clone());
        let (client, asked) =
            mock_server::answering(move |asked| answers.lock().unwrap()(asked, &mut rows.lock().unwrap()));
        let (pods, brought) = unbounded();
        let (metrics, begun) = (Arc::new(AgentMetrics::default()), Instant::now());
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let clock = move || start + SignedDuration::try_from(begun.elapsed()).unwrap();
        let at_start = vec![serde_json::from_value(new_row("o-1", UID)).unwrap()];
        let lists = lists(client.clone(), "n".to_owned(), clock);
        let agent = Agent {
            client,
            clock,
            readiness: Arc::new(Readiness::default()),
            metrics: metrics.clone(),
            roster: Roster::new(fake.proc(), ZombieThreshold(5), at_start),
            budget: Budget::new(REQUESTS_AT_ONCE, REQUEST_EVERY, start),
            deaths: FuturesUnordered::new(),
            requests: FuturesUnordered::new(),
            watch_pods: WatchPods::SharedPidNamespace,
            find_at: Some(begun),
            last_death: None,
            listed: HashSet::new(),
            refused: HashSet::new(),
        };
        let agent =
            tokio::spawn(async move { agent.watch(brought, std::pin::pin!(lists), READ_EVERY).await });
        let world = Self { fake, pause, row, server, asked, metrics, pods, agent };
        world.brings(watcher::Event::Apply(pod()));
        world
    }

    /// From now on the server answers so.
    fn server_is(&self, server: Server) {
        *self.server.lock().unwrap() = server;
    }

    /// The watch brings news of the pod.
    fn brings(&self, event: watcher::Event<Pod>) {
        self.pods.unbounded_send(Ok(event)).unwrap();
    }

    /// The sandbox ends, and another one starts.
    async fn restart_sandbox(&mut self) {
        let pid = self.pause.take().unwrap().pid();
        // What of a folder is gone is another error than what of a process is: the agent must know by then.
        self.passes(Duration::from_millis(10)).await;
        self.fake.remove(pid);
        self.pause = Some(self.fake.start_pause(NEXT_SANDBOX, 1400));
    }

    /// Somebody in the pod leaves so many zombies.
    fn leave_zombies(&self, zombies: i32) {
        let parent =
            FakeProcess { pid: PARENT, comm: "sh", container: Some(CONTAINER), ..FakeProcess::default() };
        self.fake.add(parent);
        for zombie in 1..=zombies {
            let pid = PARENT + zombie;
            self.fake.add(FakeProcess { pid, parent: PARENT, state: 'Z', ..FakeProcess::default() });
        }
    }

    /// What was asked of the API so far, but for lists.
    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|asked| !is_list(asked)).cloned().collect()
    }

    /// Runs for so long.
    async fn passes(&self, time: Duration) {
        tokio::time::sleep(time).await;
        assert!(!self.agent.is_finished(), "the agent ended");
    }

    fn shows(&self, line: &str) -> bool {
        self.metrics.render().unwrap().lines().any(|shown| shown == line)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

fn pod() -> Pod {
    pod_of(UID)
}

fn pod_of(uid: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": uid},
        "spec": {"shareProcessNamespace": true, "nodeName": "n", "containers": []},
        "status": {"phase": "Running"},
    }))
    .unwrap()
}

/// Seconds between each request and the next.
fn gaps(asked: &[Asked]) -> Vec<f64> {
    asked.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_healthy_idle_pod_is_written_once_it_is_found_and_not_for_an_hour_after() {
    let world = World::new(up);
    world.passes(COUNTED).await;
    let asked = world.asked();
    let last = &asked.last().unwrap().body["status"];
    assert_eq!((&last["sandbox"]["id"], &last["processes"]["total"]), (&json!(SANDBOX), &json!(1)));
    world.passes(60 * MINUTE).await;
    assert_eq!(world.asked().len(), asked.len());
    let lists = world.asked.lock().unwrap().iter().filter(|asked| is_list(asked)).count();
    assert!((11..=12).contains(&lists), "every five minutes: {lists}");
}

#[tokio::test(start_paused = true)]
async fn a_server_with_too_much_to_do_is_asked_ever_more_seldom() {
    let world = World::new(too_busy);
    world.passes(10 * MINUTE).await;
    let gaps = gaps(&world.asked());
    let slack = READ_EVERY.as_secs_f64();
    for (gap, longest) in gaps.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]) {
        assert!(*gap > longest / 2.0 - slack && *gap <= longest + slack, "{gaps:?}");
    }
    assert!((14..=24).contains(&gaps.len()), "at most once in 30 to 60 s in the end: {gaps:?}");
    assert!(world.shows("workqueue_depth{name=\"reports\"} 0"), "what is put off is not due");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_available_gets_the_report_within_a_minute_of_its_return() {
    let world = World::new(not_available);
    world.passes(10 * MINUTE).await;
    let before = world.asked().len();
    world.server_is(up);
    world.passes(MINUTE + 2 * READ_EVERY).await;
    assert_eq!(world.asked().len(), before + 1);
    world.passes(10 * MINUTE).await;
    assert_eq!(world.asked().len(), before + 1, "it is not written again");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_hangs_ends_each_request_and_another_is_made() {
    let world = World::new(hangs);
    world.passes(Duration::from_secs(40)).await;
    let gaps = gaps(&world.asked());
    assert!((2..=4).contains(&gaps.len()) && gaps.iter().all(|gap| *gap > 10.0), "{gaps:?}");
    assert!(world.shows(&format!(
        "sandbox_health_api_requests_total{{verb=\"patch\",result=\"timeout\"}} {}",
        gaps.len()
    )));
    world.server_is(up);
    world.passes(2 * MINUTE).await;
    assert_eq!(world.asked().len(), gaps.len() + 2, "the one that hung, and the one that got through");
}

#[tokio::test(start_paused = true)]
async fn a_restart_during_a_partition_is_written_once_when_it_is_over() {
    let mut world = World::new(out_of_reach);
    world.passes(MINUTE).await;
    world.restart_sandbox().await;
    world.passes(2 * MINUTE).await;
    let before = world.asked().len();
    world.server_is(up);
    world.passes(10 * MINUTE).await;
    let asked = world.asked().split_off(before);
    assert_eq!(asked.len(), 1, "{asked:?}");
    let status = &asked[0].body["status"];
    assert_eq!((&status["restarts"], &status["sandbox"]["id"]), (&json!(1), &json!(NEXT_SANDBOX)));
    assert_eq!(status["lastRestart"]["reason"], "PauseExited");
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_written_though_its_pod_was_asked_to_go_before_it_could_be() {
    let mut world = World::new(up);
    world.passes(MINUTE).await;
    world.server_is(out_of_reach);
    world.restart_sandbox().await;
    world.passes(MINUTE).await;
    let mut going = pod();
    going.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(1_800_000_150).unwrap()));
    world.brings(watcher::Event::Apply(going));
    world.passes(READ_EVERY).await;
    let before = world.asked().len();
    world.server_is(up);
    world.passes(10 * MINUTE).await;
    let asked = world.asked().split_off(before);
    let [one] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(one.body["status"]["restarts"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_with_the_pid_of_a_process_that_was_known_is_found_by_the_next_reading() {
    let mut world = World::new(up);
    let next = world.fake.start_pause(NEXT_SANDBOX, 1400);
    let pid = next.pid();
    let pids = [format!("{pid} 7"), format!("{pid} 1")];
    world.fake.add(FakeProcess { pid, comm: "sh", pids: &pids[0], ..FakeProcess::default() });
    world.passes(COUNTED).await;
    let ended = world.pause.take().unwrap().pid();
    world.passes(Duration::from_millis(10)).await;
    world.fake.remove(ended);
    let pause =
        FakeProcess { pid, comm: "pause", pids: &pids[1], start_ticks: 1400, ..FakeProcess::default() };
    world.fake.add(FakeProcess { container: Some(NEXT_SANDBOX), cmdline: b"/pause\0", ..pause });
    world.passes(5 * READ_EVERY).await;
    assert_eq!(world.asked().last().unwrap().body["status"]["restarts"], 1);
}

#[tokio::test(start_paused = true)]
async fn zombies_that_came_and_went_during_an_outage_are_not_told_of_afterwards() {
    let world = World::new(up);
    world.passes(MINUTE).await;
    world.server_is(not_available);
    world.leave_zombies(9);
    world.passes(MINUTE).await;
    let refused = world.asked();
    let last = &refused.last().unwrap().body["status"];
    assert!(last["processes"]["accumulatingSince"].is_string(), "it tried to tell: {last}");
    for zombie in 1..=9 {
        world.fake.remove(PARENT + zombie);
    }
    world.passes(MINUTE).await;
    let before = world.asked().len();
    world.server_is(up);
    world.passes(10 * MINUTE).await;
    let asked = world.asked().split_off(before);
    let [one] = &asked[..] else { panic!("{asked:?}") };
    let processes = &one.body["status"]["processes"];
    assert!(processes["accumulatingSince"].is_null() && processes["zombies"] == 0, "{processes}");
}

#[tokio::test(start_paused = true)]
async fn of_a_pod_that_went_during_an_outage_nothing_is_asked_any_more() {
    let world = World::new(not_available);
    world.passes(MINUTE).await;
    world.brings(watcher::Event::Delete(pod()));
    world.passes(READ_EVERY).await;
    let before = world.asked().len();
    world.passes(10 * MINUTE).await;
    assert_eq!(world.asked().len(), before);
}

#[tokio::test(start_paused = true)]
async fn after_a_conflict_the_row_is_fetched_and_written_once() {
    let mut world = World::new(up);
    world.passes(COUNTED).await;
    let before = world.asked().len();
    world.server_is(changed_meanwhile);
    world.restart_sandbox().await;
    world.passes(10 * MINUTE).await;
    let asked = world.asked().split_off(before);
    let methods: Vec<_> = asked.iter().map(|asked| asked.method.as_str()).collect();
    assert_eq!(methods, ["PATCH", "GET", "PATCH"]);
    assert_eq!(world.row.lock().unwrap()["status"]["restarts"], 1);
}

#[tokio::test(start_paused = true)]
async fn forty_pods_at_once_are_asked_for_little_by_little() {
    let world = World::new(up);
    world.passes(COUNTED).await;
    let before = world.asked().len();
    for number in 0..40 {
        world.brings(watcher::Event::Apply(pod_of(&format!("u-{number}"))));
    }
    world.passes(Duration::from_secs(1)).await;
    let at_once = world.asked().len() - before;
    assert!((20..=25).contains(&at_once), "20 at once, and then five a second: {at_once}");
    world.passes(Duration::from_secs(10)).await;
    assert!(world.asked().len() - before >= 40);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_into_the_row_of_the_next_pod_of_the_name() {
    let mut world = World::new(up);
    world.passes(COUNTED).await;
    let before = world.asked().len();
    // The agent has not heard of it yet.
    *world.row.lock().unwrap() = new_row("o-2", "another-pod");
    world.restart_sandbox().await;
    world.passes(10 * MINUTE).await;
    assert_eq!(*world.row.lock().unwrap(), new_row("o-2", "another-pod"));
    let asked = world.asked().split_off(before);
    assert!(asked[1..].iter().all(|asked| asked.method != Method::PATCH), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_row_that_somebody_edited_is_made_right_once_at_the_next_list() {
    let world = World::new(up);
    world.passes(COUNTED).await;
    let (right, before) = (world.row.lock().unwrap().clone(), world.asked().len());
    edit(&mut world.row.lock().unwrap(), &["restarts"], json!(99));
    world.passes(5 * MINUTE).await;
    assert_eq!(world.row.lock().unwrap()["status"], right["status"]);
    world.passes(20 * MINUTE).await;
    assert_eq!(world.asked().len(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_no_sandbox_yet_has_its_edited_row_made_right_too() {
    let mut world = World::new(up);
    world.fake.remove(world.pause.take().unwrap().pid());
    let mut pending = pod();
    pending.status.as_mut().unwrap().phase = Some("Pending".to_owned());
    world.brings(watcher::Event::Apply(pending));
    world.passes(COUNTED).await;
    note_as_ours(&mut world.row.lock().unwrap());
    edit(&mut world.row.lock().unwrap(), &["restarts"], json!(99));
    world.passes(6 * MINUTE).await;
    assert_eq!(world.row.lock().unwrap()["status"], json!({"podUID": UID, "restarts": 0}));
    let before = world.asked().len();
    world.passes(20 * MINUTE).await;
    assert_eq!(world.asked().len(), before);
}
