//! The status format, version 1: `key=value` items in ASCII, each ended by a separator, the last of them a checksum.
//! `docs/reference/status-file.md` is the contract, for third-party readers and writers as well; a test compares the keys.
//!
//! | key | unit and meaning |
//! | --- | --- |
//! | `zombies` | processes of the PID namespace that had exited and were not reaped, at the last scan |
//! | `reaped` | children that pause has waited for since it started |
//! | `processes` | processes of the PID namespace at the last scan, zombies and pause included; 0 with `error` |
//! | `threads` | their threads, at the last scan; a zombie counts as one |
//! | `peak_zombies` | most zombies at any scan |
//! | `unreadable` | processes that a security module hid from the last scan; left out when 0 |
//! | `error` | why processes are not counted: a word, or an error number (errno(3)); left out when they are |
//! | `version` | of the program that wrote it: letters, digits, `.`, `+`, `-`; at most 32 bytes |
//! | `format` | 1 |
//! | `checksum` | FNV-1a, 32 bits, of all the bytes before it, as 8 lower-case hexadecimal digits |
//!
//! A reader ignores unknown keys. Writer and reader are not synchronised, so a read may have parts of two statuses: then
//! `checksum` is wrong, and the reader reads again.

use crate::stat::number;

/// Bytes that a status may take: the length of the argument that the image's `Cmd` gives pause for it.
pub const ROOM: usize = 384;
/// That argument.
pub const ROOM_ARGUMENT: &str = match core::str::from_utf8(&[b' '; ROOM]) {
    Ok(text) => text,
    Err(_) => "",
};
/// The version of the format that this library writes, and the only one that it reads.
pub const FORMAT: u64 = 1;
/// Bytes of the longest version string that is accepted.
pub const VERSION_MAX: usize = 32;

/// What ends each item of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// In `/proc/<pid>/cmdline`, where the kernel ends each argument so.
    Nul,
    /// In a file, one key per line.
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

/// One status of a pause container; the table above has the meaning of each number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table above has them, once")]
pub struct Status<'a> {
    pub zombies: u32,
    pub reaped: u64,
    pub processes: u32,
    pub threads: u32,
    pub peak_zombies: u32,
    pub unreadable: u32,
    pub error: Option<CountError>,
    pub version: &'a str,
}

/// Why pause does not count processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountError {
    /// /proc is mounted with `hidepid`: processes of other users are missing from it.
    HidePid,
    /// There is no /proc, or it belongs to another PID namespace.
    NoProc,
    /// Pause is not PID 1 (`hostPID: true`): the processes are the node's.
    NotInit,
    /// /proc cannot be read (errno(3)).
    Errno(u32),
    /// A reason that this version does not know.
    Unknown,
}

impl CountError {
    const WORDS: [(Self, &'static str); 4] = [
        (Self::HidePid, "hidepid"),
        (Self::NoProc, "no-proc"),
        (Self::NotInit, "not-init"),
        (Self::Unknown, "unknown"),
    ];

    fn parse(value: &[u8]) -> Self {
        let word = Self::WORDS.iter().find(|(_, word)| word.as_bytes() == value);
        let errno = || number(value).and_then(|errno| u32::try_from(errno).ok()).map(Self::Errno);
        word.map(|&(error, _)| error).or_else(errno).unwrap_or(Self::Unknown)
    }
}

/// Why a text is not accepted as a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has no status: a third-party pause image.
    NoStatus,
    /// The room for a status is there, and nothing is written in it yet.
    NotYet,
    /// An item is not `key=value`, or its value is out of its range.
    Malformed,
    /// A required key is missing.
    MissingKey,
    /// A known key is repeated.
    RepeatedKey,
    /// The format has a version that this reader does not know.
    UnknownFormat,
    /// The checksum is wrong: the text is torn or was altered.
    WrongChecksum,
}

impl Refusal {
    /// The reason in CamelCase, for metrics and conditions.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoStatus => "NoStatus",
            Self::NotYet => "StatusNotYet",
            Self::Malformed => "StatusMalformed",
            Self::MissingKey => "StatusKeyMissing",
            Self::RepeatedKey => "StatusKeyRepeated",
            Self::UnknownFormat => "StatusFormatUnknown",
            Self::WrongChecksum => "StatusChecksumWrong",
        }
    }

    /// All refusals, so that each can be counted from zero.
    pub const ALL: [Self; 7] = [
        Self::NoStatus,
        Self::NotYet,
        Self::Malformed,
        Self::MissingKey,
        Self::RepeatedKey,
        Self::UnknownFormat,
        Self::WrongChecksum,
    ];
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoStatus => "pause has no status: it is a third-party pause image",
            Self::NotYet => "pause has not written its status yet",
            Self::Malformed => "an item of pause's status is not key=value, or its value is out of range",
            Self::MissingKey => "pause's status lacks a required key",
            Self::RepeatedKey => "pause's status has a duplicate key",
            Self::UnknownFormat => "pause's status has an unknown format; upgrade the agent",
            Self::WrongChecksum => "the checksum of pause's status is wrong: the text is torn or was altered",
        })
    }
}

