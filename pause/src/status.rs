//! The status format, version 1: `key=value` items in ASCII, each ended by a separator, the last of them a sum.
//! `docs/status-file.md` is the contract, for readers and writers of other makes as well; a test compares the keys.
//!
//! | key | unit and meaning |
//! | --- | --- |
//! | `zombies` | processes of the PID namespace that had ended and were not reaped, at the last scan |
//! | `reaped` | children that pause has waited for since it started |
//! | `processes` | processes of the PID namespace at the last scan, zombies and pause included; 0 when they were not counted |
//! | `peak` | most zombies at any scan |
//! | `signaled` | of the reaped, those that a signal ended |
//! | `init` | 1 when pause is PID 1 of its namespace, else 0 (`hostPID: true`): then it counts no processes |
//! | `started` | when pause started, in ms since the epoch (CLOCK_REALTIME) |
//! | `updated` | when this status was written, in ms of CLOCK_BOOTTIME |
//! | `every` | ms between scans at present; 0 when there are none |
//! | `seq` | statuses written so far, this one included |
//! | `version` | of the program that wrote it: letters, digits, `.`, `+`, `-`; at most 32 bytes |
//! | `format` | 1 |
//! | `sum` | FNV-1a, 32 bits, of all the bytes before it, as 8 lower-case hexadecimal digits |
//!
//! A reader ignores keys that it doesn't know. Writer and reader are not synchronised, so what was read may be a mix of
//! two statuses: `sum` tells, and the reader reads again.

use crate::stat::number;

/// Bytes that a status may take, and that pause makes room for in its argument strings.
pub const ROOM: usize = 384;
/// The version of the format that this library writes, and the only one that it reads.
pub const FORMAT: u64 = 1;
/// Bytes of the longest version string that is believed.
pub const VERSION_MAX: usize = 32;

/// What ends each item of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// In `/proc/<pid>/cmdline`, where the kernel ends each argument so.
    Nul,
    /// In a file of its own, a line a key.
    Newline,
}

impl Separator {
    const fn byte(self) -> u8 {
        match self {
            Self::Nul => 0,
            Self::Newline => b'\n',
        }
    }
}

/// One status of a pause container; the module says what each number means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table above has them, once")]
pub struct Status<'a> {
    pub zombies: u32,
    pub reaped: u64,
    pub processes: u32,
    pub peak: u32,
    pub signaled: u64,
    pub init: bool,
    pub started: u64,
    pub updated: u64,
    pub every: u32,
    pub seq: u64,
    pub version: &'a str,
}

/// Why a text was not believed to be a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no status in it: a pause image of another make.
    NoStatus,
    /// The room for a status is there, and nothing is written in it yet.
    NotYet,
    /// An item is no `key=value`, or its value is out of its range.
    Malformed,
    /// A required key is missing.
    MissingKey,
    /// A required key stands in it twice.
    RepeatedKey,
    /// The format is of a version that this reader doesn't know.
    UnknownFormat,
    /// The sum is wrong: torn, or altered.
    WrongSum,
}

impl Refusal {
    /// A word for it in CamelCase, as metrics and conditions take it.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoStatus => "NoStatus",
            Self::NotYet => "StatusNotYet",
            Self::Malformed => "StatusMalformed",
            Self::MissingKey => "StatusKeyMissing",
            Self::RepeatedKey => "StatusKeyRepeated",
            Self::UnknownFormat => "StatusFormatUnknown",
            Self::WrongSum => "StatusSumWrong",
        }
    }

    /// Every refusal there is, so that each can be counted from zero.
    pub const ALL: [Self; 7] = [
        Self::NoStatus,
        Self::NotYet,
        Self::Malformed,
        Self::MissingKey,
        Self::RepeatedKey,
        Self::UnknownFormat,
        Self::WrongSum,
    ];
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoStatus => "it has no status: the pause image is not sandbox-health's",
            Self::NotYet => "its status is not written yet",
            Self::Malformed => "its status has an item that is not a key and a value of the right kind",
            Self::MissingKey => "its status lacks a required key",
            Self::RepeatedKey => "its status has a key twice",
            Self::UnknownFormat => "its status has a format that this version does not know",
            Self::WrongSum => "the sum of its status is wrong: the text is torn or was altered",
        })
    }
}

impl core::error::Error for Refusal {}

/// The order in which items are written: what `ps` should show first in front.
#[derive(Clone, Copy)]
enum Key {
    Zombies,
    Reaped,
    Processes,
    Peak,
    Signaled,
    Init,
    Started,
    Updated,
    Every,
    Seq,
    Version,
    Format,
}

