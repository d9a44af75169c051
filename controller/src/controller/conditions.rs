//! What to make of a status: its conditions. Pure functions of the status before, of who sees the sandbox, and of the time; a
//! condition's transition time moves only when its status does, and no message holds a number that moves by itself.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::fleet::{Blindness, Sight};
use super::pods::KeptPod;
use crate::resource::{
    HEALTHY, LastRestart, PROC_HIDDEN, REPORTING, ReadFailure, SANDBOX_NOT_FOUND, SANDBOX_STABLE,
    SandboxHealthStatus, Source, ZOMBIES_REAPED,
};

/// How long a restart counts against a sandbox's health.
pub const RESTART_MEMORY: SignedDuration = SignedDuration::from_mins(10);

/// What the controller makes of a status.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// All conditions, in the order in which they are shown.
    pub conditions: Vec<Condition>,
    /// When time alone will change it.
    pub until: Option<Timestamp>,
}

/// Why a pod's sandbox is not watched any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// All its containers ended for good.
    Finished,
    /// It is being deleted, and that takes long.
    Terminating,
}

impl Judgement {
    /// The same, but for what it says of zombies, which stays as it is: by it is known which of their Events were made.
    #[must_use]
    pub fn with_zombies_as_before(mut self, before: &SandboxHealthStatus) -> Self {
        self.conditions.retain_mut(|condition| match before.condition(ZOMBIES_REAPED) {
            _ if condition.type_ != ZOMBIES_REAPED => true,
            Some(before) => {
                before.clone_into(condition);
                true
            }
            None => false,
        });
        self
    }
}

impl Over {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Finished, Self::Terminating];

    /// Reason of every condition of such a pod.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Finished => "PodFinished",
            Self::Terminating => "PodTerminating",
        }
    }

    const fn message(self) -> &'static str {
        match self {
            Self::Finished => "all containers of the pod have ended; its sandbox is not watched any more",
            Self::Terminating => "the pod is being deleted; its sandbox is not watched any more",
        }
    }
}

/// Why nobody looks at the pod's sandbox any more, if so. What is said once stays: a pod that is being deleted is finished just
/// before it is gone, and one that is finished is deleted one day.
#[must_use]
pub fn over(pod: &KeptPod, status: &SandboxHealthStatus) -> Option<Over> {
    let said = |over: Over| status.condition(REPORTING).is_some_and(|has| has.reason == over.reason());
    match (pod.is_finished, pod.asked_to_go.is_some()) {
        (true, true) if said(Over::Finished) => Some(Over::Finished),
        (_, true) => Some(Over::Terminating),
        (true, false) => Some(Over::Finished),
        (false, false) => None,
    }
}

/// Judges a status as it is now. `over`: why nobody looks any more, if so.
#[must_use]
pub fn judge(status: &SandboxHealthStatus, over: Option<Over>, sight: Sight, now: Timestamp) -> Judgement {
    let recent = status.last_restart.as_ref().filter(|restart| now < end_of_memory(restart));
    let case = Case { status, over, blind: blindness(status, sight), recent, now };
    let reaped = case.zombies_reaped();
    let healthy = case.condition(HEALTHY, case.healthy(&reaped));
    let stable = case.condition(SANDBOX_STABLE, case.sandbox_stable());
    let reporting = case.condition(REPORTING, case.reporting());
    Judgement { conditions: vec![healthy, reaped, stable, reporting], until: recent.map(end_of_memory) }
}

/// The time is an agent's, which a cluster may have many of: none may bring us down.
fn end_of_memory(restart: &LastRestart) -> Timestamp {
    restart.time.0.checked_add(RESTART_MEMORY).unwrap_or(Timestamp::MAX)
}

/// Why nobody sees the sandbox. While that is not settled, what was said before still holds.
#[must_use]
pub fn blindness(status: &SandboxHealthStatus, sight: Sight) -> Option<Blindness> {
    match sight {
        Sight::Seen => None,
        Sight::Blind(why) => Some(why),
        Sight::Unsettled => {
            status.condition(REPORTING).and_then(|before| Blindness::of_reason(&before.reason))
        }
    }
}

struct Verdict {
    status: &'static str,
    reason: String,
    message: String,
}

impl Verdict {
    fn new(status: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { status, reason: reason.to_owned(), message: message.into() }
    }

    fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Self::new("Unknown", reason, message)
    }

    fn over(why: Over) -> Self {
        Self::unknown(why.reason(), why.message())
    }

    fn blind(why: Blindness) -> Self {
        Self::unknown(why.reason(), why.message())
    }

    fn no_report() -> Self {
        Self::unknown("NoReport", "the agent of the node has not reported yet")
    }

    fn restarted(restart: &LastRestart) -> Self {
        Self::new("False", "SandboxRestarted", format!("the sandbox was restarted: {}", restart.message))
    }
}

/// All that a judgement follows from.
struct Case<'a> {
    status: &'a SandboxHealthStatus,
    over: Option<Over>,
    blind: Option<Blindness>,
    /// A restart that still counts.
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

    /// Whether restarts are seen without an agent, by the pod's condition.
    fn counted_by_conditions(&self) -> bool {
        self.blind == Some(Blindness::AgentMissing) && self.status.source == Some(Source::PodConditions)
    }

    /// Whether an agent has told of the sandbox.
    fn is_reported(&self) -> bool {
        self.status.sandbox.is_some() && self.status.source != Some(Source::PodConditions)
    }

    fn reporting(&self) -> Verdict {
        if let Some(why) = self.over {
            return Verdict::over(why);
        }
        if let Some(why) = self.blind {
            return Verdict::blind(why);
        }
        if let Some(failure) = &self.status.read_failure {
            return Verdict::unknown(&failure.reason, failure.message.clone());
        }
        if !self.is_reported() {
            return Verdict::no_report();
        }
        Verdict::new("True", "AgentReports", "the agent of the node sees the sandbox")
    }

    fn sandbox_stable(&self) -> Verdict {
        if let Some(restart) = self.recent {
            return Verdict::restarted(restart);
        }
        if let Some(why) = self.over {
            return Verdict::over(why);
        }
        if let Some(why) = self.blind.filter(|_| !self.counted_by_conditions()) {
            return Verdict::blind(why);
        }
        let never_seen = self.status.sandbox.is_none();
        let failure = self.status.read_failure.as_ref();
        let hides_restarts =
            |failure: &&ReadFailure| [SANDBOX_NOT_FOUND, PROC_HIDDEN].contains(&failure.reason.as_str());
        if let Some(failure) = failure.filter(|failure| never_seen || hides_restarts(failure)) {
            return Verdict::unknown(&failure.reason, failure.message.clone());
        }
        if never_seen {
            return Verdict::no_report();
        }
        Verdict::new("True", "NoRecentRestart", "the sandbox was not restarted within the last 10 minutes")
    }

    /// False since the onset; and still so while nobody can count, since nobody saw the zombies go.
    fn zombies_reaped(&self) -> Condition {
        // They went with it, though nobody may have been there to see.
        if let Some(why) = self.over {
            return self.condition(ZOMBIES_REAPED, Verdict::over(why));
        }
        let before = self.status.condition(ZOMBIES_REAPED);
        let since = self.status.processes.as_ref().and_then(|processes| processes.accumulating_since.clone());
        if let Some(since) = since {
            let message = "processes of the pod do not reap their children, and zombies accumulate";
            let verdict = Verdict::new("False", "ZombiesAccumulating", message);
            return Condition { last_transition_time: since, ..self.condition(ZOMBIES_REAPED, verdict) };
        }
        let uncounted = self.status.processes.is_none();
        if let Some(before) = before.filter(|before| uncounted && self.is_still_so(before)) {
            return before.clone();
        }
        let verdict = if let Some(why) = self.blind {
            Verdict::blind(why)
        } else if uncounted {
            Verdict::unknown("NotCounted", "the zombies of the pod are not counted at present")
        } else {
            Verdict::new("True", "NoneAccumulate", "no zombies accumulate in the pod")
        };
        self.condition(ZOMBIES_REAPED, verdict)
    }

    /// Whether what was said of zombies holds although there are no counts.
    fn is_still_so(&self, before: &Condition) -> bool {
        let seen = self.over.is_none() && self.blind.is_none();
        match before.status.as_str() {
            // They go with their sandbox, and with the pod. An agent says that they went by counting those of the next sandbox.
            "False" => {
                let restarted = self.status.last_restart.as_ref().map(|restart| &restart.time);
                let went = self.status.source == Some(Source::PodConditions)
                    && restarted > Some(&before.last_transition_time);
                self.over.is_none() && !went
            }
            // An agent that tells of a new sandbox counts its processes in a moment.
            "True" => seen && self.is_reported() && self.status.read_failure.is_none(),
            _ => false,
        }
    }

    /// Known bad news first, but for what nobody sees any more: that is unknown.
    fn healthy(&self, reaped: &Condition) -> Verdict {
        if let Some(why) = self.over {
            return Verdict::over(why);
        }
        if let Some(why) = self.blind {
            let restart = self.recent.filter(|_| self.counted_by_conditions());
            return restart.map_or_else(|| Verdict::blind(why), Verdict::restarted);
        }
        if let Some(failure) = &self.status.read_failure {
            return Verdict::unknown(&failure.reason, failure.message.clone());
        }
        if reaped.status == "False" {
            return Verdict::new("False", &reaped.reason, reaped.message.clone());
        }
        if let Some(restart) = self.recent {
            return Verdict::restarted(restart);
        }
        if self.status.processes.is_none() {
            return Verdict::no_report();
        }
        Verdict::new("True", "AllWell", "the sandbox is stable and no zombies accumulate")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Processes, RestartReason, Sandbox};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn processes(since: Option<i64>) -> Option<Processes> {
        Some(Processes {
            zombies: 0,
            zombies_peak: 0,
            total: 4,
            reaped_total: Some(0),
            observed_at: Time(at(0)),
            accumulating_since: since.map(|second| Time(at(second))),
        })
    }

    fn healthy(status: &SandboxHealthStatus, now: i64) -> (String, String) {
        let judged = judge(status, None, Sight::Seen, at(now));
        (judged.conditions[0].status.clone(), judged.conditions[0].reason.clone())
    }

    fn pair(status: &str, reason: &str) -> (String, String) {
        (status.to_owned(), reason.to_owned())
    }

    #[test]
    fn a_sandbox_without_a_report_is_unknown() {
        assert_eq!(healthy(&SandboxHealthStatus::default(), 0), pair("Unknown", "NoReport"));
    }

    #[test]
    fn a_sandbox_that_is_read_and_stable_is_healthy() {
        let status = SandboxHealthStatus { processes: processes(None), ..Default::default() };
        assert_eq!(healthy(&status, 0), pair("True", "AllWell"));
        assert_eq!(
            judge(&status, Some(Over::Finished), Sight::Seen, at(0)).conditions[0].reason,
            "PodFinished"
        );
    }

    #[test]
    fn a_sandbox_that_cannot_be_read_is_unknown_for_the_reader_s_reason() {
        let failure = ReadFailure { reason: "NoStatus".to_owned(), message: "no".to_owned() };
        let status = SandboxHealthStatus { read_failure: Some(failure), ..Default::default() };
        assert_eq!(healthy(&status, 0), pair("Unknown", "NoStatus"));
    }

    #[test]
    fn accumulating_zombies_are_unhealthy_since_their_onset() {
        let status = SandboxHealthStatus { processes: processes(Some(7)), ..Default::default() };
        assert_eq!(healthy(&status, 20), pair("False", "ZombiesAccumulating"));
        assert_eq!(judge(&status, None, Sight::Seen, at(20)).conditions[1].last_transition_time, Time(at(7)));
    }

    #[test]
    fn zombies_that_nobody_saw_go_are_not_gone() {
        let mut status = SandboxHealthStatus { processes: processes(Some(7)), ..Default::default() };
        status.conditions = judge(&status, None, Sight::Seen, at(20)).conditions;
        status.processes = None;
        let reaped = &judge(&status, None, Sight::Seen, at(30)).conditions[1];
        assert_eq!((reaped.status.as_str(), &reaped.last_transition_time), ("False", &Time(at(7))));
    }

    #[test]
    fn zombies_of_a_pod_that_is_over_are_not_said_to_be_there() {
        let mut status = SandboxHealthStatus { processes: processes(Some(7)), ..reported() };
        status.conditions = judge(&status, None, Sight::Seen, at(20)).conditions;
        status.processes = None;
        assert_eq!(
            judged(&status, Some(Over::Finished), Sight::Seen, 30)[1],
            "ZombiesReaped=Unknown/PodFinished"
        );
    }

    #[test]
    fn a_restart_counts_for_a_while() {
        let last_restart = Some(LastRestart {
            time: Time(at(0)),
            reason: RestartReason::PauseExited,
            message: "x".to_owned(),
        });
        let status = SandboxHealthStatus { processes: processes(None), last_restart, ..Default::default() };
        assert_eq!(healthy(&status, 599), pair("False", "SandboxRestarted"));
        assert_eq!(judge(&status, None, Sight::Seen, at(1)).until, Some(at(600)));
        assert_eq!(healthy(&status, 600), pair("True", "AllWell"));
        assert_eq!(judge(&status, None, Sight::Seen, at(600)).until, None);
    }

    #[test]
    fn a_judgement_that_stays_is_the_same_to_the_letter() {
        let mut status = SandboxHealthStatus { processes: processes(None), ..Default::default() };
        status.conditions = judge(&status, None, Sight::Seen, at(10)).conditions;
        assert_eq!(judge(&status, None, Sight::Seen, at(99_999)).conditions, status.conditions);
    }

    #[test]
    fn a_transition_time_moves_when_the_status_flips() {
        let mut status = SandboxHealthStatus { processes: processes(None), ..Default::default() };
        status.conditions = judge(&status, None, Sight::Seen, at(10)).conditions;
        status.processes = processes(Some(50));
        let healthy = &judge(&status, None, Sight::Seen, at(60)).conditions[0];
        assert_eq!(healthy.last_transition_time, Time(at(60)));
    }

    /// An agent's report of a sandbox that is well.
    fn reported() -> SandboxHealthStatus {
        let sandbox =
            Sandbox { id: Some("a".to_owned()), started_at: Time(at(0)), boot_id: None, pause_version: None };
        SandboxHealthStatus {
            processes: processes(None),
            sandbox: Some(sandbox),
            source: Some(Source::PauseStatusFile),
            ..Default::default()
        }
    }

    fn restart(second: i64) -> Option<LastRestart> {
        Some(LastRestart {
            time: Time(at(second)),
            reason: RestartReason::PauseExited,
            message: "x".to_owned(),
        })
    }

    /// Each condition as `Type=Status/Reason`.
    fn told(judgement: &Judgement) -> Vec<String> {
        let told = |has: &Condition| format!("{}={}/{}", has.type_, has.status, has.reason);
        judgement.conditions.iter().map(told).collect()
    }

    fn judged(status: &SandboxHealthStatus, over: Option<Over>, sight: Sight, now: i64) -> Vec<String> {
        told(&judge(status, over, sight, at(now)))
    }

    #[test]
    fn what_is_seen_and_well_is_well_in_every_condition() {
        assert_eq!(
            judged(&reported(), None, Sight::Seen, 0),
            [
                "Healthy=True/AllWell",
                "ZombiesReaped=True/NoneAccumulate",
                "SandboxStable=True/NoRecentRestart",
                "Reporting=True/AgentReports"
            ]
        );
    }

    #[test]
    fn what_nobody_sees_is_unknown_for_the_same_reason_in_every_condition() {
        for why in [Blindness::AgentMissing, Blindness::AgentNotReady, Blindness::NodeNotReady] {
            let expected = [HEALTHY, ZOMBIES_REAPED, SANDBOX_STABLE, REPORTING]
                .map(|type_| format!("{type_}=Unknown/{}", why.reason()));
            assert_eq!(judged(&reported(), None, Sight::Blind(why), 0), expected);
        }
        let finished = [HEALTHY, ZOMBIES_REAPED, SANDBOX_STABLE, REPORTING]
            .map(|type_| format!("{type_}=Unknown/PodFinished"));
        assert_eq!(
            judged(&reported(), Some(Over::Finished), Sight::Blind(Blindness::AgentMissing), 0),
            finished
        );
        let nothing = judged(&SandboxHealthStatus::default(), None, Sight::Seen, 0);
        assert!(nothing.iter().all(|told| told.contains("=Unknown/")), "{nothing:?}");
    }

    #[test]
    fn zombies_are_gone_with_their_pod_whoever_was_there_to_see() {
        let mut status = SandboxHealthStatus { processes: processes(Some(7)), ..reported() };
        status.conditions = judge(&status, None, Sight::Seen, at(20)).conditions;
        let over = judged(&status, Some(Over::Finished), Sight::Blind(Blindness::AgentMissing), 30);
        assert!(over.contains(&"ZombiesReaped=Unknown/PodFinished".to_owned()), "{over:?}");
    }

    #[test]
    fn bad_news_that_nobody_sees_any_more_is_unknown_in_the_summary_alone() {
        let mut status =
            SandboxHealthStatus { processes: processes(Some(7)), last_restart: restart(5), ..reported() };
        status.conditions = judge(&status, None, Sight::Seen, at(20)).conditions;
        assert_eq!(
            judged(&status, None, Sight::Blind(Blindness::NodeNotReady), 30),
            [
                "Healthy=Unknown/NodeNotReady",
                "ZombiesReaped=False/ZombiesAccumulating",
                "SandboxStable=False/SandboxRestarted",
                "Reporting=Unknown/NodeNotReady"
            ]
        );
    }

    #[test]
    fn what_is_not_settled_leaves_the_judgement_as_it_is() {
        for sight in [Sight::Seen, Sight::Blind(Blindness::AgentMissing)] {
            let mut status = reported();
            status.conditions = judge(&status, None, sight, at(0)).conditions;
            assert_eq!(judge(&status, None, Sight::Unsettled, at(9)).conditions, status.conditions);
        }
    }

    #[test]
    fn a_restart_that_the_pod_s_condition_tells_of_is_known_without_an_agent() {
        let status = SandboxHealthStatus {
            source: Some(Source::PodConditions),
            processes: None,
            last_restart: restart(0),
            ..reported()
        };
        let blind = Sight::Blind(Blindness::AgentMissing);
        let now = judged(&status, None, blind, 1);
        assert_eq!(
            (now[0].as_str(), now[2].as_str()),
            ("Healthy=False/SandboxRestarted", "SandboxStable=False/SandboxRestarted")
        );
        let later = judged(&status, None, blind, 600);
        assert_eq!(
            (later[0].as_str(), later[2].as_str()),
            ("Healthy=Unknown/AgentMissing", "SandboxStable=True/NoRecentRestart")
        );
        let agent_is_back = judged(&status, None, Sight::Seen, 600);
        assert_eq!(
            (agent_is_back[0].as_str(), agent_is_back[3].as_str()),
            ("Healthy=Unknown/NoReport", "Reporting=Unknown/NoReport")
        );
    }

    #[test]
    fn zombies_of_a_sandbox_that_went_without_an_agent_are_not_said_to_be_there() {
        let mut status = SandboxHealthStatus { processes: processes(Some(7)), ..reported() };
        status.conditions = judge(&status, None, Sight::Seen, at(20)).conditions;
        status.processes = None;
        status.source = Some(Source::PodConditions);
        let blind = Sight::Blind(Blindness::AgentMissing);
        assert_eq!(judged(&status, None, blind, 30)[1], "ZombiesReaped=False/ZombiesAccumulating");
        status.last_restart = restart(25);
        assert_eq!(judged(&status, None, blind, 30)[1], "ZombiesReaped=Unknown/AgentMissing");
    }

    #[test]
    fn a_restart_flips_two_conditions_and_no_other_though_the_new_sandbox_is_not_counted_yet() {
        let mut status = reported();
        status.conditions = judge(&status, None, Sight::Seen, at(0)).conditions;
        status.processes = None;
        status.last_restart = restart(100);
        let told = judged(&status, None, Sight::Seen, 101);
        assert_eq!(
            told,
            [
                "Healthy=False/SandboxRestarted",
                "ZombiesReaped=True/NoneAccumulate",
                "SandboxStable=False/SandboxRestarted",
                "Reporting=True/AgentReports"
            ]
        );
        status.conditions = judge(&status, None, Sight::Seen, at(101)).conditions;
        status.processes = processes(None);
        assert_eq!(judge(&status, None, Sight::Seen, at(106)).conditions, status.conditions);
    }

    #[test]
    fn an_agent_that_does_not_see_the_sandbox_sees_no_restarts_and_one_that_cannot_read_it_does() {
        let failing = |reason: &str| SandboxHealthStatus {
            read_failure: Some(ReadFailure { reason: reason.to_owned(), message: "no".to_owned() }),
            processes: None,
            ..reported()
        };
        for reason in [SANDBOX_NOT_FOUND, PROC_HIDDEN] {
            let expected = [HEALTHY, ZOMBIES_REAPED, SANDBOX_STABLE, REPORTING].map(|type_| {
                format!("{type_}=Unknown/{}", if type_ == ZOMBIES_REAPED { "NotCounted" } else { reason })
            });
            assert_eq!(judged(&failing(reason), None, Sight::Seen, 0), expected);
        }
        let told = judged(&failing("NoStatus"), None, Sight::Seen, 0);
        assert_eq!(
            (told[2].as_str(), told[3].as_str()),
            ("SandboxStable=True/NoRecentRestart", "Reporting=Unknown/NoStatus")
        );
    }
}
