//! The PID 1 of a pod sandbox: holds the pod's namespaces, reaps orphans, and writes the numbers of reaped processes and zombies
//! over its own command line (the library has the format). It exits on SIGINT and SIGTERM only, allocates nothing, and uses
//! neither std nor libc: it builds without a C toolchain, and no libc in it needs a patch.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "freestanding: the start of a process and some system calls have no wrapper")]

mod arguments;
mod clock;
mod freestanding;
mod namespace;
mod signals;
mod status_file;

use arguments::{Arguments, Options};
use clock::{CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID, Clock, SECOND, nanoseconds};
use freestanding::{STDERR, STDOUT, exit, print};
use pause_status::status::decimal;
use pause_status::{CountError, Status};
use rustix::process::getpid;
use signals::{EAGAIN, ECHILD, EINTR, SENDER, SIGCHLD, SIGINT, SignalInfo};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Between scans while the namespace has other processes.
const SCAN: u64 = 10 * SECOND;
/// Between scans while pause is alone: a container may join the namespace at any time, and sends no signal.
const SCAN_ALONE: u64 = 20 * SECOND;
/// Scans may use one part in this number of a core: 0.5 %.
const SCAN_SHARE: u64 = 200;
/// Between two statuses. A test has a shorter one.
const PUBLISH: u64 = if cfg!(feature = "hasty") { SECOND / 1_000 } else { SECOND };
const NEVER: u64 = u64::MAX;

/// Exit codes of upstream's pause.
const EXIT_SIGNALS_NOT_BLOCKED: i32 = 1;
const EXIT_IMPOSSIBLE: i32 = 42;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fail(EXIT_IMPOSSIBLE, b"pause: this must not happen; please report it")
}

/// Runs the process from its first instruction on.
fn run(arguments: Arguments) -> ! {
    // Blocked until their dispositions are set.
    let is_blocked = signals::block(signals::ALL);
    let options = arguments.parse();
    if options.is_version {
        print(STDOUT, &[b"pause ", VERSION.as_bytes()]);
        exit(0);
    }
    signals::ignore_others();
    if !is_blocked || !signals::block(signals::USED) {
        fail(EXIT_SIGNALS_NOT_BLOCKED, b"pause: signals cannot be blocked");
    }
    let is_init = getpid().is_init();
    if !is_init {
        print(STDERR, &[b"Warning: pause should be the first process"]);
    }
    if options.is_path_missing {
        print(STDERR, &[b"pause: --status-file needs an absolute path; continuing without a status file"]);
    }
    freestanding::drop_inherited();
    let error = (!is_init).then_some(CountError::NotInit);
    let status = Status { error, version: VERSION, ..Status::default() };
    Pause { options, status, scan_at: if is_init { 0 } else { NEVER }, ..Pause::default() }.run()
}

#[derive(Default)]
struct Pause {
    options: Options,
    status: Status<'static>,
    clock: Clock,
    scan_at: u64,
    publish_at: u64,
    /// A second after the last status.
    publish_after: u64,
    /// The last error numbers.
    wait_error: isize,
    file_error: isize,
}

impl Pause {
    fn run(mut self) -> ! {
        // The program that executed this one may have left children.
        self.reap();
        self.clock.advance(nanoseconds(CLOCK_BOOTTIME), [0, 0]);
        loop {
            if self.clock.now >= self.scan_at {
                self.scan();
            }
            if self.clock.now >= self.publish_at {
                self.publish();
            }
            self.attend(self.scan_at);
        }
    }

    /// Reaps, and exits on SIGTERM, until `until` or until the status is to be published. May return earlier.
    fn attend(&mut self, until: u64) {
        // In registers: in a pod that forks a lot pause does nothing but this loop.
        let (mut clock, mut due) = (self.clock, until.min(self.publish_at));
        let timeout = due.saturating_sub(clock.now);
        let (mut timeout, mut info) = ([timeout / SECOND, timeout % SECOND], SignalInfo::default());
        loop {
            let taken = signals::wait(&timeout, &mut info);
            if taken == SIGCHLD {
                self.reap();
                due = due.min(self.publish_at);
            } else {
                self.take_other(taken, &info);
            }
            clock.advance(nanoseconds(CLOCK_BOOTTIME), timeout);
            // Below 0, and thus large, if the time is over. After a child it is less than a second.
            let left = due.wrapping_sub(clock.now);
            if left >= SECOND {
                break;
            }
            timeout = [0, left];
        }
        self.clock = clock;
    }

    #[inline(always)]
    fn reap(&mut self) {
        let mut result = signals::reap_child();
        if result > 0 {
            self.publish_at = self.publish_after;
        }
        while result > 0 {
            self.status.reaped += 1;
            result = signals::reap_child();
        }
        if result < 0 && result != ECHILD {
            log_change(&mut self.wait_error, result, b"cannot wait for children", b"");
        }
    }

    #[cold]
    fn take_other(&self, taken: isize, info: &SignalInfo) {
        match taken {
            // The time is over, or a debugger or a freezer disturbed the wait.
            EAGAIN | EINTR => {}
            // Another attempt would keep a core busy.
            ..0 => fail(EXIT_IMPOSSIBLE, b"pause: the kernel does not let it wait for signals"),
            signal => {
                let name: &[u8] = if signal == SIGINT { b"Interrupt" } else { b"Terminated" };
                print(STDERR, &[b"Shutting down, got signal: ", name]);
                // Runtimes end a sandbox from outside. From inside it is an error of the pod, with an exit status of its own.
                let is_pod_error = info[SENDER] != 0 && self.status.error != Some(CountError::NotInit);
                exit(if is_pod_error { 128 + signal as i32 } else { 0 })
            }
        }
    }

    /// Counts processes, and attends to signals and children meanwhile.
    fn scan(&mut self) {
        let cpu_time = || nanoseconds(CLOCK_PROCESS_CPUTIME_ID).unwrap_or_default();
        let (before, cpu_before) = (self.status, cpu_time());
        let counted = namespace::count(|| self.attend(0));
        let error = counted.as_ref().err().copied();
        let counts = counted.unwrap_or_default();
        let peak_zombies = before.peak_zombies.max(counts.zombies);
        self.status = Status { reaped: self.status.reaped, peak_zombies, error, version: VERSION, ..counts };
        if self.status != before {
            self.publish_at = self.publish_after;
        }
        let interval = if counts.processes > 1 { SCAN } else { SCAN_ALONE };
        self.scan_at = self.clock.now + interval.max((cpu_time() - cpu_before) * SCAN_SHARE);
    }

    fn publish(&mut self) {
        status_file::write_command_line(self.options.room, &self.status);
        if let Some(path) = self.options.status_file {
            let written = status_file::replace(path, &self.status);
            let error = written.map_or_else(|error| error.raw_os_error() as isize, |()| 0);
            log_change(&mut self.file_error, error, b"cannot write the status file ", path.to_bytes());
        }
        self.publish_after = self.clock.now + PUBLISH;
        self.publish_at = NEVER;
    }
}

/// Logs a negative error number (errno(3)) unless it is 0 or was the last, too. containerd discards the stderr of a sandbox.
fn log_change(last: &mut isize, error: isize, what: &[u8], which: &[u8]) {
    if error != 0 && error != *last {
        let digits = &mut [0; 20];
        print(STDERR, &[b"pause: ", what, which, b": errno ", decimal(error.unsigned_abs() as u64, digits)]);
    }
    *last = error;
}

fn fail(code: i32, message: &[u8]) -> ! {
    print(STDERR, &[message]);
    exit(code)
}
