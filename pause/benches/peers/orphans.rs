//! Makes orphans inside a namespace, and says when PID 1 has reaped them. The half that makes them is this same program
//! run inside, in the role `orphans`: one thread, ordinary forks, nothing that valgrind or strace would follow.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork, getpid, pipe, read, write};
use pid1_harness::Namespace;

use crate::namespace::{state, stop};

/// How the orphans end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// One at a time: the next is made when the last is reaped and PID 1 sleeps again. So each costs PID 1 one wake-up. However
    /// many they are, they take the same time, and so what PID 1 does once a second is no part of the slope.
    Paced,
    /// All of them while PID 1 is stopped: when it goes on, they are all there. So none is a matter of luck.
    AtOnce,
}

impl Ending {
    fn word(self) -> &'static str {
        match self {
            Self::Paced => "paced",
            Self::AtOnce => "at-once",
        }
    }
}

/// What became of the orphans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Reaped,
    LeftAsZombies,
}

/// Exit code of the role: the orphans have ended, and PID 1 left them as they are.
const EXIT_LEFT: u8 = 3;
/// How long PID 1 may take for what it has to do next, under valgrind too.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so many seconds the role is ended by the kernel, whatever happened to the rest.
const ALARM_SECONDS: u32 = 120;
/// How long paced orphans take in all: longer than the most of them need under valgrind.
const PERIOD: Duration = Duration::from_secs(8);
/// Between two looks. Short beside a fork, so that pacing costs little.
const LOOK: Duration = Duration::from_micros(20);

/// Has `count` orphans end inside, and sees what becomes of them.
pub(crate) fn end(namespace: &Namespace, ending: Ending, count: u32) -> Result<Fate> {
    let mut role = namespace.enter();
    role.arg(std::env::current_exe()?).args([crate::ROLE_ORPHANS, ending.word(), &count.to_string()]);
    role.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut maker = Maker(role.spawn().context("running nsenter")?);
    if ending == Ending::AtOnce {
        let mut tell = maker.0.stdin.take().context("its standard input")?;
        let mut told = BufReader::new(maker.0.stdout.take().context("its standard output")?);
        let mut expect = |word: &str| -> Result<()> {
            let mut line = String::new();
            told.read_line(&mut line)?;
            ensure!(line.trim_end() == word, "the maker of orphans said {line:?}, not {word:?}");
            Ok(())
        };
        expect("made")?;
        stop(namespace)?;
        writeln!(tell, "go")?;
        expect("ended")?;
        kill(namespace.pid, Signal::SIGCONT)?;
    }
    // The alarm bounds it.
    let status = maker.0.wait()?;
    match status.code() {
        Some(0) => Ok(Fate::Reaped),
        Some(code) if code == i32::from(EXIT_LEFT) => Ok(Fate::LeftAsZombies),
        _ => bail!("the maker of orphans ended with {status}"),
    }
}

struct Maker(Child);

impl Drop for Maker {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The role: `paced N` or `at-once N`.
pub(crate) fn role(arguments: &[String]) -> Result<ExitCode> {
    alarm::set(ALARM_SECONDS);
    let [ending, count] = arguments else { bail!("an ending and a count") };
    let count = count.parse()?;
    let all_gone = if ending == Ending::Paced.word() { paced(count)? } else { at_once(count)? };
    Ok(if all_gone { ExitCode::SUCCESS } else { ExitCode::from(EXIT_LEFT) })
}

fn paced(count: u32) -> Result<bool> {
    let begun = Instant::now();
    for made in 0..count {
        std::thread::sleep((PERIOD * made / count).saturating_sub(begun.elapsed()));
        let orphan = Orphans::make(1)?;
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
    let orphans = Orphans::make(count)?;
    say("made")?;
    std::io::stdin().read_line(&mut String::new())?;
    let pids = orphans.release();
    let ended = pids.iter().all(|&pid| soon(|| state(pid).is_ok_and(|state| state == b'Z')));
    ensure!(ended, "the orphans do not end");
    say("ended")?;
    Ok(all_gone(&pids))
}

fn say(word: &str) -> Result<()> {
    println!("{word}");
    Ok(std::io::stdout().flush()?)
}

/// Processes whose parent has ended; they end when they are released.
struct Orphans {
    pids: Vec<Pid>,
    /// They read from the other end, which nobody else holds.
    gate: OwnedFd,
}

impl Orphans {
    fn make(count: u32) -> Result<Self> {
        let (told, tell) = pipe()?;
        let (closed, gate) = pipe()?;
        // SAFETY: this process has one thread, so its child may do whatever it could.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop((told, gate));
                let code = parent_of(count, tell, &closed);
                // SAFETY: it ends the process, without what the parent still has in its buffers.
                unsafe { nix::libc::_exit(code) }
            }
            ForkResult::Parent { child } => {
                drop((tell, closed));
                let ended = waitpid(child, None)?;
                ensure!(ended == WaitStatus::Exited(child, 0), "no orphans could be made: {ended:?}");
                let mut bytes = vec![];
                File::from(told).read_to_end(&mut bytes)?;
                let pid = |bytes: &[u8]| Some(Pid::from_raw(i32::from_ne_bytes(bytes.try_into().ok()?)));
                let pids: Vec<_> = bytes.chunks(size_of::<i32>()).filter_map(pid).collect();
                ensure!(pids.len() == count.try_into()?, "{} of {count} orphans told their PID", pids.len());
                Ok(Self { pids, gate })
            }
        }
    }

    fn release(self) -> Vec<Pid> {
        drop(self.gate);
        self.pids
    }
}

/// What the parent does that will leave them: has its children, and ends with the code returned. The children never
/// return from here.
fn parent_of(count: u32, tell: OwnedFd, closed: &OwnedFd) -> i32 {
    for _ in 0..count {
        // SAFETY: as above.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { .. }) => {}
            Ok(ForkResult::Child) => {
                let told = write(&tell, &getpid().as_raw().to_ne_bytes()).is_ok();
                drop(tell);
                if told {
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
    // A zombie still takes signal 0; what was reaped is not there.
    pids.iter().all(|&pid| soon(|| kill(pid, None) == Err(Errno::ESRCH)))
}

fn soon(is_so: impl Fn() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}
