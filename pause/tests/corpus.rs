//! Replays the inputs that fuzzing found worth keeping (`fuzz/corpus/`) through the checks that it made of them.

#[path = "../fuzz/checks.rs"]
mod checks;

use std::path::Path;
use std::{fs, io};

/// Checks each input of the target's corpus, which must have some.
fn replay(target: &str, check: fn(&[u8])) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        println!("{}", path.display());
        check(&fs::read(path)?);
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", folder.display());
    Ok(())
}

#[test]
fn every_status_that_fuzzing_kept_is_read_as_documented() -> io::Result<()> {
    replay("status", checks::status)
}

#[test]
fn every_stat_line_that_fuzzing_kept_is_read_as_documented() -> io::Result<()> {
    replay("stat", checks::stat)
}
