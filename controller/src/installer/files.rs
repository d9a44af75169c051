//! Reads the files of a node's runtime, and writes them so that the runtime sees the old file or the new one, never a part. `preflight`
//! decides what is written.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{Access, access};

use super::config_toml;
use super::preflight::Runtime;

/// First line of each file that the installer creates.
pub(super) const HEADER: &str = "# Managed by sandbox-health: delete it or remove the node's label to undo";
/// Containerd's configuration before the first edit, and empty if there was none.
const ORIGINAL: &str = "config.toml.sandbox-health-original";
/// It lies beside the directory of drop-ins: CRI-O reads each file in its own, whatever its name.
const TEMPORARY: &str = ".sandbox-health.tmp";

/// A file that the installer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Original,
    Config,
    DropIn,
}

/// A file and its text from now on; `None` removes it.
pub(super) type Change = (Target, Option<String>);

/// The mounted directory of a runtime's configuration.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) runtime: Runtime,
}

/// The files that the installer reads from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) is_writable: bool,
    pub(super) is_config_link: bool,
    pub(super) original: Option<String>,
    /// containerd's config.toml; config.yaml of k3s and RKE2.
    pub(super) config: Option<String>,
    pub(super) drop_in: Option<String>,
    /// Other drop-ins of k3s and RKE2, by name.
    pub(super) others: Vec<(String, String)>,
}

impl Files {
    pub(super) fn is_drop_in_foreign(&self) -> bool {
        self.drop_in.as_ref().is_some_and(|text| !text.starts_with(HEADER))
    }

    /// The changes that remove the installer's settings. They depend on the files alone, so that a revert works after options have changed.
    pub(super) fn revert(&self) -> Result<Vec<Change>, config_toml::EditError> {
        let mut changes = Vec::new();
        if self.drop_in.is_some() && !self.is_drop_in_foreign() {
            changes.push((Target::DropIn, None));
        }
        if let Some(original) = &self.original {
            if let Some(config) = &self.config {
                let reverted = config_toml::undo(config, original)?;
                if reverted.as_ref() != Some(config) {
                    changes.push((Target::Config, reverted));
                }
            }
            changes.push((Target::Original, None));
        }
        Ok(changes)
    }
}

impl Directory {
    pub(super) fn path(&self, target: Target) -> PathBuf {
        self.path.join(self.name(target))
    }

    pub(super) fn path_on_node(&self, target: Target) -> String {
        format!("{}/{}", self.runtime.directory(), self.name(target))
    }

