//! The command line of the benchmark.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) const USAGE: &str = "\
Usage: cargo peers [-- OPTION...]

Measures pause beside upstream's, tini, dumb-init and catatonit, each as PID 1. Needs root.

  --pause PATH         measures another pause, too (repeatable)
  --idle-minutes N     how long wake-ups are counted (default 2)
  --help               prints this

It exits with 0 if pause meets every target, with 1 if not, with 2 if it cannot measure.";

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) others: Vec<PathBuf>,
    pub(crate) idle_minutes: u32,
    pub(crate) help: bool,
}

pub(crate) fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options { others: vec![], idle_minutes: 2, help: false };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--pause" => options.others.push(arguments.next().context("--pause needs a path")?.into()),
            "--idle-minutes" => {
                let minutes = arguments.next().context("--idle-minutes needs a number")?;
                options.idle_minutes =
                    minutes.parse().with_context(|| format!("--idle-minutes {minutes}"))?;
                ensure!(options.idle_minutes > 0, "--idle-minutes 0 would count nothing");
            }
            "--help" | "-h" => options.help = true,
            // From cargo bench itself.
            "--bench" => {}
            other => bail!("unknown option {other}"),
        }
    }
    Ok(options)
}
