//! The roster over a folder that stands for /proc: what it finds, and what it asks for. The pauses are processes of ours, since
//! the kernel gives pidfds of living processes alone.

use serde_json::{Value, json};

use super::super::pods::Stage;
use super::super::proc::fake::{CONTAINER, FakePause, FakeProc, FakeProcess, SANDBOX, UID};
use super::*;
use crate::authorship::fake::{edit, note_as_ours};
use crate::authorship::mend;
use crate::resource::RestartReason;
use crate::sandbox_condition::KubeletSaid;
use crate::scope::PidNamespaces;
use crate::serve::Metrics as _;

const NEXT_SANDBOX: &str = "2222222222222222222222222222222222222222222222222222222222222222";

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
}

fn facts(stage: Stage) -> PodFacts {
    PodFacts {
        uid: UID.to_owned(),
        cgroup_id: UID.to_owned(),
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        node: "n".to_owned(),
        namespaces: PidNamespaces::Shared,
        stage,
        containers: HashMap::new(),
        container_restarts: None,
        kubelet_said: None,
    }
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

/// Three restarts, and then a sandbox that is gone by now.
fn written() -> Value {
    json!({"restarts": 3, "sandbox": {"id": "gone", "startedAt": "2026-11-24T08:00:00Z", "bootID": "11111111-2222-4333-8444-555555555555"}})
}

/// A node with one pod.
struct Node {
    fake: FakeProc,
    roster: Roster,
    metrics: AgentMetrics,
    pauses: Vec<FakePause>,
}

/// Beyond every PID that Linux gives out (2^22, `pid_max` of proc(5)): the pauses are real processes, and may have any other.
const PARENT: i32 = 5_000_000;

impl Node {
    fn new(facts: PodFacts, at_start: Vec<SandboxHealth>) -> Self {
        let fake = FakeProc::new();
        fake.add(FakeProcess::default());
        let mut roster = Roster::new(fake.proc(), ZombieThreshold(5), at_start);
        roster.pod_applied(facts, at(0));
        Self { fake, roster, metrics: AgentMetrics::default(), pauses: Vec::new() }
    }

    fn running(at_start: Vec<SandboxHealth>) -> Self {
        Self::new(facts(Stage::Running), at_start)
    }

    /// A living pause; its PID.
    fn start_pause(&mut self, container: &str, start_ticks: u64) -> i32 {
        let pause = self.fake.start_pause(container, start_ticks);
        let pid = pause.pid();
        self.pauses.push(pause);
        pid
    }

    /// The pause of [`SANDBOX`] ends, and its pidfd says so.
    fn end_pause(&mut self, pid: i32, ms: i64, ending: Option<Ending>) {
        self.fake.remove(pid);
        self.roster.pause_ended(UID, SANDBOX, at(ms), ending);
    }

    /// The shell of the pod, with so many zombies.
    fn start_parent(&self, pid: i32, comm: &str, zombies: i32) {
        let pids = format!("{pid} 7");
        let parent =
            FakeProcess { pid, comm, pids: &pids, container: Some(CONTAINER), ..FakeProcess::default() };
        self.fake.add(parent);
        for zombie in 0..zombies {
            let zombie =
                FakeProcess { pid: pid + 1 + zombie, parent: pid, state: 'Z', ..FakeProcess::default() };
            self.fake.add(zombie);
        }
    }

    /// A reading, as the agent makes it every few seconds; what is asked for then.
    fn tick(&mut self, ms: i64) -> Vec<Ask> {
        self.roster.find().unwrap();
        self.roster.observe(at(ms), &self.metrics).unwrap();
        self.roster.look(at(ms), &self.metrics).unwrap();
        self.asked(ms)
    }

    fn asked(&mut self, ms: i64) -> Vec<Ask> {
        self.roster
            .requests_due(at(ms), &self.metrics.reports, || true)
            .into_iter()
            .map(|request| request.ask)
            .collect()
    }

    /// The status that is to be written, which must be all that is asked for.
    fn due_write(&mut self, ms: i64) -> Box<SandboxHealthStatus> {
        let mut asked = self.tick(ms);
        assert_eq!(asked.len(), 1, "{asked:?}");
        let Some(Ask::Write { status, .. }) = asked.pop() else { panic!("{asked:?}") };
        status
    }

    fn answer(&mut self, answer: Answer, ms: i64) {
        self.roster.answered(UID, answer, at(ms));
    }

    fn written(&mut self, ms: i64) -> Box<SandboxHealthStatus> {
        let status = self.due_write(ms);
        self.answer(Answer::Written(status.clone(), Ok(())), ms);
        status
    }

    /// How often is written while the zombies of a parent are 6 and `low` by turns, 10 s each.
    fn writes_of_swinging_zombies(&mut self, low: i32, rounds: i64) -> usize {
        let mut writes = 0;
        for round in 1..=rounds {
            let zombies = if round % 2 == 0 { low } else { 6 };
            self.start_parent(PARENT, "sh", zombies);
            (zombies..6).for_each(|gone| self.fake.remove(PARENT + 1 + gone));
            for ask in self.tick(round * 10_000) {
                let Ask::Write { status, .. } = ask else { panic!("{ask:?}") };
                self.answer(Answer::Written(status, Ok(())), round * 10_000);
                writes += 1;
            }
        }
        writes
    }

    fn status(&self) -> &SandboxHealthStatus {
        self.roster.pods[UID].record.status()
    }
}

fn refused(code: u16, reason: &str) -> ApiError {
    kube::Error::Api(Box::new(kube::core::Status::failure("no", reason).with_code(code))).into()
}

fn fetched(object: Option<SandboxHealth>) -> Answer {
    Answer::Fetched(Ok(object.map(Box::new)))
}

#[test]
fn a_pod_whose_object_was_there_at_the_start_goes_on_from_it() {
    let mut node = Node::running(vec![object("o-1", written())]);
    assert_eq!(node.tick(0), []);
    node.start_pause(SANDBOX, 1200);
    assert_eq!(node.due_write(1).restarts, 4, "another sandbox than was written is a restart");
}

#[test]
fn nothing_is_counted_before_the_object_is_known() {
    let mut node = Node::running(vec![]);
    node.start_pause(SANDBOX, 1200);
    assert_eq!(node.tick(0), [Ask::Fetch]);
    assert_eq!(node.tick(1), [], "one request at a time");
    node.answer(fetched(Some(object("o-1", written()))), 2);
    assert_eq!(node.due_write(3).restarts, 4);
}

#[test]
fn restarts_before_the_object_is_known_are_counted_once_it_is() {
    for (known, restarts) in [(fetched(Some(object("o-1", written()))), 5), (fetched(None), 1)] {
        let mut node = Node::running(vec![]);
        let pause = node.start_pause(SANDBOX, 1200);
        assert_eq!(node.tick(0), [Ask::Fetch]);
        for ms in [1_000, 2_000] {
            node.tick(ms);
        }
        node.end_pause(pause, 3_000, Some(Ending::Signaled(9)));
        node.start_pause(NEXT_SANDBOX, 1300);
        node.tick(4_000);
        node.answer(known, 5_000);
        node.tick(6_000);
        let status = node.status();
        assert_eq!((status.restarts, status.history[0].sandbox_id.as_str()), (restarts, SANDBOX));
        assert_eq!(status.last_restart.as_ref().unwrap().message, "pause was killed by SIGKILL");
    }
}

#[test]
fn a_container_named_pause_that_was_found_before_its_name_is_let_go() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    node.start_pause(CONTAINER, 1200);
    node.tick(0);
    assert!(node.status().sandbox.is_some());
    let mut named = facts(Stage::Running);
    named.containers.insert(CONTAINER.to_owned(), "app".to_owned());
    node.roster.pod_applied(named, at(1_000));
    assert!(node.status().sandbox.is_none() && node.roster.lacks_a_pause());
    node.start_pause(SANDBOX, 1100);
    node.tick(2_000);
    let status = node.status();
    assert_eq!((status.restarts, status.sandbox.as_ref().unwrap().id.as_deref()), (0, Some(SANDBOX)));
}

