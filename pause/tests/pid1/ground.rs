//! Hostile ground: whatever is missing, full, hidden or odd, pause goes on being a pause, and what it cannot do it says.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use pause_status::{Refusal, Status};

use crate::Named;
use crate::built::shipped;
use crate::helper::EVIL_NAMES;
use crate::reaping::orphans_are_reaped;
use crate::sandbox::{Pid1, Sandbox};
use pid1_harness::eventually;

pub(crate) const TESTS: &[Named] = &[
    ("without_proc_nothing_is_counted", || {
        nothing_is_counted(Pid1::pause()?.prepared_by("mount -t tmpfs tmpfs /proc"), &unreadable(2))
    }),
    ("with_another_namespace_s_proc_nothing_is_counted", || {
        nothing_is_counted(Pid1::pause()?.prepared_by("umount /proc"), &unreadable(18))
    }),
    ("without_descriptors_nothing_is_counted", || {
        nothing_is_counted(Pid1::pause()?.prepared_by("ulimit -n 3"), &unreadable(24))
    }),
    ("behind_hidepid_invisible_nothing_is_counted", || behind_hidepid("2")),
    ("behind_hidepid_noaccess_nothing_is_counted", || behind_hidepid("1")),
    ("behind_a_hidepid_that_comes_later_nothing_is_counted", behind_a_later_hidepid),
    ("10000_processes_are_counted", many_processes_are_counted),
    ("evil_names_are_counted_like_others", evil_names_are_counted_like_others),
    ("inherited_descriptors_are_closed", inherited_descriptors_are_closed),
    ("the_working_folder_is_let_go_of", the_working_folder_is_let_go_of),
    ("with_its_stdio_closed_it_works", with_its_stdio_closed_it_works),
    ("without_arguments_it_works", without_arguments_it_works),
    ("a_thousand_arguments_survive_the_second_execution", a_thousand_arguments_survive),
    ("long_arguments_and_a_large_environment_survive", long_arguments_survive),
    ("when_it_cannot_execute_itself_it_is_a_pause_without_status", without_a_second_execution),
    ("under_another_name_it_works", || works(&Pid1::pause()?.named("init").start()?)),
    ("through_a_link_it_works", through_a_link_it_works),
    ("as_pid_2_it_counts_no_processes", as_pid_2_it_counts_no_processes),
];

fn unreadable(errno: u32) -> String {
    format!("pause: processes are not counted; cannot read /proc: errno {errno}\n")
}

fn nothing_is_counted(pid1: Pid1, complaint: &str) -> Result<()> {
    let sandbox = pid1.start()?;
    sandbox.run_helper(&["killed-orphans", "3"])?;
    sandbox.shows((3, 3), |status| (status.reaped, status.signaled))?;
    sandbox.shows((0, 0, false, true), |status| {
        (status.processes, status.zombies, status.counted(), status.init)
    })?;
    let stderr = sandbox.stderr()?;
    ensure!(stderr == complaint, "it said {stderr:?}");
    Ok(())
}

fn behind_hidepid(how: &str) -> Result<()> {
    let pause = Pid1::pause()?.prepared_by(&format!("mount -o remount,hidepid={how} /proc")).run_as(65535);
    nothing_is_counted(pause, "pause: processes are not counted; /proc is mounted with hidepid\n")
}

fn behind_a_later_hidepid() -> Result<()> {
    let sandbox = Pid1::pause()?.run_as(65535).start()?;
    sandbox.shows(true, |status| status.counted())?;
    sandbox.run("mount -o remount,hidepid=2 /proc")?;
    sandbox.shows(false, |status| status.counted())
}

/// A pause like any other.
fn works(sandbox: &Sandbox) -> Result<()> {
    orphans_are_reaped(sandbox, 3)?;
    sandbox.shows((3, true, true), |status| (status.reaped, status.init, status.counted()))
}

fn many_processes_are_counted() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    let helper = sandbox.start_helper(&["live", "10000"])?;
    // And pause and their parent.
    sandbox.shows((10_002, 0), |status| (status.processes, status.zombies))?;
    works(&sandbox)?;
    helper.kill()
}

fn evil_names_are_counted_like_others() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    let helper = sandbox.start_helper(&["never-wait-for-evil-names"])?;
    let zombies = u32::try_from(EVIL_NAMES.len())?;
    sandbox.shows((zombies, zombies + 2), |status| (status.zombies, status.processes))?;
    helper.kill()?;
    sandbox.shows((0, u64::from(zombies)), |status| (status.zombies, status.reaped))
}

fn descriptors(sandbox: &Sandbox) -> Result<usize> {
    Ok(fs::read_dir(sandbox.proc("fd"))?.count())
}

fn inherited_descriptors_are_closed() -> Result<()> {
    let sandbox = Pid1::pause()?.prepared_by("exec 3< /etc/passwd 7< / 9> /dev/null").start()?;
    works(&sandbox)?;
    let open = descriptors(&sandbox)?;
    ensure!(open == 3, "it holds {open} descriptors");
    Ok(())
}

