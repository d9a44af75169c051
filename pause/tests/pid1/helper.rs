//! Creates work for PID 1 inside of the namespace: this test binary, run with [`ROLE`] and what to do. It creates processes by the
//! thousand, for which a shell is too slow, and executes programs in ways that no shell can.
#![allow(unsafe_code, reason = "fork(2), in a process of one thread, and seccomp(2)")]

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::OsStringExt as _;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{ForkResult, execve, fork, pause};

/// The first argument of such a run.
pub(crate) const ROLE: &str = "--helper";

/// Names that try to break what reads `/proc/<pid>/stat`.
pub(crate) const EVIL_NAMES: [&CStr; 6] = [c"a\nb", c") Z 1 (", c"((((", c"))))", c"\xff\xfe\x80", c" "];

/// Runs the role that the arguments name, if there is one, and then never returns.
pub(crate) fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != ROLE) {
        return;
    }
    let words: Vec<_> = arguments.collect();
    if let Err(error) = run(words) {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn run(words: Vec<OsString>) -> Result<()> {
    let text: Vec<_> = words.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    match text[..] {
        ["orphans", count] => orphans(count.parse()?, || Ok(())),
        ["killed-orphans", count] => orphans(count.parse()?, || Ok(raise(Signal::SIGKILL)?)),
        ["never-wait", count] => never_wait(count.parse()?, |_| Ok(())),
        ["never-wait-for-evil-names"] => {
            never_wait(EVIL_NAMES.len(), |index| Ok(prctl::set_name(EVIL_NAMES[index])?))
        }
        ["live", count] => live(count.parse()?),
        ["threads", count] => threads(count.parse()?),
        ["exec-without-arguments", _] => {
            match execve(&c_string(&words[1])?, &[] as &[&CStr], &[] as &[&CStr])? {}
        }
        ["exec-with-a-zombie", ..] => match exec_with_a_zombie(&words[1..])? {},
        ["exec-without-rt_sigprocmask", ..] => match exec_without(libc::SYS_rt_sigprocmask, &words[1..])? {},
        ["exec-without-rt_sigtimedwait", ..] => {
            match exec_without(libc::SYS_rt_sigtimedwait, &words[1..])? {}
        }
        ["exec-without-clock_gettime", ..] => match exec_without(libc::SYS_clock_gettime, &words[1..])? {},
        ["exec-without-wait4", ..] => match exec_without(libc::SYS_wait4, &words[1..])? {},
        _ => bail!("unknown: {words:?}"),
    }
}

fn c_string(word: &OsString) -> Result<CString> {
    Ok(CString::new(word.clone().into_vec())?)
}

/// Executes the program that is the first word with all the words as its arguments.
fn execute(words: &[OsString]) -> Result<Infallible> {
    let words = words.iter().map(c_string).collect::<Result<Vec<_>>>()?;
    execve(words.first().context("a program")?, &words, &[] as &[&CStr]).context("execve")
}

/// Forks; the child does its work and ends without running its parent's clean-up.
fn child(work: impl FnOnce() -> Result<()>) -> Result<nix::unistd::Pid> {
    // SAFETY: this process has one thread, so the child may do what any process may.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = i32::from(work().is_err());
            // SAFETY: it ends the process as exit(3) does, without the exit handlers of the parent.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Processes whose parent ends before them: one after the other, as fast as possible.
fn orphans(count: usize, end: impl Fn() -> Result<()>) -> Result<()> {
    for _ in 0..count {
        let parent = child(|| child(&end).map(drop))?;
        waitpid(parent, None)?;
    }
    Ok(())
}

/// Children that end and are not reaped; prints a line when the last was created, and stays.
fn never_wait(count: usize, first: impl Fn(usize) -> Result<()>) -> Result<()> {
    for index in 0..count {
        child(|| first(index))?;
    }
    println!("ready");
    loop {
        pause();
    }
}

/// Children that live as long as the namespace.
fn live(count: usize) -> Result<()> {
    for _ in 0..count {
        child(|| {
            loop {
                pause();
            }
        })?;
    }
    println!("ready");
    loop {
        pause();
    }
}

/// Executes a program that has a child which exited before: no signal reports it.
fn exec_with_a_zombie(words: &[OsString]) -> Result<Infallible> {
    let zombie = child(|| Ok(()))?;
    waitid(Id::Pid(zombie), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    execute(words)
}

/// Threads that run as long as the process.
fn threads(count: usize) -> Result<()> {
    for _ in 0..count {
        std::thread::Builder::new().stack_size(64 * 1024).spawn(std::thread::park)?;
    }
    println!("ready");
    loop {
        pause();
    }
}

/// Executes a program for which the kernel refuses a system call (EPERM), as a strict seccomp profile has it do.
fn exec_without(call: libc::c_long, words: &[OsString]) -> Result<Infallible> {
    let step = |code: u32, k: u32, if_not: u8| -> Result<libc::sock_filter> {
        Ok(libc::sock_filter { code: code.try_into()?, jt: 0, jf: if_not, k })
    };
    let mut filter = [
        // The number of the call is what seccomp_data begins with.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)?,
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call.try_into()?, 1)?,
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM)?, 0)?,
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0)?,
    ];
    let profile = libc::sock_fprog { len: filter.len().try_into()?, filter: filter.as_mut_ptr() };
    prctl::set_no_new_privs()?;
    // SAFETY: the kernel copies the program, whose length is given, and changes no memory of this process.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const profile) };
    Errno::result(set).context("seccomp")?;
    execute(words)
}
