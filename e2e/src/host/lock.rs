//! A file lock (flock(2)). The kernel releases it when its holder exits for any reason, so a lock is never stale.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held as long as this value lives. Files that Rust opens are closed on exec, so no child inherits it.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: Flock<File>,
}

impl Lock {
    /// Waits while another process holds it, and reports that once.
    pub(crate) fn wait(path: &Path, what: &str) -> Result<Self> {
        if let Some(lock) = Self::attempt(path)? {
            return Ok(lock);
        }
        eprintln!("waiting for another run: {what}");
        match Flock::lock(open(path)?, FlockArg::LockExclusive) {
            Ok(held) => Ok(Self { _held: held }),
            Err((_, error)) => bail!("locking {}: {error}", path.display()),
        }
    }

    /// `None` if another process holds it.
    pub(crate) fn attempt(path: &Path) -> Result<Option<Self>> {
        match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Some(Self { _held: held })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => bail!("locking {}: {error}", path.display()),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}