#[test]
fn what_the_kubelet_says_between_two_looks_is_not_missed() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    let pause = node.start_pause(SANDBOX, 1200);
    node.tick(0);
    let started = node.status().sandbox.as_ref().unwrap().started_at.0;
    node.end_pause(pause, 1_000, None);
    let since = started.checked_add(SignedDuration::from_secs(3)).unwrap();
    let said = Some(KubeletSaid { at: since, message: "it was evicted".to_owned() });
    node.roster.pod_applied(PodFacts { kubelet_said: said, ..facts(Stage::Running) }, at(1_100));
    node.roster.pod_applied(facts(Stage::Running), at(1_200));
    node.start_pause(NEXT_SANDBOX, 1700);
    node.tick(2_000);
    assert!(
        node.status().last_restart.as_ref().unwrap().message.ends_with("the kubelet said: it was evicted")
    );
}

#[test]
fn an_object_of_another_pod_under_our_pod_s_uid_is_not_ours() {
    let mut other = object("o-2", json!({"restarts": 77}));
    other.metadata.namespace = Some("elsewhere".to_owned());
    let mut node = Node::running(vec![other, object("o-1", written())]);
    node.start_pause(SANDBOX, 1200);
    assert_eq!(node.due_write(1).restarts, 4);
}

#[test]
fn a_clock_that_was_set_back_puts_nothing_off() {
    let mut node = Node::running(vec![]);
    assert_eq!(node.tick(0), [Ask::Fetch]);
    node.answer(Answer::Fetched(Err(refused(503, "ServiceUnavailable"))), 0);
    assert_eq!(node.tick(10), []);
    assert_eq!(node.tick(-3_600_000), [Ask::Fetch]);
}