impl core::error::Error for Refusal {}

/// In the order in which they are written: what `ps` should show first comes first.
#[derive(Clone, Copy)]
enum Key {
    Zombies,
    Reaped,
    Processes,
    Threads,
    PeakZombies,
    Unreadable,
    Error,
    Version,
    Format,
}

static KEYS: [(Key, &str); 9] = [
    (Key::Zombies, "zombies"),
    (Key::Reaped, "reaped"),
    (Key::Processes, "processes"),
    (Key::Threads, "threads"),
    (Key::PeakZombies, "peak_zombies"),
    (Key::Unreadable, "unreadable"),
    (Key::Error, "error"),
    (Key::Version, "version"),
    (Key::Format, "format"),
];
const CHECKSUM: &[u8] = b"checksum=";

/// FNV-1a, 32 bits (draft-eastlake-fnv). It detects torn reads, not forgery.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl<'a> Status<'a> {
    /// Whether zombies, processes and threads were counted.
    #[must_use]
    pub const fn is_counted(&self) -> bool {
        self.error.is_none()
    }

    /// Writes the status to the front of `out` and returns its length. It always fits into [`ROOM`] bytes; a smaller `out`
    /// gets a part, which readers refuse.
    pub fn encode(&self, separator: Separator, out: &mut [u8]) -> usize {
        let mut text = Text { out, len: 0 };
        for &(key, name) in &KEYS {
            let value = match key {
                Key::Zombies => self.zombies.into(),
                Key::Reaped => self.reaped,
                Key::Processes => self.processes.into(),
                Key::Threads => self.threads.into(),
                Key::PeakZombies => self.peak_zombies.into(),
                Key::Unreadable if self.unreadable == 0 => continue,
                Key::Unreadable => self.unreadable.into(),
                Key::Error => match self.error {
                    None => continue,
                    Some(CountError::Errno(errno)) => errno.into(),
                    Some(error) => {
                        let word = CountError::WORDS.iter().find(|(known, _)| *known == error);
                        text.put_word(name, word.map_or("unknown", |(_, word)| word), separator);
                        continue;
                    }
                },
                Key::Version => {
                    text.put_word(name, self.version, separator);
                    continue;
                }
                Key::Format => FORMAT,
            };
            text.put(name.as_bytes());
            text.put(b"=");
            text.put(decimal(value, &mut [0; 20]));
            text.put(&[separator.byte()]);
        }
        let checksum = fnv1a(text.written());
        text.put(CHECKSUM);
        for shift in (0..8).rev() {
            text.put(&[hex_digit((checksum >> (shift * 4)) as u8 & 15)]);
        }
        text.put(&[separator.byte()]);
        text.len
    }

    /// Reads a status from the content of `/proc/<pid>/cmdline`, whose first string is the program's name.
    pub fn from_cmdline(cmdline: &'a [u8]) -> Result<Self, Refusal> {
        let name = cmdline.iter().position(|&byte| byte == 0).ok_or(Refusal::NoStatus)?;
        Self::decode(Separator::Nul, cmdline.get(name + 1..).unwrap_or_default())
    }

    /// Reads a status: all up to and with its checksum, and nothing of what follows.
    pub fn decode(separator: Separator, text: &'a [u8]) -> Result<Self, Refusal> {
        if text.first() == Some(&b' ') {
            return Err(Refusal::NotYet);
        }
        let items = || text.split(|&byte| byte == separator.byte());
        // Before all else: another format may differ in everything else.
        let is_format =
            |item: &[u8]| item.strip_prefix(b"format=").map(|value| number(value) == Some(FORMAT));
        match items().find_map(is_format) {
            Some(true) => {}
            Some(false) => return Err(Refusal::UnknownFormat),
            None if items().any(|item| item.starts_with(CHECKSUM)) => return Err(Refusal::MissingKey),
            None => return Err(Refusal::NoStatus),
        }
        let mut values: [Option<&[u8]>; KEYS.len()] = [None; KEYS.len()];
        let mut checksum = None;
        let mut at = 0;
        for item in items() {
            if let Some(digits) = item.strip_prefix(CHECKSUM) {
                checksum = Some((digits, text.get(..at).unwrap_or_default()));
                break;
            }
            at += item.len() + 1;
            let Some(equals) = item.iter().position(|&byte| byte == b'=') else {
                continue;
            };
            let (name, value) =
                (item.get(..equals).unwrap_or_default(), item.get(equals + 1..).unwrap_or_default());
            let known = KEYS.iter().position(|(_, known)| known.as_bytes() == name);
            if let Some(slot) = known.and_then(|slot| values.get_mut(slot))
                && slot.replace(value).is_some()
            {
                return Err(Refusal::RepeatedKey);
            }
        }
        let (digits, before) = checksum.ok_or(Refusal::MissingKey)?;
        if parse_checksum(digits) != Some(fnv1a(before)) {
            return Err(Refusal::WrongChecksum);
        }
        let optional = |key: Key| values.get(key as usize).copied().flatten();
        let required = |key| optional(key).ok_or(Refusal::MissingKey);
        let wide = |value| number(value).ok_or(Refusal::Malformed);
        let narrow = |value| u32::try_from(wide(value)?).map_err(|_| Refusal::Malformed);
        // It may stand behind the checksum.
        required(Key::Format)?;
        Ok(Self {
            zombies: narrow(required(Key::Zombies)?)?,
            reaped: wide(required(Key::Reaped)?)?,
            processes: narrow(required(Key::Processes)?)?,
            threads: narrow(required(Key::Threads)?)?,
            peak_zombies: narrow(required(Key::PeakZombies)?)?,
            unreadable: optional(Key::Unreadable).map_or(Ok(0), narrow)?,
            error: optional(Key::Error).map(CountError::parse),
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

fn parse_checksum(digits: &[u8]) -> Option<u32> {
    if digits.len() != 8 {
        return None;
    }
    digits.iter().try_fold(0, |checksum, &byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(checksum << 4 | u32::from(digit))
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

    fn put_word(&mut self, key: &str, value: &str, separator: Separator) {
        for part in [key.as_bytes(), b"=", value.as_bytes(), &[separator.byte()]] {
            self.put(part);
        }
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

    fn arbitrary_error() -> impl Strategy<Value = Option<CountError>> {
        let words = prop::sample::select(CountError::WORDS.map(|(error, _)| error).to_vec());
        prop::option::of(prop_oneof![words, any::<u32>().prop_map(CountError::Errno)])
    }

    fn arbitrary_status() -> impl Strategy<Value = (Status<'static>, String)> {
        let parts = (any::<[u32; 5]>(), any::<u64>(), arbitrary_error(), "[0-9A-Za-z.+-]{1,32}");
        parts.prop_map(|(numbers, reaped, error, version)| {
            let [zombies, processes, threads, peak_zombies, unreadable] = numbers;
            let status =
                Status { zombies, reaped, processes, threads, peak_zombies, unreadable, error, version: "" };
            (status, version)
        })
    }

    fn encoded(status: &Status<'_>, separator: Separator) -> Vec<u8> {
        let mut room = [0; ROOM];
        let len = status.encode(separator, &mut room);
        room[..len].to_vec()
    }

    fn sample() -> Status<'static> {
        Status { zombies: 2, reaped: 128, processes: 9, threads: 31, version: "0.1.0", ..Status::default() }
    }

    fn with_checksum(items: &str) -> String {
        let items = items.split_once("checksum=").map_or(items, |(items, _)| items);
        std::format!("{items}checksum={:08x}\n", fnv1a(items.as_bytes()))
    }

    proptest! {
        #[test]
        fn encoded_status_is_decoded((status, version) in arbitrary_status()) {
            let status = Status { version: &version, ..status };
            for separator in [Separator::Nul, Separator::Newline] {
                let text = encoded(&status, separator);
                prop_assert_eq!(Status::decode(separator, &text), Ok(status));
            }
        }

        #[test]
        fn changed_byte_is_refused_or_without_effect((status, version) in arbitrary_status(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
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
        fn mix_of_two_statuses_is_refused((one, a) in arbitrary_status(), (two, b) in arbitrary_status(), cut in any::<prop::sample::Index>()) {
            let one = encoded(&Status { version: &a, ..one }, Separator::Nul);
            let two = encoded(&Status { version: &b, ..two }, Separator::Nul);
            let cut = cut.index(one.len().min(two.len()));
            let torn = [&two[..cut], &one[cut..]].concat();
            // Nothing behind the checksum is read: all of one and the end of a longer one are that one.
            if let Ok(read) = Status::decode(Separator::Nul, &torn) {
                let read = encoded(&read, Separator::Nul);
                prop_assert!(read == one || read == two);
            }
        }

        #[test]
        fn arbitrary_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Status::from_cmdline(&bytes);
            let _ = Status::decode(Separator::Newline, &bytes);
        }
    }

    #[test]
    fn bytes_after_the_checksum_are_not_read() {
        let mut text = encoded(&sample(), Separator::Nul);
        text.extend_from_slice(b"zombies=9\0checksum=00000000\0");
        assert_eq!(Status::decode(Separator::Nul, &text), Ok(sample()));
    }

    #[test]
    fn text_is_the_documented_one() {
        let text = String::from_utf8(encoded(&sample(), Separator::Newline)).unwrap();
        let items =
            "zombies=2\nreaped=128\nprocesses=9\nthreads=31\npeak_zombies=0\nversion=0.1.0\nformat=1\n";
        assert_eq!(text, with_checksum(items));
        let status = Status { unreadable: 3, error: Some(CountError::HidePid), ..sample() };
        let text = String::from_utf8(encoded(&status, Separator::Newline)).unwrap();
        assert!(text.contains("\nunreadable=3\nerror=hidepid\nversion="), "{text}");
    }

    #[test]
    fn checksum_is_fnv_1a() {
        // Vectors of the algorithm's authors.
        assert_eq!((fnv1a(b""), fnv1a(b"a"), fnv1a(b"foobar")), (0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968));
    }

    #[test]
    fn largest_status_fits_into_the_room() {
        let version = "x".repeat(VERSION_MAX);
        let status = Status {
            zombies: u32::MAX,
            reaped: u64::MAX,
            processes: u32::MAX,
            threads: u32::MAX,
            peak_zombies: u32::MAX,
            unreadable: u32::MAX,
            error: Some(CountError::Errno(u32::MAX)),
            version: &version,
        };
        let text = encoded(&status, Separator::Nul);
        assert!(text.len() < ROOM, "{}", text.len());
        assert_eq!(Status::decode(Separator::Nul, &text), Ok(status));
    }

    #[test]
    fn each_fault_has_its_own_refusal() {
        let good = String::from_utf8(encoded(&sample(), Separator::Newline)).unwrap();
        let refusal = |text: &str| Status::decode(Separator::Newline, text.as_bytes()).unwrap_err();
        let changed = |from: &str, to: &str| refusal(&with_checksum(&good.replace(from, to)));
        assert_eq!(refusal(""), Refusal::NoStatus);
        assert_eq!(refusal("--some\nargument\n"), Refusal::NoStatus);
        assert_eq!(refusal(&" ".repeat(ROOM)), Refusal::NotYet);
        assert_eq!(changed("reaped=128\n", ""), Refusal::MissingKey);
        assert_eq!(refusal(good.split_once("checksum=").unwrap().0), Refusal::MissingKey);
        assert_eq!(changed("format=1\n", ""), Refusal::MissingKey);
        assert_eq!(changed("peak_zombies", "zombies"), Refusal::RepeatedKey);
        assert_eq!(refusal(&good.replace("128", "129")), Refusal::WrongChecksum);
        for (from, to) in [("=128", "=-1"), ("=128", "="), ("=128", "=+1"), ("=0.1.0", "=\u{7}")] {
            assert_eq!(changed(from, to), Refusal::Malformed, "{to:?}");
        }
        assert_eq!(changed("zombies=2", "zombies=4294967296"), Refusal::Malformed);
        assert_eq!(changed("version", "unreadable=x\nversion"), Refusal::Malformed);
    }

    #[test]
    fn unknown_format_is_refused_whatever_else_differs() {
        for text in ["format=2\n", "zombies=many\nzombies=2\nformat=2\n", "format=2\nchecksum=0\n"] {
            let refusal = Status::decode(Separator::Newline, text.as_bytes());
            assert_eq!(refusal, Err(Refusal::UnknownFormat), "{text:?}");
        }
    }

    #[test]
    fn unknown_key_and_unknown_error_are_accepted() {
        let good = String::from_utf8(encoded(&sample(), Separator::Newline)).unwrap();
        let text = with_checksum(&good.replace("format=1", "mood=fine\nerror=eaten\nformat=1"));
        let status = Status { error: Some(CountError::Unknown), ..sample() };
        assert_eq!(Status::decode(Separator::Newline, text.as_bytes()), Ok(status));
    }

    #[test]
    fn command_line_is_read_from_its_name_to_the_checksum() {
        let mut cmdline = b"/pause\0".to_vec();
        cmdline.extend(encoded(&sample(), Separator::Nul));
        cmdline.extend([0; 40]);
        cmdline.extend(b"--status-file\0/run/status\0");
        assert_eq!(Status::from_cmdline(&cmdline), Ok(sample()));
        assert_eq!(Status::from_cmdline(b"/pause\0"), Err(Refusal::NoStatus));
        assert_eq!(Status::from_cmdline(b""), Err(Refusal::NoStatus));
    }
}
