//! What a record makes of observations.

use super::super::pause::Told;
use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use pause_status::Refusal;

const THRESHOLD: ZombieThreshold = ZombieThreshold(5);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

const fn booted() -> Timestamp {
    Timestamp::constant(1_799_000_000, 0)
}

fn boot() -> Boot {
    Boot { id: "boot-1".to_owned(), at: booted() }
}

fn reading(zombies: u32) -> Result<Reading, ReadError> {
    let told = Told { peak: zombies, reaped: 9, version: "0.1.0".to_owned() };
    Ok(Reading { zombies, processes: 4 + zombies, told: Some(told) })
}

fn counted(zombies: u32) -> Result<Reading, ReadError> {
    Ok(Reading { zombies, processes: 4 + zombies, told: None })
}

/// Another sandbox is found, in the same boot.
fn find(record: &mut Record, id: &str, second: i64) -> Option<RestartReason> {
    record.sandbox_found(Found { id, started_at: at(second), boot: &boot() }, at(second))
}

fn watched() -> Record {
    let mut record = Record::default();
    assert_eq!(find(&mut record, "a", 0), None);
    record.read(reading(0), at(1), THRESHOLD);
    record
}

fn said(second: i64, message: &str) -> KubeletSaid {
    KubeletSaid { at: at(second), message: message.to_owned() }
}

fn last_restart(record: &Record) -> (RestartReason, &str) {
    let last = record.status.last_restart.as_ref().unwrap();
    (last.reason, &last.message)
}

#[test]
fn the_first_sandbox_is_no_restart() {
    let record = watched();
    assert_eq!((record.status.restarts, record.status.history.len()), (0, 0));
}

#[test]
fn another_sandbox_is_one_restart_with_its_cause() {
    let mut record = watched();
    record.pause_ended("a", at(50), Some(Ending::Signaled(9)));
    assert_eq!(find(&mut record, "b", 52), Some(RestartReason::PauseExited));
    assert_eq!(find(&mut record, "b", 52), None);
    assert_eq!(record.status.restarts, 1);
    assert_eq!(last_restart(&record), (RestartReason::PauseExited, "pause was killed by SIGKILL"));
    let past = &record.status.history[0];
    assert_eq!((past.sandbox_id.as_str(), past.ended_at.clone()), ("a", Some(Time(at(50)))));
    assert!(record.status.processes.is_none(), "the old sandbox's numbers are gone with it");
}

#[test]
fn a_death_that_nobody_saw_is_a_replacement() {
    let mut record = Record::from_written(watched().status);
    assert_eq!(find(&mut record, "b", 90), Some(RestartReason::Replaced));
    assert_eq!(record.status.history[0].ended_at, None);
}

#[test]
fn a_sandbox_of_another_boot_went_with_the_reboot() {
    let after = Boot { id: "boot-2".to_owned(), ..boot() };
    let find = |mut record: Record| {
        record.sandbox_found(Found { id: "b", started_at: at(90), boot: &after }, at(90));
        last_restart(&record).0
    };
    assert_eq!(find(Record::from_written(watched().status)), RestartReason::NodeRebooted);
    let mut seen = watched();
    seen.pause_ended("a", at(50), None);
    assert_eq!(find(seen), RestartReason::PauseExited, "what was seen is surer");
}

#[test]
fn where_no_boot_was_kept_its_time_tells() {
    let mut status = watched().status;
    status.sandbox.as_mut().unwrap().boot_id = None;
    let mut record = Record::from_written(status);
    let boot = Boot { at: at(30), ..boot() };
    let found = Found { id: "b", started_at: at(90), boot: &boot };
    assert_eq!(record.sandbox_found(found, at(90)), Some(RestartReason::NodeRebooted));
}

#[test]
fn what_the_kubelet_said_stands_beside_what_was_seen() {
    let mut record = watched();
    record.kubelet_said(&said(49, "sandbox is gone"));
    record.pause_ended("a", at(50), Some(Ending::Signaled(9)));
    find(&mut record, "b", 52);
    let message = "pause was killed by SIGKILL; the kubelet said: sandbox is gone";
    assert_eq!(last_restart(&record), (RestartReason::PauseExited, message));
    assert_eq!(record.status.history[0].message.as_deref(), Some("pause was killed by SIGKILL"));
    record.kubelet_said(&said(49, "sandbox is gone"));
    find(&mut record, "c", 60);
    assert!(!last_restart(&record).1.contains("kubelet"), "it was said of another restart");
}

