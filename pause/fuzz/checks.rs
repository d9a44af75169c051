//! What must hold of any bytes that `pause_status` reads. The fuzz targets and the replay of their corpus
//! (`tests/corpus.rs`) both include this file. The readers here are a second implementation: slow, with allocation, from the text
//! of docs/reference/status-file.md and of proc_pid_stat(5).
#![allow(dead_code, reason = "each fuzz target uses one half")]

use std::collections::HashMap;

use pause_status::stat::Stat;
use pause_status::status::VERSION_MAX;
use pause_status::{CountError, ROOM, Refusal, Separator, Status};

/// Reads `bytes` as a status in each way that there is.
pub(crate) fn status(bytes: &[u8]) {
    for separator in [Separator::Nul, Separator::Newline] {
        one_answer(separator, bytes);
        // A fuzzer does not find a checksum by chance.
        one_answer(separator, &with_right_checksum(separator, bytes));
    }
    match bytes.iter().position(|&byte| byte == 0) {
        Some(end) => assert_eq!(
            Status::from_cmdline(bytes),
            Status::decode(Separator::Nul, &bytes[end + 1..]),
            "a command line is its name and a status"
        ),
        None => assert_eq!(Status::from_cmdline(bytes), Err(Refusal::NoStatus), "a name that does not end"),
    }
}

fn one_answer(separator: Separator, text: &[u8]) {
    let read = Status::decode(separator, text);
    let elsewhere = text.to_vec();
    assert_eq!(Status::decode(separator, &elsewhere), read, "the same bytes elsewhere");
    assert_eq!(read.ok(), plainly(separator, text), "the plain reader disagrees");
    let Ok(status) = read else { return };

    let version = status.version.as_bytes();
    assert!((1..=VERSION_MAX).contains(&version.len()), "a version of {} bytes", version.len());
    assert!(version.iter().all(u8::is_ascii_graphic), "a version that is not plain");

    let mut room = [0; ROOM];
    let len = status.encode(separator, &mut room);
    assert!(len < ROOM, "{len} bytes are written");
    assert_eq!(Status::decode(separator, &room[..len]), Ok(status), "written and read again");

    let checksum = checksum_at(separator, text);
    assert!(checksum.is_some(), "a status without a checksum is accepted");
    let end = checksum.unwrap_or_default() + b"checksum=".len() + 8;
    assert_eq!(
        Status::decode(separator, &text[..end]),
        Ok(status),
        "the text ends with the checksum's last digit"
    );
    let mut more = [&text[..end], &[byte(separator)][..]].concat();
    more.extend(b"zombies=7\0zombies=7\nformat=9\nformat=9\0checksum=0\nchecksum=0\0\xff=");
    assert_eq!(Status::decode(separator, &more), Ok(status), "more follows the checksum");
}

/// The documented reader: split, look up, convert.
fn plainly(separator: Separator, text: &[u8]) -> Option<Status<'_>> {
    let at = checksum_at(separator, text)?;
    let checksum = text[at + b"checksum=".len()..].split(|&found| found == byte(separator)).next()?;
    let right = format!("{:08x}", fnv1a(&text[..at]));
    if checksum != right.as_bytes() || text.starts_with(b" ") {
        return None;
    }
    let known = [
        "zombies",
        "reaped",
        "processes",
        "threads",
        "peak_zombies",
        "unreadable",
        "error",
        "version",
        "format",
    ];
    let mut values = HashMap::new();
    for item in text[..at].split(|&found| found == byte(separator)) {
        let mut halves = item.splitn(2, |&found| found == b'=');
        let (Some(key), Some(value)) = (halves.next(), halves.next()) else { continue };
        if known.iter().any(|known| known.as_bytes() == key) && values.insert(key, value).is_some() {
            return None;
        }
    }
    let text_of = |key: &str| std::str::from_utf8(values.get(key.as_bytes()).copied()?).ok();
    let large = |key| decimal(text_of(key)?);
    let small = |key| u32::try_from(large(key)?).ok();
    if large("format")? != 1 {
        return None;
    }
    let version = text_of("version")?;
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '+' | '-');
    if version.is_empty() || version.len() > 32 || !version.chars().all(plain) {
        return None;
    }
    Some(Status {
        zombies: small("zombies")?,
        reaped: large("reaped")?,
        processes: small("processes")?,
        threads: small("threads")?,
        peak_zombies: small("peak_zombies")?,
        unreadable: if values.contains_key("unreadable".as_bytes()) { small("unreadable")? } else { 0 },
        error: values.contains_key("error".as_bytes()).then(|| match text_of("error") {
            Some("hidepid") => CountError::HidePid,
            Some("no-proc") => CountError::NoProc,
            Some("not-init") => CountError::NotInit,
            _ => small("error").map_or(CountError::Unknown, CountError::Errno),
        }),
        version,
    })
}

