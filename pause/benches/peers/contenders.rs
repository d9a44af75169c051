//! The programs that are measured: our pause, upstream's, the inits of Debian, and any other pause that is named. All do the same
//! work as PID 1. Those that are not installed are left out and listed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use pause_status::ROOM_ARGUMENT;

use crate::built::shipped;
use crate::upstream::{compiled, find};

/// Inits that run a command, each by the name of its program and of its Debian package.
const INITS: [&str; 3] = ["tini", "dumb-init", "catatonit"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    /// The yardstick: every ratio is to it.
    Upstream,
    OtherPause,
    /// It cannot be PID 1 without a command beside it.
    RunsCommand,
    /// The negative control of the benchmark: it never waits for a child.
    NeverWaits,
}

pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) program: PathBuf,
}

impl Contender {
    /// The command line of a PID 1 that runs until it is ended.
    pub(crate) fn command(&self) -> Vec<OsString> {
        match self.kind {
            Kind::Ours => vec![self.program.clone().into(), ROOM_ARGUMENT.into()],
            Kind::Upstream | Kind::OtherPause => vec![self.program.clone().into()],
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

/// All that can be measured on this machine, ours first and upstream's second; and the inits that are not installed.
pub(crate) fn all(others: &[PathBuf], folder: &Path) -> Result<(Vec<Contender>, Vec<&'static str>)> {
    // A copy, which a build at the same time does not replace.
    let ours = folder.join("pause");
    std::fs::copy(shipped()?, &ours).context("copying pause")?;
    let mut contenders = vec![
        Contender { name: "pause".into(), kind: Kind::Ours, program: ours },
        Contender { name: "upstream".into(), kind: Kind::Upstream, program: compiled("pause")? },
    ];
    let mut missing = vec![];
    for init in INITS {
        match find(init) {
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
    let program = find("sleep").context("there is no sleep(1)")?;
    Ok(Contender { name: "sleep".into(), kind: Kind::NeverWaits, program })
}
