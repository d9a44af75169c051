//! The installer: switches the pause image of the node that it runs on, and back. This file is the loop that reads the lock and the
//! files and carries out one action after another; decisions are in `step` and `preflight`.

mod config_toml;
mod files;
mod lock;
pub mod preflight;
#[cfg(test)]
mod scenarios;
mod step;
mod systemd;
pub mod uninstall;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

use crate::health::{Metrics, Readiness};
use crate::k8s::error::ApiError;
use crate::k8s::pause_lease::{Step, Switch};
use crate::pause_config::{Image, snippet};
use files::{Change, Directory, Files};
use lock::{Held, Lock};
use preflight::{NodeFacts, Refusal, Runtime};
use step::{Action, Facts, NodeState};
use systemd::{Restart, Systemd, UnitState};

/// Interval at which a node reads the lock that others hold. Each of many nodes does so for hours.
const LOCK_INTERVAL: Duration = Duration::from_secs(15);
/// Wait after an action that changed something.
const ACTION_INTERVAL: Duration = Duration::from_secs(1);
const PROOF_INTERVAL: Duration = Duration::from_secs(2);
/// Interval at which a refused node is checked again, and the files of a switched one.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Wait after an error.
const RETRY: Duration = Duration::from_secs(10);
/// How long at the end to read from the API server whether the node is still managed. A k3s server that is restored at the same time
/// restarts it.
const MANAGED_TIMEOUT: Duration = Duration::from_secs(60);
/// How long at the end to begin attempts to restore the node. The pod's grace period is 300 s.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(150);
const STOP_INTERVAL: Duration = Duration::from_secs(2);
/// Name in `/readyz`.
const PART: &str = "pause image";

#[derive(Debug, Clone, clap::Args)]
pub struct InstallerOptions {
    /// Name of the node that the installer runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Namespace of this pod, of its DaemonSet and of the Leases.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// What configures the pause image of the node.
    #[arg(long, value_enum)]
    pub runtime: Runtime,
    /// Complete name of the pause image, with a tag or a digest.
    #[arg(long)]
    pub image: Image,
    /// Version that this pause image reports.
    #[arg(long)]
    pub pause_version: String,
    /// Path at which the runtime's configuration directory is mounted.
    #[arg(long, default_value = "/host")]
    pub directory: PathBuf,
    /// How the runtime loads the changed files.
    #[arg(long, value_enum, default_value_t = Restart::None)]
    pub restart: Restart,
    /// Path of the system bus, on which systemd is.
    #[arg(long, default_value = "/run/dbus/system_bus_socket")]
    pub system_bus: PathBuf,
    /// Permits edits of containerd's config.toml where a drop-in has no effect.
    #[arg(long)]
    pub edit_config: bool,
    /// How many nodes are switched at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub concurrency: u32,
    /// Time after a switch until which a pod of the node must be observed with the new pause, such as 90s or 3m.
    #[arg(long, default_value = "3m", value_parser = crate::text::duration)]
    pub proof_timeout: Duration,
    /// Name of the Leases, without their numbers.
    #[arg(long)]
    pub lease: String,
    /// Name of the DaemonSet of this pod.
    #[arg(long)]
    pub daemonset: String,
}

/// Runs until the pod is stopped, and restores the node if it is no longer to be managed.
pub async fn run(
    options: InstallerOptions,
    client: Client,
    readiness: Arc<Readiness>,
    stop: BoxFuture<'static, ()>,
) -> anyhow::Result<()> {
    ensure!(
        options.restart != Restart::Reload || options.runtime == Runtime::Crio,
        "only CRI-O can reload its pause image; use --restart systemd or none"
    );
    let systemd = Systemd { socket: options.system_bus.clone(), units: options.runtime.units() };
    let mut installer = Installer::new(options, client, readiness, systemd);
    tokio::select! {
        () = installer.run() => {}
        () = stop => {}
    }
    installer.stop().await;
    Ok(())
}

/// The installer has no metrics of its own: the controller reports the state of the roll-out.
#[derive(Debug)]
pub struct NoMetrics;

impl Metrics for NoMetrics {
    fn render(&self) -> Result<String, std::fmt::Error> {
        Ok(String::new())
    }
}

/// Effects on the node, and what the clock and systemd show. Tests stop after each effect.
trait Host {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn change(&self, directory: &Directory, change: &Change) -> io::Result<()> {
        directory.change(change)
    }

    async fn state(&self) -> anyhow::Result<UnitState>;
    async fn restart(&self, restart: Restart) -> anyhow::Result<()>;
}