#[test]
fn what_the_kubelet_says_of_a_pod_that_never_had_a_sandbox_is_no_cause() {
    let mut record = Record::default();
    record.kubelet_said(&said(0, "there is no sandbox yet"));
    find(&mut record, "a", 0);
    record.pause_ended("a", at(50), Some(Ending::Signaled(9)));
    find(&mut record, "b", 52);
    assert_eq!(last_restart(&record).1, "pause was killed by SIGKILL");
}

#[test]
fn an_end_that_the_status_alone_showed_was_seen() {
    let mut record = watched();
    record.read(Err(ReadError::Gone), at(50), THRESHOLD);
    assert!(record.is_pause_gone());
    assert_eq!(find(&mut record, "b", 52), Some(RestartReason::PauseExited));
    assert_eq!(record.status.history[0].ended_at, Some(Time(at(50))));
}

/// A record whose agent was away, of a pod whose containers had restarted `before` times.
fn after_absence(before: i64) -> Record {
    let mut record = watched();
    record.containers_restarted(before, at(2));
    Record::from_written(record.status)
}

#[test]
fn an_unseen_replacement_with_more_container_restarts_is_at_least_one() {
    let mut record = after_absence(3);
    find(&mut record, "c", 90);
    record.containers_restarted(5, at(90));
    assert_eq!((record.status.restarts, record.status.restarts_at_least), (1, Some(true)));
    assert!(last_restart(&record).1.contains("at least once"), "{:?}", last_restart(&record));
}

#[test]
fn counts_that_the_kubelet_raises_late_tell_too() {
    let mut record = after_absence(0);
    find(&mut record, "c", 90);
    for (count, second) in [(0, 90), (1, 95)] {
        record.containers_restarted(count, at(second));
        assert_eq!(record.status.restarts_at_least, None, "one replacement is one restart of each container");
    }
    record.containers_restarted(2, at(99));
    assert_eq!(record.status.restarts_at_least, Some(true));
}

#[test]
fn between_a_death_and_a_sandbox_that_was_found_late_there_may_have_been_another() {
    for (found, at_least) in [(29, None), (60, Some(true))] {
        let mut record = watched();
        record.pause_ended("a", at(5), None);
        find(&mut record, "c", found);
        record.containers_restarted(2, at(found + 1));
        assert_eq!(
            (record.status.restarts, record.status.restarts_at_least),
            (1, at_least),
            "after {found} s"
        );
    }
    let mut record = watched();
    record.pause_ended("a", at(5), None);
    find(&mut record, "b", 60);
    record.containers_restarted(1, at(61));
    assert_eq!(record.status.restarts_at_least, None, "each container was restarted once");
}

#[test]
fn restarts_that_were_seen_are_not_taken_for_unseen_ones() {
    let mut record = after_absence(0);
    find(&mut record, "b", 90);
    record.containers_restarted(1, at(91));
    for (id, second, count) in [("c", 100, 2), ("d", 110, 3)] {
        let before = record.status.sandbox.as_ref().unwrap().id.clone().unwrap();
        record.pause_ended(&before, at(second - 1), None);
        find(&mut record, id, second);
        record.containers_restarted(count, at(second + 1));
    }
    assert_eq!((record.status.restarts, record.status.restarts_at_least), (3, None));
    // The next agent starts from a count that holds all of them, also if the kubelet was late to raise it.
    assert_eq!(record.status.container_restarts, Some(3));
}

#[test]
fn a_container_that_crashes_later_says_nothing_of_the_sandbox() {
    let mut record = after_absence(0);
    find(&mut record, "b", 90);
    record.containers_restarted(1, at(95));
    record.containers_restarted(7, at(90 + 121));
    assert_eq!(record.status.restarts_at_least, None);
}

#[test]
fn a_sandbox_that_the_kubelet_found_ready_without_an_agent_is_taken_over() {
    let without_id = |started: i64| {
        let mut status = watched().status;
        let sandbox = status.sandbox.as_mut().unwrap();
        (sandbox.id, sandbox.boot_id, sandbox.started_at) = (None, None, Time(at(started)));
        Record::from_written(status)
    };
    assert_eq!(find(&mut without_id(91), "b", 90), None, "ready after its start");
    assert_eq!(find(&mut without_id(50), "b", 90), Some(RestartReason::Replaced));
}

