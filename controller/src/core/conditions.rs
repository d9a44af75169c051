//! The conditions of a SandboxHealth object, as a function of its status, of the agent's state and of the time. A transition time
//! moves only when the condition's status does, and no message has a number that changes with time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use strum::{IntoStaticStr, VariantArray};
use tokio::time::Instant;

use crate::crd::{HEALTHY, LastRestart, REPORTING, SANDBOX_STABLE, SandboxHealthStatus, ZOMBIES_REAPED};
use crate::k8s::pod::LeanPod;
use crate::procfs::pause::ReadError;

/// How long a restart makes a pod unhealthy.
pub const RESTART_MEMORY: SignedDuration = SignedDuration::from_mins(10);
/// Time after the grace period of a deletion until the pod is reported as Unknown. Most are gone by then, and cost no write.
const TERMINATION_GRACE: Duration = Duration::from_secs(60);

/// Whether a ready agent observes a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// It does, and the node is ready.
    Ready,
    /// It does not, but not for long enough, or no longer for the reason that was reported: conditions stay as they are.
    Pending,
    Unavailable(UnavailableReason),
}

/// The reasons that follow from the status of the object. Those for which a sandbox is not observed are [`UnavailableReason`],
/// [`Terminal`] and [`ReadError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str)]
pub enum ConditionReason {
    AgentReporting,
    NoRecentRestart,
    NoReport,
    NoZombiesAccumulating,
    SandboxHealthy,
    SandboxRestarted,
    SandboxTerminated,
    ZombiesAccumulating,
}

/// Why no agent observes a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str)]
pub enum UnavailableReason {
    AgentMissing,
    AgentNotReady,
    /// The node is not ready, or was deleted.
    NodeNotReady,
}

impl UnavailableReason {
    fn message(self, node: &str) -> String {
        match self {
            Self::AgentMissing => {
                format!("no sandbox-health agent runs on node {node}; see the DaemonSet's events")
            }
            Self::AgentNotReady => {
                format!("the sandbox-health agent on node {node} is not ready; see its log")
            }
            Self::NodeNotReady => format!("node {node} is not ready or was deleted"),
        }
    }
}

/// Why the sandbox of a pod is no longer observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str)]
pub enum Terminal {
    /// The pod's phase is Succeeded or Failed.
    PodFinished,
    /// The pod is still being deleted after its grace period.
    PodTerminating,
}

impl Terminal {
    const fn message(self) -> &'static str {
        match self {
            Self::PodFinished => {
                "all containers of the pod have terminated; its sandbox is no longer observed"
            }
            Self::PodTerminating => {
                "the pod's deletion is not complete after its grace period; its sandbox is no longer observed; check the pod's finalizers and its node"
            }
        }
    }

    /// Whether the sandbox of this pod is no longer observed, and when that will change. A pod reaches a terminal phase just before its
    /// deletion is complete: only one that was finished before is reported as such.
    pub fn of(pod: &LeanPod, status: &SandboxHealthStatus, now: Instant) -> (Option<Self>, Option<Duration>) {
        let was_finished =
            status.condition(REPORTING).is_some_and(|before| before.reason == Self::PodFinished.into_str());
        let Some(grace) = pod.deletion_grace else {
            return (pod.is_finished.then_some(Self::PodFinished), None);
        };
        if pod.is_finished && was_finished {
            return (Some(Self::PodFinished), None);
        }
        let elapsed = pod.deletion_seen_at.map_or(Duration::ZERO, |seen| now.duration_since(seen));
        match (grace + TERMINATION_GRACE).checked_sub(elapsed).filter(|left| !left.is_zero()) {
            Some(left) => (None, Some(left)),
            None => (Some(Self::PodTerminating), None),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// All conditions, in the order in which they are shown.
    pub conditions: Vec<Condition>,
    /// When they change without a change of the object.
    pub changes_at: Option<Timestamp>,
}

pub fn evaluate(
    status: &SandboxHealthStatus,
    node: &str,
    terminal: Option<Terminal>,
    agent: AgentState,
    now: Timestamp,
) -> Evaluation {
    let recent = status.last_restart.as_ref().filter(|restart| now < end_of_memory(restart));
    let case = Case { status, node, terminal, unavailable: unavailable(status, agent), recent, now };
    let reaped = case.zombies_reaped();
    let conditions = vec![
        case.condition(HEALTHY, case.healthy(&reaped)),
        reaped,
        case.condition(SANDBOX_STABLE, case.sandbox_stable()),
        case.condition(REPORTING, case.reporting()),
    ];
    Evaluation { conditions, changes_at: recent.map(end_of_memory) }
}

/// Adds to the message of a missing agent why agents cannot be created.
pub fn add_creation_error(conditions: &mut [Condition], error: &str) {
    let missing = UnavailableReason::AgentMissing.into_str();
    for condition in conditions.iter_mut().filter(|condition| condition.reason == missing) {
        condition.message.push_str(&format!("; agents cannot be created: {error}"));
    }
}

/// An agent wrote the time: it may be out of range.
fn end_of_memory(restart: &LastRestart) -> Timestamp {
    restart.time.0.checked_add(RESTART_MEMORY).unwrap_or(Timestamp::MAX)
}

/// Why the sandbox is not observed. While the agent's state is pending, the present conditions have the reason.
fn unavailable(status: &SandboxHealthStatus, agent: AgentState) -> Option<UnavailableReason> {
    match agent {
        AgentState::Ready => None,
        AgentState::Unavailable(reason) => Some(reason),
        AgentState::Pending => {
            let before = &status.condition(REPORTING)?.reason;
            UnavailableReason::VARIANTS.iter().copied().find(|reason| reason.into_str() == before)
        }
    }
}

struct Verdict {
    status: &'static str,
    reason: String,
    message: String,
}

impl Verdict {
    fn new(status: &'static str, reason: ConditionReason, message: impl Into<String>) -> Self {
        Self { status, reason: reason.into_str().to_owned(), message: message.into() }
    }

    fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason: reason.to_owned(), message: message.into() }
    }

    fn no_report() -> Self {
        Self::new("Unknown", ConditionReason::NoReport, "the agent of the node has not reported yet")
    }
}

