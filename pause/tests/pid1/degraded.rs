//! Degraded environments: whatever is missing, full, hidden or odd, pause reaps, and reports what it cannot count.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use pause_status::{CountError, ROOM_ARGUMENT, Status};

use crate::Named;
use crate::built::shipped;
use crate::helper::EVIL_NAMES;
use crate::reaping::orphans_are_reaped;
use crate::sandbox::{Pid1, Sandbox};
use pid1_harness::eventually;

pub(crate) const TESTS: &[Named] = &[
    ("missing_proc_is_reported", || {
        error_is_reported(Pid1::pause()?.prepared_by("mount -t tmpfs tmpfs /proc"), CountError::NoProc)
    }),
    ("proc_of_another_namespace_is_reported", || {
        error_is_reported(Pid1::pause()?.prepared_by("umount /proc"), CountError::NoProc)
    }),
    ("missing_descriptors_are_reported", || {
        error_is_reported(Pid1::pause()?.prepared_by("ulimit -n 3"), CountError::Errno(24))
    }),
    ("hidepid_invisible_is_reported", || hidepid_is_reported("2")),
    ("hidepid_noaccess_is_reported", || hidepid_is_reported("1")),
    ("later_hidepid_is_reported", later_hidepid_is_reported),
    ("unreadable_process_does_not_stop_the_count", unreadable_process_does_not_stop_the_count),
    ("processes_are_counted_again_after_an_error", processes_are_counted_again_after_an_error),
    ("10000_processes_are_counted", many_processes_are_counted),
    ("threads_are_counted", threads_are_counted),
    ("evil_names_are_counted_like_others", evil_names_are_counted_like_others),
    ("inherited_descriptors_are_closed", inherited_descriptors_are_closed),
    ("inherited_working_directory_is_left", inherited_working_directory_is_left),
    ("closed_stdio_changes_nothing", closed_stdio_changes_nothing),
    ("missing_arguments_leave_no_status", missing_arguments_leave_no_status),
    ("other_first_argument_leaves_no_status", other_first_argument_leaves_no_status),
    ("thousand_arguments_are_read", thousand_arguments_are_read),
    ("large_environment_stays_intact", large_environment_stays_intact),
    ("another_name_changes_nothing", || works(&Pid1::pause()?.named("init").start()?)),
    ("link_to_the_program_works", link_to_the_program_works),
    ("refused_clock_stops_neither_reaping_nor_status", refused_clock_stops_nothing),
    ("refused_wait4_is_reported_once", refused_wait4_is_reported_once),
    ("pid_2_reports_that_it_is_not_init", pid_2_reports_that_it_is_not_init),
];

fn error_is_reported(pid1: Pid1, error: CountError) -> Result<()> {
    let sandbox = pid1.start()?;
    sandbox.run_helper(&["killed-orphans", "3"])?;
    sandbox.shows(3, |status| status.reaped)?;
    sandbox.shows((0, 0, Some(error)), |status| (status.processes, status.zombies, status.error))?;
    let stderr = sandbox.stderr()?;
    ensure!(stderr.is_empty(), "it wrote {stderr:?}");
    Ok(())
}

fn hidepid_is_reported(value: &str) -> Result<()> {
    let remount = format!("mount -o remount,hidepid={value} /proc");
    error_is_reported(Pid1::pause()?.prepared_by(&remount).run_as(65535), CountError::HidePid)
}

fn later_hidepid_is_reported() -> Result<()> {
    let sandbox = Pid1::pause()?.run_as(65535).start()?;
    sandbox.shows(None, |status| status.error)?;
    sandbox.run("mount -o remount,hidepid=2 /proc")?;
    sandbox.shows(Some(CountError::HidePid), |status| status.error)
}

fn processes_are_counted_again_after_an_error() -> Result<()> {
    let sandbox = Pid1::pause()?.prepared_by("mount -o remount,hidepid=2 /proc").run_as(65535).start()?;
    sandbox.shows(Some(CountError::HidePid), |status| status.error)?;
    sandbox.run("mount -o remount,hidepid=0 /proc")?;
    sandbox.shows((None, 1), |status| (status.error, status.processes))
}

/// As a security module does with processes of another domain: EACCES for their files.
fn unreadable_process_does_not_stop_the_count() -> Result<()> {
    let sandbox = Pid1::pause()?.run_as(65535).start()?;
    let helper = sandbox.start_helper(&["never-wait", "3"])?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("unreadable");
    fs::write(&file, "")?;
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o0))?;
    sandbox.run(&format!("mount --bind {} /proc/$(pgrep -o pid1)/stat", file.display()))?;
    // Without the parent: pause and the zombies.
    let expected = (4, 3, 1, None);
    sandbox.shows(expected, |status| (status.processes, status.zombies, status.unreadable, status.error))?;
    helper.kill()
}

fn refused_clock_stops_nothing() -> Result<()> {
    let sandbox = Pid1::pause()?.executed_by("exec-without-clock_gettime")?.start()?;
    for reaped in [3, 6] {
        orphans_are_reaped(&sandbox, 3)?;
        sandbox.shows((reaped, None), |status| (status.reaped, status.error))?;
    }
    let helper = sandbox.start_helper(&["never-wait", "2"])?;
    sandbox.shows(2, |status| status.zombies)?;
    helper.kill()?;
    let (code, _) = sandbox.end_by(Signal::SIGTERM)?;
    ensure!(code == Some(0), "it ended with {code:?}");
    Ok(())
}

