//! The pause program as it ships, run as PID 1 of a PID namespace of its own. These tests need root, for the namespace;
//! without it each is reported as ignored.

mod sandbox;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use pause_status::{Refusal, Separator, Status};
use sandbox::{Pid1, eventually, shipped, within};

/// A binary larger than this fails the suite: every node of a cluster holds it, and every pod maps it.
const SIZE_MAX: u64 = 16_384;

fn main() -> ExitCode {
    let root = nix::unistd::geteuid().is_root();
    let anybody = |name, test: fn() -> Result<()>| Trial::test(name, move || ran(test()));
    let needs_root = |name, test| {
        anybody(name, test).with_ignored_flag(!root).with_kind(if root { "" } else { "needs root" })
    };
    let tests = vec![
        anybody("the_binary_is_small", the_binary_is_small),
        anybody("version_is_printed", version_is_printed),
        anybody("it_warns_when_it_is_not_pid_1", it_warns_when_it_is_not_pid_1),
        anybody("a_status_file_is_written_whole_and_read_only", a_status_file_is_written_whole_and_read_only),
        anybody(
            "a_status_file_that_cannot_be_written_is_told_once",
            a_status_file_that_cannot_be_written_is_told_once,
        ),
        needs_root("an_orphan_is_reaped", || orphans_are_reaped(&Pid1::pause()?.start()?, 1)),
        needs_root("a_burst_of_1000_orphans_is_reaped", || {
            orphans_are_reaped(&Pid1::pause()?.start()?, 1000)
        }),
        needs_root("control_a_pid_1_that_never_waits_reaps_no_orphan", || {
            must_fail(orphans_are_reaped(&Pid1::never_waits()?.start()?, 1), "zombies remain")
        }),
        needs_root("control_a_pid_1_that_never_waits_reaps_no_burst", || {
            must_fail(orphans_are_reaped(&Pid1::never_waits()?.start()?, 1000), "zombies remain")
        }),
        needs_root("orphans_are_counted", orphans_are_counted),
        needs_root("zombies_of_a_living_parent_go_with_it", || {
            zombies_go_with_their_parent(&Pid1::pause()?.start()?)
        }),
        needs_root("control_with_a_pid_1_that_never_waits_zombies_outlive_their_parent", || {
            must_fail(zombies_go_with_their_parent(&Pid1::never_waits()?.start()?), "zombies remain")
        }),
        needs_root("zombies_of_a_living_parent_are_counted_then_reaped_and_counted", zombies_are_counted),
        needs_root("the_killed_are_told_from_those_that_exited", the_killed_are_told_from_those_that_exited),
        needs_root("a_stopped_child_is_left_alone", a_stopped_child_is_left_alone),
        needs_root("sigterm_ends_it_with_0", || it_ends_with_0(Signal::SIGTERM, "Terminated")),
        needs_root("sigint_ends_it_with_0", || it_ends_with_0(Signal::SIGINT, "Interrupt")),
        needs_root("no_other_signal_ends_it", no_other_signal_ends_it),
        needs_root("any_uid_reads_the_status", || any_uid_reads_the_status(Pid1::pause()?)),
        needs_root("any_uid_reads_the_status_of_a_pod_with_run_as_user", || {
            any_uid_reads_the_status(Pid1::pause()?.run_as(1000))
        }),
        needs_root("ps_shows_the_status_and_the_name", ps_shows_the_status_and_the_name),
        needs_root("an_altered_status_is_refused", an_altered_status_is_refused),
        needs_root("options_survive_the_second_execution", options_survive_the_second_execution),
        needs_root("it_lets_go_of_inherited_descriptors_and_folders", it_lets_go_of_what_it_inherited),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn ran(outcome: Result<()>) -> Result<(), Failed> {
    outcome.map_err(|error| format!("{error:#}").into())
}

/// A negative control: the same check must fail, and for the reason that it's about.
fn must_fail(outcome: Result<()>, why: &str) -> Result<()> {
    match outcome {
        Ok(()) => bail!("the check passes with a PID 1 that never waits: it shows nothing"),
        Err(error) if error.to_string().contains(why) => Ok(()),
        Err(error) => Err(error).context("the control failed, but for another reason"),
    }
}

fn no_zombies(sandbox: &sandbox::Sandbox) -> Result<()> {
    // Long enough for any machine to reap, short enough for the controls, which wait it out.
    within(Duration::from_secs(10), || {
        let zombies = sandbox.zombies()?;
        ensure!(zombies == 0, "{zombies} zombies remain");
        Ok(())
    })
}

fn orphans_are_reaped(sandbox: &sandbox::Sandbox, count: u32) -> Result<()> {
    sandbox.run(&leave_orphans(count, "true"))?;
    no_zombies(sandbox)
}

/// A script whose grandchildren lose their parents at once, and end after `command`.
fn leave_orphans(count: u32, command: &str) -> String {
    format!("i=0; while [ $i -lt {count} ]; do ( {command} > /dev/null & ); i=$((i + 1)); done")
}

fn orphans_are_counted() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.run(&leave_orphans(1000, "true"))?;
    eventually(|| {
        let reaped = sandbox.status(|status| status.reaped)?;
        ensure!(reaped == 1000, "{reaped} reaped");
        Ok(())
    })
}

/// A process that lives, with three children that have ended.
const NEVER_WAITS: &str = "true & true & true & exec sleep 1000";

fn zombies_go_with_their_parent(sandbox: &sandbox::Sandbox) -> Result<()> {
    let mut parent = sandbox.spawn(NEVER_WAITS)?;
    eventually(|| {
        let zombies = sandbox.zombies()?;
        ensure!(zombies == 3, "{zombies} zombies, not 3");
        Ok(())
    })?;
    sandbox.run("pkill -x sleep -n")?;
    parent.wait()?;
    no_zombies(sandbox)
}

fn zombies_are_counted() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    let mut parent = sandbox.spawn(NEVER_WAITS)?;
    let counts = |zombies: u32, reaped: u64| {
        eventually(|| {
            let status = sandbox.status(|status| (status.zombies, status.peak, status.reaped))?;
            ensure!(status == (zombies, 3, reaped), "{status:?}, not {zombies} zombies and {reaped} reaped");
            Ok(())
        })
    };
    counts(3, 0)?;
    let processes = sandbox.status(|status| status.processes)?;
    ensure!(processes >= 5, "pause, the parent and three zombies are {processes}");
    sandbox.run("pkill -x sleep")?;
    parent.wait()?;
    counts(0, 3)
}

