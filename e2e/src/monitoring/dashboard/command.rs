//! `cargo dashboard`: draws the chart's Grafana dashboard from what a real Prometheus scraped of a real node on which things
//! happened. The picture of the docs is made so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime};

use crate::build::{Image, Setup};
use crate::cluster::Node;
use crate::host::apt;
use crate::kube;
use crate::monitoring::dashboard::picture::{self, Answered};
use crate::monitoring::dashboard::{Panel, Variables, activity, panels};
use crate::monitoring::prometheus::{Prometheus, Range};
use anyhow::{Context as _, Result, ensure};
use clap::Parser;

const SCRAPE_EVERY: Duration = Duration::from_secs(5);

/// Starts a node with the chart, has a small fleet of pods live on it, and draws what Prometheus saw.
#[derive(Parser)]
#[command(bin_name = "cargo dashboard --")]
pub struct CommandLine {
    /// Where the picture is written to, as PNG
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// For how long the fleet lives
    #[arg(long, default_value_t = 13, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
}

/// Draws the dashboard.
///
/// # Errors
///
/// When the cluster does not start or the picture cannot be drawn.
pub fn run(CommandLine { output, minutes }: &CommandLine) -> Result<ExitCode> {
    apt::ensure_picture_tools()?;
    let node = Node::start("dashboard", &Setup::prepare(&[Image::SandboxHealth, Image::Busybox])?)?;
    kube::install_chart(&node)?;
    let prometheus = Prometheus::start(&node, SCRAPE_EVERY)?;
    activity::play(&node, Duration::from_secs(60 * minutes))?;

    let to = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let range = Range { from: to - 60 * minutes, to, step: SCRAPE_EVERY.as_secs() };
    let answered =
        panels()?.into_iter().map(|panel| asked(panel, &prometheus, range)).collect::<Result<Vec<_>>>()?;
    write_png(&picture::svg(&answered, &variables(range), range)?, output)?;
    Ok(ExitCode::SUCCESS)
}

fn asked(panel: Panel, prometheus: &Prometheus<'_>, range: Range) -> Result<Answered> {
    let range = panel.range(range);
    let ask = |query: &String| {
        if panel.is_range() {
            prometheus.query_range(query, range)
        } else {
            prometheus.query_at(query, range.to)
        }
    };
    let answers = panel.queries(&variables(range)).iter().map(ask).collect::<Result<_>>()?;
    Ok(Answered { panel, answers })
}

fn variables(range: Range) -> Variables {
    let scrape = SCRAPE_EVERY.as_secs();
    Variables {
        pod: activity::SHOWN.to_owned(),
        range: format!("{}s", range.to - range.from),
        interval: format!("{}s", range.step),
        // As Grafana has it.
        rate_interval: format!("{}s", (range.step + scrape).max(4 * scrape)),
    }
}

fn write_png(svg: &str, output: &Path) -> Result<()> {
    let drawing = output.with_extension("svg");
    fs::write(&drawing, svg).with_context(|| format!("writing {}", drawing.display()))?;
    let status = Command::new("rsvg-convert").arg("--output").arg(output).arg(&drawing).status();
    let status = status.context("cannot run rsvg-convert")?;
    ensure!(status.success(), "rsvg-convert: {status} ({} is kept)", drawing.display());
    fs::remove_file(drawing)?;
    println!("wrote {}", output.display());
    Ok(())
}