#[test]
fn an_object_that_is_not_there_is_asked_for_less_and_less_and_then_waited_for() {
    let mut node = Node::running(vec![]);
    let mut waits = Vec::new();
    let mut now = 0;
    for _ in 0..6 {
        let since = now;
        while node.asked(now).is_empty() {
            now += 100;
        }
        waits.push(now - since);
        node.answer(fetched(None), now);
    }
    // The first is at once; then 1 s, 2 s, … each less up to a half.
    for (wait, longest) in waits.iter().zip([0, 1, 2, 4, 8, 16].map(|seconds| seconds * 1000)) {
        assert!((longest / 2..=longest + 100).contains(wait), "{waits:?}");
    }
    assert_eq!(node.asked(now + 1_000_000), [], "there may be none on purpose");
    node.roster.objects_listed(vec![object("o-1", json!({}))], at(now), at(now));
    node.start_pause(SANDBOX, 1200);
    node.due_write(now + 1_000_000);
}

#[test]
fn an_object_that_the_controller_did_not_make_is_made_for_what_is_wrong() {
    let mut node = Node::running(vec![]);
    node.start_pause(SANDBOX, 1200);
    node.start_parent(PARENT, "sh", 9);
    for ms in [0, 2_000] {
        assert_eq!(node.tick(ms), [Ask::Fetch]);
        node.answer(fetched(None), ms);
    }
    let asked = node.tick(5_000);
    let [Ask::Create(made)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((made.spec.pod_uid.as_str(), made.spec.node_name.as_str()), (UID, "n"));
    // Somebody was faster, or an earlier pod's object is in the way: it is looked at before we try again.
    node.answer(Answer::Created(Err(refused(409, "AlreadyExists"))), 5_000);
    assert_eq!(node.tick(20_000), [Ask::Fetch]);
    node.answer(fetched(Some(object("o-1", json!({})))), 20_000);
    assert_eq!(node.due_write(20_001).processes.as_ref().unwrap().zombies, 9);
}

#[test]
fn a_pod_that_shares_nothing_has_no_object_until_something_is_wrong() {
    let mut node =
        Node::new(PodFacts { namespaces: PidNamespaces::PerContainer, ..facts(Stage::Running) }, vec![]);
    node.start_pause(SANDBOX, 1200);
    for ms in [0, 20_000, 400_000] {
        assert_eq!(node.tick(ms), []);
    }
    node.start_parent(PARENT, "sh", 9);
    assert_eq!(node.tick(420_000), [Ask::Fetch]);
    let parent = &node.status().zombie_parents[0];
    assert_eq!((parent.pid, parent.zombies), (7, 9));
}

#[test]
fn a_pod_that_shares_nothing_has_its_restarts_counted_once_it_is_watched() {
    let pod = || PodFacts { namespaces: PidNamespaces::PerContainer, ..facts(Stage::Running) };
    let mut node = Node::new(pod(), vec![]);
    let pid = node.start_pause(SANDBOX, 1200);
    assert_eq!(node.tick(0), []);
    node.end_pause(pid, 1_000, None);
    node.start_pause(NEXT_SANDBOX, 1400);
    assert_eq!(node.tick(2_000), [Ask::Fetch], "something is wrong, so that it has a row");
    node.answer(fetched(Some(object("o-1", json!({})))), 2_000);
    let status = node.written(2_000);
    assert_eq!((status.restarts, status.history[0].reason), (1, RestartReason::PauseExited));
    // Of a pod without a row an agent that starts knows nothing from before.
    let mut node = Node::new(pod(), vec![]);
    node.start_pause(NEXT_SANDBOX, 1400);
    assert_eq!((node.tick(0), node.status().restarts), (vec![], 0));
}

#[test]
fn a_pod_that_is_over_has_no_restart() {
    for stage in [Stage::Finished, Stage::Deleted] {
        let mut node = Node::running(vec![object("o-1", json!({}))]);
        let pid = node.start_pause(SANDBOX, 1200);
        node.written(0);
        node.roster.pod_applied(facts(stage), at(1_000));
        node.end_pause(pid, 1_000, None);
        node.start_pause(NEXT_SANDBOX, 1400);
        for ms in [2_000, 40_000] {
            node.tick(ms);
            assert_eq!(node.status().restarts, 0);
        }
        let text = node.metrics.render().unwrap();
        let counted = "sandbox_restarts_total{namespace=\"shop\",pod=\"web\",reason=\"PauseExited\"} 0\n";
        assert!(text.contains(counted), "{text}");
    }
}

#[test]
fn what_cannot_wait_is_counted_at_once_though_there_was_a_count_a_moment_ago() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    let pid = node.start_pause(SANDBOX, 1200);
    node.written(0);
    node.tick(10_000);
    node.end_pause(pid, 10_100, None);
    node.start_pause(NEXT_SANDBOX, 1400);
    let status = node.written(10_300);
    assert_eq!((status.restarts, status.processes.is_some()), (1, true), "a restart is one write");
    assert_eq!(node.tick(11_000), []);
}