static KEYS: [(Key, &str); 12] = [
    (Key::Zombies, "zombies"),
    (Key::Reaped, "reaped"),
    (Key::Processes, "processes"),
    (Key::Peak, "peak"),
    (Key::Signaled, "signaled"),
    (Key::Init, "init"),
    (Key::Started, "started"),
    (Key::Updated, "updated"),
    (Key::Every, "every"),
    (Key::Seq, "seq"),
    (Key::Version, "version"),
    (Key::Format, "format"),
];
const SUM: &[u8] = b"sum=";

/// FNV-1a, 32 bits (draft-eastlake-fnv). It finds torn reads; it is no protection from a forger.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl<'a> Status<'a> {
    /// Whether zombies and processes were counted at all.
    #[must_use]
    pub const fn counted(&self) -> bool {
        self.processes > 0
    }

    /// Writes the status to the front of `out` and says how many bytes it took. A status always fits into [`ROOM`]
    /// bytes; what doesn't fit into a smaller `out` is cut, and its reader refuses it.
    pub fn encode(&self, separator: Separator, out: &mut [u8]) -> usize {
        let mut text = Text { out, len: 0 };
        for &(key, name) in &KEYS {
            text.put(name.as_bytes());
            text.put(b"=");
            match key {
                Key::Zombies => text.put_number(self.zombies.into()),
                Key::Reaped => text.put_number(self.reaped),
                Key::Processes => text.put_number(self.processes.into()),
                Key::Peak => text.put_number(self.peak.into()),
                Key::Signaled => text.put_number(self.signaled),
                Key::Init => text.put_number(self.init.into()),
                Key::Started => text.put_number(self.started),
                Key::Updated => text.put_number(self.updated),
                Key::Every => text.put_number(self.every.into()),
                Key::Seq => text.put_number(self.seq),
                Key::Version => text.put(self.version.as_bytes()),
                Key::Format => text.put_number(FORMAT),
            }
            text.put(&[separator.byte()]);
        }
        let sum = fnv1a(text.written());
        text.put(SUM);
        for shift in (0..8).rev() {
            text.put(&[hex_digit((sum >> (shift * 4)) as u8 & 15)]);
        }
        text.put(&[separator.byte()]);
        text.len
    }

    /// Reads a status out of the content of `/proc/<pid>/cmdline`, whose first string is the program's name.
    pub fn from_cmdline(cmdline: &'a [u8]) -> Result<Self, Refusal> {
        let name = cmdline.iter().position(|&byte| byte == 0).ok_or(Refusal::NoStatus)?;
        Self::decode(Separator::Nul, cmdline.get(name + 1..).unwrap_or_default())
    }

    /// Reads a status: all up to and with its sum; what follows is not looked at.
    pub fn decode(separator: Separator, text: &'a [u8]) -> Result<Self, Refusal> {
        if text.first() == Some(&b' ') {
            return Err(Refusal::NotYet);
        }
        let mut values: [Option<&[u8]>; KEYS.len()] = [None; KEYS.len()];
        let mut sum = None;
        let mut at = 0;
        for item in text.split(|&byte| byte == separator.byte()) {
            if let Some(digits) = item.strip_prefix(SUM) {
                sum = Some((digits, text.get(..at).unwrap_or_default()));
                break;
            }
            at += item.len() + 1;
            let Some(equals) = item.iter().position(|&byte| byte == b'=') else {
                continue;
            };
            let (name, value) =
                (item.get(..equals).unwrap_or_default(), item.get(equals + 1..).unwrap_or_default());
            if let Some(slot) = KEYS.iter().position(|(_, known)| known.as_bytes() == name) {
                let Some(slot) = values.get_mut(slot) else {
                    continue;
                };
                if slot.replace(value).is_some() {
                    return Err(Refusal::RepeatedKey);
                }
            }
        }
        let required = |key: Key| values.get(key as usize).copied().flatten().ok_or(Refusal::MissingKey);
        let wide = |key| number(required(key)?).ok_or(Refusal::Malformed);
        let narrow = |key| u32::try_from(wide(key)?).map_err(|_| Refusal::Malformed);

        match (required(Key::Format), sum) {
            (Err(_), None) => return Err(Refusal::NoStatus),
            (Ok(format), _) if number(format) != Some(FORMAT) => return Err(Refusal::UnknownFormat),
            (_, None) => return Err(Refusal::MissingKey),
            (_, Some((digits, before))) if parse_sum(digits) != Some(fnv1a(before)) => {
                return Err(Refusal::WrongSum);
            }
            _ => {}
        }
        required(Key::Format)?;
        Ok(Self {
            zombies: narrow(Key::Zombies)?,
            reaped: wide(Key::Reaped)?,
            processes: narrow(Key::Processes)?,
            peak: narrow(Key::Peak)?,
            signaled: wide(Key::Signaled)?,
            init: match required(Key::Init)? {
                b"0" => false,
                b"1" => true,
                _ => return Err(Refusal::Malformed),
            },
            started: wide(Key::Started)?,
            updated: wide(Key::Updated)?,
            every: narrow(Key::Every)?,
            seq: wide(Key::Seq)?,
            version: parse_version(required(Key::Version)?)?,
        })
    }
}