fn the_working_folder_is_let_go_of() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path().to_str().context("a path in UTF-8")?;
    let prepare = format!("mount -t tmpfs tmpfs {folder}; cd {folder}");
    let sandbox = Pid1::pause()?.prepared_by(&prepare).start()?;
    works(&sandbox)?;
    let cwd = fs::read_link(sandbox.proc("cwd"))?;
    ensure!(cwd.as_os_str() == "/", "it stays in {}", cwd.display());
    // A mount that somebody works in is busy.
    sandbox.run(&format!("umount {folder}")).map(drop)
}

fn with_its_stdio_closed_it_works() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("status");
    // It has something to say at once, and nowhere to say it.
    let option = format!("--status-file={}/gone/status", folder.path().display());
    let sandbox = Pid1::pause()?.with_argument(option).prepared_by("exec <&- >&- 2>&-").start()?;
    works(&sandbox)?;
    ensure!(descriptors(&sandbox)? == 0, "it holds descriptors");
    ensure!(!path.exists());
    let (code, stderr) = sandbox.end_by(Signal::SIGTERM)?;
    ensure!(code == Some(0) && stderr.is_empty(), "it ended with {code:?} and said {stderr:?}");
    Ok(())
}

fn without_arguments_it_works() -> Result<()> {
    // The kernel makes an empty one of none since Linux 5.18; before, it leaves pause without a name and without a status.
    let sandbox = Pid1::pause()?.executed_by("exec-without-arguments")?.start()?;
    works(&sandbox)?;
    let cmdline = fs::read(sandbox.proc("cmdline"))?;
    ensure!(cmdline.starts_with(b"\0zombies="), "{:?}", cmdline.escape_ascii().to_string());
    Ok(())
}

fn a_thousand_arguments_survive() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("status");
    let mut pause = Pid1::pause()?;
    for number in 0..1000 {
        pause = pause.with_argument(format!("--ignored={number}"));
    }
    let path = path.to_str().context("a path in UTF-8")?;
    let sandbox = pause.with_argument("--status-file").with_argument(path).start()?;
    works(&sandbox)?;
    eventually(|| Ok(fs::metadata(path)?))?;
    let cmdline = fs::read(sandbox.proc("cmdline"))?;
    let last = format!("--status-file\0{path}\0");
    ensure!(cmdline.ends_with(last.as_bytes()), "an argument is lost");
    Ok(())
}

fn long_arguments_survive() -> Result<()> {
    let long = "x".repeat(100_000);
    let pause = Pid1::pause()?.with_argument("").with_argument(&long).with_argument("");
    let sandbox = pause.with_variable("FIRST", &long).with_variable("SECOND", &long).start()?;
    works(&sandbox)?;
    let environment = fs::read(sandbox.proc("environ"))?;
    ensure!(environment.len() > 200_000, "{} bytes of the environment are left", environment.len());
    Ok(())
}

fn without_a_second_execution() -> Result<()> {
    let pause = Pid1::pause()?.prepared_by("ulimit -s 256").executed_by("exec-at-the-limit")?;
    let sandbox = pause.start()?;
    orphans_are_reaped(&sandbox, 3)?;
    let cmdline = fs::read(sandbox.proc("cmdline"))?;
    ensure!(Status::from_cmdline(&cmdline) == Err(Refusal::NoStatus), "it found room after all");
    let stderr = sandbox.stderr()?;
    // E2BIG
    let expected = "pause: no room for a status; cannot execute itself again: errno 7\n";
    ensure!(stderr == expected, "it said {stderr:?}");
    Ok(())
}

fn through_a_link_it_works() -> Result<()> {
    // The shell's `$0` is the program's path; what follows executes the link that is made beside it.
    let prepare = "ln -s \"$0\" \"$(dirname \"$0\")/other\"; exec \"$(dirname \"$0\")/other\"";
    let sandbox = Pid1::pause()?.prepared_by(prepare).shown_as("other").start()?;
    works(&sandbox)
}

fn as_pid_2_it_counts_no_processes() -> Result<()> {
    let sandbox = Pid1::never_waits()?.start()?;
    let program = sandbox.folder().join("pause");
    fs::copy(shipped()?, &program)?;
    let script = format!(
        "{} 2>&1 & pause=$!; until grep -q sum= /proc/$pause/cmdline; do sleep 0.1; done; \
         tr '\\0' ' ' < /proc/$pause/cmdline; kill $pause; wait $pause; echo \"code=$?\"",
        program.display()
    );
    let said = sandbox.run(&script)?;
    for part in ["Warning: pause should be the first process\n", " init=0 ", " processes=0 ", "code=0\n"] {
        ensure!(said.contains(part), "{part:?} is not in {said:?}");
    }
    Ok(())
}