#[test]
fn a_sandbox_with_the_pid_of_a_process_that_went_is_found_by_a_look_and_that_can_be_asked_for() {
    let mut node = Node::running(vec![]);
    let pid = node.start_pause(SANDBOX, 2000);
    let pids = [format!("{pid} 7"), format!("{pid} 1")];
    node.fake.add(FakeProcess { pid, comm: "sh", pids: &pids[0], ..FakeProcess::default() });
    node.tick(0);
    let pause =
        FakeProcess { pid, comm: "pause", pids: &pids[1], start_ticks: 2000, ..FakeProcess::default() };
    node.fake.add(FakeProcess { container: Some(SANDBOX), cmdline: b"/pause\0", ..pause });
    node.tick(5_000);
    assert!(node.roster.lacks_a_pause());
    node.roster.look_soon();
    node.tick(10_000);
    assert!(!node.roster.lacks_a_pause());
}

#[test]
fn all_processes_are_looked_at_every_minute_where_nothing_asks_for_more() {
    let mut node = Node::new(PodFacts { containers: HashMap::new(), ..facts(Stage::Finished) }, vec![]);
    node.tick(0);
    node.start_parent(PARENT, "sh", 3);
    let zombies = |node: &Node| {
        let text = node.metrics.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("sandbox_node_zombie_processes "));
        line.unwrap().to_owned()
    };
    node.fake.add(FakeProcess { pid: PARENT + 50, parent: 1, state: 'Z', ..FakeProcess::default() });
    node.tick(59_000);
    assert_eq!(zombies(&node), "0");
    node.tick(60_000);
    assert_eq!(zombies(&node), "1");
}