struct Case<'a> {
    status: &'a SandboxHealthStatus,
    node: &'a str,
    terminal: Option<Terminal>,
    unavailable: Option<UnavailableReason>,
    /// A restart within [`RESTART_MEMORY`].
    recent: Option<&'a LastRestart>,
    now: Timestamp,
}

impl Case<'_> {
    fn condition(&self, type_: &str, verdict: Verdict) -> Condition {
        let before = self.status.condition(type_).filter(|before| before.status == verdict.status);
        Condition {
            type_: type_.to_owned(),
            status: verdict.status.to_owned(),
            reason: verdict.reason,
            message: verdict.message,
            last_transition_time: before.map_or(Time(self.now), |before| before.last_transition_time.clone()),
            observed_generation: None,
        }
    }

    fn not_observed(&self) -> Option<Verdict> {
        if let Some(terminal) = self.terminal {
            return Some(Verdict::unknown(terminal.into_str(), terminal.message()));
        }
        self.unavailable.map(|reason| Verdict::unknown(reason.into_str(), reason.message(self.node)))
    }

    fn unreadable(&self) -> Option<Verdict> {
        let failure = self.status.read_failure.as_ref()?;
        Some(Verdict::unknown(&failure.reason, failure.message.clone()))
    }

    fn terminated(&self) -> Option<Verdict> {
        let termination = self.status.termination.as_ref()?;
        let message = format!("the pod sandbox was terminated and is not restarted: {}", termination.message);
        Some(Verdict::new("False", ConditionReason::SandboxTerminated, message))
    }

    fn restarted(&self) -> Option<Verdict> {
        let message = format!("the pod sandbox was restarted: {}", self.recent?.message);
        Some(Verdict::new("False", ConditionReason::SandboxRestarted, message))
    }

    /// The processes of the pod are counted, and it has no sandbox.
    fn without_pause(&self) -> Option<Verdict> {
        let error = ReadError::NoPause;
        let is_so = self.status.sandbox.is_none() && self.status.processes.is_some();
        is_so.then(|| Verdict::unknown(error.reason(), error.to_string()))
    }

    fn reporting(&self) -> Verdict {
        self.not_observed()
            .or_else(|| self.unreadable())
            .or_else(|| self.without_pause())
            .or_else(|| self.status.sandbox.is_none().then(Verdict::no_report))
            .unwrap_or_else(|| {
                let message = "the agent of the node observes the sandbox";
                Verdict::new("True", ConditionReason::AgentReporting, message)
            })
    }

    fn sandbox_stable(&self) -> Verdict {
        let is_reported = self.status.sandbox.is_some();
        let hides_restarts = |verdict: &Verdict| {
            ReadError::WITHOUT_SANDBOX.iter().any(|error| error.reason() == verdict.reason)
        };
        let stable = "the sandbox was not restarted within the last 10 minutes";
        self.terminated()
            .or_else(|| self.restarted())
            .or_else(|| self.not_observed())
            .or_else(|| self.unreadable().filter(|verdict| !is_reported || hides_restarts(verdict)))
            .or_else(|| self.without_pause())
            .or_else(|| (!is_reported).then(Verdict::no_report))
            .unwrap_or_else(|| Verdict::new("True", ConditionReason::NoRecentRestart, stable))
    }

    /// False since the onset, also while zombies cannot be counted.
    fn zombies_reaped(&self) -> Condition {
        if let Some(since) = self.status.accumulating_since.clone().filter(|_| self.terminal.is_none()) {
            let message = "zombie processes are accumulating and count against the pod's PID limit; status.zombieParents lists their parents";
            let verdict = Verdict::new("False", ConditionReason::ZombiesAccumulating, message);
            return Condition { last_transition_time: since, ..self.condition(ZOMBIES_REAPED, verdict) };
        }
        let counted = self.status.processes.as_ref().map(|_| {
            let message = "no zombie processes are accumulating";
            Verdict::new("True", ConditionReason::NoZombiesAccumulating, message)
        });
        let verdict = self.not_observed().or(counted).or_else(|| self.unreadable());
        let before = self.status.condition(ZOMBIES_REAPED).filter(|before| before.status == "True");
        match (verdict, before.filter(|_| self.status.sandbox.is_some())) {
            // The agent counts the processes of a new sandbox a moment after it found it.
            (None, Some(before)) => before.clone(),
            (verdict, _) => self.condition(ZOMBIES_REAPED, verdict.unwrap_or_else(Verdict::no_report)),
        }
    }

    fn healthy(&self, reaped: &Condition) -> Verdict {
        let accumulating =
            || Verdict::new("False", ConditionReason::ZombiesAccumulating, reaped.message.clone());
        let healthy = "the sandbox is stable and zombie processes are reaped";
        self.terminated()
            .or_else(|| self.not_observed())
            .or_else(|| self.unreadable())
            .or_else(|| (reaped.status == "False").then(accumulating))
            .or_else(|| self.restarted())
            .or_else(|| self.without_pause())
            .or_else(|| self.status.processes.is_none().then(Verdict::no_report))
            .unwrap_or_else(|| Verdict::new("True", ConditionReason::SandboxHealthy, healthy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const READY: AgentState = AgentState::Ready;
    const MISSING: AgentState = AgentState::Unavailable(UnavailableReason::AgentMissing);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// A reported status with these fields besides.
    fn status(fields: Value) -> SandboxHealthStatus {
        let mut status = json!({
            "sandbox": {"id": "a", "startedAt": at(0).to_string()},
            "processes": {"zombies": 0, "zombiesPeak": 0, "total": 4, "reapedTotal": 0, "observedAt": at(0).to_string()},
        });
        status.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(status).unwrap()
    }

    fn accumulating(since: i64) -> SandboxHealthStatus {
        status(json!({"accumulatingSince": at(since).to_string()}))
    }

    fn restarted(second: i64) -> SandboxHealthStatus {
        let restart = json!({"time": at(second).to_string(), "reason": "PauseExited", "message": "x"});
        status(json!({ "lastRestart": restart }))
    }

    fn evaluated(
        status: &SandboxHealthStatus,
        terminal: Option<Terminal>,
        agent: AgentState,
        second: i64,
    ) -> Evaluation {
        evaluate(status, "n", terminal, agent, at(second))
    }

    /// Status and reason of Healthy, ZombiesReaped, SandboxStable and Reporting.
    fn reasons(evaluation: &Evaluation) -> [String; 4] {
        let types: Vec<_> = evaluation.conditions.iter().map(|has| has.type_.as_str()).collect();
        assert_eq!(types, [HEALTHY, ZOMBIES_REAPED, SANDBOX_STABLE, REPORTING]);
        std::array::from_fn(|index| {
            let condition = &evaluation.conditions[index];
            format!("{}/{}", condition.status, condition.reason)
        })
    }

    fn evaluate_into(status: &mut SandboxHealthStatus, agent: AgentState, second: i64) {
        status.conditions = evaluated(status, None, agent, second).conditions;
    }

    #[test]
    fn stable_sandbox_without_zombies_is_healthy() {
        assert_eq!(
            reasons(&evaluated(&status(json!({})), None, READY, 0)),
            [
                "True/SandboxHealthy",
                "True/NoZombiesAccumulating",
                "True/NoRecentRestart",
                "True/AgentReporting"
            ]
        );
    }

    #[test]
    fn status_without_report_is_unknown() {
        let nothing = evaluated(&SandboxHealthStatus::default(), None, READY, 0);
        assert_eq!(reasons(&nothing), ["Unknown/NoReport"; 4]);
    }

    #[test]
    fn unavailable_agent_makes_every_condition_unknown() {
        for &reason in UnavailableReason::VARIANTS {
            let evaluation = evaluated(&status(json!({})), None, AgentState::Unavailable(reason), 0);
            let expected = format!("Unknown/{}", reason.into_str());
            assert_eq!(reasons(&evaluation), [(); 4].map(|()| expected.clone()));
        }
    }

    #[test]
    fn finished_pod_makes_every_condition_unknown() {
        for agent in [READY, MISSING] {
            let finished = evaluated(&accumulating(7), Some(Terminal::PodFinished), agent, 30);
            assert_eq!(reasons(&finished), ["Unknown/PodFinished"; 4]);
        }
    }

    #[test]
    fn accumulating_zombies_are_unhealthy_since_their_onset() {
        let evaluation = evaluated(&accumulating(7), None, READY, 20);
        assert_eq!(reasons(&evaluation)[..2], ["False/ZombiesAccumulating", "False/ZombiesAccumulating"]);
        assert_eq!(evaluation.conditions[1].last_transition_time, Time(at(7)));
    }

    #[test]
    fn uncounted_zombies_still_accumulate() {
        let mut status = accumulating(7);
        status.processes = None;
        let evaluation = evaluated(&status, None, READY, 30);
        assert_eq!(reasons(&evaluation)[1], "False/ZombiesAccumulating");
    }

    #[test]
    fn restart_is_unhealthy_for_ten_minutes() {
        let within = evaluated(&restarted(0), None, READY, 599);
        assert_eq!(reasons(&within)[0], "False/SandboxRestarted");
        assert_eq!(within.changes_at, Some(at(600)));
        let after = evaluated(&restarted(0), None, READY, 600);
        assert_eq!((reasons(&after)[0].as_str(), after.changes_at), ("True/SandboxHealthy", None));
    }

    #[test]
    fn terminated_sandbox_is_unhealthy_until_the_pod_is_deleted() {
        let termination = json!({"sandboxID": "a", "time": at(0).to_string(), "message": "pause was killed"});
        let status = status(json!({ "termination": termination }));
        for terminal in [None, Some(Terminal::PodFinished)] {
            let reasons = reasons(&evaluated(&status, terminal, READY, 99_999));
            assert_eq!(
                (reasons[0].as_str(), reasons[2].as_str()),
                ("False/SandboxTerminated", "False/SandboxTerminated")
            );
        }
    }

    #[test]
    fn unchanged_evaluation_keeps_transition_times() {
        let mut status = status(json!({}));
        evaluate_into(&mut status, READY, 10);
        assert_eq!(evaluated(&status, None, READY, 99_999).conditions, status.conditions);
    }

    #[test]
    fn transition_time_moves_with_the_status() {
        let mut status = status(json!({}));
        evaluate_into(&mut status, READY, 10);
        status.accumulating_since = Some(Time(at(50)));
        assert_eq!(evaluated(&status, None, READY, 60).conditions[0].last_transition_time, Time(at(60)));
    }

    #[test]
    fn unavailable_agent_hides_only_the_summary_of_known_faults() {
        let mut status = restarted(5);
        status.accumulating_since = Some(Time(at(7)));
        evaluate_into(&mut status, READY, 20);
        let reason = AgentState::Unavailable(UnavailableReason::NodeNotReady);
        assert_eq!(
            reasons(&evaluated(&status, None, reason, 30)),
            [
                "Unknown/NodeNotReady",
                "False/ZombiesAccumulating",
                "False/SandboxRestarted",
                "Unknown/NodeNotReady"
            ]
        );
    }

    #[test]
    fn pending_agent_state_changes_no_condition() {
        for agent in [READY, MISSING] {
            let mut status = status(json!({}));
            evaluate_into(&mut status, agent, 0);
            let pending = evaluated(&status, None, AgentState::Pending, 9);
            assert_eq!(pending.conditions, status.conditions);
        }
    }

    #[test]
    fn restart_changes_two_conditions_before_the_new_sandbox_is_counted() {
        let mut before = status(json!({}));
        evaluate_into(&mut before, READY, 0);
        let counted = SandboxHealthStatus { conditions: before.conditions, ..restarted(100) };
        let mut uncounted = SandboxHealthStatus { processes: None, ..counted.clone() };
        assert_eq!(
            reasons(&evaluated(&uncounted, None, READY, 101)),
            [
                "False/SandboxRestarted",
                "True/NoZombiesAccumulating",
                "False/SandboxRestarted",
                "True/AgentReporting"
            ]
        );
        evaluate_into(&mut uncounted, READY, 101);
        uncounted.processes = counted.processes;
        assert_eq!(evaluated(&uncounted, None, READY, 106).conditions, uncounted.conditions);
    }

    #[test]
    fn read_failure_hides_restarts_only_if_the_sandbox_is_not_found() {
        let failing = |reason: &str| SandboxHealthStatus {
            processes: None,
            ..status(json!({"readFailure": {"reason": reason, "message": "no"}}))
        };
        for reason in ReadError::WITHOUT_SANDBOX.map(|error| error.reason()) {
            let expected = format!("Unknown/{reason}");
            let evaluation = evaluated(&failing(reason), None, READY, 0);
            assert_eq!(reasons(&evaluation), [(); 4].map(|()| expected.clone()));
        }
        let [healthy, _, stable, reporting] = reasons(&evaluated(&failing("NoStatus"), None, READY, 0));
        assert_eq!(
            [healthy, stable, reporting],
            ["Unknown/NoStatus", "True/NoRecentRestart", "Unknown/NoStatus"]
        );
    }

    #[test]
    fn pod_without_pause_has_zombies_and_nothing_else() {
        let without_pause = |has_zombies: bool| {
            let mut status = if has_zombies { accumulating(7) } else { status(json!({})) };
            status.sandbox = None;
            reasons(&evaluated(&status, None, READY, 20))
        };
        let unknown = "Unknown/NoPauseProcess";
        assert_eq!(
            without_pause(true),
            ["False/ZombiesAccumulating", "False/ZombiesAccumulating", unknown, unknown]
        );
        assert_eq!(without_pause(false), [unknown, "True/NoZombiesAccumulating", unknown, unknown]);
    }

    fn pod(metadata: Value, phase: &str, seen_at: Instant) -> LeanPod {
        let pod = json!({"metadata": metadata, "status": {"phase": phase}});
        let mut pod: LeanPod = serde_json::from_value(pod).unwrap();
        pod.deletion_seen_at = Some(seen_at);
        pod
    }

    #[test]
    fn terminating_pod_becomes_unknown_after_grace() {
        let start = Instant::now();
        // The clock of the API server is of no importance.
        let deletion =
            json!({"deletionTimestamp": "1999-01-01T00:00:00Z", "deletionGracePeriodSeconds": 3600});
        let pod = pod(deletion, "Running", start);
        let status = status(json!({}));
        let after = |seconds| Terminal::of(&pod, &status, start + Duration::from_secs(seconds));
        assert_eq!(after(3659), (None, Some(Duration::from_secs(1))));
        assert_eq!(after(3660), (Some(Terminal::PodTerminating), None));
    }

    #[test]
    fn deleted_pod_is_finished_only_if_it_was_before() {
        let start = Instant::now();
        let deletion = json!({"deletionTimestamp": "2027-01-15T08:00:00Z", "deletionGracePeriodSeconds": 30});
        let mut status = status(json!({}));
        assert_eq!(Terminal::of(&pod(deletion.clone(), "Failed", start), &status, start).0, None);
        let finished = pod(json!({}), "Failed", start);
        let terminal = Terminal::of(&finished, &status, start).0;
        assert_eq!(terminal, Some(Terminal::PodFinished));
        status.conditions = evaluated(&status, terminal, READY, 0).conditions;
        assert_eq!(
            Terminal::of(&pod(deletion, "Failed", start), &status, start).0,
            Some(Terminal::PodFinished)
        );
    }
}
