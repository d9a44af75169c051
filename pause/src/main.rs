//! The PID 1 of a pod sandbox: holds its namespaces, reaps its orphans, and shows what it reaped in its own
//! command line (the library beside it says how). It never exits but for SIGINT and SIGTERM, allocates nothing, and
//! uses neither std nor libc: every pod of a cluster pays for each page of it.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    reason = "freestanding: the start of a process and a few system calls have no safe wrapper"
)]

mod arguments;
mod clock;
mod freestanding;
mod namespace;
mod signals;
mod status_file;
mod title;

use arguments::Arguments;
use clock::{Clock, milliseconds};
use freestanding::Output;
use namespace::Census;
use pause_status::Status;
use rustix::process::{WaitOptions, getpid, wait};
use signals::{Signal, Waited};
use status_file::StatusFile;
use title::Title;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Between scans while the namespace has other processes.
const SCAN_MS: u32 = 10_000;
/// Between scans while pause is alone, as it is in most pods: a wake-up costs the node energy.
const SCAN_ALONE_MS: u32 = 60_000;
/// Scans that must find pause alone before it believes it: at first it is so in every pod.
const ALONE_SCANS: u32 = 6;
/// Between two statuses, however many children end.
const PUBLISH_MS: u64 = 1_000;
/// How much later than asked the kernel may wake us, so that it can batch wake-ups (prctl(2), PR_SET_TIMERSLACK).
const TIMER_SLACK_NS: u64 = 500_000_000;

/// Exit codes, as upstream's pause has them.
const EXIT_SIGNALS_NOT_BLOCKED: i32 = 1;
const EXIT_IMPOSSIBLE: i32 = 42;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    warn(&[b"pause: this must not happen; please report it"]);
    freestanding::exit(EXIT_IMPOSSIBLE)
}

/// Runs the process from its first instruction to its exit code.
fn run(mut arguments: Arguments) -> i32 {
    if !signals::block_all() {
        warn(&[b"pause: signals cannot be blocked"]);
        return EXIT_SIGNALS_NOT_BLOCKED;
    }
    if arguments.asks_for_version() {
        freestanding::print(Output::Stdout, &[b"pause ", VERSION.as_bytes()]);
        return 0;
    }
    let title = match arguments.take_room() {
        Some(room) => Title::new(room),
        None => {
            arguments.execute_with_room();
            Title::none()
        }
    };
    let init = getpid().is_init();
    if !init {
        warn(&[b"Warning: pause should be the first process"]);
    }
    freestanding::drop_inherited();
    signals::set_timer_slack(TIMER_SLACK_NS);
    let file = match arguments.status_file() {
        Ok(path) => StatusFile::new(path),
        Err(arguments::PathMissing) => {
            warn(&[b"pause: --status-file needs a path; going on without a status file"]);
            StatusFile::new(None)
        }
    };
    Pause::new(init, title, file).watch()
}

/// What pause knows, and where it shows it.
struct Pause {
    status: Status<'static>,
    title: Title,
    file: StatusFile,
    alone_scans: u32,
    /// CLOCK_BOOTTIME in ms; `None` where processes are not counted.
    next_scan: Option<u64>,
    /// Something is known that was not shown yet.
    unpublished: bool,
}

impl Pause {
    fn new(init: bool, title: Title, file: StatusFile) -> Self {
        let started = milliseconds(Clock::Realtime);
        let status = Status { init, started, version: VERSION, ..Status::default() };
        Self { status, title, file, alone_scans: 0, next_scan: init.then_some(0), unpublished: true }
    }

    /// Reaps and shows until a signal ends it; says with which exit code.
    fn watch(mut self) -> i32 {
        let mut now = milliseconds(Clock::Boottime);
        self.scan_if_due(now);
        self.publish(now);
        loop {
            match signals::wait(self.due().map(|due| due.saturating_sub(now))) {
                Waited::Signal(Signal::Child) => self.reap(),
                Waited::Signal(Signal::Interrupt) => return shut_down(b"Interrupt"),
                Waited::Signal(Signal::Terminate) => return shut_down(b"Terminated"),
                Waited::Nothing => {}
            }
            now = milliseconds(Clock::Boottime);
            let other_numbers = self.scan_if_due(now);
            if other_numbers || self.unpublished && now >= self.status.updated + PUBLISH_MS {
                self.publish(now);
            }
        }
    }

    /// When there is something to do that no signal tells.
    fn due(&self) -> Option<u64> {
        let publish = self.unpublished.then_some(self.status.updated + PUBLISH_MS);
        [self.next_scan, publish].into_iter().flatten().min()
    }

    /// Waits for every child that has ended; leaves those alone that only stopped or went on.
    fn reap(&mut self) {
        while let Ok(Some((_, how))) = wait(WaitOptions::NOHANG) {
            self.status.reaped += 1;
            self.status.signaled += u64::from(how.signaled());
            self.unpublished = true;
        }
    }

    /// Counts the processes of the namespace when it's time to; says whether the numbers are others than before.
    fn scan_if_due(&mut self, now: u64) -> bool {
        if self.next_scan.is_none_or(|due| now < due) {
            return false;
        }
        // Without a count the status says 0 processes, which no namespace has.
        let Census { processes, zombies } = namespace::count().unwrap_or_default();
        self.alone_scans = if processes > 1 { 0 } else { self.alone_scans.saturating_add(1) };
        let every = if self.alone_scans >= ALONE_SCANS { SCAN_ALONE_MS } else { SCAN_MS };
        self.next_scan = Some(now + u64::from(every));
        let before = self.status;
        self.status.zombies = zombies;
        self.status.processes = processes;
        self.status.peak = before.peak.max(zombies);
        self.status.every = every;
        self.status != before
    }

    fn publish(&mut self, now: u64) {
        self.status.seq += 1;
        self.status.updated = now;
        self.title.show(&self.status);
        self.file.write(&self.status);
        self.unpublished = false;
    }
}

fn shut_down(signal: &[u8]) -> i32 {
    warn(&[b"Shutting down, got signal: ", signal]);
    0
}

/// A line on stderr; there is nobody to tell if that fails.
fn warn(parts: &[&[u8]]) {
    freestanding::print(Output::Stderr, parts);
}
