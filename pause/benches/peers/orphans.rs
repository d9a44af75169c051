//! Creates orphans inside of a namespace, and observes when PID 1 has reaped them. The half that creates them is this program run
//! inside, in the role `orphans`: one thread, ordinary forks, nothing that valgrind or strace would follow.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork, getpid, pipe, read, write};
use pid1_harness::Namespace;

use crate::namespace::{Inside, state, stop};

/// How the orphans end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// One at a time: the next is created when the last is reaped and PID 1 sleeps again, so each costs PID 1 one wake-up. Any number
    /// takes the same time, so what PID 1 does once a second is no part of the slope.
    Paced,
    /// All of them while PID 1 is stopped: when it continues, it finds them all.
    AtOnce,
}

impl Ending {
    fn word(self) -> &'static str {
        match self {
            Self::Paced => PACED,
            Self::AtOnce => AT_ONCE,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Reaped,
    LeftAsZombies,
}

const PACED: &str = "paced";
const AT_ONCE: &str = "at-once";
const DELAYS: &str = "delays";
/// Exit code of the role: the orphans have ended, and PID 1 does not reap them.
const EXIT_LEFT: u8 = 3;
/// How long PID 1 may take for its next step, under valgrind too.
const PATIENCE: Duration = Duration::from_secs(5);
/// Seconds after which the kernel ends the role.
const ALARM_SECONDS: u32 = 120;
/// How long paced orphans take in all: longer than the most of them need under valgrind.
const PERIOD: Duration = Duration::from_secs(8);
/// Between two checks. Short beside a fork, so that pacing costs little.
const CHECK: Duration = Duration::from_micros(20);
/// Between two orphans whose delays are measured.
const BETWEEN_DELAYS: Duration = Duration::from_millis(1);

fn start(namespace: &Namespace, wrapper: &[&str], word: &str, number: u64) -> Result<Inside> {
    let program = std::env::current_exe()?;
    let program = program.to_str().context("a path in UTF-8")?;
    let role = [program, crate::ROLE_ORPHANS, word, &number.to_string()];
    Inside::start(namespace, &[wrapper, &role].concat())
}

/// Ends `count` orphans inside, and returns whether they are reaped.
pub(crate) fn end(namespace: &Namespace, ending: Ending, count: u32) -> Result<Fate> {
    let mut role = start(namespace, &[], ending.word(), count.into())?;
    if ending == Ending::AtOnce {
        role.expect_line("created")?;
        stop(namespace)?;
        role.write_line("end")?;
        role.expect_line("ended")?;
        kill(namespace.pid, Signal::SIGCONT)?;
    }
    // The alarm bounds it.
    let status = role.wait()?;
    match status.code() {
        Some(0) => Ok(Fate::Reaped),
        Some(code) if code == i32::from(EXIT_LEFT) => Ok(Fate::LeftAsZombies),
        _ => bail!("the role orphans ended with {status}"),
    }
}

/// The longest time in ms that a zombie waits to be reaped, of many orphans that end one after the other for `period`. `wrapper` executes
/// the role.
pub(crate) fn longest_delay(namespace: &Namespace, wrapper: &[&str], period: Duration) -> Result<f64> {
    let mut role = start(namespace, wrapper, DELAYS, period.as_secs())?;
    let line = role.read_line()?;
    let status = role.wait()?;
    ensure!(status.success(), "the role orphans ended with {status}");
    Ok(line.parse()?)
}

/// The role: `paced COUNT`, `at-once COUNT` or `delays SECONDS`.
pub(crate) fn role(arguments: &[String]) -> Result<ExitCode> {
    alarm::set(ALARM_SECONDS);
    let [word, number] = arguments else { bail!("a word and a number") };
    let number = number.parse()?;
    let all_gone = match word.as_str() {
        PACED => paced(number)?,
        AT_ONCE => at_once(number)?,
        DELAYS => delays(Duration::from_secs(number.into()))?,
        other => bail!("unknown: {other}"),
    };
    Ok(if all_gone { ExitCode::SUCCESS } else { ExitCode::from(EXIT_LEFT) })
}

fn paced(count: u32) -> Result<bool> {
    let started = Instant::now();
    for created in 0..count {
        std::thread::sleep((PERIOD * created / count).saturating_sub(started.elapsed()));
        let orphan = Orphans::create(1)?;
        let pids = orphan.release();
        if !all_gone(&pids) {
            return Ok(false);
        }
        ensure!(
            soon(|| state(Pid::from_raw(1)).is_ok_and(|state| state == b'S')),
            "PID 1 does not go back to sleep"
        );
    }
    Ok(true)
}

fn at_once(count: u32) -> Result<bool> {
    let orphans = Orphans::create(count)?;
    print_line("created")?;
    std::io::stdin().read_line(&mut String::new())?;
    let pids = orphans.release();
    let ended = pids.iter().all(|&pid| soon(|| state(pid).is_ok_and(|state| state == b'Z')));
    ensure!(ended, "the orphans do not end");
    print_line("ended")?;
    Ok(all_gone(&pids))
}

fn delays(period: Duration) -> Result<bool> {
    let (started, mut longest) = (Instant::now(), Duration::ZERO);
    while started.elapsed() < period {
        let orphan = Orphans::create(1)?;
        let pids = orphan.release();
        // Where other processes change cgroups its exit waits for them. The alarm bounds it.
        while pids.iter().any(|&pid| state(pid).is_ok_and(|state| state != b'Z')) {
            std::thread::sleep(CHECK);
        }
        let exited = Instant::now();
        if !all_gone(&pids) {
            return Ok(false);
        }
        longest = longest.max(exited.elapsed());
        std::thread::sleep(BETWEEN_DELAYS);
    }
    print_line(&format!("{:.3}", longest.as_secs_f64() * 1_000.0))?;
    Ok(true)
}

fn print_line(line: &str) -> Result<()> {
    println!("{line}");
    Ok(std::io::stdout().flush()?)
}

/// Processes whose parent has ended; they end when they are released.
struct Orphans {
    pids: Vec<Pid>,
    /// They read from the other end.
    gate: OwnedFd,
}

impl Orphans {
    fn create(count: u32) -> Result<Self> {
        let (pids_in, pids_out) = pipe()?;
        let (closed, gate) = pipe()?;
        // SAFETY: this process has one thread, so its child may do whatever it could.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop((pids_in, gate));
                let code = parent_of(count, pids_out, &closed);
                // SAFETY: it ends the process without flushing the parent's buffers.
                unsafe { nix::libc::_exit(code) }
            }
            ForkResult::Parent { child } => {
                drop((pids_out, closed));
                let ended = waitpid(child, None)?;
                ensure!(ended == WaitStatus::Exited(child, 0), "no orphans could be created: {ended:?}");
                let mut bytes = vec![];
                File::from(pids_in).read_to_end(&mut bytes)?;
                let pid = |bytes: &[u8]| Some(Pid::from_raw(i32::from_ne_bytes(bytes.try_into().ok()?)));
                let pids: Vec<_> = bytes.chunks(size_of::<i32>()).filter_map(pid).collect();
                ensure!(pids.len() == count.try_into()?, "{} of {count} orphans wrote their PID", pids.len());
                Ok(Self { pids, gate })
            }
        }
    }

    fn release(self) -> Vec<Pid> {
        drop(self.gate);
        self.pids
    }
}

/// Creates the children of the parent that will leave them, and returns its exit code. The children never return from here.
fn parent_of(count: u32, pids_out: OwnedFd, closed: &OwnedFd) -> i32 {
    for _ in 0..count {
        // SAFETY: as above.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { .. }) => {}
            Ok(ForkResult::Child) => {
                let written = write(&pids_out, &getpid().as_raw().to_ne_bytes()).is_ok();
                drop(pids_out);
                if written {
                    // Until the gate is closed.
                    let _ = read(closed, &mut [0]);
                }
                // SAFETY: as above.
                unsafe { nix::libc::_exit(0) }
            }
            Err(_) => return 1,
        }
    }
    0
}

fn all_gone(pids: &[Pid]) -> bool {
    // A zombie still takes signal 0.
    pids.iter().all(|&pid| soon(|| kill(pid, None) == Err(Errno::ESRCH)))
}

fn soon(is_so: impl Fn() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(CHECK);
    }
    true
}
