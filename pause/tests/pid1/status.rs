//! The status in the command line: who can read it, what `ps` shows of it, and that a torn one is never believed.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pause_status::{Refusal, Status};

use crate::Named;
use crate::built::hasty;
use crate::sandbox::Pid1;
use pid1_harness::eventually;

pub(crate) const TESTS: &[Named] = &[
    ("any_uid_reads_the_status", || any_uid_reads_the_status(Pid1::pause()?)),
    ("any_uid_reads_the_status_of_a_pod_with_run_as_user", || {
        any_uid_reads_the_status(Pid1::pause()?.run_as(1000))
    }),
    ("ps_shows_the_status_and_the_name", ps_shows_the_status_and_the_name),
    ("an_altered_status_is_refused", an_altered_status_is_refused),
    ("a_reader_that_hammers_never_accepts_a_torn_status", a_torn_status_is_never_accepted),
];

fn any_uid_reads_the_status(pid1: Pid1) -> Result<()> {
    let sandbox = pid1.start()?;
    sandbox.status(|_| ())?;
    for uid in [0, 1000, 65534, 65535] {
        let read = eventually(|| {
            let read = Command::new("cat").arg(sandbox.proc("cmdline")).uid(uid).gid(uid).output()?;
            ensure!(read.status.success(), "uid {uid}: {}", String::from_utf8_lossy(&read.stderr));
            Status::from_cmdline(&read.stdout)?;
            Ok(read.stdout)
        })?;
        ensure!(Status::from_cmdline(&read)?.init, "pause does not know that it is PID 1");
    }
    Ok(())
}

fn ps_shows_the_status_and_the_name() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    let shown = sandbox.run("ps -o pid=,comm=,args= -p 1")?;
    let words: Vec<_> = shown.split_whitespace().collect();
    let [pid, comm, path, zombies, reaped, ..] = words[..] else { bail!("ps shows {shown:?}") };
    ensure!((pid, comm, zombies, reaped) == ("1", "pause", "zombies=0", "reaped=0"), "ps shows {shown:?}");
    ensure!(path.ends_with("/pause"), "ps shows {shown:?}");
    Ok(())
}

fn an_altered_status_is_refused() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    let cmdline = std::fs::read(sandbox.proc("cmdline"))?;
    let text = String::from_utf8(cmdline)?;
    let altered = text.replacen("zombies=0", "zombies=5", 1);
    ensure!(Status::from_cmdline(altered.as_bytes()) == Err(Refusal::WrongSum), "altered, it is believed");
    let cut = text.split_once("version").context("no version in it")?.0;
    ensure!(Status::from_cmdline(cut.as_bytes()).is_err(), "cut short, it is believed");
    Ok(())
}

/// The program that ships but for its patience: it writes a status each millisecond while there is something to tell.
fn a_torn_status_is_never_accepted() -> Result<()> {
    let sandbox = Pid1::new(hasty()?).start()?;
    sandbox.status(|_| ())?;
    let mut helper = sandbox.spawn_helper(&["killed-orphans", "20000"])?;
    let (mut reads, mut torn, mut updates, mut last) = (0_u64, 0_u64, 0_u64, (0, 0, 0));
    let end = Instant::now() + Duration::from_secs(600);
    while helper.try_wait()?.is_none() {
        ensure!(Instant::now() < end, "the orphans took too long");
        let cmdline = std::fs::read(sandbox.proc("cmdline"))?;
        reads += 1;
        let status = match Status::from_cmdline(&cmdline) {
            Ok(status) => status,
            Err(Refusal::WrongSum) => {
                torn += 1;
                continue;
            }
            // Cut short, with its end still to be written.
            Err(_) => continue,
        };
        // Each of these holds for every status that pause writes here, and for hardly any mix of two.
        let signaled = status.reaped - status.signaled;
        ensure!(signaled == 0, "of the killed, {signaled} are said to have exited: {status:?}");
        let now = (status.seq, status.reaped, status.updated);
        ensure!(now.0 >= last.0 && now.1 >= last.1 && now.2 >= last.2, "{now:?} after {last:?}");
        ensure!((now.0 == last.0) == (now == last), "{now:?} and {last:?}");
        updates += u64::from(now.0 != last.0);
        last = now;
    }
    println!("{reads} reads while {} statuses were written: {torn} torn", last.0);
    // Or it was no hammer, pause in no haste, and the sum put to no test.
    ensure!(last.0 > 1000 && updates > 500, "{} statuses written, {updates} of them read", last.0);
    ensure!(torn > 0, "no read was torn");
    sandbox.shows((20_000, 20_000), |status| (status.reaped, status.signaled))
}
