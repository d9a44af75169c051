//! Time from exec to ready, as PID 1 with a /proc of its own. A pause is ready when it takes its first signal: SIGTERM
//! is blocked and pending before the exec, and the line that pause writes on taking it ends the time. An init that runs
//! a command is ready when that command has said a word; the command is the yardstick, asked for its version.
//!
//! The half that starts it is this same program in the role `start`: one thread, so that it may fork.

use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise, sigprocmask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, alarm, dup2_stderr, dup2_stdout, execv, fork, pipe, write};

use crate::contenders::{Contender, Kind};

/// Starts of each contender. The median of fewer moves by more than the contenders differ.
const STARTS: usize = 400;
/// A pause that has said nothing by then does not take a signal that was pending when it was executed.
const PATIENCE_MS: u16 = 2_000;
/// After so many seconds the role is ended by the kernel.
const ALARM_SECONDS: u32 = 10;

const PENDING: &str = "pending";
const FIRST_WORD: &str = "first-word";

/// The median of each contender's times in µs. They take turns, so that what disturbs the machine disturbs all.
pub(crate) fn medians(contenders: &[Contender], yardstick: &Path) -> Vec<Result<f64>> {
    let mut times: Vec<Result<Vec<f64>>> = contenders.iter().map(|_| Ok(vec![])).collect();
    for _ in 0..STARTS {
        for (contender, times) in contenders.iter().zip(&mut times) {
            // Who failed once is left out of the next rounds.
            let Ok(so_far) = times else { continue };
            match start(contender, yardstick) {
                Ok(time) => so_far.push(time),
                Err(error) => *times = Err(error),
            }
        }
    }
    let median = |times: Result<Vec<f64>>| {
        let mut times = times?;
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().context("no start was measured")
    };
    times.into_iter().map(median).collect()
}

fn start(contender: &Contender, yardstick: &Path) -> Result<f64> {
    let mut role = Command::new(std::env::current_exe()?);
    role.arg(crate::ROLE_START);
    match contender.kind {
        Kind::RunsCommand => role.arg(FIRST_WORD).args(contender.running(&[yardstick, "--version".as_ref()])),
        _ => role.arg(PENDING).args(contender.command()),
    };
    let output = role.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let nanoseconds: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(nanoseconds / 1_000.0)
}

/// The role: `pending PROGRAM ARGUMENT...` or `first-word PROGRAM ARGUMENT...`; prints the time in ns.
pub(crate) fn role(arguments: &[String]) -> Result<ExitCode> {
    alarm::set(ALARM_SECONDS);
    let [how, command @ ..] = arguments else { bail!("how, and a command") };
    let strings = command.iter().map(|argument| CString::new(argument.as_str()));
    let strings = strings.collect::<Result<Vec<_>, _>>()?;
    let program = strings.first().context("a command")?;
    let (words, word) = pipe()?;
    let (starts, start) = pipe()?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
    // SAFETY: this process has one thread, so its child may do whatever it could.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let execute = || -> Result<()> {
                set_pdeathsig(Signal::SIGKILL)?;
                mount_own_proc()?;
                dup2_stdout(&word)?;
                dup2_stderr(&word)?;
                if how == PENDING {
                    let term = SigSet::from(Signal::SIGTERM);
                    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&term), None)?;
                    raise(Signal::SIGTERM)?;
                }
                // Nobody waits for this yet, so it disturbs nobody.
                write(&start, &now()?.to_ne_bytes())?;
                execv(program, &strings)?;
                Ok(())
            };
            // What it would say would be taken for the contender's word.
            let _ = execute();
            // SAFETY: it ends the process, without what the parent still has in its buffers.
            unsafe { nix::libc::_exit(1) }
        }
        ForkResult::Parent { child } => {
            drop((word, start));
            let said = poll(&mut [PollFd::new(words.as_fd(), PollFlags::POLLIN)], PATIENCE_MS)? > 0;
            let ended = now()?;
            if !said {
                kill(child, Signal::SIGKILL)?;
            }
            // To its end, which the alarm bounds: only who took the signal, or ran the command, ends with 0.
            let mut line = String::new();
            File::from(words).read_to_string(&mut line)?;
            let status = waitpid(child, None)?;
            ensure!(said, "it takes no signal that was pending when it was executed");
            let ended_well = status == WaitStatus::Exited(child, 0);
            ensure!(ended_well && !line.is_empty(), "it said {line:?}, then {status:?}");
            let mut started = [0; 8];
            File::from(starts).read_exact(&mut started)?;
            println!("{}", ended - i64::from_ne_bytes(started));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Of the new PID namespace, as a container has it: pause reads it when it starts.
fn mount_own_proc() -> Result<()> {
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), nothing)?;
    Ok(())
}

/// In ns.
fn now() -> Result<i64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}
