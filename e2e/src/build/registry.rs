//! A registry on loopback, and its clients skopeo and helm. Debian's packages of the registry and of skopeo are unpacked, not installed: an
//! installed registry would be started as a service. skopeo uses the libraries of buildah, which is installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::build::go;
use crate::host::command::{output, tail};
use crate::host::debian;
use crate::host::retry::{self, TIMEOUT};

/// A running registry, empty at first. It exits when this value is dropped or the thread that started it ends.
#[derive(Debug)]
pub struct Registry {
    address: String,
    directory: PathBuf,
    process: Child,
}

impl Registry {
    /// Starts a registry that stores everything in this directory.
    ///
    /// # Errors
    ///
    /// When it cannot be downloaded or does not start.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::start_by(Command::new("setpriv"), directory)
    }

    /// As [`Registry::start`], with a given setpriv(1) command: that of a node starts it on the node's loopback.
    ///
    /// # Errors
    ///
    /// As [`Registry::start`].
    pub fn start_by(mut setpriv: Command, directory: &Path) -> Result<Self> {
        let program = debian::unpacked("docker-registry")?.join("usr/bin/docker-registry");
        let (configuration, log_file) = (directory.join("config.yml"), directory.join("log"));
        fs::create_dir_all(directory)?;
        let settings = json!({
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": directory.join("images")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        fs::write(&configuration, settings.to_string())?;
        let log = File::create(&log_file)?;
        let process = setpriv
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .arg("serve")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting a registry")?;
        let mut registry = Self { address: String::new(), directory: directory.to_owned(), process };
        registry.address = retry::until("the registry listens", TIMEOUT, || {
            let log = fs::read_to_string(&log_file)?;
            let (_, rest) = log.split_once("listening on ").context("its log has no address")?;
            let address = rest.split(|it: char| it != '.' && it != ':' && !it.is_ascii_digit()).next();
            Ok(address.unwrap_or_default().to_owned())
        })
        .with_context(|| tail(&log_file).unwrap_or_default())?;
        registry.trust()?;
        Ok(registry)
    }

    /// Host and port, the first part of an image's name.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A command whose PATH has helm and skopeo, and which connects to the registry without TLS.
    ///
    /// # Errors
    ///
    /// When either is not available.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut path = debian::unpacked("skopeo")?.join("usr/bin").into_os_string();
        let helm = go::helm()?;
        for directory in [helm.parent().map(Path::as_os_str), std::env::var_os("PATH").as_deref()] {
            path.push(":");
            path.push(directory.unwrap_or_default());
        }
        let mut command = Command::new(program);
        command.env("PATH", path).env("HOME", &self.directory);
        Ok(command)
    }

    /// The digest of an image in the registry.
    ///
    /// # Errors
    ///
    /// When there is no such image.
    pub fn digest(&self, name: &str) -> Result<String> {
        let image = format!("docker://{}/{name}", self.address);
        let digest = output(self.command("skopeo")?.args(["inspect", "--format", "{{.Digest}}", &image]))?;
        Ok(digest.trim().to_owned())
    }

    /// Writes the client's configuration: the registry has no TLS.
    fn trust(&self) -> Result<()> {
        let settings = self.directory.join(".config/containers");
        fs::create_dir_all(&settings)?;
        let insecure = format!("[[registry]]\nlocation = {:?}\ninsecure = true\n", self.address);
        fs::write(settings.join("registries.conf"), insecure)?;
        let policy = json!({"default": [{"type": "insecureAcceptAnything"}]});
        fs::write(settings.join("policy.json"), policy.to_string())?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