#[test]
fn zombies_from_before_an_agent_was_there_are_the_same_zombies() {
    let mut status = watched().status;
    status.processes = None;
    let sandbox = status.sandbox.as_mut().unwrap();
    (sandbox.id, sandbox.boot_id, sandbox.started_at) = (None, None, Time(at(50)));
    status.conditions = vec![Condition {
        type_: ZOMBIES_REAPED.to_owned(),
        status: "False".to_owned(),
        reason: "ZombiesAccumulating".to_owned(),
        message: String::new(),
        last_transition_time: Time(at(40)),
        observed_generation: None,
    }];
    let mut record = Record::from_written(status);
    assert_eq!(find(&mut record, "b", 50), None, "the kubelet found the same sandbox");
    record.read(reading(3), at(90), THRESHOLD);
    let since = record.status.processes.as_ref().unwrap().accumulating_since.clone();
    assert_eq!(since, Some(Time(at(40))), "3 are more than half of 5");
}

#[test]
fn a_restart_that_was_seen_later_is_not_said_to_be_at_least_one() {
    let mut record = after_absence(0);
    find(&mut record, "c", 90);
    record.pause_ended("c", at(100), Some(Ending::Signaled(9)));
    find(&mut record, "d", 101);
    record.containers_restarted(3, at(102));
    assert_eq!((record.status.restarts, record.status.restarts_at_least), (2, Some(true)));
    assert_eq!(last_restart(&record).1, "pause was killed by SIGKILL");
}

#[test]
fn a_count_of_ours_is_marked_and_says_no_more_than_it_knows() {
    let mut record = watched();
    record.read(counted(3), at(10), THRESHOLD);
    record.read(counted(1), at(20), THRESHOLD);
    let processes = record.status.processes.as_ref().unwrap();
    assert_eq!((processes.zombies, processes.zombies_peak, processes.reaped_total), (1, 3, None));
    assert_eq!(record.status.source, Some(Source::ProcScan));
    assert_eq!(record.status.sandbox.as_ref().unwrap().pause_version, None);
}

fn parent(pid: i64, zombies: i64, oldest_seconds: i64) -> ZombieParent {
    ZombieParent { pid, command: "sh".to_owned(), container: "shell".to_owned(), zombies, oldest_seconds }
}

#[test]
fn parents_are_named_while_zombies_accumulate() {
    let mut record = watched();
    record.blame(vec![parent(7, 2, 0)]);
    assert!(record.status.zombie_parents.is_empty(), "two zombies are nobody's fault");
    record.read(reading(9), at(10), THRESHOLD);
    record.blame(vec![parent(7, 5, 0), parent(8, 2, 0), parent(9, 1, 0), parent(10, 1, 0)]);
    assert_eq!(record.status.zombie_parents.len(), PARENTS_MAX);
    let before = record.status.clone();
    record.blame(vec![parent(7, 5, 30), parent(8, 2, 30), parent(9, 1, 30)]);
    assert_eq!(record.status, before, "getting older is no news");
    record.read(reading(0), at(40), THRESHOLD);
    assert!(record.status.zombie_parents.is_empty());
}

#[test]
fn a_pause_that_has_just_begun_may_have_written_nothing_yet() {
    let mut record = Record::default();
    find(&mut record, "a", 0);
    let not_yet = || Err(ReadError::Refused(Refusal::NotYet));
    record.read(not_yet(), at(1), THRESHOLD);
    assert_eq!(record.status.read_failure, None);
    record.read(not_yet(), at(2), THRESHOLD);
    assert_eq!(record.status.read_failure.as_ref().unwrap().reason, "StatusNotYet");
}

#[test]
fn where_other_processes_are_hidden_that_is_the_reason() {
    let mut record = watched();
    record.sandbox_missing(true, at(100));
    record.sandbox_missing(true, at(130));
    assert_eq!(record.status.read_failure.as_ref().unwrap().reason, "ProcHidden");
}

#[test]
fn the_death_of_another_sandbox_is_no_cause() {
    let mut record = watched();
    record.pause_ended("z", at(50), Some(Ending::Signaled(9)));
    assert_eq!(find(&mut record, "b", 52), Some(RestartReason::Replaced));
}

#[test]
fn counts_go_on_after_the_agent_was_restarted() {
    let mut record = watched();
    find(&mut record, "b", 52);
    let mut record = Record::from_written(record.status);
    assert_eq!(find(&mut record, "b", 52), None);
    find(&mut record, "c", 99);
    assert_eq!((record.status.restarts, record.status.history.len()), (2, 2));
}