#[test]
fn zombies_are_written_at_once_with_who_leaves_them() {
    let mut pod = facts(Stage::Running);
    pod.containers.insert(CONTAINER.to_owned(), "shell".to_owned());
    let mut node = Node::new(pod, vec![object("o-1", json!({}))]);
    node.start_pause(SANDBOX, 1200);
    assert_eq!(node.written(0).source, Some(crate::resource::Source::ProcScan));
    node.start_parent(PARENT, "a\nb", 9);
    let status = node.written(10_000);
    let [parent] = &status.zombie_parents[..] else { panic!("{status:?}") };
    assert_eq!((parent.command.as_str(), parent.container.as_str()), ("a?b", "shell"));
    for ms in [20_000, 30_000, 299_000] {
        assert_eq!(node.tick(ms), [], "an onset is one write");
    }
}

#[test]
fn zombies_whose_parent_went_between_two_looks_are_blamed_on_nobody() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    node.start_pause(SANDBOX, 1200);
    node.start_parent(PARENT, "sh", 9);
    node.fake.remove(PARENT);
    let status = node.written(0);
    assert!(status.zombie_parents.is_empty(), "{status:?}");
    assert_eq!(status.processes.as_ref().unwrap().zombies, 0, "who inherited them is seen at the next look");
}

#[test]
fn zombies_that_swing_around_the_threshold_are_written_once() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    node.start_pause(SANDBOX, 1200);
    node.written(0);
    let writes = node.writes_of_swinging_zombies(3, 25);
    assert_eq!(writes, 1, "in four minutes");
}

#[test]
fn of_two_candidates_the_older_is_the_sandbox_and_a_living_one_is_not_replaced() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    node.start_pause(CONTAINER, 1300);
    let pause = node.start_pause(SANDBOX, 1200);
    node.written(0);
    assert_eq!(node.status().sandbox.as_ref().unwrap().id.as_deref(), Some(SANDBOX));
    node.start_pause(NEXT_SANDBOX, 1400);
    assert_eq!(node.tick(5_000), []);
    node.end_pause(pause, 6_000, Some(Ending::Signaled(9)));
    let mut known = facts(Stage::Running);
    known.containers.insert(CONTAINER.to_owned(), "poser".to_owned());
    node.roster.pod_applied(known, at(6_000));
    let status = node.due_write(6_500);
    assert_eq!((status.restarts, status.sandbox.as_ref().unwrap().id.as_deref()), (1, Some(NEXT_SANDBOX)));
}

#[test]
fn an_object_that_somebody_deleted_gets_all_that_is_known_again() {
    let mut node = Node::running(vec![object("o-1", written())]);
    node.start_pause(SANDBOX, 1200);
    let status = node.due_write(0);
    node.answer(Answer::Written(status, Err(refused(404, "NotFound"))), 0);
    assert_eq!(node.tick(1_000), [Ask::Fetch]);
    node.answer(fetched(Some(object("o-2", json!({})))), 1_000);
    let asked = node.tick(1_001);
    let [Ask::Write { status }] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(status.restarts, 4);
}

