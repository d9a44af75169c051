//! The whole agent beside an API server that does not answer as it should: what it asks then, when, and how often. Time is
//! made up, and passes as soon as nothing else is to be done; /proc is a folder, and the pauses are processes of ours.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::channel::mpsc::{UnboundedSender, unbounded};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::proc::fake::{CONTAINER, FakePause, FakeProc, FakeProcess, SANDBOX, UID};
use super::*;
use crate::mock_server::{self, Asked};
use crate::serve::Metrics as _;

const NEXT_SANDBOX: &str = "2222222222222222222222222222222222222222222222222222222222222222";
const MINUTE: Duration = Duration::from_secs(60);
/// Between readings: by so much may a request be later than it is due.
const READ_EVERY: Duration = Duration::from_millis(100);
/// After it is found, a pod whose processes the agent counts is counted within a second, and reported without that before.
const COUNTED: Duration = Duration::from_secs(3);
/// Beyond every PID that Linux gives out (2^22, `pid_max` of proc(5)).
const PARENT: i32 = 5_000_000;

/// A node with one pod that has a row, its agent, and what that asked the API.
struct World {
    fake: FakeProc,
    pause: Option<FakePause>,
    asked: Arc<Mutex<Vec<Asked>>>,
    metrics: Arc<AgentMetrics>,
    pods: UnboundedSender<watcher::Result<watcher::Event<Pod>>>,
    agent: JoinHandle<std::io::Result<()>>,
}

/// The row as it was written by the agent before this one, which saw the same sandbox.
fn row(uid: &str) -> Value {
    json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
        "metadata": {"name": "web", "namespace": "shop", "uid": uid},
        "spec": {"podName": "web", "podUID": UID, "nodeName": "n"},
    })
}

/// The server takes what it is sent.
fn taken(asked: &Asked) -> mock_server::Answer {
    let mut row = row(asked.body["metadata"]["uid"].as_str().unwrap_or("o-1"));
    row["status"] = asked.body["status"].clone();
    mock_server::Answer::Object(row)
}

impl World {
    fn new(answer: impl Fn(&Asked) -> mock_server::Answer + Send + Sync + 'static) -> Self {
        let fake = FakeProc::new();
        fake.add(FakeProcess::default());
        let pause = Some(fake.start_pause(SANDBOX, 1200));
        let (client, asked) = mock_server::answering(answer);
        let (pods, brought) = unbounded();
        let (metrics, begun) = (Arc::new(AgentMetrics::default()), Instant::now());
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let clock = move || start + SignedDuration::try_from(begun.elapsed()).unwrap();
        let at_start = vec![serde_json::from_value(row("o-1")).unwrap()];
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
        let agent = tokio::spawn(agent.watch(brought, futures::stream::pending(), READ_EVERY));
        let world = Self { fake, pause, asked, metrics, pods, agent };
        world.brings(watcher::Event::Apply(pod()));
        world
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

    /// What was asked of the API so far.
    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
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
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": UID},
        "spec": {"shareProcessNamespace": true, "nodeName": "n", "containers": []},
        "status": {"phase": "Running"},
    }))
    .unwrap()
}

/// Seconds between each request and the next.
fn gaps(asked: &[Asked]) -> Vec<f64> {
    asked.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect()
}

/// A server that answers so while it is down, and takes everything else.
fn down_at_first(
    answer: impl Fn() -> mock_server::Answer + Send + Sync + 'static,
) -> (World, Arc<AtomicBool>) {
    let up = Arc::new(AtomicBool::new(false));
    let is_up = up.clone();
    let world = World::new(move |asked| if is_up.load(Ordering::Relaxed) { taken(asked) } else { answer() });
    (world, up)
}

#[tokio::test(start_paused = true)]
async fn a_healthy_idle_pod_is_written_once_it_is_found_and_not_for_an_hour_after() {
    let world = World::new(taken);
    world.passes(COUNTED).await;
    let asked = world.asked();
    let last = &asked.last().unwrap().body["status"];
    assert_eq!((&last["sandbox"]["id"], &last["processes"]["total"]), (&json!(SANDBOX), &json!(1)));
    world.passes(60 * MINUTE).await;
    assert_eq!(world.asked().len(), asked.len());
}