struct Installer<H> {
    options: InstallerOptions,
    directory: Directory,
    host: H,
    lock: Lock,
    readiness: Arc<Readiness>,
    /// As read last, and when.
    node: Option<(NodeFacts, Instant)>,
    /// Whether the node was switched while this process ran. It then repeats no switch.
    is_done: bool,
    /// Whose configuration was logged.
    refused: Option<Refusal>,
}

impl<H: Host> Installer<H> {
    fn new(options: InstallerOptions, client: Client, readiness: Arc<Readiness>, host: H) -> Self {
        let lock = Lock {
            leases: Api::namespaced(client.clone(), &options.namespace),
            nodes: Api::all(client.clone()),
            daemon_sets: Api::namespaced(client, &options.namespace),
            daemon_set: options.daemonset.clone(),
            name: options.lease.clone(),
            concurrency: options.concurrency,
        };
        let directory = Directory { path: options.directory.clone(), runtime: options.runtime };
        readiness.expect(PART);
        Self { options, directory, host, lock, readiness, node: None, is_done: false, refused: None }
    }

    /// Runs forever.
    async fn run(&mut self) {
        loop {
            let wait = self.step().await.unwrap_or_else(|error| {
                self.readiness.pending(PART, format!("{error:#}; will retry"));
                RETRY
            });
            sleep(wait).await;
        }
    }

    /// Carries out one action, and returns the wait until the next.
    async fn step(&mut self) -> anyhow::Result<Duration> {
        let files = self.files()?;
        if self.is_done {
            self.check(&files);
            return Ok(CHECK_INTERVAL);
        }
        let now = self.host.now();
        let leases = self.lock.read(now).await.context("reading the Leases")?;
        let planned = self.plan(&leases, &files).await?;
        let state = planned.as_ref().map(|(changes, is_loaded)| match is_loaded {
            _ if !changes.is_empty() => NodeState::NotWritten,
            true => NodeState::Done,
            false => NodeState::NotLoaded,
        });
        let switches: Vec<_> = leases.iter().map(|held| held.switch.clone()).collect();
        let action = step::next(&Facts {
            node: &self.options.node_name,
            image: &self.options.image.to_string(),
            pause_version: &self.options.pause_version,
            leases: &switches,
            concurrency: self.options.concurrency,
            state,
            now,
            proof_timeout: self.options.proof_timeout,
        });
        tracing::debug!(?action, "next action");
        self.act(action, &leases, &files, planned.map(|(changes, _)| changes)).await
    }

    async fn act(
        &mut self,
        action: Action,
        leases: &[Held],
        files: &Files,
        planned: Result<Vec<Change>, Refusal>,
    ) -> anyhow::Result<Duration> {
        match action {
            Action::Refuse => {
                if let Err(refusal) = planned {
                    self.refuse(refusal);
                }
                return Ok(CHECK_INTERVAL);
            }
            Action::Wait(reason) => {
                self.readiness.pending(PART, reason);
                return Ok(LOCK_INTERVAL);
            }
            Action::WaitForProof => {
                let version = &self.options.pause_version;
                self.readiness.pending(PART, format!("waiting for a pod of this node with pause {version}"));
                return Ok(PROOF_INTERVAL);
            }
            Action::Ready => {
                self.is_done = true;
                self.readiness.done(PART);
                return Ok(CHECK_INTERVAL);
            }
            Action::Claim(index) => {
                self.write(index, leases, Some(Step::Switching), "").await?;
            }
            // Proven. Whatever the files' times say, the node is not switched again.
            Action::Release(index) => self.is_done = self.write(index, leases, None, "").await?,
            Action::Fail(index, message) => {
                self.write(index, leases, Some(Step::Reverting), &message).await?;
            }
            Action::Switch(index) => {
                self.readiness.pending(PART, "the switch is in progress");
                let (step, message) = match self.switch(&planned.unwrap_or_default()).await {
                    // Without a restart nothing can be proven.
                    Ok(()) if self.options.restart == Restart::None => (None, String::new()),
                    Ok(()) => (Some(Step::Switched), String::new()),
                    Err(error) => (Some(Step::Reverting), format!("{error:#}")),
                };
                self.write(index, leases, step, &message).await?;
            }
            Action::Revert(index) => {
                let reverted = self.revert(files, true).await?;
                let message = reverted.err().map(|error| format!("; after the revert: {error:#}"));
                self.write(index, leases, Some(Step::Failed), &message.unwrap_or_default()).await?;
            }
        }
        Ok(ACTION_INTERVAL)
    }