fn the_killed_are_told_from_those_that_exited() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.run(&leave_orphans(2, "sh -c \"kill -9 \\$\\$\""))?;
    sandbox.run(&leave_orphans(3, "sh -c \"exit 7\""))?;
    eventually(|| {
        let counts = sandbox.status(|status| (status.reaped, status.signaled))?;
        ensure!(counts == (5, 2), "{counts:?}");
        Ok(())
    })
}

fn a_stopped_child_is_left_alone() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.run(&leave_orphans(1, "exec sleep 1000"))?;
    sandbox.run("pkill -STOP -x sleep; pkill -CONT -x sleep; pkill -STOP -x sleep")?;
    sandbox.run(&leave_orphans(1, "true"))?;
    eventually(|| {
        let reaped = sandbox.status(|status| status.reaped)?;
        ensure!(reaped == 1, "{reaped} reaped");
        Ok(())
    })?;
    sandbox.run("pkill -KILL -x sleep")?;
    eventually(|| {
        let reaped = sandbox.status(|status| status.reaped)?;
        ensure!(reaped == 2, "{reaped} reaped");
        Ok(())
    })
}

fn it_ends_with_0(signal: Signal, name: &str) -> Result<()> {
    let (code, stderr) = Pid1::pause()?.start()?.end_by(signal)?;
    ensure!(code == Some(0), "it ended with {code:?}");
    ensure!(stderr == format!("Shutting down, got signal: {name}\n"), "it wrote {stderr:?}");
    Ok(())
}

fn no_other_signal_ends_it() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGINT | Signal::SIGTERM) {
            kill(sandbox.pid, signal)?;
        }
    }
    orphans_are_reaped(&sandbox, 1)
}

