//! Against a bus with a systemd, both of which this test serves on a Unix socket.

use super::*;
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
use zbus::{Guid, fdo, interface};

const PATH: &str = "/org/freedesktop/systemd1/unit/runtime_2eservice";

const ABSENT: &str = "/org/freedesktop/systemd1/unit/absent_2eservice";

/// One unit, and the states that it passes through.
#[derive(Debug)]
struct Fake {
    name: &'static str,
    state: &'static str,
    started: u64,
    /// How often the job is seen before it ends.
    job: u32,
    /// State in which the next job ends.
    ends: &'static str,
    calls: Vec<String>,
}

type Shared = Arc<Mutex<Fake>>;

/// The bus itself, which names a new client.
struct Bus;

#[interface(name = "org.freedesktop.DBus")]
impl Bus {
    fn hello(&self) -> &str {
        ":1.1"
    }
}

struct Manager(Shared);

impl Manager {
    fn begin(&self, method: &str, name: &str, mode: &str) -> fdo::Result<OwnedObjectPath> {
        let mut fake = self.0.lock().unwrap();
        fake.calls.push(format!("{method} {name} {mode}"));
        fake.job = 3;
        Ok(OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/7").unwrap())
    }
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn load_unit(&self, name: &str) -> OwnedObjectPath {
        let path = if name == self.0.lock().unwrap().name { PATH } else { ABSENT };
        OwnedObjectPath::try_from(path).unwrap()
    }

    fn restart_unit(&self, name: &str, mode: &str) -> fdo::Result<OwnedObjectPath> {
        self.begin("RestartUnit", name, mode)
    }

    fn reload_unit(&self, name: &str, mode: &str) -> fdo::Result<OwnedObjectPath> {
        self.begin("ReloadUnit", name, mode)
    }
}

struct FakeUnit(Shared);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl FakeUnit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        let fake = self.0.lock().unwrap();
        if fake.job > 0 { "activating".to_owned() } else { fake.state.to_owned() }
    }

    #[zbus(property)]
    fn job(&self) -> (u32, OwnedObjectPath) {
        let mut fake = self.0.lock().unwrap();
        if fake.job > 0 {
            fake.job -= 1;
            if fake.job == 0 {
                fake.state = fake.ends;
                fake.started += 1_000_000;
            }
        }
        let id = if fake.job > 0 { 7 } else { 0 };
        (id, OwnedObjectPath::try_from("/").unwrap())
    }
}

/// A unit that is not installed.
struct AbsentUnit;

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl AbsentUnit {
    #[zbus(property)]
    fn active_state(&self) -> &str {
        "inactive"
    }
}

struct FakeService(Shared);

#[interface(name = "org.freedesktop.systemd1.Service")]
impl FakeService {
    #[zbus(property, name = "ExecMainStartTimestamp")]
    fn started(&self) -> u64 {
        self.0.lock().unwrap().started
    }
}

/// Serves connections until it is dropped.
fn serve(ends: &'static str) -> (tempfile::TempDir, Systemd, Shared) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus");
    let listener = UnixListener::bind(&socket).unwrap();
    let fake = Arc::new(Mutex::new(Fake {
        name: "k3s-agent.service",
        state: "active",
        started: 1_000_000,
        job: 0,
        ends,
        calls: Vec::new(),
    }));
    let shared = fake.clone();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            let builder = Builder::unix_stream(stream.into_std().unwrap())
                .server(Guid::generate())
                .p2p()
                .serve_at("/org/freedesktop/DBus", Bus)
                .serve_at("/org/freedesktop/systemd1", Manager(shared.clone()))
                .serve_at(ABSENT, AbsentUnit)
                .serve_at(PATH, FakeUnit(shared.clone()))
                .serve_at(PATH, FakeService(shared.clone()));
            open.push(builder.build().await);
        }
    });
    let units = &["k3s.service", "k3s-agent.service"];
    (directory, Systemd { socket, units }, fake)
}

#[tokio::test]
async fn state_is_that_of_the_unit_in_use() {
    let (_directory, systemd, fake) = serve("active");
    let started = Timestamp::from_second(1).unwrap();
    assert_eq!(systemd.state().await.unwrap(), UnitState { is_active: true, started });
    fake.lock().unwrap().state = "failed";
    assert_eq!(systemd.state().await.unwrap(), UnitState { is_active: false, started });
    fake.lock().unwrap().state = "inactive";
    let error = systemd.state().await.unwrap_err().to_string();
    assert_eq!(error, "systemd runs none of the units k3s.service, k3s-agent.service");
}

#[tokio::test]
async fn restart_waits_until_the_unit_is_active() {
    let (_directory, systemd, fake) = serve("active");
    systemd.restart(Restart::Systemd).await.unwrap();
    assert_eq!(systemd.state().await.unwrap().started, Timestamp::from_second(2).unwrap());
    systemd.restart(Restart::Reload).await.unwrap();
    let calls = ["RestartUnit k3s-agent.service replace", "ReloadUnit k3s-agent.service replace"];
    assert_eq!(fake.lock().unwrap().calls, calls);
}

#[tokio::test]
async fn failed_restart_names_unit_and_state() {
    for state in ["failed", "activating"] {
        let (_directory, systemd, _) = serve(state);
        let error = systemd.restart(Restart::Systemd).await.unwrap_err().to_string();
        assert_eq!(error, format!("k3s-agent.service is {state} after RestartUnit; see its log"));
    }
}

#[tokio::test]
async fn absent_socket_is_named() {
    let systemd = Systemd { socket: "/nonexistent/bus".into(), units: &["crio.service"] };
    let error = format!("{:#}", systemd.state().await.unwrap_err());
    assert!(error.starts_with("connecting to /nonexistent/bus: No such file"), "{error}");
}
