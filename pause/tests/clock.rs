//! The program's clock, with times of a kernel that sets it back or refuses it.
#![allow(unsafe_code, dead_code, reason = "the file under test reads the kernel's clock, too")]

#[path = "../src/clock.rs"]
mod clock;

use clock::{Clock, SECOND};

fn times(steps: &[(Option<u64>, [u64; 2])]) -> Vec<u64> {
    let mut clock = Clock::default();
    let time = |&(kernel, waited): &(Option<u64>, [u64; 2])| {
        clock.advance(kernel.map(|seconds| seconds * SECOND), waited);
        clock.now
    };
    steps.iter().map(time).collect()
}

#[test]
fn clock_set_back_goes_on_from_its_last_time() {
    let at = |seconds| (Some(seconds), [1, 0]);
    let seconds = times(&[at(7_000), at(7_010), at(5), at(15), at(15), at(7_000), at(7_001)]);
    let expected = [7_000, 7_010, 7_010, 7_020, 7_020, 14_005, 14_006];
    assert_eq!(seconds, expected.map(|seconds: u64| seconds * SECOND));
}

#[test]
fn refused_clock_advances_by_the_waits() {
    let refused = |waited| (None, waited);
    let expected = [10 * SECOND, 10 * SECOND + 1, 30 * SECOND + 1];
    assert_eq!(times(&[refused([10, 0]), refused([0, 0]), refused([u64::MAX / SECOND, 0])]), expected);
}
