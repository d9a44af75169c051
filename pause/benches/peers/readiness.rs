//! Time from exec to ready, as PID 1 with a /proc of its own. A pause is ready when it takes SIGTERM, which is sent again and again:
//! the kernel drops it until a PID 1 handles it. The first byte of its message ends the time. An init is ready when the command that
//! it runs, upstream's pause with `-v`, has written its first byte.
//!
//! The half that starts it is this program in the role `start`: one thread, so that it may fork.

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
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, alarm, dup2_stderr, dup2_stdout, execv, fork, pipe, write};

use crate::contenders::{Contender, Kind};

/// Starts of each contender. The median of fewer varies by more than the contenders differ.
const STARTS: usize = 400;
/// How long it may take.
const PATIENCE_MS: u16 = 2_000;
/// Seconds after which the kernel ends the role.
const ALARM_SECONDS: u32 = 10;

const TAKES_SIGTERM: &str = "takes-sigterm";
const RUNS_COMMAND: &str = "runs-command";

/// The median of each contender's times in µs. They take turns, so that other load disturbs all alike.
pub(crate) fn medians(contenders: &[Contender], upstream: &Path) -> Vec<Result<f64>> {
    let mut times: Vec<Result<Vec<f64>>> = contenders.iter().map(|_| Ok(vec![])).collect();
    for _ in 0..STARTS {
        for (contender, times) in contenders.iter().zip(&mut times) {
            // One that failed once is left out of the next rounds.
            let Ok(so_far) = times else { continue };
            match start(contender, upstream) {
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

fn start(contender: &Contender, upstream: &Path) -> Result<f64> {
    let mut role = Command::new(std::env::current_exe()?);
    role.arg(crate::ROLE_START);
    match contender.kind {
        Kind::RunsCommand => role.arg(RUNS_COMMAND).args(contender.running(&[upstream, "-v".as_ref()])),
        _ => role.arg(TAKES_SIGTERM).args(contender.command()),
    };
    let output = role.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let nanoseconds: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(nanoseconds / 1_000.0)
}

/// The role: `takes-sigterm PROGRAM ARGUMENT...` or `runs-command PROGRAM ARGUMENT...`; prints the time in ns.
pub(crate) fn role(arguments: &[String]) -> Result<ExitCode> {
    alarm::set(ALARM_SECONDS);
    let [how, command @ ..] = arguments else { bail!("a mode and a command") };
    let strings = command.iter().map(|argument| CString::new(argument.as_str()));
    let strings = strings.collect::<Result<Vec<_>, _>>()?;
    let program = strings.first().context("a command")?;
    let (output, word) = pipe()?;
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
                write(&start, &now()?.to_ne_bytes())?;
                execv(program, &strings)?;
                Ok(())
            };
            // Its error would be taken for the contender's output.
            let _ = execute();
            // SAFETY: it ends the process without flushing the parent's buffers.
            unsafe { nix::libc::_exit(1) }
        }
        ForkResult::Parent { child } => {
            drop((word, start));
            let mut started = [0; 8];
            File::from(starts).read_exact(&mut started)?;
            let started = i64::from_ne_bytes(started);
            let timeout = if how == TAKES_SIGTERM { 0 } else { PATIENCE_MS };
            let mut ended = started;
            let mut is_ready = false;
            while !is_ready && ended - started < i64::from(PATIENCE_MS) * 1_000_000 {
                if how == TAKES_SIGTERM {
                    kill(child, Signal::SIGTERM)?;
                    std::thread::yield_now();
                }
                is_ready = poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], timeout)? > 0;
                ended = now()?;
            }
            if !is_ready {
                kill(child, Signal::SIGKILL)?;
            }
            // The alarm bounds it.
            let mut line = String::new();
            File::from(output).read_to_string(&mut line)?;
            let status = waitpid(child, None)?;
            ensure!(is_ready, "it is not ready after {PATIENCE_MS} ms");
            let is_success = status == WaitStatus::Exited(child, 0);
            ensure!(is_success && !line.is_empty(), "it wrote {line:?}, then {status:?}");
            println!("{}", ended - started);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Of the new PID namespace, as in a container: pause reads it when it starts.
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