#[tokio::test(start_paused = true)]
async fn a_server_with_too_much_to_do_is_asked_ever_more_seldom() {
    let (world, _) = down_at_first(|| mock_server::Answer::Refused(StatusCode::TOO_MANY_REQUESTS));
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
    let (world, up) = down_at_first(|| mock_server::Answer::Refused(StatusCode::SERVICE_UNAVAILABLE));
    world.passes(10 * MINUTE).await;
    let before = world.asked().len();
    up.store(true, Ordering::Relaxed);
    world.passes(MINUTE + 2 * READ_EVERY).await;
    assert_eq!(world.asked().len(), before + 1);
    world.passes(10 * MINUTE).await;
    assert_eq!(world.asked().len(), before + 1, "it is not written again");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_hangs_ends_each_request_and_another_is_made() {
    let (world, up) = down_at_first(|| mock_server::Answer::Silence);
    world.passes(Duration::from_secs(40)).await;
    let gaps = gaps(&world.asked());
    assert!((2..=4).contains(&gaps.len()) && gaps.iter().all(|gap| *gap > 10.0), "{gaps:?}");
    assert!(world.shows(&format!(
        "sandbox_health_api_requests_total{{verb=\"patch\",result=\"timeout\"}} {}",
        gaps.len()
    )));
    up.store(true, Ordering::Relaxed);
    world.passes(2 * MINUTE).await;
    assert_eq!(world.asked().len(), gaps.len() + 2, "the one that hung, and the one that got through");
}

#[tokio::test(start_paused = true)]
async fn a_restart_during_a_partition_is_written_once_when_it_is_over() {
    let (mut world, up) = down_at_first(|| mock_server::Answer::Broken);
    world.passes(MINUTE).await;
    world.restart_sandbox().await;
    world.passes(2 * MINUTE).await;
    let before = world.asked().len();
    up.store(true, Ordering::Relaxed);
    world.passes(10 * MINUTE).await;
    let asked = world.asked().split_off(before);
    assert_eq!(asked.len(), 1, "{asked:?}");
    let status = &asked[0].body["status"];
    assert_eq!((&status["restarts"], &status["sandbox"]["id"]), (&json!(1), &json!(NEXT_SANDBOX)));
    assert_eq!(status["lastRestart"]["reason"], "PauseExited");
}

#[tokio::test(start_paused = true)]
async fn zombies_that_came_and_went_during_an_outage_are_not_told_of_afterwards() {
    let down = Arc::new(AtomicBool::new(false));
    let is_down = down.clone();
    let world = World::new(move |asked| {
        let down = is_down.load(Ordering::Relaxed);
        if down { mock_server::Answer::Refused(StatusCode::SERVICE_UNAVAILABLE) } else { taken(asked) }
    });
    world.passes(MINUTE).await;
    down.store(true, Ordering::Relaxed);
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
    down.store(false, Ordering::Relaxed);
    world.passes(10 * MINUTE).await;
    for asked in world.asked().split_off(before) {
        let processes = &asked.body["status"]["processes"];
        assert!(processes["accumulatingSince"].is_null() && processes["zombies"] == 0, "{processes}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_pod_that_went_during_an_outage_nothing_is_asked_any_more() {
    let (world, _) = down_at_first(|| mock_server::Answer::Refused(StatusCode::SERVICE_UNAVAILABLE));
    world.passes(MINUTE).await;
    world.brings(watcher::Event::Delete(pod()));
    world.passes(READ_EVERY).await;
    let before = world.asked().len();
    world.passes(10 * MINUTE).await;
    assert_eq!(world.asked().len(), before);
}

#[tokio::test(start_paused = true)]
async fn another_row_of_the_name_is_asked_for_and_gets_all_that_is_known() {
    let made_anew = Arc::new(AtomicBool::new(false));
    let is_made_anew = made_anew.clone();
    let mut world = World::new(move |asked| match asked.method {
        Method::GET => mock_server::Answer::Object(row("o-2")),
        _ if is_made_anew.load(Ordering::Relaxed) && asked.body["metadata"]["uid"] == "o-1" => {
            mock_server::Answer::Refused(StatusCode::CONFLICT)
        }
        _ => taken(asked),
    });
    world.passes(COUNTED).await;
    let before = world.asked().len();
    made_anew.store(true, Ordering::Relaxed);
    world.restart_sandbox().await;
    world.passes(MINUTE).await;
    let asked = world.asked().split_off(before);
    let made: Vec<_> =
        asked.iter().map(|asked| (asked.method.as_str(), &asked.body["metadata"]["uid"])).collect();
    assert_eq!(made, [("PATCH", &json!("o-1")), ("GET", &Value::Null), ("PATCH", &json!("o-2"))]);
    let status =
        |asked: &Asked| (asked.body["status"]["restarts"].clone(), asked.body["status"]["sandbox"].clone());
    assert_eq!(status(&asked[2]), status(&asked[0]));
    assert_eq!(asked[2].body["status"]["restarts"], 1);
}
