//! The agent on a full node, beside node_exporter's collector of processes, which users have today.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::fake_node::{self, Observed, Plan, Used};
use super::system_calls::{Calls, most_frequent};
use super::table::{Target, number, table, targets};
use super::{Outcome, tools};
use crate::build::image_context::third_party_pause;
use crate::build::operator;
use crate::build::pause_image::pause_program;
use crate::host::debian;

const EXPORTER_PACKAGE: &str = "prometheus-node-exporter";
/// As the chart has it (`agent.readInterval`).
const READ_INTERVAL: Duration = Duration::from_secs(5);
/// A usual interval, for both.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(15);
const SETTLE: Duration = Duration::from_secs(60);
const TRACE: Duration = Duration::from_secs(60);

/// Target on a node of up to [`USUAL_PROCESSES`].
const MOST_RSS_MIB: f64 = 10.0;
/// Target in percent of a core, on such a node.
const MOST_CPU: f64 = 0.2;
pub(super) const USUAL_PROCESSES: usize = 5_000;
/// Further PIDs: of pods, threads, and the rest of the machine.
const OTHER_PIDS: usize = 10_000;
/// Target where the agent scans /proc itself, because pause does not.
const MOST_CPU_OF_SCANS: f64 = 0.5;

pub(super) fn measure(pods: usize, processes: usize, minutes: u64) -> Result<Outcome> {
    tools::ensure(&[
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
        ("ip", "iproute2"),
        ("strace", "strace"),
    ])?;
    let pid_max: usize = std::fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse()?;
    let needed = processes + OTHER_PIDS;
    ensure!(
        needed <= pid_max,
        "{processes} processes need more PIDs than there are ({pid_max}): sysctl -w kernel.pid_max={needed}"
    );
    let mut plan = Plan {
        sandbox_health: operator::build(&crate::build::cargo::project())?,
        node_exporter: node_exporter()?,
        pause: pause_program()?,
        pods,
        processes,
        read_interval: READ_INTERVAL,
        scrape_interval: SCRAPE_INTERVAL,
        settle: SETTLE,
        observe: Duration::from_secs(60 * minutes),
        trace: TRACE,
    };
    let most_cpu = if processes > USUAL_PROCESSES { MOST_CPU_OF_SCANS } else { MOST_CPU };
    let with_ours = report(&plan, "agent", most_cpu, &fake_node::observe(&plan)?);
    plan.pause = third_party_pause()?;
    let title = "agent beside a third-party pause";
    let with_other = report(&plan, title, MOST_CPU_OF_SCANS, &fake_node::observe(&plan)?);
    let met = with_ours.met && with_other.met;
    Ok(Outcome { text: format!("{}\n{}", with_ours.text, with_other.text), met })
}

/// Debian's package, unpacked: an installed one would be started as a service.
fn node_exporter() -> Result<PathBuf> {
    Ok(debian::unpacked(EXPORTER_PACKAGE)?.join("usr/bin").join(EXPORTER_PACKAGE))
}

fn report(plan: &Plan, title: &str, most_cpu: f64, observed: &Observed) -> Outcome {
    let minutes = plan.observe.as_secs_f64() / 60.0;
    let percent = |used: &Used| used.cpu.total / plan.observe.as_secs_f64() * 100.0;
    let (agent, exporter) = (&observed.agent, &observed.exporter);
    let both = |what: &str, of: &dyn Fn(&Used) -> String| [what.to_owned(), of(agent), of(exporter)];
    let total = |calls: &Calls| calls.values().sum::<u64>() as f64 / (plan.trace.as_secs_f64() / 60.0);
    let per = |calls: &Calls, interval: Duration| number(total(calls) * interval.as_secs_f64() / 60.0, 0);
    let mebibytes = |kilobytes: u64| number(kilobytes as f64 / 1024.0, 2);
    let requests: u64 = observed.requests.values().sum();
    let rows = [
        both("CPU, s a minute", &|used| number(used.cpu.total / minutes, 4)),
        both("CPU, % of a core", &|used| number(percent(used), 3)),
        both("of it in the kernel, %", &|used| number(used.cpu.system_share * 100.0, 0)),
        both("CPU until settled, s", &|used| number(used.cpu_at_start.total, 3)),
        both("RSS, MiB", &|used| mebibytes(used.memory.resident)),
        both("of it anonymous, MiB", &|used| mebibytes(used.memory.anonymous)),
        both("RSS at its peak, MiB", &|used| mebibytes(used.memory.peak)),
        both("threads", &|used| used.threads.to_string()),
        both("system calls a minute", &|used| number(total(&used.calls), 0)),
        [
            "system calls a scan".to_owned(),
            format!("{} (each {} s)", per(&agent.calls, plan.read_interval), plan.read_interval.as_secs()),
            format!(
                "{} (each {} s)",
                per(&exporter.calls, plan.scrape_interval),
                plan.scrape_interval.as_secs()
            ),
        ],
        ["API requests a minute".to_owned(), number(requests as f64 / minutes, 1), "–".to_owned()],
    ];
    let rss = Target {
        what: "RSS, MiB".into(),
        most: MOST_RSS_MIB,
        measured: agent.memory.resident as f64 / 1024.0,
        decimals: 2,
    };
    let mut wanted = vec![
        Target { what: "CPU, % of a core".into(), most: most_cpu, measured: percent(agent), decimals: 3 },
        Target {
            what: "CPU, beside node_exporter's, % of a core".into(),
            most: percent(exporter),
            measured: percent(agent),
            decimals: 3,
        },
    ];
    // The agent's memory grows with the number of processes.
    if plan.processes <= USUAL_PROCESSES {
        wanted.push(rss);
    }
    let lower = if agent.cpu.total < exporter.cpu.total { "the agent" } else { "node_exporter" };
    let (least, most) = (agent.cpu.total.min(exporter.cpu.total), agent.cpu.total.max(exporter.cpu.total));
    let text = format!(
        "## {title}\n\n{} pods, {} processes; observed for {} min\n\n{}\n\
         Less CPU: {lower}, by a factor of {:.1}.\n\n\
         System calls of the agent: {}.\n\
         System calls of node_exporter: {}.\n\
         API requests until settled: {}; while observed: {}.\n\n{}",
        plan.pods,
        number(observed.processes as f64, 0),
        number(minutes, 0),
        table(["", "**agent**", "node_exporter"], &rows),
        most / least,
        most_frequent(&agent.calls, 8),
        most_frequent(&exporter.calls, 8),
        counted(&observed.requests_at_start),
        counted(&observed.requests),
        targets(&wanted),
    );
    Outcome { text, met: wanted.iter().all(Target::met) }
}

fn counted(requests: &std::collections::BTreeMap<String, u64>) -> String {
    if requests.is_empty() {
        return "none".to_owned();
    }
    requests.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
}
