//! Our pause beside its peers: the same work under each as PID 1 of a PID namespace, in one run; one table, and whether
//! the targets are met. `cargo peers` runs it; docs/benchmarks.md says what each number means. It measures, and tests
//! nothing that pause promises: pause/tests does.
#![allow(unsafe_code, reason = "forks of a process of one thread have no safe wrapper")]

#[path = "../../tests/pid1/built.rs"]
#[allow(dead_code, reason = "the hasty build is for a test alone")]
mod built;
mod contenders;
mod instructions;
mod machine;
mod memory;
mod namespace;
mod options;
mod orphans;
mod per_child;
mod readiness;
mod results;
mod size;
mod system_calls;
mod table;
mod targets;
mod wake_ups;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use contenders::{Contender, Kind, in_path};
use options::Options;
use orphans::{Ending, Fate};
use results::{Quantity, Results};
use wake_ups::Idle;

/// What this program is told to be when it runs itself.
const ROLE_ORPHANS: &str = "--role-orphans";
const ROLE_START: &str = "--role-start";

/// Programs without which there is nothing to measure, and their Debian packages.
const TOOLS: [(&str, &str); 5] = [
    ("cc", "gcc libc6-dev"),
    ("valgrind", "valgrind"),
    ("strace", "strace"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
];

const EXIT_MISSED: u8 = 1;
const EXIT_NOT_MEASURED: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((role, rest)) if role == ROLE_ORPHANS => orphans::role(rest),
        Some((role, rest)) if role == ROLE_START => readiness::role(rest),
        _ => options::parse(&arguments).and_then(|options| run(&options)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("peers: {error:#}");
        ExitCode::from(EXIT_NOT_MEASURED)
    })
}

fn run(options: &Options) -> Result<ExitCode> {
    if options.help {
        println!("{}", options::USAGE);
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(nix::unistd::geteuid().is_root(), "needs root, for PID namespaces");
    let missing: Vec<_> = TOOLS.iter().filter(|(tool, _)| in_path(tool).is_none()).collect();
    let (tools, mut packages): (Vec<_>, Vec<_>) = missing.into_iter().copied().unzip();
    packages.dedup();
    let (tools, packages) = (tools.join(", "), packages.join(" "));
    ensure!(tools.is_empty(), "{tools} not found: apt-get install {packages}");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    measure(options, folder.path())
}

fn measure(options: &Options, folder: &Path) -> Result<ExitCode> {
    let (contenders, missing) = contenders::all(&options.others, folder)?;
    let control = control()?;
    let mut results: Vec<_> = contenders.iter().map(|_| Results::default()).collect();
    progress("all of them idle from now on, each alone and with another process");
    let idle: Vec<_> = contenders.iter().map(Idle::start).collect();
    for (contender, results) in contenders.iter().zip(&mut results) {
        results.set(Quantity::Binary, size::bytes(&contender.program));
        results.set(Quantity::Image, size::image(contender, folder));
        per_child(contender, results, folder);
    }
    progress("time from exec to ready");
    let yardstick = contenders.iter().position(|contender| contender.kind == Kind::Yardstick);
    let yardstick = yardstick.context("the yardstick is always there")?;
    let yardstick_program = contenders.get(yardstick).map(|contender| contender.program.clone());
    let ready = readiness::medians(&contenders, &yardstick_program.unwrap_or_default());
    for (results, ready) in results.iter_mut().zip(ready) {
        results.set(Quantity::Ready, ready);
    }
    progress(&format!("wake-ups: once all have settled, {} min without a sound", options.idle_minutes));
    for (results, cost) in results.iter_mut().zip(wake_ups::after(options.idle_minutes, &idle)) {
        set_idle(results, cost);
    }
    drop(idle);
    report(contenders, results, yardstick, &missing, &control)
}

/// The measuring itself must see a PID 1 that never waits: else it would give numbers for work that nobody does.
fn control() -> Result<String> {
    let control = contenders::never_waits()?;
    let namespace = namespace::start(&control.command())?;
    let fate = orphans::end(&namespace, Ending::Paced, 1)?;
    ensure!(fate == Fate::LeftAsZombies, "the control is not seen: sleep(1) as PID 1 seems to reap");
    let refused = per_child::all_reaped(&namespace, Ending::Paced, 1);
    ensure!(refused.is_err(), "the control would be given numbers for children that it does not reap");
    Ok("Control: `sleep infinity` as PID 1 left its orphan as a zombie, was seen to, and gets no number per child."
        .into())
}

fn per_child(contender: &Contender, results: &mut Results, folder: &Path) {
    progress(&format!("{}: instructions and system calls per child", contender.name));
    type Measure = fn(&Contender, Ending, &Path) -> Result<f64>;
    let measures: [(Quantity, Measure, Ending); 4] = [
        (Quantity::Instructions, instructions::per_child, Ending::Paced),
        (Quantity::InstructionsAtOnce, instructions::per_child, Ending::AtOnce),
        (Quantity::SystemCalls, system_calls::per_child, Ending::Paced),
        (Quantity::SystemCallsAtOnce, system_calls::per_child, Ending::AtOnce),
    ];
    for (quantity, measure, ending) in measures {
        results.set(quantity, measure(contender, ending, folder));
    }
}

fn set_idle(results: &mut Results, cost: Result<wake_ups::Cost>) {
    let numbers = match cost {
        Ok(cost) => {
            let memory = cost.memory;
            [memory.resident, memory.private, memory.page_tables, cost.alone, cost.with_others].map(Ok)
        }
        Err(error) => std::array::from_fn(|_| Err(anyhow::anyhow!("{error:#}"))),
    };
    let quantities = [
        Quantity::Resident,
        Quantity::Private,
        Quantity::PageTables,
        Quantity::WakeUpsAlone,
        Quantity::WakeUpsWithOthers,
    ];
    for (quantity, number) in quantities.into_iter().zip(numbers) {
        results.set(quantity, number);
    }
}

fn report(
    contenders: Vec<Contender>,
    results: Vec<Results>,
    yardstick: usize,
    missing: &[&str],
    control: &str,
) -> Result<ExitCode> {
    let dynamic: Vec<_> =
        contenders.iter().filter(|contender| size::needs_libc(&contender.program).unwrap_or(false)).collect();
    let dynamic: Vec<_> = dynamic.into_iter().map(|contender| contender.name.clone()).collect();
    let columns: Vec<_> = contenders.into_iter().zip(results).collect();
    let (_, unit) = columns.get(yardstick).context("the yardstick is always there")?;
    let (_, ours) = columns.first().context("ours is always there")?;
    println!("{}\n\n{}", machine::line()?, table::contenders(&columns, unit));
    if !dynamic.is_empty() {
        println!("Dynamically linked, so an image of it holds a libc as well: {}.\n", dynamic.join(", "));
    }
    if !missing.is_empty() {
        let packages = missing.join(" ");
        println!("Left out, as they are not installed: {packages} (apt-get install {packages}).\n");
    }
    println!("{control}\n");
    let verdicts = targets::judge(ours, unit);
    println!("{}", table::targets(&verdicts, ours));
    let met = verdicts.iter().all(|verdict| verdict.met);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::from(EXIT_MISSED) })
}

/// To stderr: the table alone goes to stdout.
fn progress(what: &str) {
    eprintln!("peers: {what}");
}
