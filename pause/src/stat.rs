//! Reads one line of `/proc/<pid>/stat` (proc_pid_stat(5)): the fields that show whether a process is a zombie,
//! and which process it is. It must cope with any command name, since a process picks its own.

/// The fields of `/proc/<pid>/stat` that identify a process and show whether it is a zombie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat<'a> {
    /// The command name, field 2: any bytes but NUL, parentheses, spaces and newlines among them. A process has at most
    /// 15 of them, a thread of the kernel's own up to 63.
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
        let mut fields = line.get(close + 1..)?.strip_prefix(b" ")?.split(|&byte| byte == b' ');
        let &[state] = fields.next()? else { return None };
        let threads = number(fields.nth(16)?)?;
        let start_ticks = number(fields.nth(1)?)?;
        // Where nothing follows a number, its last digits may be missing.
        fields.next()?;
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

/// PID of the parent, field 4 of a line of `/proc/<pid>/stat`. Apart from [`Stat`], since it is needed of
/// zombies alone.
#[must_use]
pub fn parent(line: &[u8]) -> Option<u32> {
    let close = line.iter().rposition(|&byte| byte == b')')?;
    let mut fields = line.get(close + 1..)?.split(|&byte| byte == b' ');
    u32::try_from(number(fields.nth(2)?)?).ok()
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
    use proptest::prelude::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    fn line(comm: &str, state: char, threads: u32) -> String {
        format!(
            "7 ({comm}) {state} 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 {threads} 0 8123 0 0 18446744073709551615 0"
        )
    }

    /// A line with this name, and these texts for the fields from the state on.
    fn line_of(comm: &[u8], fields: &[String]) -> Vec<u8> {
        [b"7 (", comm, b") ", fields.join(" ").as_bytes(), b"\n"].concat()
    }

    /// The 50 fields that follow the name: a state, and numbers with and without a sign.
    fn fields() -> impl Strategy<Value = Vec<String>> {
        let number =
            prop_oneof![any::<u64>().prop_map(|n| format!("{n}")), any::<i64>().prop_map(|n| format!("{n}"))];
        ("[RSDZTtXI]", prop::collection::vec(number, 49))
            .prop_map(|(state, numbers)| core::iter::once(state).chain(numbers).collect())
    }

    /// What a process may call itself.
    fn comm(longest: usize) -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![1_u8..=255, prop::sample::select(b"() \nZ1".to_vec())];
        prop::collection::vec(byte, 0..=longest)
    }

    /// Index of field `number` of proc_pid_stat(5) among those that follow the name.
    const fn field(number: usize) -> usize {
        number - 3
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read(comm in comm(64), mut fields in fields(), of: u32, threads: u32, start_ticks: u64) {
            fields[field(4)] = format!("{of}");
            fields[field(20)] = format!("{threads}");
            fields[field(22)] = format!("{start_ticks}");
            let state = fields[0].as_bytes()[0];
            let line = line_of(&comm, &fields);
            let read = Stat::parse(&line);
            prop_assert_eq!(read, Some(Stat { comm: &comm, state, threads, start_ticks }));
            prop_assert_eq!(read.map(|stat| stat.is_zombie()), Some(state == b'Z' && threads <= 1));
            prop_assert_eq!(parent(&line), Some(of));
        }

        #[test]
        fn a_line_that_is_cut_is_read_right_or_not_at_all(comm in comm(15), mut fields in fields(), threads: u32, start_ticks: u64) {
            fields[field(20)] = format!("{threads}");
            fields[field(22)] = format!("{start_ticks}");
            let line = line_of(&comm, &fields);
            let whole = Stat::parse(&line);
            for cut in 0..line.len() {
                let part = Stat::parse(&line[..cut]);
                prop_assert!(part.is_none() || part == whole, "cut at {cut}: {part:?}");
            }
        }

        #[test]
        fn a_number_is_digits_that_fit(digits in "[0-9]{0,30}", strange in "[^0-9]") {
            prop_assert_eq!(number(digits.as_bytes()), digits.parse().ok());
            for text in [format!("{strange}{digits}"), format!("{digits}{strange}"), format!("{digits}{strange}{digits}")] {
                prop_assert_eq!(number(text.as_bytes()), None);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Stat::parse(&bytes);
        }
    }

    #[test]
    fn a_number_has_no_sign_and_ends_at_64_bits() {
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(number(b"000000000000000000000000000007"), Some(7));
        for text in [
            "",
            "-1",
            "+1",
            "-0",
            " 1",
            "1 ",
            "18446744073709551616",
            "99999999999999999999999",
            "0x7",
            "\u{661}",
        ] {
            assert_eq!(number(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_line_with_a_field_that_is_no_number_is_refused() {
        let good: Vec<_> = line("x", 'S', 1).split(' ').skip(2).map(String::from).collect();
        for (number, text) in
            [(3, ""), (3, "SS"), (20, "-1"), (20, "4294967296"), (20, ""), (22, "+8"), (22, "-8")]
        {
            let mut fields = good.clone();
            fields[field(number)] = text.into();
            assert_eq!(Stat::parse(&line_of(b"x", &fields)), None, "field {number}: {text:?}");
        }
    }

    #[test]
    fn a_start_that_is_cut_is_refused() {
        // It was taken for another start, and so for another process. Fuzzing found it.
        let whole = line("x", 'S', 1);
        let (cut, _) = whole.split_once("23 0").unwrap();
        assert!(cut.ends_with(" 81"), "{cut:?}");
        assert_eq!(Stat::parse(cut.as_bytes()), None);
    }

    #[test]
    fn the_name_of_a_kernel_thread_may_be_longer_than_that_of_a_process() {
        let line = line("rcu_exp_par_gp_kthread_worker/0", 'S', 1);
        assert_eq!(Stat::parse(line.as_bytes()).unwrap().comm, b"rcu_exp_par_gp_kthread_worker/0");
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
        for cut in [
            "",
            "7",
            "7 (x",
            "7 (x)",
            "7 (x) ",
            &whole[..40],
            &whole.replace(") ", ")  "),
            &whole.replace(") ", ")-"),
        ] {
            assert_eq!(Stat::parse(cut.as_bytes()), None, "{cut:?}");
        }
    }
}
