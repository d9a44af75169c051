//! Our pause beside its peers: the same work under each as PID 1 of a PID namespace, in one run; one table, and whether the targets
//! are met. `cargo peers` runs it; docs/development/benchmarks.md explains each number. pause/tests has the tests of pause.
#![allow(unsafe_code, reason = "forks of a process of one thread have no safe wrapper")]

#[path = "../../tests/pid1/built.rs"]
#[allow(dead_code, reason = "the hasty build is for a test alone")]
mod built;
mod contenders;
mod crowd;
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
#[path = "../../tests/pid1/upstream.rs"]
mod upstream;
mod wake_ups;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail, ensure};
use contenders::Contender;
use options::Options;
use orphans::{Ending, Fate};
use results::{Quantity, Results};
use upstream::find;
use wake_ups::Idle;

/// Its roles when it runs itself.
const ROLE_CROWD: &str = "--role-crowd";
const ROLE_ORPHANS: &str = "--role-orphans";
const ROLE_START: &str = "--role-start";

/// Programs that it needs besides [`upstream::TOOLS`], and their Debian packages.
const TOOLS: [(&str, &str); 5] = [
    ("valgrind", "Debian's package valgrind"),
    ("strace", "Debian's package strace"),
    ("unshare", "Debian's package util-linux"),
    ("nsenter", "Debian's package util-linux"),
    ("chrt", "Debian's package util-linux"),
];

const EXIT_MISSED: u8 = 1;
const EXIT_NOT_MEASURED: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((role, rest)) if role == ROLE_CROWD => crowd::role(rest),
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
    for (tool, source) in upstream::TOOLS.into_iter().chain(TOOLS) {
        ensure!(find(tool).is_some(), "needs {tool} ({source})");
    }
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
    let ready = readiness::medians(&contenders, &contenders[1].program);
    for (results, ready) in results.iter_mut().zip(ready) {
        results.set(Quantity::Ready, ready);
    }
    progress(&format!("wake-ups in {} min", options.idle_minutes));
    for (results, cost) in results.iter_mut().zip(wake_ups::after(options.idle_minutes, &idle)) {
        use Quantity::{PageTables, Private, Resident, WakeUpsAlone, WakeUpsWithOthers};
        set_all(results, [Resident, Private, PageTables, WakeUpsAlone, WakeUpsWithOthers], cost);
    }
    drop(idle);
    for (contender, results) in contenders.iter().zip(&mut results) {
        use Quantity::{ReapingDelay, ScanCpu, SigtermDelay};
        progress(&format!("{}: scans in a large pod", contender.name));
        set_all(results, [ScanCpu, ReapingDelay, SigtermDelay], crowd::cost(contender));
    }
    report(contenders, results, &missing, &control)
}

/// Checks that a PID 1 that never waits gets no number.
fn control() -> Result<String> {
    let control = contenders::never_waits()?;
    let namespace = namespace::start(&control.command())?;
    let fate = orphans::end(&namespace, Ending::Paced, 1)?;
    ensure!(fate == Fate::LeftAsZombies, "the control fails: sleep(1) as PID 1 seems to reap");
    let refused = per_child::all_reaped(&namespace, Ending::Paced, 1);
    ensure!(refused.is_err(), "the control fails: numbers for children that are not reaped");
    Ok("Control: `sleep infinity` as PID 1 left its orphan as a zombie, and gets no number per child.".into())
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

fn set_all<const N: usize>(results: &mut Results, quantities: [Quantity; N], measured: Result<[f64; N]>) {
    for (index, quantity) in quantities.into_iter().enumerate() {
        let number = measured.as_ref().map(|numbers| numbers[index]);
        results.set(quantity, number.map_err(|error| anyhow!("{error:#}")));
    }
}

fn report(
    contenders: Vec<Contender>,
    results: Vec<Results>,
    missing: &[&str],
    control: &str,
) -> Result<ExitCode> {
    let dynamic: Vec<_> =
        contenders.iter().filter(|contender| size::needs_libc(&contender.program).unwrap_or(false)).collect();
    let dynamic: Vec<_> = dynamic.into_iter().map(|contender| contender.name.clone()).collect();
    let columns: Vec<_> = contenders.into_iter().zip(results).collect();
    let [(_, ours), (_, upstream), ..] = &columns[..] else { bail!("fewer than two contenders") };
    println!("{}\n\n{}", machine::line()?, table::contenders(&columns, upstream));
    if !dynamic.is_empty() {
        println!("Dynamically linked, so an image of it holds a libc as well: {}.\n", dynamic.join(", "));
    }
    if !missing.is_empty() {
        let packages = missing.join(" ");
        println!("Not installed, and left out: {packages} (apt-get install {packages}).\n");
    }
    println!("{control}\n");
    let verdicts = targets::judge(ours, upstream);
    println!("{}", table::targets(&verdicts, ours));
    let met = verdicts.iter().all(|verdict| verdict.met);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::from(EXIT_MISSED) })
}

/// To stderr: the table alone goes to stdout.
fn progress(what: &str) {
    eprintln!("peers: {what}");
}
