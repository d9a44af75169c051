//! The status in a file (`--status-file`), and what may be wrong with the place for it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use pause_status::{Separator, Status};

use crate::Named;
use crate::sandbox::{Pid1, Sandbox};
use pid1_harness::eventually;

pub(crate) const TESTS: &[Named] = &[
    ("status_file_is_written_whole_and_read_only", status_file_is_written_whole_and_read_only),
    ("status_file_equals_the_command_line", status_file_equals_the_command_line),
    ("status_file_survives_a_full_disk", status_file_survives_a_full_disk),
    ("status_file_survives_a_deleted_directory", status_file_survives_a_deleted_directory),
    ("status_file_replaces_no_link_and_no_pipe", status_file_replaces_no_link_and_no_pipe),
    ("status_file_with_too_long_path_is_reported", status_file_with_too_long_path_is_reported),
];

/// Reads the file in the sandbox's own view, where it may lie on a mount of its own.
fn read(sandbox: &Sandbox, path: &str) -> Result<Vec<u8>> {
    Ok(fs::read(sandbox.proc(&format!("root{path}")))?)
}

/// Waits until the file has this number of reaped processes.
fn wait_for_reaped(sandbox: &Sandbox, path: &str, reaped: u64) -> Result<()> {
    eventually(|| {
        let text = read(sandbox, path)?;
        let status = Status::decode(Separator::Newline, &text)?;
        ensure!(status.reaped == reaped, "{status:?}");
        Ok(())
    })
}

fn expected_error(path: &str, errno: u32) -> String {
    format!("pause: cannot write the status file {path}: errno {errno}\n")
}

struct Place {
    _folder: tempfile::TempDir,
    folder: PathBuf,
    path: String,
}

fn place() -> Result<Place> {
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path().join("place");
    fs::create_dir(&folder)?;
    let path = folder.join("status").to_str().context("a path in UTF-8")?.to_owned();
    Ok(Place { _folder: temporary, folder, path })
}

fn status_file_is_written_whole_and_read_only() -> Result<()> {
    let place = place()?;
    // Left over from a pause that was killed while it wrote.
    fs::write(place.folder.join("status.new"), "half")?;
    let pause = Pid1::pause()?.with_argument("--status-file").with_argument(&place.path);
    // Nor does a mask or an old umask make it any other.
    let sandbox = pause.prepared_by("umask 077").start()?;
    wait_for_reaped(&sandbox, &place.path, 0)?;
    let mode = fs::metadata(&place.path)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o444, "its mode is {mode:o}");
    let files = fs::read_dir(&place.folder)?.count();
    ensure!(files == 1, "{files} files in the folder");
    Ok(())
}

fn status_file_equals_the_command_line() -> Result<()> {
    let place = place()?;
    let sandbox = Pid1::pause()?.with_argument(format!("--status-file={}", place.path)).start()?;
    sandbox.run_helper(&["orphans", "7"])?;
    eventually(|| {
        let cmdline = fs::read(sandbox.proc("cmdline"))?;
        let shown = Status::from_cmdline(&cmdline)?;
        let text = read(&sandbox, &place.path)?;
        let in_file = Status::decode(Separator::Newline, &text)?;
        ensure!(shown.reaped == 7 && shown == in_file, "{shown:?} and {in_file:?}");
        Ok(())
    })
}

fn status_file_survives_a_full_disk() -> Result<()> {
    let place = place()?;
    let folder = place.folder.to_str().context("a path in UTF-8")?;
    // One page, and that is taken.
    let full = format!("mount -t tmpfs -o size=4k tmpfs {folder}; printf x > {folder}/all");
    let pause = Pid1::pause()?.with_argument("--status-file").with_argument(&place.path);
    let sandbox = pause.prepared_by(&full).start()?;
    // Two more failures, a second apart.
    for reaped in 1..=2 {
        sandbox.run_helper(&["orphans", "1"])?;
        sandbox.shows(reaped, |status| status.reaped)?;
    }
    let left = sandbox.run(&format!("ls {folder}"))?;
    ensure!(left == "all\n", "left in the folder: {left:?}");
    sandbox.run(&format!("rm {folder}/all"))?;
    sandbox.run_helper(&["orphans", "1"])?;
    wait_for_reaped(&sandbox, &place.path, 3)?;
    let stderr = sandbox.stderr()?;
    // ENOSPC
    ensure!(stderr == expected_error(&place.path, 28), "it wrote {stderr:?}");
    Ok(())
}

fn status_file_survives_a_deleted_directory() -> Result<()> {
    let place = place()?;
    let sandbox = Pid1::pause()?.with_argument("--status-file").with_argument(&place.path).start()?;
    wait_for_reaped(&sandbox, &place.path, 0)?;
    fs::remove_dir_all(&place.folder)?;
    sandbox.run_helper(&["orphans", "1"])?;
    sandbox.shows(1, |status| status.reaped)?;
    fs::create_dir(&place.folder)?;
    sandbox.run_helper(&["orphans", "1"])?;
    wait_for_reaped(&sandbox, &place.path, 2)?;
    let stderr = sandbox.stderr()?;
    // ENOENT
    ensure!(stderr == expected_error(&place.path, 2), "it wrote {stderr:?}");
    Ok(())
}

fn status_file_replaces_no_link_and_no_pipe() -> Result<()> {
    for make in ["ln -s precious", "mkfifo"] {
        let place = place()?;
        let target = place.folder.join("precious");
        fs::write(&target, "precious")?;
        let prepare = format!("cd {}; {make} status", place.folder.display());
        let pause = Pid1::pause()?.with_argument("--status-file").with_argument(&place.path);
        let sandbox = pause.prepared_by(&prepare).start()?;
        sandbox.run_helper(&["orphans", "1"])?;
        sandbox.shows(1, |status| status.reaped)?;
        ensure!(fs::read(&target)? == b"precious", "what the link leads to was written");
        ensure!(!fs::symlink_metadata(&place.path)?.is_file(), "{make}: it was replaced");
        let stderr = sandbox.stderr()?;
        // ELOOP
        ensure!(stderr == expected_error(&place.path, 40), "it wrote {stderr:?}");
    }
    Ok(())
}

fn status_file_with_too_long_path_is_reported() -> Result<()> {
    let path = format!("/tmp/{}", "x".repeat(300));
    let sandbox = Pid1::pause()?.with_argument("--status-file").with_argument(&path).start()?;
    sandbox.status(|_| ())?;
    let stderr = sandbox.stderr()?;
    // ENAMETOOLONG
    ensure!(stderr == expected_error(&path, 36), "it wrote {stderr:?}");
    Ok(())
}
