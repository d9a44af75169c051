//! Reads one line of `/proc/<pid>/stat` (proc_pid_stat(5)): as much of it as says whether a process is a zombie,
//! and which process it is. It must cope with any command name, since a process picks its own.

/// The fields of `/proc/<pid>/stat` that tell processes apart and zombies from the living.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat<'a> {
    /// The command name, field 2: at most 15 bytes, any bytes, parentheses and spaces among them.
    pub comm: &'a [u8],
    /// The state, field 3: `R`, `S`, `D`, `Z`, `T`, `t`, `X` or `I`.
    pub state: u8,
    /// Threads in the process, field 20.
    pub threads: u32,
    /// When the process started, field 22, in clock ticks since boot. With the PID it names a process for good.
    pub start_ticks: u64,
}

impl<'a> Stat<'a> {
    /// Parses the line; `None` when it isn't one that the kernel wrote, or is cut short.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'(')?;
        // The name may hold a parenthesis; none of the fields after it can.
        let close = line.iter().rposition(|&byte| byte == b')')?;
        let comm = line.get(open + 1..close)?;
        let mut fields = line.get(close + 2..)?.split(|&byte| byte == b' ');
        let &[state] = fields.next()? else { return None };
        let threads = number(fields.nth(16)?)?;
        let start_ticks = number(fields.nth(1)?)?;
        Some(Self { comm, state, threads: u32::try_from(threads).ok()?, start_ticks })
    }

    /// Whether the process has ended and waits for its parent to reap it.
    ///
    /// A process whose first thread ended before the others shows `Z` too, but lives: its parent could not reap it.
    #[must_use]
    pub fn is_zombie(&self) -> bool {
        self.state == b'Z' && self.threads <= 1
    }
}

/// A decimal number without a sign, or nothing.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &byte| {
        let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(comm: &str, state: char, threads: u32) -> std::string::String {
        std::format!(
            "7 ({comm}) {state} 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 {threads} 0 8123 0 0 18446744073709551615 0"
        )
    }

    #[test]
    fn the_fields_are_found_behind_any_command_name() {
        for comm in ["pause", "a b", ") Z 1 (", "", "((("] {
            let line = line(comm, 'S', 3);
            let stat = Stat::parse(line.as_bytes()).unwrap();
            assert_eq!(
                (stat.comm, stat.state, stat.threads, stat.start_ticks),
                (comm.as_bytes(), b'S', 3, 8123)
            );
        }
    }

    #[test]
    fn a_zombie_is_told_from_a_living_process_without_its_first_thread() {
        assert!(Stat::parse(line("x", 'Z', 1).as_bytes()).unwrap().is_zombie());
        assert!(!Stat::parse(line("x", 'Z', 2).as_bytes()).unwrap().is_zombie());
        assert!(!Stat::parse(line("x", 'S', 1).as_bytes()).unwrap().is_zombie());
    }

    #[test]
    fn a_cut_or_foreign_line_is_refused() {
        let whole = line("x", 'S', 1);
        for cut in ["", "7", "7 (x", "7 (x)", "7 (x) ", &whole[..40]] {
            assert_eq!(Stat::parse(cut.as_bytes()), None, "{cut:?}");
        }
    }
}