#[test]
fn an_agent_that_starts_does_not_go_on_from_what_somebody_wrote_and_makes_it_right() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    node.start_pause(SANDBOX, 1200);
    node.written(0);
    let status = serde_json::to_value(node.status()).unwrap();
    let mut row = serde_json::to_value(object("o-1", status)).unwrap();
    note_as_ours(&mut row);
    edit(&mut row, &["restarts"], json!(99));
    let mut edited: SandboxHealth = serde_json::from_value(row).unwrap();
    mend(&mut edited);
    for found in [true, false] {
        let mut node = Node::running(if found { vec![edited.clone()] } else { vec![] });
        node.start_pause(SANDBOX, 1200);
        if !found {
            assert_eq!(node.tick(0), [Ask::Fetch]);
            node.answer(fetched(Some(edited.clone())), 0);
        }
        assert_eq!(node.written(0).restarts, 0);
        assert_eq!(node.tick(10_000), []);
        node.roster.objects_listed(vec![edited.clone()], at(20_000), at(20_000));
        assert_eq!(node.written(20_000).restarts, 0, "somebody did it again");
    }
}

#[test]
fn an_idle_pod_is_reported_again_once_when_its_object_was_made_anew_or_changed() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    node.start_pause(SANDBOX, 1200);
    // Within a second: the API keeps whole ones.
    let status = serde_json::to_value(node.written(1_234)).unwrap();
    let mut changed = status.clone();
    changed["restarts"] = json!(99);
    for (uid, has) in [("o-1", changed), ("o-2", json!({}))] {
        node.roster.objects_listed(vec![object("o-1", status.clone())], at(5_000), at(5_000));
        assert_eq!(node.tick(5_000), [], "it is as it was written");
        node.roster.objects_listed(vec![object(uid, has.clone())], at(0), at(6_000));
        assert_eq!(node.tick(6_000), [], "the list is older than what we wrote");
        node.roster.objects_listed(vec![object(uid, has)], at(7_000), at(7_000));
        assert_eq!(node.written(7_000).restarts, 0);
        node.roster.objects_listed(vec![object(uid, status.clone())], at(8_000), at(8_000));
        assert_eq!(node.tick(8_000), []);
        node = Node::running(vec![object("o-1", status.clone())]);
        node.start_pause(SANDBOX, 1200);
        node.tick(0);
    }
    node.roster.objects_listed(vec![], at(7_000), at(7_000));
    assert_eq!(node.tick(7_000), [Ask::Fetch], "it was deleted");
}

#[test]
fn a_deleted_pod_asks_for_nothing_and_a_gone_one_is_forgotten() {
    let mut node = Node::new(facts(Stage::Deleted), vec![]);
    assert_eq!(node.tick(0), []);
    node.roster.keep_pods(&HashSet::new());
    assert!(node.roster.pods.is_empty());
}

#[test]
fn what_the_budget_does_not_allow_waits() {
    let mut node = Node::running(vec![]);
    assert_eq!(node.roster.requests_due(at(0), &node.metrics.reports, || false), []);
    assert_eq!(node.asked(0), [Ask::Fetch]);
}

