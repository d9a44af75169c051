//! Reads of the API over `kubectl proxy` on a Unix socket: one process for all reads. A kubectl process per read costs a tenth of a second
//! of CPU, and tests mostly poll.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::guard;
use crate::host::retry;

const TIMEOUT: Duration = Duration::from_secs(60);
/// Status codes that are retried after a restart of the API server: its caches are not filled yet, and the first requests over the proxy's
/// old connection fail.
const RETRIED: [&str; 2] = ["429", "502"];
const ATTEMPTS: u32 = 10;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(500);

/// A running `kubectl proxy`. It exits when this value is dropped, or with its node.
#[derive(Debug)]
pub(super) struct ApiProxy {
    process: Child,
    socket: PathBuf,
}

impl ApiProxy {
    /// Starts it; `kubectl` runs inside of the node.
    pub(super) fn start(mut kubectl: Command, socket: PathBuf) -> Result<Self> {
        // kubectl does not replace a socket of an earlier proxy.
        let _ = std::fs::remove_file(&socket);
        let mut argument = std::ffi::OsString::from("--unix-socket=");
        argument.push(&socket);
        kubectl.arg("proxy").arg(argument);
        let process = kubectl
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting kubectl proxy")?;
        let proxy = Self { process, socket };
        retry::until("kubectl proxy listens", TIMEOUT, || Ok(UnixStream::connect(&proxy.socket)?))?;
        Ok(proxy)
    }

    /// The object or list at this path of the API.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        let mut attempt = 1;
        loop {
            let answer = request(&self.socket, path).with_context(|| format!("GET {path}"))?;
            let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
            let status = head.split(' ').nth(1).unwrap_or_default();
            if RETRIED.contains(&status) && attempt < ATTEMPTS {
                attempt += 1;
                thread::sleep(BETWEEN_ATTEMPTS);
                continue;
            }
            ensure!(status == "200", "GET {path}: {status}: {}", body.trim());
            return serde_json::from_str(body).with_context(|| format!("GET {path}"));
        }
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        guard::kill_inside(&mut self.process);
    }
}

/// HTTP/1.0: the answer ends with the connection and is not chunked.
fn request(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