fn any_uid_reads_the_status(pid1: Pid1) -> Result<()> {
    let sandbox = pid1.start()?;
    sandbox.status(|_| ())?;
    for uid in [0, 1000, 65534, 65535] {
        let read = eventually(|| {
            let read = Command::new("cat").arg(sandbox.cmdline_path()).uid(uid).gid(uid).output()?;
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
    let cmdline = std::fs::read(sandbox.cmdline_path())?;
    let text = String::from_utf8(cmdline)?;
    let altered = text.replacen("zombies=0", "zombies=5", 1);
    ensure!(Status::from_cmdline(altered.as_bytes()) == Err(Refusal::WrongSum), "altered, it is believed");
    let cut = text.split_once("version").context("no version in it")?.0;
    ensure!(Status::from_cmdline(cut.as_bytes()).is_err(), "cut short, it is believed");
    Ok(())
}

fn options_survive_the_second_execution() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("status");
    let path = path.to_str().context("a path in UTF-8")?;
    let sandbox = Pid1::pause()?.with_argument("--status-file").with_argument(path).start()?;
    sandbox.status(|_| ())?;
    let text = eventually(|| Ok(std::fs::read(path)?))?;
    let in_file = Status::decode(Separator::Newline, &text)?;
    ensure!(in_file.init && in_file.processes >= 1, "{in_file:?}");
    Ok(())
}

fn it_lets_go_of_what_it_inherited() -> Result<()> {
    let sandbox = Pid1::pause()?.start()?;
    sandbox.status(|_| ())?;
    let folder = format!("/proc/{}", sandbox.pid);
    let cwd = std::fs::read_link(format!("{folder}/cwd"))?;
    ensure!(cwd.as_os_str() == "/", "it stays in {}", cwd.display());
    let descriptors = std::fs::read_dir(format!("{folder}/fd"))?.count();
    ensure!(descriptors == 3, "it holds {descriptors} descriptors");
    Ok(())
}

fn the_binary_is_small() -> Result<()> {
    let size = std::fs::metadata(shipped()?)?.size();
    println!("pause: {size} bytes");
    ensure!(size <= SIZE_MAX, "{size} bytes, more than {SIZE_MAX}");
    Ok(())
}

fn version_is_printed() -> Result<()> {
    for option in ["-v", "-V", "--version"] {
        let printed = Command::new(shipped()?).arg(option).output()?;
        ensure!(printed.status.success(), "{option}: {}", printed.status);
        let expected = concat!("pause ", env!("CARGO_PKG_VERSION"), "\n");
        ensure!(
            printed.stdout == expected.as_bytes(),
            "{option}: {:?}",
            String::from_utf8_lossy(&printed.stdout)
        );
    }
    Ok(())
}

/// Pause as an ordinary process, which it may be in a pod with `hostPID: true`; ended by SIGTERM after `look`.
fn not_pid_1(arguments: &[&str], look: impl FnOnce(u32) -> Result<()>) -> Result<String> {
    let mut command = Command::new(shipped()?);
    let pause = command.args(arguments).stderr(std::process::Stdio::piped()).spawn()?;
    let looked = look(pause.id());
    let ended = kill(nix::unistd::Pid::from_raw(pause.id().try_into()?), Signal::SIGTERM);
    let output = pause.wait_with_output()?;
    looked?;
    ended?;
    ensure!(output.status.success(), "it ended with {}", output.status);
    Ok(String::from_utf8(output.stderr)?)
}

fn it_warns_when_it_is_not_pid_1() -> Result<()> {
    let stderr = not_pid_1(&[], |pid| {
        let cmdline = eventually(|| {
            let cmdline = std::fs::read(format!("/proc/{pid}/cmdline"))?;
            Status::from_cmdline(&cmdline)?;
            Ok(cmdline)
        })?;
        let status = Status::from_cmdline(&cmdline)?;
        ensure!(!status.init && !status.counted() && status.every == 0, "{status:?}");
        Ok(())
    })?;
    ensure!(stderr.starts_with("Warning: pause should be the first process\n"), "it wrote {stderr:?}");
    Ok(())
}

fn a_status_file_is_written_whole_and_read_only() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("status");
    // Left over from a pause that was killed while it wrote.
    std::fs::write(folder.path().join("status.new"), "half")?;
    let option = path.to_str().context("a path in UTF-8")?;
    not_pid_1(&["--status-file", option], |_| {
        let text = eventually(|| Ok(std::fs::read(&path)?))?;
        Status::decode(Separator::Newline, &text)?;
        let mode = std::fs::metadata(&path)?.permissions().mode() & 0o7777;
        ensure!(mode == 0o444, "its mode is {mode:o}");
        let files = std::fs::read_dir(folder.path())?.count();
        ensure!(files == 1, "{files} files in the folder");
        Ok(())
    })?;
    Ok(())
}

fn a_status_file_that_cannot_be_written_is_told_once() -> Result<()> {
    let ready = |pid| {
        eventually(|| Ok(Status::from_cmdline(&std::fs::read(format!("/proc/{pid}/cmdline"))?).map(|_| ())?))
    };
    let stderr = not_pid_1(&["--status-file", "/does/not/exist"], ready)?;
    let told = stderr.matches("pause: cannot write the status file /does/not/exist: errno 2\n").count();
    ensure!(told == 1, "it wrote {stderr:?}");
    let stderr = not_pid_1(&["--status-file"], ready)?;
    ensure!(stderr.contains("--status-file needs a path"), "it wrote {stderr:?}");
    Ok(())
}