fn parse_version(value: &[u8]) -> Result<&str, Refusal> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".+-".contains(byte);
    if value.is_empty() || value.len() > VERSION_MAX || !value.iter().all(plain) {
        return Err(Refusal::Malformed);
    }
    core::str::from_utf8(value).map_err(|_| Refusal::Malformed)
}

fn parse_sum(digits: &[u8]) -> Option<u32> {
    if digits.len() != 8 {
        return None;
    }
    digits.iter().try_fold(0, |sum, &byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(sum << 4 | u32::from(digit))
    })
}

const fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// Bytes written one after the other; core's formatting would double the size of the pause program.
struct Text<'o> {
    out: &'o mut [u8],
    len: usize,
}

impl Text<'_> {
    fn put(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(place) = self.out.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    fn put_number(&mut self, value: u64) {
        let mut digits = [0; 20];
        self.put(decimal(value, &mut digits));
    }

    fn written(&self) -> &[u8] {
        self.out.get(..self.len).unwrap_or_default()
    }
}

/// The decimal digits of `value`, at the end of `digits`.
#[must_use]
pub fn decimal(mut value: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut first = digits.len();
    for (place, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
        first = place;
        if value == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    fn arbitrary_status() -> impl Strategy<Value = (Status<'static>, String)> {
        let numbers = (any::<[u32; 4]>(), any::<[u64; 5]>(), any::<bool>());
        (numbers, "[0-9A-Za-z.+-]{1,32}").prop_map(|((small, large, init), version)| {
            let [zombies, processes, peak, every] = small;
            let [reaped, signaled, started, updated, seq] = large;
            let status = Status {
                zombies,
                reaped,
                processes,
                peak,
                signaled,
                init,
                started,
                updated,
                every,
                seq,
                version: "",
            };
            (status, version)
        })
    }

    fn encoded(status: &Status<'_>, separator: Separator) -> Vec<u8> {
        let mut room = [0; ROOM];
        let len = status.encode(separator, &mut room);
        room[..len].to_vec()
    }

    fn sample() -> Status<'static> {
        Status { zombies: 2, reaped: 128, processes: 9, init: true, version: "0.1.0", ..Status::default() }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded((status, version) in arbitrary_status()) {
            let status = Status { version: &version, ..status };
            for separator in [Separator::Nul, Separator::Newline] {
                let text = encoded(&status, separator);
                prop_assert_eq!(Status::decode(separator, &text), Ok(status));
            }
        }

        #[test]
        fn a_changed_byte_is_refused_or_changes_nothing((status, version) in arbitrary_status(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let status = Status { version: &version, ..status };
            let mut text = encoded(&status, Separator::Nul);
            let at = at.index(text.len());
            prop_assume!(text[at] != to);
            text[at] = to;
            match Status::decode(Separator::Nul, &text) {
                Err(_) => {}
                // Only the end of the very last item can change without loss.
                Ok(read) => prop_assert_eq!(read, status),
            }
        }

        #[test]
        fn a_mix_of_two_statuses_is_refused((one, a) in arbitrary_status(), (two, b) in arbitrary_status(), cut in any::<prop::sample::Index>()) {
            let one = encoded(&Status { version: &a, ..one }, Separator::Nul);
            let two = encoded(&Status { version: &b, ..two }, Separator::Nul);
            let cut = cut.index(one.len().min(two.len()));
            let torn = [&two[..cut], &one[cut..]].concat();
            // What follows the sum is not read: all of one and the end of a longer one are that one.
            if let Ok(read) = Status::decode(Separator::Nul, &torn) {
                let read = encoded(&read, Separator::Nul);
                prop_assert!(read == one || read == two);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Status::from_cmdline(&bytes);
            let _ = Status::decode(Separator::Newline, &bytes);
        }
    }

    #[test]
    fn bytes_after_the_sum_are_not_read() {
        let mut text = encoded(&sample(), Separator::Nul);
        text.extend_from_slice(b"zombies=9\0sum=00000000\0");
        assert_eq!(Status::decode(Separator::Nul, &text), Ok(sample()));
    }

    #[test]
    fn the_text_is_the_one_that_is_documented() {
        let text = String::from_utf8(encoded(&sample(), Separator::Newline)).unwrap();
        let (items, sum) = text.split_once("sum=").unwrap();
        assert_eq!(
            items,
            "zombies=2\nreaped=128\nprocesses=9\npeak=0\nsignaled=0\ninit=1\nstarted=0\nupdated=0\nevery=0\nseq=0\n\
             version=0.1.0\nformat=1\n"
        );
        assert_eq!(sum, std::format!("{:08x}\n", fnv1a(items.as_bytes())));
    }

    #[test]
    fn the_sum_is_fnv_1a() {
        // Vectors of the algorithm's authors.
        assert_eq!((fnv1a(b""), fnv1a(b"a"), fnv1a(b"foobar")), (0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968));
    }

    #[test]
    fn the_largest_status_fits_into_the_room() {
        let version = "x".repeat(VERSION_MAX);
        let status = Status {
            zombies: u32::MAX,
            reaped: u64::MAX,
            processes: u32::MAX,
            peak: u32::MAX,
            signaled: u64::MAX,
            init: true,
            started: u64::MAX,
            updated: u64::MAX,
            every: u32::MAX,
            seq: u64::MAX,
            version: &version,
        };
        let text = encoded(&status, Separator::Nul);
        assert!(text.len() < ROOM, "{}", text.len());
        assert_eq!(Status::decode(Separator::Nul, &text), Ok(status));
    }

    #[test]
    fn each_fault_has_its_own_refusal() {
        let good = String::from_utf8(encoded(&sample(), Separator::Newline)).unwrap();
        let resummed = |text: &str| {
            let items = text.split_once("sum=").map_or(text, |(items, _)| items);
            std::format!("{items}sum={:08x}\n", fnv1a(items.as_bytes()))
        };
        let refusal = |text: &str| Status::decode(Separator::Newline, text.as_bytes()).unwrap_err();
        assert_eq!(refusal(""), Refusal::NoStatus);
        assert_eq!(refusal("--some\nargument\n"), Refusal::NoStatus);
        assert_eq!(refusal(&" ".repeat(ROOM)), Refusal::NotYet);
        assert_eq!(refusal(&resummed(&good.replace("reaped=128\n", ""))), Refusal::MissingKey);
        assert_eq!(refusal(good.split_once("sum=").unwrap().0), Refusal::MissingKey);
        assert_eq!(refusal(&resummed(&good.replace("format=1\n", ""))), Refusal::MissingKey);
        assert_eq!(refusal(&resummed(&good.replace("peak", "zombies"))), Refusal::RepeatedKey);
        assert_eq!(refusal(&resummed(&good.replace("format=1", "format=2"))), Refusal::UnknownFormat);
        assert_eq!(refusal(&good.replace("128", "129")), Refusal::WrongSum);
        for (from, to) in
            [("=128", "=-1"), ("=128", "="), ("=128", "=+1"), ("init=1", "init=2"), ("=0.1.0", "=\u{7}")]
        {
            assert_eq!(refusal(&resummed(&good.replace(from, to))), Refusal::Malformed, "{to:?}");
        }
        assert_eq!(refusal(&resummed(&good.replace("zombies=2", "zombies=4294967296"))), Refusal::Malformed);
    }

    #[test]
    fn an_unknown_key_is_ignored() {
        let good = String::from_utf8(encoded(&sample(), Separator::Newline)).unwrap();
        let items = good.split_once("sum=").unwrap().0.replace("format=1", "mood=fine\nformat=1");
        let text = std::format!("{items}sum={:08x}\n", fnv1a(items.as_bytes()));
        assert_eq!(Status::decode(Separator::Newline, text.as_bytes()), Ok(sample()));
    }

    #[test]
    fn a_command_line_is_read_past_its_name_and_up_to_its_sum() {
        let mut cmdline = b"/pause\0".to_vec();
        cmdline.extend(encoded(&sample(), Separator::Nul));
        cmdline.extend([0; 40]);
        cmdline.extend(b"--status-file\0/run/status\0");
        assert_eq!(Status::from_cmdline(&cmdline), Ok(sample()));
        assert_eq!(Status::from_cmdline(b"/pause\0"), Err(Refusal::NoStatus));
        assert_eq!(Status::from_cmdline(b""), Err(Refusal::NoStatus));
    }
}
