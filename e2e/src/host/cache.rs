//! The cache: directories of everything that is built, downloaded or running. Only paths are computed here; their users create the
//! directories.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// `$SANDBOX_HEALTH_CACHE`, else `$XDG_CACHE_HOME/sandbox-health`, else `~/.cache/sandbox-health`.
///
/// # Errors
///
/// When none of the three variables is set.
pub fn root() -> Result<PathBuf> {
    let root =
        choose(env::var_os("SANDBOX_HEALTH_CACHE"), env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))
            .context("no cache directory: neither SANDBOX_HEALTH_CACHE, XDG_CACHE_HOME nor HOME is set")?;
    // The processes of a node have other working directories.
    Ok(std::path::absolute(root)?)
}

/// An empty variable counts as unset, as the XDG base directory specification has it.
fn choose(own: Option<OsString>, xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let set = |variable: Option<OsString>| variable.filter(|value| !value.is_empty()).map(PathBuf::from);
    set(own)
        .or_else(|| set(xdg).map(|directory| directory.join("sandbox-health")))
        .or_else(|| set(home).map(|directory| directory.join(".cache/sandbox-health")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(own: &str, xdg: &str, home: &str) -> Option<PathBuf> {
        choose(Some(own.into()), Some(xdg.into()), Some(home.into()))
    }

    #[test]
    fn most_specific_variable_wins() {
        assert_eq!(chosen("/own", "/xdg", "/home/me"), Some("/own".into()));
        assert_eq!(chosen("", "/xdg", "/home/me"), Some("/xdg/sandbox-health".into()));
        assert_eq!(chosen("", "", "/home/me"), Some("/home/me/.cache/sandbox-health".into()));
        assert_eq!(choose(None, None, None), None);
    }
}
