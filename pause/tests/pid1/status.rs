//! The status in the command line: all users can read it, `ps` shows it, and a torn one is never accepted.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pause_status::{ROOM_ARGUMENT, Refusal, Status};

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
    ("fast_reader_never_accepts_a_torn_status", a_torn_status_is_never_accepted),
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
        ensure!(Status::from_cmdline(&read)?.is_counted(), "pause does not count as PID 1");
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
    ensure!(
        Status::from_cmdline(altered.as_bytes()) == Err(Refusal::WrongChecksum),
        "altered, it is accepted"
    );
    let cut = text.split_once("version").context("no version in it")?.0;
    ensure!(Status::from_cmdline(cut.as_bytes()).is_err(), "cut short, it is accepted");
    Ok(())
}

/// The shipped program with another interval: it writes a status each millisecond while there are new numbers.
fn a_torn_status_is_never_accepted() -> Result<()> {
    let sandbox = Pid1::new(hasty()?).with_argument(ROOM_ARGUMENT).start()?;
    sandbox.status(|_| ())?;
    let mut helper = sandbox.spawn_helper(&["killed-orphans", "20000"])?;
    let (mut reads, mut torn, mut updates, mut last) = (0_u64, 0_u64, 0_u64, 0);
    let end = Instant::now() + Duration::from_secs(600);
    while helper.try_wait()?.is_none() {
        ensure!(Instant::now() < end, "the orphans took too long");
        let cmdline = std::fs::read(sandbox.proc("cmdline"))?;
        reads += 1;
        let status = match Status::from_cmdline(&cmdline) {
            Ok(status) => status,
            Err(Refusal::WrongChecksum) => {
                torn += 1;
                continue;
            }
            // Cut short, with its end still to be written.
            Err(_) => continue,
        };
        // A mix of the digits of two numbers is above the number of orphans, or followed by a lower one.
        ensure!((last..=20_000).contains(&status.reaped), "{status:?} after {last}");
        updates += u64::from(status.reaped != last);
        last = status.reaped;
    }
    println!("{reads} reads, {torn} of them torn, {updates} with a new number");
    // Or the reader was too slow, pause published too rarely, and the checksum was not tested.
    ensure!(updates > 500, "{updates} statuses read");
    ensure!(torn > 0, "no read was torn");
    sandbox.shows(20_000, |status| status.reaped)
}