#[test]
fn what_waits_for_its_turn_is_shown_with_how_long_it_waited_and_how_often_it_failed() {
    let mut node = Node::running(vec![]);
    another_pod(&mut node, "other");
    for second in 0..3 {
        node.roster.requests_due(at(second * 1000), &node.metrics.reports, || false);
    }
    assert_eq!(node.asked(3_000), [Ask::Fetch, Ask::Fetch]);
    node.answer(Answer::Fetched(Err(ApiError::TimedOut)), 3_000);
    node.roster.pod_deleted("u-other");
    node.roster.requests_due(at(6_000), &node.metrics.reports, || false);
    let text = node.metrics.render().unwrap();
    for line in [
        "workqueue_adds_total{name=\"reports\"} 3",
        "workqueue_depth{name=\"reports\"} 1",
        "workqueue_queue_duration_seconds_sum{name=\"reports\"} 6.0",
        "workqueue_retries_total{name=\"reports\"} 1",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
}

#[test]
fn how_long_the_object_was_not_to_be_had_does_not_make_a_restart_uncertain() {
    let mut node = Node::running(vec![]);
    let pid = node.start_pause(SANDBOX, 1200);
    assert_eq!(node.tick(0), [Ask::Fetch]);
    node.end_pause(pid, 1_000, None);
    node.start_pause(NEXT_SANDBOX, 1400);
    node.tick(2_000);
    let mut restarted = facts(Stage::Running);
    restarted.container_restarts = Some(9);
    node.roster.pod_applied(restarted, at(3_000));
    node.answer(fetched(Some(object("o-1", json!({})))), 90_000);
    node.tick(90_000);
    assert_eq!((node.status().restarts, node.status().restarts_at_least), (1, None));
}

/// Another pod, of which something is to be asked.
fn another_pod(node: &mut Node, name: &str) {
    let other = PodFacts { uid: format!("u-{name}"), name: name.to_owned(), ..facts(Stage::Running) };
    node.roster.pod_applied(other, at(0));
}

#[test]
fn who_asked_last_comes_last() {
    let mut node = Node::running(vec![]);
    for name in ["a", "b", "c", "d"] {
        another_pod(&mut node, name);
    }
    let mut served = HashSet::new();
    for round in 0..5 {
        let mut allowed = 1;
        let now = at(round * 1_000_000);
        let asked =
            node.roster.requests_due(now, &node.metrics.reports, || std::mem::take(&mut allowed) == 1);
        let [request] = &asked[..] else { panic!("{asked:?}") };
        node.roster.answered(&request.pod_uid, fetched(None), now);
        served.insert(request.pod_uid.clone());
    }
    assert_eq!(served.len(), 5, "each had its turn: {served:?}");
}

#[test]
fn what_a_pod_makes_come_and_go_all_the_time_is_written_now_and_then() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    let pid = node.start_pause(SANDBOX, 1200);
    node.written(0);
    let writes = node.writes_of_swinging_zombies(0, 360);
    assert!((20..=23).contains(&writes), "10 at once and 12 in an hour: {writes}");
    node.end_pause(pid, 3_600_500, None);
    node.start_pause(NEXT_SANDBOX, 400_000);
    assert_eq!(node.written(3_601_000).restarts, 1, "of the sandbox all is written at once");
}

#[test]
fn where_other_users_processes_are_hidden_nothing_is_counted() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    node.start_pause(SANDBOX, 1200);
    node.fake.remove(1);
    node.tick(0);
    node.tick(12_000);
    assert_eq!(node.status().read_failure.as_ref().unwrap().reason, "ProcHidden");
    assert_eq!(node.status().processes, None);
    assert!(
        !node.metrics.render().unwrap().contains("\nsandbox_node_zombie_processes"),
        "none is not unknown"
    );
}

/// What an API server does to a write.
enum Scenario {
    /// It asks to be left alone for a while.
    TooManyRequests,
    /// It is starting, or its store is away.
    Unavailable,
    /// Somebody wrote at the same time.
    Conflict,
    /// The connection hangs, and the request is given up.
    Hang,
    /// There is no way to it.
    Partition,
}

impl Scenario {
    fn error(&self) -> ApiError {
        match self {
            Self::TooManyRequests => refused(429, "TooManyRequests"),
            Self::Unavailable => refused(503, "ServiceUnavailable"),
            Self::Conflict => refused(409, "Conflict"),
            Self::Hang => ApiError::TimedOut,
            Self::Partition => {
                let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
                kube::Error::Service(Box::new(refused)).into()
            }
        }
    }
}