/// Reads `line` as the kernel's description of a process.
pub(crate) fn stat(line: &[u8]) {
    let read = Stat::parse(line);
    let elsewhere = line.to_vec();
    assert_eq!(Stat::parse(&elsewhere), read, "the same bytes elsewhere");
    assert_eq!(read, plainly_stat(line), "the plain reader disagrees");
    let Some(stat) = read else { return };

    let (within, comm) = (line.as_ptr_range(), stat.comm.as_ptr_range());
    assert!(within.start < comm.start && comm.end < within.end, "the name is not within the line");
    assert_eq!(stat.is_zombie(), stat.state == b'Z' && stat.threads <= 1);

    let close = comm.end as usize - within.start as usize;
    for cut in close + 1..line.len() {
        let part = Stat::parse(&line[..cut]);
        assert!(part.is_none() || part == read, "cut at {cut} it differs");
    }
}

/// Field 2 is between the first opening and the last closing parenthesis; the others are separated by single spaces.
fn plainly_stat(line: &[u8]) -> Option<Stat<'_>> {
    let open = line.iter().position(|&byte| byte == b'(')?;
    let close = line.iter().rposition(|&byte| byte == b')').filter(|&close| close > open)?;
    let fields: Vec<_> = line[close + 1..].strip_prefix(b" ")?.split(|&byte| byte == b' ').collect();
    // fields[0] is field 3. One that nothing follows may be cut.
    let number = |field: usize| decimal(std::str::from_utf8(fields.get(field - 3)?).ok()?);
    let (&&[state], threads, start_ticks) = (fields.first()?, number(20)?, number(22)?) else { return None };
    fields.get(23 - 3)?;
    Some(Stat { comm: &line[open + 1..close], state, threads: threads.try_into().ok()?, start_ticks })
}

fn decimal(digits: &str) -> Option<u64> {
    // The standard library's takes a sign, too.
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn byte(separator: Separator) -> u8 {
    match separator {
        Separator::Nul => b'\0',
        Separator::Newline => b'\n',
    }
}

/// Where the first checksum begins.
fn checksum_at(separator: Separator, text: &[u8]) -> Option<usize> {
    let starts = (0..text.len()).filter(|&at| at == 0 || text[at - 1] == byte(separator));
    starts.into_iter().find(|&at| text[at..].starts_with(b"checksum="))
}

fn with_right_checksum(separator: Separator, text: &[u8]) -> Vec<u8> {
    let mut items = text[..checksum_at(separator, text).unwrap_or(text.len())].to_vec();
    if items.last().is_some_and(|&last| last != byte(separator)) {
        items.push(byte(separator));
    }
    let checksum = format!("checksum={:08x}", fnv1a(&items));
    items.extend(checksum.as_bytes());
    items
}

fn fnv1a(bytes: &[u8]) -> u32 {
    let mut hash = 0x811c_9dc5_u64;
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)) * 0x0100_0193 % (1 << 32);
    }
    hash as u32
}
