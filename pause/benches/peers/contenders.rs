//! Who is measured: our pause, the yardstick in C, the inits that Debian has, and any other pause that is named. All do
//! the same work, as PID 1; what is not installed is left out and named.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use pause_status::ROOM_ARGUMENT;

use crate::built::shipped;

/// Inits that run a command, each by the name of its program and of its Debian package.
const INITS: [&str; 3] = ["tini", "dumb-init", "catatonit"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    /// What every ratio is to.
    Yardstick,
    OtherPause,
    /// It cannot be PID 1 without a command beside it.
    RunsCommand,
    /// The negative control of the measuring itself: it never waits for a child.
    NeverWaits,
}

pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) program: PathBuf,
}

impl Contender {
    /// The command line that makes it PID 1 and has it stay.
    pub(crate) fn command(&self) -> Vec<OsString> {
        match self.kind {
            Kind::Ours => vec![self.program.clone().into(), ROOM_ARGUMENT.into()],
            Kind::Yardstick | Kind::OtherPause => vec![self.program.clone().into()],
            Kind::RunsCommand => self.running(&["sleep".as_ref(), "infinity".as_ref()]),
            Kind::NeverWaits => vec![self.program.clone().into(), "infinity".into()],
        }
    }

    /// The command line with which it runs another.
    pub(crate) fn running(&self, command: &[&Path]) -> Vec<OsString> {
        let front = [self.program.clone().into(), "--".into()];
        front.into_iter().chain(command.iter().map(OsString::from)).collect()
    }
}

/// All that can be measured on this machine, ours first and the yardstick second; and the inits that are missing.
pub(crate) fn all(others: &[PathBuf], folder: &Path) -> Result<(Vec<Contender>, Vec<&'static str>)> {
    let mut contenders = vec![
        // A copy, which no build beside us can replace.
        Contender {
            name: "pause".into(),
            kind: Kind::Ours,
            program: copied(shipped()?, &folder.join("ours"))?,
        },
        Contender { name: "C".into(), kind: Kind::Yardstick, program: yardstick(&folder.join("c"))? },
    ];
    let mut missing = vec![];
    for init in INITS {
        match in_path(init) {
            Some(program) => {
                contenders.push(Contender { name: init.into(), kind: Kind::RunsCommand, program });
            }
            None => missing.push(init),
        }
    }
    for path in others {
        let program = path.canonicalize().with_context(|| format!("--pause {}", path.display()))?;
        contenders.push(Contender { name: path.display().to_string(), kind: Kind::OtherPause, program });
    }
    Ok((contenders, missing))
}

pub(crate) fn never_waits() -> Result<Contender> {
    let program = in_path("sleep").context("there is no sleep(1)")?;
    Ok(Contender { name: "sleep".into(), kind: Kind::NeverWaits, program })
}

pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn copied(program: &Path, folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir(folder)?;
    let copy = folder.join("pause");
    std::fs::copy(program, &copy).with_context(|| format!("copying {}", program.display()))?;
    Ok(copy)
}

fn yardstick(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir(folder)?;
    let program = folder.join("pause");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/pause.c");
    let built = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Werror", "-Os", "-static", "-s", "-o"])
        .args([program.as_os_str(), source.as_ref()])
        .output()
        .context("running cc")?;
    ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
    Ok(program)
}
