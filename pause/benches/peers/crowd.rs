//! The cost of scans of /proc in a large pod, and how long they delay what PID 1 is there for: 10,000 processes beside it, one of which
//! has 5,000 threads. Where delays are measured, all processes that take part run at real-time priorities, so that other load of
//! the machine does not count. Two parts are this program in the role `crowd`.

use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, alarm, fork, pause};
use pid1_harness::Namespace;

use crate::contenders::{Contender, Kind};
use crate::namespace::{self, Inside, state};
use crate::orphans;

const PROCESSES: &str = "10000";
const THREADS: &str = "5000";
/// Pause, alone until then, scans every 20 s.
const SETTLE: Duration = Duration::from_secs(30);
const PERIOD: Duration = Duration::from_secs(60);
/// Each has a scan: pause scans every 20 s, or a little less often.
const REAPING_PERIOD: Duration = Duration::from_secs(30);
/// Between two reads of the state of PID 1; a scan takes much longer.
const POLL: Duration = Duration::from_millis(1);
/// Of PID 1, and of the processes that wait for it.
const PRIORITY: [&str; 3] = ["chrt", "--fifo", "1"];
const HIGHER_PRIORITY: [&str; 3] = ["chrt", "--fifo", "2"];

/// Seconds after which the kernel ends the sender of SIGTERM.
const ALARM_SECONDS: u32 = 120;

const CREATE: &str = "create";
const CREATED: &str = "created";
const SIGTERM: &str = "sigterm";
const DURING_SCAN: &str = "during-scan";
const AT_ONCE: &str = "at-once";

/// The CPU time of PID 1 in % of a core while no process starts or ends; the longest delay of reaping in ms, the
/// median of three periods, of which the machine's other load may disturb one; and the delay of SIGTERM.
pub(crate) fn cost(contender: &Contender) -> Result<[f64; 3]> {
    let sent = match contender.kind {
        Kind::Ours => DURING_SCAN,
        Kind::Upstream => AT_ONCE,
        _ => bail!("measured for pause and upstream only"),
    };
    let command = PRIORITY.into_iter().map(Into::into).chain(contender.command());
    let mut namespace = namespace::start(&command.collect::<Vec<_>>())?;
    let program = std::env::current_exe()?;
    let program = program.to_str().context("a path in UTF-8")?;
    let create = [program, crate::ROLE_CROWD, CREATE, PROCESSES, THREADS];
    let mut crowd = Inside::start(&namespace, &create)?;
    crowd.expect_line(CREATED)?;
    sleep(SETTLE);
    let (before, started) = (cpu_time(&namespace)?, Instant::now());
    sleep(PERIOD);
    let used = cpu_time(&namespace)?.saturating_sub(before);
    let share = used.as_secs_f64() / started.elapsed().as_secs_f64() * 100.0;
    let mut reaping = vec![];
    for _ in 0..3 {
        reaping.push(orphans::longest_delay(&namespace, &HIGHER_PRIORITY, REAPING_PERIOD)?);
    }
    reaping.sort_by(f64::total_cmp);
    let [chrt, options @ ..] = HIGHER_PRIORITY;
    let mut sender = Command::new(chrt);
    sender.args(options).arg(program).args([crate::ROLE_CROWD, SIGTERM, &namespace.pid.to_string(), sent]);
    let output = sender.stdin(namespace.take_stderr()?).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok([share, reaping[1], String::from_utf8(output.stdout)?.trim().parse()?])
}

/// Of its only thread.
fn cpu_time(namespace: &Namespace) -> Result<Duration> {
    let schedstat = std::fs::read_to_string(namespace.proc("schedstat"))?;
    let nanoseconds = schedstat.split(' ').next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

/// The role: `create PROCESSES THREADS` or `sigterm PID WHEN`.
pub(crate) fn role(arguments: &[String]) -> Result<ExitCode> {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [CREATE, processes, threads] => create(processes.parse()?, threads.parse()?),
        [SIGTERM, pid, sent] => sigterm(Pid::from_raw(pid.parse()?), sent == DURING_SCAN),
        _ => bail!("unknown: {arguments:?}"),
    }
}

/// They live as long as the namespace.
fn create(processes: u32, threads: u32) -> Result<ExitCode> {
    // This process, which has the threads, is one of them.
    for _ in 1..processes {
        // SAFETY: this process has one thread, so its child may do whatever it could.
        if let ForkResult::Child = unsafe { fork() }? {
            wait_forever();
        }
    }
    for _ in 1..threads {
        std::thread::Builder::new().stack_size(64 * 1024).spawn(std::thread::park)?;
    }
    println!("{CREATED}");
    std::io::stdout().flush()?;
    wait_forever()
}

fn wait_forever() -> ! {
    loop {
        pause();
    }
}

/// Prints the time in ms from SIGTERM to the first byte of PID 1's stderr, which is this process's stdin: its exit has to wait for all
/// other processes.
fn sigterm(pid: Pid, during_scan: bool) -> Result<ExitCode> {
    alarm::set(ALARM_SECONDS);
    // In two successive reads: what else pause does takes less time.
    let mut running = 0;
    while during_scan && running < 2 {
        sleep(POLL);
        running = if state(pid)? == b'R' { running + 1 } else { 0 };
    }
    let sent = Instant::now();
    kill(pid, Signal::SIGTERM)?;
    std::io::stdin().read_exact(&mut [0])?;
    println!("{:.3}", sent.elapsed().as_secs_f64() * 1_000.0);
    Ok(ExitCode::SUCCESS)
}
