//! A registry on loopback, and what pushes to it: skopeo and helm. Registry and skopeo are as Debian packages them, unpacked and not
//! installed: an installed registry would be started as a service. skopeo's libraries are those of buildah, which is installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::build::go;
use crate::host::command::{output, tail};
use crate::host::debian;
use crate::host::retry::{self, TIMEOUT};

/// A running registry, empty at first. It ends when this value is dropped, and with the thread that started it.
#[derive(Debug)]
pub struct Registry {
    address: String,
    folder: PathBuf,
    process: Child,
}

impl Registry {
    /// Starts one that keeps all it has in this folder.
    ///
    /// # Errors
    ///
    /// When it cannot be had or does not start.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_by(Command::new("setpriv"), folder)
    }

    /// As [`Registry::start`], by a command of setpriv(1), such as a node's: then it is on the node's loopback.
    ///
    /// # Errors
    ///
    /// As [`Registry::start`].
    pub fn start_by(mut setpriv: Command, folder: &Path) -> Result<Self> {
        let program = debian::unpacked("docker-registry")?.join("usr/bin/docker-registry");
        let (configuration, log_file) = (folder.join("config.yml"), folder.join("log"));
        fs::create_dir_all(folder)?;
        let settings = json!({
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": folder.join("images")}},
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
        let mut registry = Self { address: String::new(), folder: folder.to_owned(), process };
        registry.address = retry::until("the registry listens", TIMEOUT, || {
            let log = fs::read_to_string(&log_file)?;
            let (_, rest) = log.split_once("listening on ").context("it does not say so")?;
            let address = rest.split(|it: char| it != '.' && it != ':' && !it.is_ascii_digit()).next();
            Ok(address.unwrap_or_default().to_owned())
        })
        .with_context(|| tail(&log_file).unwrap_or_default())?;
        registry.trust()?;
        Ok(registry)
    }

    /// Host and port, as an image's name begins.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A command that finds helm and skopeo, which speaks to the registry without TLS.
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
        command.env("PATH", path).env("HOME", &self.folder);
        Ok(command)
    }

    /// The digest of what a name stands for in the registry.
    ///
    /// # Errors
    ///
    /// When there is no such image.
    pub fn digest(&self, name: &str) -> Result<String> {
        let image = format!("docker://{}/{name}", self.address);
        let digest = output(self.command("skopeo")?.args(["inspect", "--format", "{{.Digest}}", &image]))?;
        Ok(digest.trim().to_owned())
    }

    /// The settings of a user who pushes to it.
    fn trust(&self) -> Result<()> {
        let settings = self.folder.join(".config/containers");
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
