//! The programs that people trust today, put through the checks of what they promise as pause does. A check that a peer
//! passes and a PID 1 that never waits does not is a check that says something.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Completion, Trial};
use nix::sys::signal::Signal;
use pid1_harness::{eventually, only_child};

use crate::ran;
use crate::reaping::{orphans_are_reaped, zombies_go_with_their_parent};
use crate::sandbox::Pid1;

#[derive(Clone, Copy)]
enum Peer {
    /// An init for containers, from Debian's package of this name, with a command to run.
    Debian(&'static str),
    /// The program in C of the benchmarks: what pause promises, without a status.
    C,
}

const PEERS: [Peer; 4] =
    [Peer::Debian("tini"), Peer::Debian("dumb-init"), Peer::Debian("catatonit"), Peer::C];

type Check = fn(Peer) -> Result<()>;

const CHECKS: [(&str, Check); 5] = [
    ("reaps_an_orphan", |peer| orphans_are_reaped(&peer.pid1()?.start()?, 1)),
    ("reaps_a_burst_of_1000_orphans", |peer| orphans_are_reaped(&peer.pid1()?.start()?, 1000)),
    ("reaps_the_zombies_of_a_parent_that_ended", |peer| {
        zombies_go_with_their_parent(&peer.pid1()?.start()?, 3)
    }),
    ("ends_by_sigterm", |peer| peer.ends_by(Signal::SIGTERM)),
    ("ends_by_sigint", |peer| peer.ends_by(Signal::SIGINT)),
];

pub(crate) fn tests(root: bool) -> Vec<Trial> {
    let mut tests = vec![];
    for peer in PEERS {
        for (name, check) in CHECKS {
            tests.push(Trial::ignorable_test(format!("peer_{}_{name}", peer.name()), move || {
                Ok(match peer.lacking(root) {
                    Some(lack) => Completion::ignored_with(lack),
                    None => ran(check(peer)).map(|()| Completion::Completed)?,
                })
            }));
        }
    }
    tests
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Debian(name) => name,
            Self::C => "in_c",
        }
    }

    fn lacking(self, root: bool) -> Option<String> {
        let found = match self {
            Self::Debian(name) => find(name).is_some(),
            Self::C => find("cc").is_some(),
        };
        match (root, found, self) {
            (false, ..) => Some("needs root".into()),
            (true, true, _) => None,
            (true, false, Self::Debian(name)) => Some(format!("{name} is not here (apt-get install {name})")),
            (true, false, Self::C) => Some("no C compiler is here (apt-get install gcc libc6-dev)".into()),
        }
    }

    fn pid1(self) -> Result<Pid1> {
        Ok(match self {
            Self::Debian(name) => {
                let program = find(name).with_context(|| format!("{name} is not in PATH"))?;
                Pid1::new(program).with_argument("--").with_argument("sleep").with_argument("infinity")
            }
            Self::C => Pid1::new(in_c()?),
        })
    }

    fn ends_by(self, signal: Signal) -> Result<()> {
        let sandbox = self.pid1()?.start()?;
        if let Self::Debian(_) = self {
            // dumb-init hands a signal to the session of its command, which there is none of before the command runs.
            eventually(|| {
                let command = std::fs::read_to_string(format!(
                    "/proc/{}/comm",
                    only_child(sandbox.pid.as_raw().unsigned_abs())?
                ))?;
                ensure!(command.trim_end() == "sleep", "{command:?} runs, not yet sleep");
                Ok(())
            })?;
        }
        let (code, _) = sandbox.end_by(signal)?;
        // An init hands the signal on and ends as its command does; a pause ends by itself.
        let expected = match self {
            Self::Debian(_) => 128 + signal as i32,
            Self::C => 0,
        };
        ensure!(code == Some(expected), "it ended with {code:?}, not {expected}");
        Ok(())
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Compiled as upstream's pause is: static, for size.
fn in_c() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/pause.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pause-in-c");
    let beside = program.with_extension(format!("{:?}", std::thread::current().id()));
    let compiled =
        Command::new("cc").args(["-static", "-Os", "-s", "-o"]).arg(&beside).arg(&source).output()?;
    ensure!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
    std::fs::rename(&beside, &program)?;
    Ok(program)
}