    async fn switch(&self, changes: &[Change]) -> anyhow::Result<()> {
        self.change(changes)?;
        let written = self.directory.written_at()?;
        self.load(written).await.context("the runtime does not run with the new files")
    }

    /// Reverts the files, and makes the runtime load them. The inner result is that of the runtime, which is tried once.
    async fn revert(&self, files: &Files, must_load: bool) -> anyhow::Result<anyhow::Result<()>> {
        let changes = files.revert().context("reverting config.toml, whose original is beside it")?;
        self.change(&changes)?;
        if changes.is_empty() && !must_load {
            return Ok(Ok(()));
        }
        Ok(self.load(self.directory.reverted_at()?).await)
    }

    fn change(&self, changes: &[Change]) -> anyhow::Result<()> {
        for change in changes {
            let path = self.directory.path_on_node(change.0);
            self.host.change(&self.directory, change).with_context(|| format!("writing {path}"))?;
            tracing::info!(path, is_removed = change.1.is_none(), "changed a file");
        }
        Ok(())
    }

    /// Makes the runtime load files of this time, if it has not.
    async fn load(&self, changed: Timestamp) -> anyhow::Result<()> {
        let restart = self.options.restart;
        let is_loaded = match restart {
            Restart::None => true,
            // A past reload cannot be detected, and may be repeated.
            Restart::Reload => false,
            Restart::Systemd => is_loaded(self.host.state().await?, changed),
        };
        if !is_loaded {
            tracing::info!(?restart, "loading the changed files into the runtime");
            self.host.restart(restart).await?;
        }
        Ok(())
    }

    /// The changes that are left, and whether the runtime runs with the files as they are.
    async fn plan(
        &mut self,
        leases: &[Held],
        files: &Files,
    ) -> anyhow::Result<Result<(Vec<Change>, bool), Refusal>> {
        let mine = leases.iter().find(|held| held.is_of(&self.options.node_name));
        let step = mine.and_then(|held| held.switch.as_ref()).map(|switch| switch.step);
        if step == Some(Step::Reverting) {
            // A revert depends on nothing but the files: the runtime may be down.
            return Ok(Ok((Vec::new(), true)));
        }
        let node = self.node_facts().await?;
        Ok(match preflight::changes(&self.options, &node, files) {
            // A switch needs systemd, so the unit is read before anything is changed. A node that holds a Lease continues without it.
            Ok(changes) if step.is_none() => self.with_unit(changes).await,
            planned => planned.map(|changes| (changes, true)),
        })
    }

    async fn with_unit(&self, changes: Vec<Change>) -> Result<(Vec<Change>, bool), Refusal> {
        let is_loaded = match self.options.restart {
            Restart::None => Ok(true),
            Restart::Reload => self.host.state().await.map(|_| true),
            Restart::Systemd => self.is_loaded().await,
        };
        let refuse = |error| {
            Refusal {
            reason: format!("the runtime's unit cannot be read: {error:#}"),
            advice: "If the node has systemd, let the installer's container use the system bus (AppArmor and SELinux can deny it); \
                     otherwise set pauseInstaller.restart=none"
                .to_owned(),
            platform: None,
        }
        };
        Ok((changes, is_loaded.map_err(refuse)?))
    }

    async fn is_loaded(&self) -> anyhow::Result<bool> {
        Ok(is_loaded(self.host.state().await?, self.directory.written_at()?))
    }

    /// A switched node is not switched again automatically: its runtime would be restarted whenever another tool writes the files.
    fn check(&self, files: &Files) {
        let changes = self.node.as_ref().map(|(node, _)| preflight::changes(&self.options, node, files));
        match changes {
            Some(Ok(changes)) if changes.is_empty() => self.readiness.done(PART),
            _ => self.readiness.pending(
                PART,
                format!(
                    "the files in {} were changed after the switch, so new pods may get another pause image. Delete this pod to \
                     switch the node again, or remove the node's label",
                    self.options.runtime.directory()
                ),
            ),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.readiness.pending(PART, refusal.to_string());
        if self.refused.as_ref() != Some(&refusal) {
            match refusal.platform.map(|platform| snippet(platform, &self.options.image)) {
                Some(Ok(snippet)) => tracing::info!(%snippet, "configuration for this platform"),
                Some(Err(reason)) => tracing::info!(%reason, "this platform has no setting for the image"),
                None => {}
            }
            self.refused = Some(refusal);
        }
    }

    /// Writes a step, or frees the Lease. The message of a failure is added to what there is. Returns whether the Lease was as it was
    /// read.
    async fn write(
        &self,
        index: usize,
        leases: &[Held],
        step: Option<Step>,
        message: &str,
    ) -> anyhow::Result<bool> {
        let held = leases.get(index).context("a Lease that was not read")?;
        let (now, InstallerOptions { node_name, pause_version, image, .. }) =
            (self.host.now(), &self.options);
        let switch = step.map(|step| match &held.switch {
            Some(switch) if step != Step::Switching => {
                let mut switch = switch.clone();
                let message = format!("{}{message}", switch.message);
                switch.advance(step, &message, now);
                switch
            }
            _ => Switch::new(node_name, pause_version, &image.to_string(), now),
        });
        match self.lock.write(held, switch.as_ref()).await {
            Ok(()) if message.is_empty() => tracing::info!(lease = held.name, ?step, "recorded the step"),
            Ok(()) => tracing::warn!(lease = held.name, ?step, message, "recorded the step"),
            // Another node was faster, the controller wrote the proof, or the Lease was deleted: it is read again.
            Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("writing the Lease {}", held.name)),
        }
        Ok(true)
    }

