//! The runtime's unit, by systemd's D-Bus interface on the system bus. A connection exists only during a call. systemd's private socket
//! would need no bus, but there its messages name a sender that zbus refuses ("Invalid unique name", zbus 6.2, systemd 257).

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use zbus::connection::Builder;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Structure};

use super::Host;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Time limit of a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit of a restart: a server of k3s takes a minute or more.
const JOB_TIMEOUT: Duration = Duration::from_secs(180);
/// Interval at which the unit is read meanwhile. It is shorter than the time after which systemd starts a failed unit again.
const JOB_INTERVAL: Duration = Duration::from_millis(250);

/// How the runtime loads its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Restart {
    /// Not by the installer: they take effect at the next start of the runtime.
    None,
    /// By a reload (CRI-O).
    Reload,
    /// By a restart.
    Systemd,
}

/// State of the runtime's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnitState {
    pub(super) is_active: bool,
    /// When its process started, which then read the configuration. The unit becomes active later.
    pub(super) started: Timestamp,
}

#[derive(Debug, Clone)]
pub(super) struct Systemd {
    pub(super) socket: PathBuf,
    /// Of these one is in use.
    pub(super) units: &'static [&'static str],
}

/// The unit that is in use.
struct Unit {
    connection: Connection,
    name: &'static str,
    path: OwnedObjectPath,
}

impl Host for Systemd {
    async fn state(&self) -> anyhow::Result<UnitState> {
        self.unit().await?.state().await
    }

    /// Restarts the unit, or reloads it, and waits until it is active.
    async fn restart(&self, restart: Restart) -> anyhow::Result<()> {
        let unit = self.unit().await?;
        let method = match restart {
            Restart::None => return Ok(()),
            Restart::Reload => "ReloadUnit",
            Restart::Systemd => "RestartUnit",
        };
        call(&unit.connection, &manager()?, MANAGER, method, &(unit.name, "replace"))
            .await
            .with_context(|| format!("{method} of {} failed", unit.name))?;
        let deadline = Instant::now() + JOB_TIMEOUT;
        loop {
            sleep(JOB_INTERVAL).await;
            let (has_job, state) = (unit.has_job().await?, unit.active_state().await?);
            match state.as_str() {
                "active" if !has_job => return Ok(()),
                _ if !has_job => bail!("{} is {state} after {method}; see its log", unit.name),
                _ if Instant::now() > deadline => {
                    bail!("{} is still {state} {} s after {method}", unit.name, JOB_TIMEOUT.as_secs())
                }
                _ => {}
            }
        }
    }
}

impl Systemd {
    async fn unit(&self) -> anyhow::Result<Unit> {
        let connection =
            self.connect().await.with_context(|| format!("connecting to {}", self.socket.display()))?;
        for &name in self.units {
            // One that is not installed is loaded as inactive.
            let path =
                call(&connection, &manager()?, MANAGER, "LoadUnit", &(name,)).await?.body().deserialize()?;
            let unit = Unit { connection: connection.clone(), name, path };
            // One that failed was in use.
            if unit.active_state().await? != "inactive" {
                return Ok(unit);
            }
        }
        bail!("systemd runs none of the units {}", self.units.join(", "))
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = UnixStream::connect(&self.socket)?;
        let builder = Builder::unix_stream(stream).method_timeout(CALL_TIMEOUT);
        Ok(tokio::time::timeout(CALL_TIMEOUT, builder.build()).await??)
    }
}

impl Unit {
    async fn state(&self) -> anyhow::Result<UnitState> {
        let started = u64::try_from(self.get(SERVICE, "ExecMainStartTimestamp").await?)?;
        let started = Timestamp::from_microsecond(i64::try_from(started)?)?;
        Ok(UnitState { is_active: self.active_state().await? == "active", started })
    }

    async fn active_state(&self) -> anyhow::Result<String> {
        Ok(String::try_from(self.get(UNIT, "ActiveState").await?)?)
    }

    async fn has_job(&self) -> anyhow::Result<bool> {
        let job = Structure::try_from(self.get(UNIT, "Job").await?)?;
        let id = job.fields().first().context("a job without a number")?;
        Ok(u32::try_from(id)? != 0)
    }

    async fn get(&self, interface: &str, property: &str) -> anyhow::Result<OwnedVariant> {
        let reply = call(&self.connection, &self.path, PROPERTIES, "Get", &(interface, property)).await?;
        Ok(reply.body().deserialize()?)
    }
}

fn manager() -> zbus::Result<OwnedObjectPath> {
    OwnedObjectPath::try_from("/org/freedesktop/systemd1")
}

async fn call<B>(
    connection: &Connection,
    path: &OwnedObjectPath,
    interface: &str,
    method: &str,
    body: &B,
) -> zbus::Result<zbus::Message>
where
    B: serde::Serialize + zbus::DynamicType,
{
    connection.call_method(Some(SYSTEMD), path, Some(interface), method, body).await
}

#[cfg(test)]
#[path = "systemd_tests.rs"]
mod tests;