fn refused_wait4_is_reported_once() -> Result<()> {
    let sandbox = Pid1::pause()?.executed_by("exec-without-wait4")?.start()?;
    sandbox.shows(0, |status| status.zombies)?;
    sandbox.run_helper(&["orphans", "3"])?;
    sandbox.shows((3, 0), |status| (status.zombies, status.reaped))?;
    let stderr = sandbox.stderr()?;
    // EPERM
    ensure!(stderr == "pause: cannot wait for children: errno 1\n", "it wrote {stderr:?}");
    Ok(())
}

/// A pause like any other.
fn works(sandbox: &Sandbox) -> Result<()> {
    orphans_are_reaped(sandbox, 3)?;
    sandbox.shows((3, None), |status| (status.reaped, status.error))
}

fn many_processes_are_counted() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    let helper = sandbox.start_helper(&["live", "10000"])?;
    // And pause and their parent.
    sandbox.shows((10_002, 0), |status| (status.processes, status.zombies))?;
    works(&sandbox)?;
    helper.kill()
}

fn threads_are_counted() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    let helper = sandbox.start_helper(&["threads", "500"])?;
    // Pause, the helper, and its threads.
    sandbox.shows((2, 502, 0), |status| (status.processes, status.threads, status.zombies))?;
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

fn inherited_working_directory_is_left() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path().to_str().context("a path in UTF-8")?;
    let prepare = format!("mount -t tmpfs tmpfs {folder}; cd {folder}");
    let sandbox = Pid1::pause()?.prepared_by(&prepare).start()?;
    works(&sandbox)?;
    let cwd = fs::read_link(sandbox.proc("cwd"))?;
    ensure!(cwd.as_os_str() == "/", "it stays in {}", cwd.display());
    // A mount that is a working directory is busy.
    sandbox.run(&format!("umount {folder}")).map(drop)
}

fn closed_stdio_changes_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("status");
    // It has an error to log, and no stderr.
    let option = format!("--status-file={}/gone/status", folder.path().display());
    let sandbox = Pid1::pause()?.with_argument(option).prepared_by("exec <&- >&- 2>&-").start()?;
    works(&sandbox)?;
    ensure!(descriptors(&sandbox)? == 0, "it holds descriptors");
    ensure!(!path.exists());
    let (code, stderr) = sandbox.end_by(Signal::SIGTERM)?;
    ensure!(code == Some(0) && stderr.is_empty(), "it ended with {code:?} and wrote {stderr:?}");
    Ok(())
}

/// As with upstream's pause.
fn has_no_status(sandbox: &Sandbox) -> Result<()> {
    orphans_are_reaped(sandbox, 3)?;
    let cmdline = fs::read(sandbox.proc("cmdline"))?;
    ensure!(Status::from_cmdline(&cmdline).is_err(), "{:?}", cmdline.escape_ascii().to_string());
    Ok(())
}

fn missing_arguments_leave_no_status() -> Result<()> {
    // The kernel makes an empty one of none since Linux 5.18.
    has_no_status(&Pid1::new(shipped()?).executed_by("exec-without-arguments")?.start()?)
}

fn other_first_argument_leaves_no_status() -> Result<()> {
    has_no_status(&Pid1::new(shipped()?).start()?)?;
    for argument in [" ".repeat(383), " ".repeat(385), "x".repeat(384), String::new()] {
        has_no_status(&Pid1::new(shipped()?).with_argument(argument).start()?)?;
    }
    Ok(())
}

fn thousand_arguments_are_read() -> Result<()> {
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

fn large_environment_stays_intact() -> Result<()> {
    let long = "x".repeat(100_000);
    let pause = Pid1::pause()?.with_argument("").with_argument(&long).with_argument("");
    let sandbox = pause.with_variable("FIRST", &long).with_variable("SECOND", &long).start()?;
    works(&sandbox)?;
    let environment = fs::read(sandbox.proc("environ"))?;
    let expected = format!("FIRST={long}\0");
    let position = environment.windows(expected.len()).position(|part| part == expected.as_bytes());
    ensure!(position.is_some(), "the environment was overwritten");
    Ok(())
}

fn link_to_the_program_works() -> Result<()> {
    // The shell's `$0` is the program's path; what follows executes the link that is made beside it.
    let prepare = "ln -s \"$0\" \"$(dirname \"$0\")/other\"; exec \"$(dirname \"$0\")/other\" \"$@\"";
    let sandbox = Pid1::pause()?.prepared_by(prepare).shown_as("other").start()?;
    works(&sandbox)
}

fn pid_2_reports_that_it_is_not_init() -> Result<()> {
    let sandbox = Pid1::never_waits()?.start()?;
    let program = sandbox.folder().join("pause");
    fs::copy(shipped()?, &program)?;
    let script = format!(
        "{} '{}' 2>&1 & pause=$!; until grep -q sum= /proc/$pause/cmdline; do sleep 0.1; done; \
         tr '\\0' ' ' < /proc/$pause/cmdline; kill $pause; wait $pause; echo \"code=$?\"",
        program.display(),
        ROOM_ARGUMENT
    );
    let output = sandbox.run(&script)?;
    for part in
        ["Warning: pause should be the first process\n", " error=not-init ", " processes=0 ", "code=0\n"]
    {
        ensure!(output.contains(part), "{part:?} is not in {output:?}");
    }
    Ok(())
}
