//! Other programs that reap orphans, in the checks of pause: a check is valid if they pass it and a PID 1 that never waits does not.
//! And upstream's test program.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Completion, Trial};
use nix::sys::signal::Signal;
use pid1_harness::{eventually, only_child};

use crate::reaping::{no_zombies, orphans_are_reaped, zombies_are_reaped_with_their_parent};
use crate::sandbox::{Pid1, Sandbox};
use crate::upstream::{TOOLS, compiled, find};
use crate::{Named, must_fail, ran};

#[derive(Clone, Copy)]
enum Peer {
    /// An init for containers, from Debian's package of this name, with a command to run.
    Debian(&'static str),
    /// The program of Kubernetes' pause image.
    Upstream,
}

const PEERS: [Peer; 4] =
    [Peer::Debian("tini"), Peer::Debian("dumb-init"), Peer::Debian("catatonit"), Peer::Upstream];

type Check = fn(Peer) -> Result<()>;

const CHECKS: [(&str, Check); 5] = [
    ("reaps_an_orphan", |peer| orphans_are_reaped(&peer.pid1()?.start()?, 1)),
    ("reaps_a_burst_of_1000_orphans", |peer| orphans_are_reaped(&peer.pid1()?.start()?, 1000)),
    ("reaps_the_zombies_of_a_parent_that_ended", |peer| {
        zombies_are_reaped_with_their_parent(&peer.pid1()?.start()?, 3)
    }),
    ("ends_by_sigterm", |peer| peer.ends_by(Signal::SIGTERM)),
    ("ends_by_sigint", |peer| peer.ends_by(Signal::SIGINT)),
];

/// With upstream's test program. They need [`TOOLS`].
const ORPHAN_TESTS: [Named; 3] = [
    ("orphan_of_upstreams_test_program_is_reaped", || {
        let sandbox = orphan_is_reaped(Pid1::pause()?)?;
        sandbox.shows(1, |status| status.reaped)
    }),
    ("peer_upstream_reaps_the_orphan_of_its_test_program", || {
        orphan_is_reaped(Peer::Upstream.pid1()?).map(drop)
    }),
    ("control_a_pid_1_that_never_waits_reaps_no_orphan_of_upstreams_test_program", || {
        must_fail(orphan_is_reaped(Pid1::never_waits()?).map(drop), "zombies remain")
    }),
];

pub(crate) fn tests(root: bool) -> Vec<Trial> {
    let mut tests: Vec<_> = ORPHAN_TESTS
        .into_iter()
        .map(|(name, test)| trial(name.into(), move || Peer::Upstream.lacking(root), test))
        .collect();
    for peer in PEERS {
        for (name, check) in CHECKS {
            let name = format!("peer_{}_{name}", peer.name());
            tests.push(trial(name, move || peer.lacking(root), move || check(peer)));
        }
    }
    tests
}

fn trial(
    name: String,
    lacking: impl Fn() -> Option<String> + Send + 'static,
    test: impl Fn() -> Result<()> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        Ok(match lacking() {
            Some(lack) => Completion::ignored_with(lack),
            None => ran(test()).map(|()| Completion::Completed)?,
        })
    })
}

/// The program's child exits when its parent is gone.
fn orphan_is_reaped(pid1: Pid1) -> Result<Sandbox> {
    let sandbox = pid1.start()?;
    let program = compiled("orphan")?;
    let output = sandbox.run(program.to_str().context("a path in UTF-8")?)?;
    ensure!(output.contains("Child exiting") && output.contains("ppid=1\n"), "it printed {output:?}");
    sandbox.wait_for_orphans(program.file_name().unwrap_or_default().as_encoded_bytes())?;
    no_zombies(&sandbox)?;
    Ok(sandbox)
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Debian(name) => name,
            Self::Upstream => "upstream",
        }
    }

    fn lacking(self, root: bool) -> Option<String> {
        if !root {
            return Some("needs root".into());
        }
        let tools = match self {
            Self::Debian(name) => vec![(name, "Debian's package of this name")],
            Self::Upstream => TOOLS.to_vec(),
        };
        let (tool, source) = tools.into_iter().find(|(tool, _)| find(tool).is_none())?;
        Some(format!("needs {tool} ({source})"))
    }

    fn pid1(self) -> Result<Pid1> {
        Ok(match self {
            Self::Debian(name) => {
                let program = find(name).with_context(|| format!("{name} is not in PATH"))?;
                Pid1::new(program).with_argument("--").with_argument("sleep").with_argument("infinity")
            }
            Self::Upstream => Pid1::new(compiled("pause")?),
        })
    }

    fn ends_by(self, signal: Signal) -> Result<()> {
        let sandbox = self.pid1()?.start()?;
        if let Self::Debian(_) = self {
            // dumb-init forwards a signal to the session of its command, which does not exist before the command runs.
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
        // An init forwards the signal and ends as its command does; a pause ends by itself.
        let expected = match self {
            Self::Debian(_) => 128 + signal as i32,
            Self::Upstream => 0,
        };
        ensure!(code == Some(expected), "it ended with {code:?}, not {expected}");
        Ok(())
    }
}