#[test]
fn the_history_keeps_the_newest_five() {
    let mut record = watched();
    for id in ["b", "c", "d", "e", "f", "g", "h"] {
        find(&mut record, id, 60);
    }
    let ids: Vec<_> = record.status.history.iter().map(|past| past.sandbox_id.as_str()).collect();
    assert_eq!(ids, ["g", "f", "e", "d", "c"]);
    assert_eq!(record.status.restarts, 7);
}

#[test]
fn zombies_accumulate_from_the_threshold_on_until_half_of_it() {
    let mut record = watched();
    let mut since = |zombies, second| {
        record.read(reading(zombies), at(second), THRESHOLD);
        record.status.processes.as_ref().unwrap().accumulating_since.clone()
    };
    assert_eq!(since(4, 10), None);
    assert_eq!(since(5, 20), Some(Time(at(20))));
    assert_eq!(since(9, 30), Some(Time(at(20))));
    assert_eq!(since(3, 40), Some(Time(at(20))));
    assert_eq!(since(2, 50), None);
    assert_eq!(since(4, 60), None);
    assert_eq!(since(5, 70), Some(Time(at(70))));
}

#[test]
fn a_threshold_of_one_clears_when_none_is_left() {
    let threshold = ZombieThreshold(1);
    assert!(!threshold.exceeded(false, 0) && threshold.exceeded(false, 1));
    assert!(threshold.exceeded(true, 1) && !threshold.exceeded(true, 0));
    assert!(!ZombieThreshold(0).exceeded(false, 0), "no zombies are never too many");
}

#[test]
fn what_cannot_be_read_is_unknown_and_not_zero() {
    let mut record = watched();
    record.read(Err(ReadError::Refused(Refusal::WrongSum)), at(5), THRESHOLD);
    assert_eq!(record.status.processes, None);
    assert_eq!(record.status.source, None);
    assert_eq!(record.status.read_failure.as_ref().unwrap().reason, "StatusSumWrong");
    record.read(reading(0), at(10), THRESHOLD);
    assert!(record.status.processes.is_some() && record.status.read_failure.is_none());
}

#[test]
fn zombies_that_cannot_be_counted_for_a_while_are_the_same_zombies() {
    let mut record = watched();
    record.read(reading(7), at(10), THRESHOLD);
    let before = record.clone();
    for error in [ReadError::NotCounted, ReadError::Refused(Refusal::WrongSum)] {
        record.read(Err(error), at(20), THRESHOLD);
    }
    // Another agent may go on from here: the onset is then the controller's condition.
    let mut status = record.status.clone();
    status.conditions = vec![Condition {
        type_: ZOMBIES_REAPED.to_owned(),
        status: "False".to_owned(),
        last_transition_time: Time(at(10)),
        reason: String::new(),
        message: String::new(),
        observed_generation: None,
    }];
    for mut record in [record, Record::from_written(status)] {
        record.read(reading(3), at(30), THRESHOLD);
        let since = |record: &Record| record.status.processes.as_ref().unwrap().accumulating_since.clone();
        assert_eq!(since(&record), since(&before), "3 is more than half of 5, and the onset is the old one");
        record.read(reading(2), at(40), THRESHOLD);
        assert_eq!(since(&record), None);
    }
}

#[test]
fn a_pause_that_is_gone_but_does_not_end_is_unknown_after_a_grace() {
    let mut record = watched();
    record.read(Err(ReadError::Gone), at(100), THRESHOLD);
    record.read(Err(ReadError::Gone), at(129), THRESHOLD);
    assert_eq!(record.status.read_failure, None);
    record.read(Err(ReadError::Gone), at(130), THRESHOLD);
    assert_eq!(record.status.read_failure.as_ref().unwrap().reason, "PauseGone");
    assert_eq!(record.status.processes, None);
}

#[test]
fn a_missing_sandbox_is_said_after_a_grace() {
    let mut record = watched();
    record.sandbox_missing(false, at(100));
    record.sandbox_missing(false, at(129));
    assert_eq!(record.status.read_failure, None);
    record.sandbox_missing(false, at(130));
    assert_eq!(record.status.read_failure.as_ref().unwrap().reason, "SandboxNotFound");
    find(&mut record, "b", 131);
    assert_eq!(record.status.read_failure, None);
}

#[test]
fn numbers_that_did_not_move_keep_the_time_they_were_first_read() {
    let mut record = watched();
    let before = record.status.clone();
    record.read(reading(0), at(500), THRESHOLD);
    assert_eq!(record.status, before);
}
