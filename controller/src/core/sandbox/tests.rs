//! How observations change the state of a sandbox.

use super::*;
use crate::crd::Source;
use crate::procfs::pause::PauseReport;
use crate::procfs::pidfd::ExitStatus;
use pause_status::Refusal;

const THRESHOLD: ZombieThreshold = ZombieThreshold(5);
const BOOT: Option<&str> = Some("boot-1");
const UNAVAILABLE: Evidence = Evidence { status: None, shim_exited: false, oom_killed: false };
const KILLED: Evidence = Evidence { status: Some(ExitStatus::Killed(9)), ..UNAVAILABLE };

/// Seconds since an arbitrary start, by both clocks.
fn at(second: i64) -> Now {
    at_wall_clock(second, second)
}

/// The same with a wall clock that was set.
fn at_wall_clock(second: i64, wall: i64) -> Now {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    Now { instant: *START + Duration::from_secs(second.unsigned_abs()), time: time(wall) }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn reading(zombies: u32) -> Result<Reading, ReadError> {
    let pause = PauseReport { peak_zombies: zombies, reaped: 9, version: "0.1.0".to_owned() };
    let source = Source::PauseStatusFile;
    Ok(Reading { zombies, processes: 4 + zombies, threads: 30, source, pause: Some(pause) })
}

fn counted(zombies: u32) -> Result<Reading, ReadError> {
    Ok(Reading { zombies, processes: 4 + zombies, threads: 30, source: Source::ProcScan, pause: None })
}

/// Finds another sandbox in the same boot.
fn find(state: &mut SandboxState, id: &str, second: i64) -> Option<RestartReason> {
    let (started_at, is_replacement) = (time(second), false);
    state.sandbox_found(
        FoundSandbox { id, started_at, boot_id: BOOT, is_replacement, services: &[] },
        at(second),
    )
}

fn observed() -> SandboxState {
    let mut state = SandboxState::default();
    assert_eq!(find(&mut state, "a", 0), None);
    state.read(reading(0), at(3), THRESHOLD);
    state
}

fn kill(state: &mut SandboxState, second: i64) {
    let id = state.status.sandbox.as_ref().unwrap().id.clone();
    state.pause_exited(&id, time(second), KILLED, true);
}

fn resumed(state: SandboxState) -> SandboxState {
    SandboxState::resume(state.status)
}

fn message_at(second: i64, message: &str) -> KubeletMessage {
    KubeletMessage { at: time(second), message: message.to_owned() }
}

fn last_restart(state: &SandboxState) -> (RestartReason, &str) {
    let last = state.status.last_restart.as_ref().unwrap();
    (last.reason, &last.message)
}

fn failure(state: &SandboxState) -> Option<&str> {
    state.status.read_failure.as_ref().map(|failure| failure.reason.as_str())
}

fn zombies(state: &SandboxState) -> i64 {
    state.status.processes.as_ref().unwrap().zombies
}

#[test]
fn first_sandbox_is_no_restart() {
    let state = observed();
    assert_eq!((state.status.restarts, state.status.history.len()), (0, 0));
}

#[test]
fn another_sandbox_is_one_restart_with_its_cause() {
    let mut state = observed();
    kill(&mut state, 50);
    assert_eq!(find(&mut state, "b", 52), Some(RestartReason::PauseExited));
    assert_eq!(find(&mut state, "b", 52), None);
    assert_eq!((state.status.restarts, state.status.restarts_at_least), (1, None));
    assert_eq!(last_restart(&state), (RestartReason::PauseExited, "pause was killed by SIGKILL"));
    let past = &state.status.history[0];
    assert_eq!((past.sandbox_id.as_str(), past.ended_at.clone()), ("a", Some(Time(time(50)))));
    assert!(state.status.processes.is_none(), "the counts ended with the old sandbox");
}

#[test]
fn unobserved_replacement_makes_the_count_a_lower_bound() {
    let mut state = resumed(observed());
    assert_eq!(find(&mut state, "b", 90), Some(RestartReason::Replaced));
    assert_eq!((state.status.restarts, state.status.restarts_at_least), (1, Some(true)));
    assert_eq!((&state.status.history[0].ended_at, &state.status.history[0].message), (&None, &None));
    kill(&mut state, 100);
    find(&mut state, "c", 101);
    assert_eq!((state.status.restarts, state.status.restarts_at_least), (2, Some(true)));
}

#[test]
fn sandbox_of_another_boot_is_a_reboot_unless_its_exit_was_observed() {
    let find_after_reboot = |mut state: SandboxState, boot_id| {
        let (started_at, is_replacement) = (time(90), false);
        let found = FoundSandbox { id: "b", started_at, boot_id, is_replacement, services: &[] };
        state.sandbox_found(found, at(90))
    };
    let after = Some("boot-2");
    assert_eq!(find_after_reboot(resumed(observed()), after), Some(RestartReason::NodeRebooted));
    let mut exited = observed();
    kill(&mut exited, 50);
    assert_eq!(find_after_reboot(exited, after), Some(RestartReason::PauseExited));
    // The boot id of before or of now is unknown.
    assert_eq!(find_after_reboot(resumed(observed()), None), Some(RestartReason::Replaced));
    let mut unknown = resumed(observed());
    unknown.status.sandbox.as_mut().unwrap().boot_id = None;
    assert_eq!(find_after_reboot(unknown, after), Some(RestartReason::Replaced));
}

#[test]
fn kubelet_message_is_added_to_an_unexplained_exit() {
    let mut state = observed();
    let mut message_after = |second, id, next, status| {
        state.kubelet_message(&message_at(second, "it was evicted"));
        state.pause_exited(id, time(second + 1), Evidence { status, ..UNAVAILABLE }, true);
        find(&mut state, next, second + 2);
        state.read(reading(0), at(second + 3), THRESHOLD);
        last_restart(&state).1.to_owned()
    };
    let unavailable = message_after(50, "a", "b", None);
    assert!(unavailable.ends_with("(requires Linux 6.15); kubelet: it was evicted"), "{unavailable}");
    let killed = message_after(60, "b", "c", Some(ExitStatus::Killed(9)));
    assert_eq!(killed, "pause was killed by SIGKILL; kubelet: it was evicted");
    let inside = message_after(70, "c", "d", Some(ExitStatus::Exited(143)));
    assert_eq!(inside, "pause was terminated by SIGTERM from a process of the pod");
    assert_eq!(state.status.history[1].message.as_deref(), Some("pause was killed by SIGKILL"));
    state.pause_exited("d", time(80), UNAVAILABLE, true);
    find(&mut state, "e", 81);
    assert!(!last_restart(&state).1.contains("evicted"), "it was about another restart");
}

#[test]
fn service_that_was_restarted_at_the_exit_is_the_likely_cause() {
    let services = [Service { name: "containerd", started_at: time(52) }];
    let likely = "pause was killed by SIGKILL; likely cause: containerd was restarted at that moment";
    let mut state = observed();
    kill(&mut state, 50);
    state.sandbox_found(
        FoundSandbox {
            id: "b",
            started_at: time(54),
            boot_id: BOOT,
            is_replacement: false,
            services: &services,
        },
        at(54),
    );
    assert_eq!(last_restart(&state).1, likely);
    let mut state = observed();
    kill(&mut state, 50);
    state.pod_finished(&exited(&[50]), &services);
    assert_eq!(state.status.termination.unwrap().message, likely);
}

#[test]
fn kubelet_message_from_before_the_first_sandbox_is_no_cause() {
    let mut state = SandboxState::default();
    state.kubelet_message(&message_at(0, "there is no sandbox yet"));
    find(&mut state, "a", 0);
    state.pause_exited("a", time(50), UNAVAILABLE, true);
    find(&mut state, "b", 52);
    assert!(!last_restart(&state).1.contains("no sandbox yet"), "{:?}", last_restart(&state));
}

#[test]
fn restarts_in_one_second_are_counted_one_by_one() {
    let mut state = observed();
    for id in ["b", "c"] {
        kill(&mut state, 50);
        assert_eq!(find(&mut state, id, 50), Some(RestartReason::PauseExited));
    }
    let history: Vec<_> = state.status.history.iter().map(|past| past.sandbox_id.as_str()).collect();
    assert_eq!((state.status.restarts, history), (2, vec!["b", "a"]));
}

#[test]
fn exit_that_only_a_reading_showed_was_observed() {
    let mut state = observed();
    state.read(Err(ReadError::Gone), at(50), THRESHOLD);
    assert!(state.is_pause_gone());
    assert_eq!(find(&mut state, "b", 52), Some(RestartReason::PauseExited));
    assert_eq!(state.status.history[0].ended_at, Some(Time(time(50))));
}

#[test]
fn exit_of_another_sandbox_is_no_cause() {
    let mut state = observed();
    state.pause_exited("z", time(50), KILLED, true);
    assert_eq!(find(&mut state, "b", 52), Some(RestartReason::Replaced));
}

#[test]
fn counts_continue_after_the_agent_was_restarted() {
    let mut state = observed();
    kill(&mut state, 50);
    find(&mut state, "b", 52);
    let mut state = resumed(state);
    assert_eq!(find(&mut state, "b", 52), None);
    find(&mut state, "c", 99);
    assert_eq!((state.status.restarts, state.status.history.len()), (2, 2));
}

#[test]
fn history_keeps_the_newest_five() {
    let mut state = observed();
    for id in ["b", "c", "d", "e", "f", "g", "h"] {
        find(&mut state, id, 60);
    }
    let ids: Vec<_> = state.status.history.iter().map(|past| past.sandbox_id.as_str()).collect();
    assert_eq!(ids, ["g", "f", "e", "d", "c"]);
    assert_eq!(state.status.restarts, 7);
}

/// Containers that exited, of which some were killed these numbers of seconds after the start.
fn exited(killed_at: &[i64]) -> ContainerStates {
    ContainerStates { is_running: false, killed_at: killed_at.iter().map(|&second| time(second)).collect() }
}

#[test]
fn killed_sandbox_without_successor_is_a_termination_once() {
    let mut state = observed();
    kill(&mut state, 50);
    state.pod_finished(&exited(&[50]), &[]);
    let termination = state.status.termination.clone().unwrap();
    assert_eq!((termination.sandbox_id.as_str(), termination.time), ("a", Time(time(50))));
    assert_eq!(termination.message, "pause was killed by SIGKILL");
    assert_eq!((state.status.restarts, state.status.processes.is_none()), (0, true));
    let before = state.status.clone();
    state.pod_finished(&exited(&[50]), &[]);
    assert_eq!(state.status, before);
    let mut state = resumed(state);
    state.pod_finished(&exited(&[50]), &[]);
    assert_eq!(state.status, before, "the next agent keeps it");
}

#[test]
fn termination_waits_for_the_final_states_of_the_containers() {
    let mut state = observed();
    kill(&mut state, 50);
    state.pod_finished(&ContainerStates { is_running: true, killed_at: Vec::new() }, &[]);
    assert_eq!(state.status.termination, None, "the deadline passed, and the states are old");
    state.pod_finished(&exited(&[50]), &[]);
    assert!(state.status.termination.is_some());
}

#[test]
fn normal_end_of_a_pod_is_no_termination() {
    for (containers, is_unexpected) in [
        (exited(&[44]), true),
        (exited(&[53]), true),
        (exited(&[]), true),
        // The kubelet had begun to end the pod, or all containers had exited.
        (exited(&[50]), false),
    ] {
        let mut state = observed();
        state.pause_exited("a", time(50), KILLED, is_unexpected);
        state.pod_finished(&containers, &[]);
        assert_eq!(state.status.termination, None, "{containers:?}");
    }
    let mut state = observed();
    state.pod_finished(&exited(&[50]), &[]);
    assert_eq!(state.status.termination, None, "pause lives, or its exit was not observed");
}

#[test]
fn agent_count_is_marked_and_contains_no_more_than_is_known() {
    let mut state = observed();
    state.read(counted(3), at(10), THRESHOLD);
    state.read(counted(1), at(20), THRESHOLD);
    let processes = state.status.processes.as_ref().unwrap();
    assert_eq!((processes.zombies, processes.zombies_peak, processes.reaped_total), (1, 3, None));
    assert_eq!((state.status.source, processes.threads), (Some(Source::ProcScan), 30));
    assert_eq!(state.status.sandbox.as_ref().unwrap().pause_version, None);
}

fn parent(pid: i64, zombies: i64, oldest_seconds: Option<i64>) -> ZombieParent {
    ZombieParent { pid, command: "sh".to_owned(), container: "shell".to_owned(), zombies, oldest_seconds }
}

#[test]
fn parents_are_named_while_zombies_accumulate() {
    let mut state = observed();
    state.set_zombie_parents(vec![parent(7, 2, None)]);
    assert!(state.status.zombie_parents.is_empty(), "two zombies do not accumulate");
    state.read(reading(9), at(10), THRESHOLD);
    assert!(state.lacks_parents());
    state.set_zombie_parents(vec![
        parent(7, 5, None),
        parent(8, 2, None),
        parent(9, 1, None),
        parent(10, 1, None),
    ]);
    assert_eq!((state.status.zombie_parents.len(), state.lacks_parents()), (PARENTS_MAX, false));
    state.set_zombie_parents(vec![parent(7, 5, Some(30))]);
    assert_eq!(state.status.zombie_parents[0].oldest_seconds, Some(30));
    state.read(reading(0), at(40), THRESHOLD);
    assert!(state.status.zombie_parents.is_empty());
}

#[test]
fn parents_never_have_more_zombies_than_the_pod() {
    let mut state = observed();
    state.read(reading(11), at(10), THRESHOLD);
    state.set_zombie_parents(vec![parent(3, 12, None)]);
    assert_eq!((zombies(&state), state.status.zombie_parents[0].zombies), (12, 12));
    state.read(reading(11), at(15), THRESHOLD);
    assert_eq!((zombies(&state), state.status.zombie_parents[0].zombies), (11, 11));
    state.set_zombie_parents(vec![parent(3, 7, None), parent(4, 4, None)]);
    state.read(reading(7), at(20), THRESHOLD);
    let counts: Vec<_> = state.status.zombie_parents.iter().map(|parent| parent.zombies).collect();
    assert_eq!((zombies(&state), counts), (7, vec![7]));
}

#[test]
fn starting_pause_may_not_have_written_its_status() {
    let mut state = SandboxState::default();
    find(&mut state, "a", 0);
    let not_yet = || Err(ReadError::Refused(Refusal::NotYet));
    state.read(not_yet(), at(1), THRESHOLD);
    assert_eq!(failure(&state), None);
    state.read(not_yet(), at(2), THRESHOLD);
    assert_eq!(failure(&state), Some("StatusNotYet"));
}

#[test]
fn zombies_accumulate_from_the_threshold_until_half_of_it() {
    let mut state = observed();
    let mut since = |zombies, second| {
        state.read(reading(zombies), at(second), THRESHOLD);
        state.status.accumulating_since.clone()
    };
    assert_eq!(since(4, 10), None);
    for (zombies, second) in [(5, 20), (9, 30), (3, 40)] {
        assert_eq!(since(zombies, second), Some(Time(time(20))));
    }
    assert_eq!(since(2, 50), None);
    assert_eq!(since(4, 60), None);
    assert_eq!(since(5, 70), Some(Time(time(70))));
}

#[test]
fn threshold_of_one_is_cleared_at_zero() {
    let threshold = ZombieThreshold(1);
    assert!(!threshold.is_exceeded(false, 0) && threshold.is_exceeded(false, 1));
    assert!(threshold.is_exceeded(true, 1) && !threshold.is_exceeded(true, 0));
    assert!(!ZombieThreshold(0).is_exceeded(false, 0), "no zombies are never too many");
}

#[test]
fn unreadable_counts_are_unknown_and_not_zero() {
    let mut state = observed();
    state.read(Err(ReadError::Refused(Refusal::WrongChecksum)), at(5), THRESHOLD);
    assert_eq!((&state.status.processes, state.status.source), (&None, None));
    assert_eq!(failure(&state), Some("StatusChecksumWrong"));
    state.read(reading(0), at(10), THRESHOLD);
    assert!(state.status.processes.is_some() && failure(&state).is_none());
}

#[test]
fn accumulation_outlasts_unreadable_counts_and_the_agent() {
    let mut state = observed();
    state.read(reading(7), at(10), THRESHOLD);
    let report = PauseReport { peak_zombies: 0, reaped: 9, version: "0.1.0".to_owned() };
    for error in [ReadError::NotCounted(report), ReadError::Refused(Refusal::WrongChecksum)] {
        state.read(Err(error), at(20), THRESHOLD);
    }
    for mut state in [state.clone(), resumed(state)] {
        assert!(!state.is_accumulating());
        state.read(reading(3), at(30), THRESHOLD);
        assert_eq!(state.status.accumulating_since, Some(Time(time(10))), "3 is more than half of 5");
        state.read(reading(2), at(40), THRESHOLD);
        assert_eq!(state.status.accumulating_since, None);
    }
}

#[test]
fn pause_that_is_gone_but_does_not_exit_is_unknown_after_grace() {
    let mut state = observed();
    state.read(Err(ReadError::Gone), at(100), THRESHOLD);
    state.read(Err(ReadError::Gone), at(129), THRESHOLD);
    assert_eq!(failure(&state), None);
    state.read(Err(ReadError::Gone), at(130), THRESHOLD);
    assert_eq!((failure(&state), &state.status.processes), (Some("PauseGone"), &None));
}

#[test]
fn missing_sandbox_is_unknown_after_grace() {
    for error in ReadError::WITHOUT_SANDBOX {
        let mut state = observed();
        assert_eq!([100, 129].map(|second| state.sandbox_missing(&error, at(second))), [false; 2]);
        assert_eq!(failure(&state), None);
        assert!(state.sandbox_missing(&error, at(130)));
        assert_eq!(failure(&state), Some(error.reason()));
        find(&mut state, "b", 131);
        assert_eq!(failure(&state), None);
    }
}

#[test]
fn created_sandbox_has_time_to_be_found() {
    let mut state = SandboxState::default();
    let mut missing = |error, second| {
        state.sandbox_missing(&error, at(second));
        failure(&state).map(str::to_owned)
    };
    assert_eq!(missing(ReadError::NotCreated, 0), None);
    assert_eq!(missing(ReadError::NotCreated, 30).as_deref(), Some("SandboxNotCreated"));
    assert_eq!(missing(ReadError::NotFound, 35).as_deref(), Some("SandboxNotCreated"));
    assert_eq!(missing(ReadError::NotFound, 65).as_deref(), Some("SandboxNotFound"));
}

#[test]
fn replacement_of_a_running_pause_is_one_restart() {
    let mut state = observed();
    let found =
        FoundSandbox { id: "b", started_at: time(90), boot_id: BOOT, is_replacement: true, services: &[] };
    assert_eq!(state.sandbox_found(found, at(90)), Some(RestartReason::Replaced));
    assert_eq!((state.status.restarts, state.status.restarts_at_least), (1, None));
    assert_eq!(last_restart(&state).1, "the sandbox was replaced while its pause was running");
}

#[test]
fn wall_clock_step_makes_nothing_unknown_and_no_restart() {
    for step in [-3600, 3600] {
        let mut state = observed();
        let before = state.status.clone();
        state.sandbox_missing(&ReadError::NotFound, at(100));
        state.sandbox_missing(&ReadError::NotFound, at_wall_clock(110, 110 + step));
        assert_eq!(failure(&state), None, "{step}");
        // The start time of the same pause process is computed from the clock.
        let (started_at, is_replacement) = (time(step), false);
        let found = FoundSandbox { id: "a", started_at, boot_id: BOOT, is_replacement, services: &[] };
        assert_eq!(state.sandbox_found(found, at_wall_clock(111, 111 + step)), None);
        assert_eq!(resumed(state.clone()).sandbox_found(found, at_wall_clock(112, 112 + step)), None);
        state.read(reading(0), at_wall_clock(113, 113 + step), THRESHOLD);
        state.read(Err(ReadError::Gone), at_wall_clock(114, 114 + step), THRESHOLD);
        state.read(Err(ReadError::Gone), at_wall_clock(120, 120), THRESHOLD);
        assert_eq!(state.status, before, "{step}");
    }
}

#[test]
fn unchanged_counts_keep_the_time_of_their_first_reading() {
    let mut state = observed();
    let before = state.status.clone();
    state.read(reading(0), at(500), THRESHOLD);
    assert_eq!(state.status, before);
}

#[test]
fn container_that_was_taken_for_the_sandbox_is_forgotten() {
    let mut state = observed();
    state.not_a_sandbox("z");
    assert!(state.status.sandbox.is_some());
    state.not_a_sandbox("a");
    assert!(state.status.sandbox.is_none() && state.status.processes.is_none());
    assert_eq!(find(&mut state, "b", 10), None, "the real sandbox is no restart");
}