    fn name(&self, target: Target) -> &'static str {
        match target {
            Target::Original => ORIGINAL,
            Target::Config => self.runtime.config(),
            Target::DropIn => self.runtime.drop_in(),
        }
    }

    pub(super) fn read(&self) -> io::Result<Files> {
        let drop_in = self.path(Target::DropIn);
        let drop_ins = drop_in.parent().unwrap_or(&self.path);
        let is_writable = |path: &Path| access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok();
        let mut others = Vec::new();
        if self.runtime.is_rancher() && drop_ins.is_dir() {
            for entry in fs::read_dir(drop_ins)? {
                let path = entry?.path();
                if path != drop_in && path.extension().is_some_and(|it| it == "yaml" || it == "yml") {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    others.extend(read(&path)?.map(|text| (name, text)));
                }
            }
        }
        let config = self.path(Target::Config);
        Ok(Files {
            is_writable: is_writable(&self.path) && (!drop_ins.exists() || is_writable(drop_ins)),
            is_config_link: config.is_symlink(),
            original: read(&self.path(Target::Original))?,
            config: read(&config)?,
            drop_in: read(&drop_in)?,
            others,
        })
    }

    /// Writes or removes a file.
    pub(super) fn change(&self, (target, text): &Change) -> io::Result<()> {
        let path = self.path(*target);
        let parent = path.parent().unwrap_or(&self.path);
        match text {
            Some(text) => {
                fs::create_dir_all(parent)?;
                let mode = fs::metadata(&path).map_or(0o644, |before| before.permissions().mode() & 0o777);
                if let Err(error) = self.write(&path, text, mode) {
                    // The disk may be full.
                    let _ = remove(&self.path.join(TEMPORARY));
                    return Err(error);
                }
            }
            None => {
                remove(&path)?;
                // A process that was killed may have left it.
                remove(&self.path.join(TEMPORARY))?;
            }
        }
        File::open(parent)?.sync_all()
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> io::Result<()> {
        let temporary = self.path.join(TEMPORARY);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        // The umask does not apply to it.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    }

    /// Last modification of the files that have the installer's settings.
    pub(super) fn written_at(&self) -> io::Result<Timestamp> {
        let is_edited = self.path(Target::Original).exists();
        let targets = [Some(Target::DropIn), is_edited.then_some(Target::Config)];
        latest(targets.into_iter().flatten().map(|target| self.path(target)))
    }

    /// Latest time at which a file of the installer may have been removed: a removal modifies only its directory.
    pub(super) fn reverted_at(&self) -> io::Result<Timestamp> {
        let drop_in = self.path(Target::DropIn);
        let edited = (self.runtime == Runtime::Containerd).then(|| self.path.clone());
        latest(drop_in.parent().map(Path::to_owned).into_iter().chain(edited))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

/// The latest modification of those paths that exist.
fn latest(paths: impl Iterator<Item = PathBuf>) -> io::Result<Timestamp> {
    let mut latest = Timestamp::UNIX_EPOCH;
    for path in paths {
        match fs::metadata(path) {
            Ok(metadata) => {
                let modified = Timestamp::try_from(metadata.modified()?).map_err(io::Error::other)?;
                latest = latest.max(modified);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(runtime: Runtime) -> (tempfile::TempDir, Directory) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory { path: temporary.path().to_owned(), runtime };
        (temporary, directory)
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(path).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn written_file_is_readable_and_alone_in_its_directory() {
        let (temporary, directory) = directory(Runtime::Crio);
        directory.change(&(Target::DropIn, Some("a".repeat(100)))).unwrap();
        directory.change(&(Target::DropIn, Some("b".to_owned()))).unwrap();
        let path = directory.path(Target::DropIn);
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(names(path.parent().unwrap()), ["50-sandbox-health.conf"]);
        assert_eq!(names(temporary.path()), ["crio.conf.d"]);
    }

    #[test]
    fn edited_file_keeps_its_mode() {
        let (temporary, directory) = directory(Runtime::Containerd);
        let path = temporary.path().join("config.toml");
        fs::write(&path, "version = 2\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        directory.change(&(Target::Config, Some("version = 3\n".to_owned()))).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn leftover_of_an_interrupted_write_does_not_matter() {
        let (temporary, directory) = directory(Runtime::K3s);
        fs::write(temporary.path().join(TEMPORARY), "a longer leftover").unwrap();
        directory.change(&(Target::DropIn, Some("b".to_owned()))).unwrap();
        assert_eq!(directory.read().unwrap().drop_in.as_deref(), Some("b"));
        assert_eq!(names(temporary.path()), ["config.yaml.d"]);
    }

    #[test]
    fn reading_changes_nothing() {
        let (temporary, directory) = directory(Runtime::Containerd);
        let before = fs::metadata(temporary.path()).unwrap().modified().unwrap();
        let files = directory.read().unwrap();
        assert_eq!(files, Files { is_writable: true, ..Files::default() });
        assert_eq!(fs::metadata(temporary.path()).unwrap().modified().unwrap(), before);
        assert!(names(temporary.path()).is_empty());
    }

    #[test]
    fn removal_of_an_absent_file_succeeds() {
        let (_temporary, directory) = directory(Runtime::Containerd);
        directory.change(&(Target::Original, None)).unwrap();
    }

    #[test]
    fn foreign_drop_in_is_not_removed() {
        let foreign = Files { drop_in: Some("# Ansible\n".to_owned()), ..Files::default() };
        assert_eq!(foreign.revert().unwrap(), []);
    }
}