#[test]
fn a_write_that_fails_is_made_again_later_and_later_until_it_gets_through() {
    use Scenario::{Hang, Partition, TooManyRequests, Unavailable};
    for scenario in [TooManyRequests, Unavailable, Hang, Partition] {
        let mut node = Node::running(vec![object("o-1", written())]);
        node.start_pause(SANDBOX, 1200);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let since = now;
            let status = loop {
                match node.tick(now).pop() {
                    Some(Ask::Write { status, .. }) => break status,
                    Some(other) => panic!("{other:?}"),
                    None => now += 250,
                }
            };
            waits.push(now - since);
            node.answer(Answer::Written(status, Err(scenario.error())), now);
        }
        for (wait, longest) in waits.iter().zip([0, 1, 2, 4, 8, 16, 32, 60]) {
            assert!((longest * 500..=longest * 1000 + 250).contains(wait), "{waits:?}");
        }
        assert_eq!(node.written(now + 60_000).restarts, 4, "what still matters is not lost");
        assert_eq!(node.tick(now + 61_000), [], "and not written twice");
    }
}

#[test]
fn after_a_conflict_the_object_is_looked_at_before_it_is_written_again() {
    let mut node = Node::running(vec![object("o-1", written())]);
    node.start_pause(SANDBOX, 1200);
    let status = node.due_write(0);
    node.answer(Answer::Written(status, Err(Scenario::Conflict.error())), 0);
    assert_eq!(node.tick(500), []);
    assert_eq!(node.tick(1_000), [Ask::Fetch]);
}

#[test]
fn what_no_longer_matters_is_not_written_when_the_server_is_back() {
    let mut node = Node::running(vec![object("o-1", json!({}))]);
    node.start_pause(SANDBOX, 1200);
    node.written(0);
    node.start_parent(PARENT, "sh", 9);
    let status = node.due_write(10_000);
    node.answer(Answer::Written(status, Err(Scenario::Unavailable.error())), 10_000);
    (PARENT..PARENT + 10).for_each(|pid| node.fake.remove(pid));
    assert_eq!(node.tick(30_000), [], "the zombies came and went while it was away");
    node.start_parent(PARENT, "sh", 9);
    let status = node.due_write(40_000);
    node.answer(Answer::Written(status, Err(Scenario::Partition.error())), 40_000);
    node.roster.pod_applied(facts(Stage::Deleted), at(50_000));
    assert_eq!(node.tick(100_000), [], "and a pod that is deleted has nothing to report");
}

#[test]
fn what_was_written_though_nobody_said_so_is_written_over() {
    for (scenario, again) in
        [(Scenario::Hang, true), (Scenario::Partition, true), (Scenario::Unavailable, false)]
    {
        let mut node = Node::running(vec![object("o-1", json!({}))]);
        node.start_pause(SANDBOX, 1200);
        node.written(0);
        node.start_parent(PARENT, "sh", 9);
        let status = node.due_write(10_000);
        node.answer(Answer::Written(status, Err(scenario.error())), 10_000);
        (PARENT..PARENT + 10).for_each(|pid| node.fake.remove(pid));
        let asked = node.tick(30_000);
        assert_eq!(!asked.is_empty(), again, "the row may say that zombies accumulate: {asked:?}");
    }
}

#[test]
fn a_restart_that_is_found_at_the_start_is_added_to_a_counter_that_was_seen_at_0() {
    let before = json!({"restarts": 0, "sandbox": {"id": "before", "startedAt": "2027-01-15T07:00:00Z"}});
    let mut node = Node::running(vec![object("o-1", before)]);
    node.start_pause(SANDBOX, 1200);
    for (ms, shown) in [(0, 0), (119_000, 0), (120_000, 1), (121_000, 1)] {
        node.tick(ms);
        assert_eq!(node.status().restarts, 1, "the row does not wait");
        let text = node.metrics.render().unwrap();
        let line = text.lines().find(|line| line.contains("reason=\"Replaced\"")).unwrap();
        assert!(line.ends_with(&format!(" {shown}")), "after {ms} ms: {line}");
    }
}