    fn files(&self) -> anyhow::Result<Files> {
        self.directory.read().with_context(|| format!("reading {}", self.options.runtime.directory()))
    }

    async fn node_facts(&mut self) -> anyhow::Result<NodeFacts> {
        if let Some((node, read)) = &self.node
            && read.elapsed() < CHECK_INTERVAL
        {
            return Ok(node.clone());
        }
        let node = self.lock.nodes.get(&self.options.node_name).await.map_err(ApiError::from);
        let node = NodeFacts::from(node.context("reading the node")?);
        ensure!(
            node.is_runtime_known(),
            "the kubelet does not report the version of the runtime ({}), which may be starting",
            node.runtime_version
        );
        self.node = Some((node.clone(), Instant::now()));
        Ok(node)
    }

    /// Shuts down: restores the node if it is no longer managed. At an upgrade, a drain or a reboot everything stays.
    async fn stop(&mut self) {
        if !self.should_restore().await {
            tracing::info!("the node keeps its pause image");
            return;
        }
        let deadline = Instant::now() + RESTORE_TIMEOUT;
        let mut must_load = false;
        while let Err(error) = self.restore(must_load).await {
            let error = format!("{error:#}");
            if Instant::now() >= deadline {
                tracing::error!(
                    error,
                    "failed to restore the node, which may keep the pause image; see docs/nodes/installer.md for the way back by hand"
                );
                return;
            }
            tracing::warn!(error, "failed to restore the node; will retry");
            // The files may be reverted, and the runtime may not have loaded them.
            must_load = true;
            sleep(RETRY).await;
        }
        tracing::info!("the node is restored; pods keep their pause until they are recreated");
    }

    async fn should_restore(&self) -> bool {
        let deadline = Instant::now() + MANAGED_TIMEOUT;
        loop {
            match self.is_managed().await {
                Ok(is_managed) => return !is_managed,
                Err(error) if Instant::now() >= deadline => {
                    tracing::error!(%error, "failed to read whether the node is still managed");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to read whether the node is still managed; will retry")
                }
            }
            sleep(STOP_INTERVAL).await;
        }
    }

    async fn is_managed(&self) -> kube::Result<bool> {
        match self.lock.daemon_sets.get(&self.options.daemonset).await {
            Ok(daemon_set) if daemon_set.metadata.deletion_timestamp.is_some() => return Ok(false),
            Ok(_) => {}
            // The account is deleted with the release.
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403 | 404) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(NodeFacts::from(self.lock.nodes.get(&self.options.node_name).await?).is_managed())
    }

    async fn restore(&mut self, must_load: bool) -> anyhow::Result<()> {
        // The account may be deleted already.
        let leases = self.lock.read(self.host.now()).await.unwrap_or_default();
        let mine = leases.iter().position(|held| held.is_of(&self.options.node_name));
        self.revert(&self.files()?, must_load || mine.is_some()).await??;
        let Some(index) = mine else { return Ok(()) };
        // A failure stays: the other nodes must not repeat it.
        match leases.get(index).and_then(|held| held.switch.as_ref()).map(|switch| switch.step) {
            Some(Step::Failed) => {}
            Some(Step::Reverting) => {
                self.write(index, &leases, Some(Step::Failed), "").await?;
            }
            _ => {
                self.write(index, &leases, None, "").await?;
            }
        }
        Ok(())
    }
}

fn is_loaded(state: UnitState, changed: Timestamp) -> bool {
    state.is_active && state.started > changed
}
