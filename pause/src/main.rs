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
mod children;
mod clock;
mod freestanding;
mod namespace;
mod signals;
mod status_file;
mod title;

use arguments::Arguments;
use children::Reaped;
use clock::{Clock, milliseconds};
use freestanding::Output;
use namespace::{Census, Uncounted};
use pause_status::Status;
use rustix::process::getpid;
use signals::Woken;
use status_file::StatusFile;
use title::Title;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Between scans while the namespace has other processes.
const SCAN_MS: u32 = 10_000;
/// Between scans while pause is alone, as it is in most pods: a wake-up costs the node energy.
const SCAN_ALONE_MS: u32 = 60_000;
/// Scans that must find pause alone before it believes it: at first it is so in every pod.
const ALONE_SCANS: u32 = 6;
/// Between two statuses, however many children end. A test has one that is in more of a hurry.
const PUBLISH_MS: u64 = if cfg!(feature = "hasty") { 1 } else { 1_000 };
/// Children reaped before it looks whether there is something else to do.
const BATCH: u64 = 1_000;
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
        return signals_not_blocked();
    }
    if arguments.asks_for_version() {
        freestanding::print(Output::Stdout, &[b"pause ", VERSION.as_bytes()]);
        return 0;
    }
    let title = match arguments.take_room() {
        Some(room) => Title::new(room),
        None => {
            let error = arguments.execute_with_room();
            warn_of(b"pause: no room for a status; cannot execute ", b"itself again", error);
            Title::none()
        }
    };
    if !signals::ignore_others() {
        return signals_not_blocked();
    }
    let init = getpid().is_init();
    if !init {
        warn(&[b"Warning: pause should be the first process"]);
    }
    freestanding::drop_inherited();
    signals::set_timer_slack(TIMER_SLACK_NS);
    let file = match arguments.status_file() {
        Ok(path) => StatusFile::new(path),
        Err(arguments::NoPath) => {
            warn(&[b"pause: --status-file needs an absolute path; going on without a status file"]);
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
    /// A failure to count is told once, not every time.
    told: bool,
    /// Something is known that was not shown yet.
    unpublished: bool,
    /// An alarm will ring when it may be shown. Until then nobody needs to know what time it is, which saves a storm of
    /// orphans a system call for each.
    alarmed: bool,
    /// There may be more children to reap.
    behind: bool,
}

impl Pause {
    fn new(init: bool, title: Title, file: StatusFile) -> Self {
        let started = milliseconds(Clock::Realtime);
        let status = Status { init, started, version: VERSION, ..Status::default() };
        Self {
            status,
            title,
            file,
            alone_scans: 0,
            next_scan: init.then_some(0),
            told: false,
            unpublished: true,
            alarmed: false,
            // Left to us by the program that executed us.
            behind: true,
        }
    }

    /// Reaps and shows until a signal ends it; says with which exit code.
    fn watch(mut self) -> i32 {
        let mut now = milliseconds(Clock::Boottime);
        self.scan_if_due(now);
        self.publish(now);
        loop {
            match signals::wait(self.patience(now)) {
                Woken::Interrupt => return shut_down(b"Interrupt"),
                Woken::Terminate => return shut_down(b"Terminated"),
                Woken::Child => self.behind = true,
                Woken::Alarm => {
                    self.alarmed = false;
                    // Who sends this signal again and again must not keep us from reaping: it is taken before SIGCHLD.
                    self.behind = true;
                }
                Woken::Nothing => {}
                Woken::Refused => {
                    warn(&[b"pause: the kernel does not let it wait for signals"]);
                    return EXIT_IMPOSSIBLE;
                }
            }
            if self.behind {
                self.reap();
            }
            if self.alarmed {
                continue;
            }
            now = milliseconds(Clock::Boottime);
            self.scan_if_due(now);
            let publish_at = self.status.updated + PUBLISH_MS;
            if self.unpublished && now >= publish_at {
                self.publish(now);
            } else if self.unpublished {
                self.alarmed = signals::set_alarm(publish_at - now);
            }
        }
    }

    /// How many ms to wait for a signal; `None` for as long as it takes.
    fn patience(&self, now: u64) -> Option<u64> {
        if self.behind {
            return Some(0);
        }
        if self.alarmed {
            return None;
        }
        // Without an alarm it must wake by itself to show what it knows.
        let publish = self.unpublished.then_some(self.status.updated + PUBLISH_MS);
        let due = [self.next_scan, publish].into_iter().flatten().min();
        due.map(|due| due.saturating_sub(now))
    }

    fn reap(&mut self) {
        let before = self.status.reaped;
        let mut reaped = Reaped { all: before, by_signal: self.status.signaled };
        self.behind = children::reap(&mut reaped, BATCH);
        self.status.reaped = reaped.all;
        self.status.signaled = reaped.by_signal;
        self.unpublished |= reaped.all != before;
    }

    /// Counts the processes of the namespace when it's time to.
    fn scan_if_due(&mut self, now: u64) {
        if self.next_scan.is_none_or(|due| now < due) {
            return;
        }
        // Without a count the status says 0 processes, which no namespace has.
        let Census { processes, zombies } = namespace::count().unwrap_or_else(|why| {
            if !self.told {
                tell(why);
            }
            Census::default()
        });
        self.told = processes == 0;
        self.alone_scans = if processes > 1 { 0 } else { self.alone_scans.saturating_add(1) };
        let every = if self.alone_scans >= ALONE_SCANS { SCAN_ALONE_MS } else { SCAN_MS };
        self.next_scan = Some(now + u64::from(every));
        let before = self.status;
        self.status.zombies = zombies;
        self.status.processes = processes;
        self.status.peak = before.peak.max(zombies);
        self.status.every = every;
        self.unpublished |= self.status != before;
    }

    fn publish(&mut self, now: u64) {
        self.status.seq += 1;
        self.status.updated = now;
        self.title.show(&self.status);
        self.file.write(&self.status);
        self.unpublished = false;
    }
}

/// Why there is no count.
fn tell(why: Uncounted) {
    match why {
        Uncounted::Hidden => warn(&[b"pause: processes are not counted; /proc is mounted with hidepid"]),
        Uncounted::Unreadable(error) => {
            warn_of(b"pause: processes are not counted; cannot read ", b"/proc", error);
        }
    }
}

fn signals_not_blocked() -> i32 {
    warn(&[b"pause: signals cannot be blocked"]);
    EXIT_SIGNALS_NOT_BLOCKED
}

fn shut_down(signal: &[u8]) -> i32 {
    warn(&[b"Shutting down, got signal: ", signal]);
    0
}

/// A line on stderr; there is nobody to tell if that fails.
fn warn(parts: &[&[u8]]) {
    freestanding::print(Output::Stderr, parts);
}

/// A line on stderr that ends in the number of the kernel's error (errno(3)).
fn warn_of(what: &[u8], which: &[u8], error: rustix::io::Errno) {
    let mut digits = [0; 20];
    let number = pause_status::status::decimal(error.raw_os_error().unsigned_abs().into(), &mut digits);
    warn(&[what, which, b": errno ", number]);
}
