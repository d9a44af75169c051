//! The one binary of this crate. Each cargo alias (`.cargo/config.toml`) is one of its subcommands; what a subcommand does is in the
//! module that it calls.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use e2e::{build, cluster, demo, runner};

/// What the cargo aliases of this project run.
#[derive(Parser)]
#[command(name = "e2e", disable_help_subcommand = true)]
enum Command {
    /// `cargo e2e`: runs every test
    Test(runner::CommandLine),
    /// `cargo demo`: starts a cluster, installs the chart and runs the demo on it
    Demo(demo::CommandLine),
    /// `cargo release-artifacts`: builds a release
    ReleaseArtifacts(build::release_command::CommandLine),
    /// `cargo pause-image`: writes the pause image
    PauseImage(build::pause_image::CommandLine),
    /// `cargo docs`: builds and serves the documentation as a site
    Docs(build::site::CommandLine),
    /// `cargo dependencies`: checks licences and sources of the dependencies
    Dependencies,
    /// `cargo cost`: measures agent and controller
    #[cfg(feature = "measure")]
    Cost(e2e::measure::CommandLine),
    /// `cargo dashboard`: draws the dashboard
    #[cfg(feature = "measure")]
    Dashboard(e2e::monitoring::dashboard::CommandLine),
}

fn main() -> ExitCode {
    cluster::run_if_node_process();
    #[cfg(feature = "measure")]
    e2e::measure::run_if_own_process();
    let command = Command::parse_from(without_separator(std::env::args_os()));
    let (name, outcome) = match command {
        Command::Test(line) => ("e2e", runner::run(line)),
        Command::Demo(line) => ("demo", demo::run(line)),
        Command::ReleaseArtifacts(line) => ("release-artifacts", build::release_command::run(&line)),
        Command::PauseImage(line) => ("pause-image", build::pause_image::run(line)),
        Command::Docs(line) => ("docs", build::site::run(&line)),
        Command::Dependencies => ("dependencies", build::dependencies::run()),
        #[cfg(feature = "measure")]
        Command::Cost(line) => ("cost", e2e::measure::run_command(line)),
        #[cfg(feature = "measure")]
        Command::Dashboard(line) => ("dashboard", e2e::monitoring::dashboard::run(&line)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{name}: {error:#}");
        ExitCode::FAILURE
    })
}

/// An alias ends with the subcommand, so `cargo demo -- down` runs this binary with `demo -- down`. The separator is Cargo's.
fn without_separator(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    words.enumerate().filter(|(index, word)| !(*index == 2 && word == "--")).map(|(_, word)| word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_separator_after_subcommand_is_dropped() {
        let line = |text: &str| without_separator(text.split(' ').map(OsString::from));
        assert_eq!(line("e2e demo -- down"), ["e2e", "demo", "down"]);
        assert_eq!(line("e2e test NAME -- --exact"), ["e2e", "test", "NAME", "--", "--exact"]);
    }
}
