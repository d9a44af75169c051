//! The HTTP endpoints: `/healthz` and `/readyz` for the kubelet, `/metrics` for Prometheus. Other parts report to
//! [`Readiness`], which never polls them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::telemetry;
pub use crate::telemetry::Metrics;

/// Limit of open connections. Prometheus and the kubelet need three.
const CONNECTIONS_MAX: usize = 32;
/// Wait after a failed accept, say for lack of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// Time after which failing lists and watches make the process unready. A rollout of the API server takes less.
const READ_GRACE: Duration = Duration::from_secs(120);
/// Reason of a part that has never been ready.
const NOT_SYNCED: &str = "not synced yet";

/// Why the process cannot do its work, part by part. Each change is one line in the log.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<BTreeMap<String, Problem>>);

#[derive(Debug)]
struct Problem {
    reason: String,
    since: Instant,
    /// How long the process stays ready despite the failure.
    grace: Duration,
}

impl Readiness {
    /// `part` is not ready until it is `done`.
    pub fn expect(&self, part: &str) {
        let problem = Problem { reason: NOT_SYNCED.to_owned(), since: Instant::now(), grace: Duration::ZERO };
        self.lock().insert(part.to_owned(), problem);
    }

    pub fn pending(&self, part: &str, reason: impl AsRef<str>) {
        self.set(part, reason.as_ref(), Duration::ZERO);
    }

    pub fn done(&self, part: &str) {
        if self.lock().remove(part).is_some() {
            tracing::info!(part, "ready");
        }
    }

    /// A list or watch of this resource failed. Its watch retries it; only before the first sync is the process unready at once.
    pub fn read_failed(&self, resource: &str, reason: &str) {
        self.set(resource, reason, READ_GRACE);
    }

    /// A list or watch of this resource succeeded, which may be the first page of many.
    pub fn read_succeeded(&self, resource: &str) {
        let grace = self.lock().get(resource).map(|problem| problem.grace);
        match grace {
            Some(Duration::ZERO) => self.set(resource, NOT_SYNCED, Duration::ZERO),
            Some(_) => self.done(resource),
            None => {}
        }
    }

    /// Why the process is not ready, one line for each part; empty when it is ready.
    pub fn reasons(&self) -> String {
        let problems = self.lock();
        let lasting = problems.iter().filter(|(_, problem)| problem.since.elapsed() >= problem.grace);
        lasting.map(|(part, Problem { reason, .. })| format!("{part}: {reason}\n")).collect()
    }

    fn set(&self, part: &str, reason: &str, grace: Duration) {
        let mut problems = self.lock();
        let before = problems.get(part);
        if before.is_none_or(|before| before.reason != reason) {
            tracing::warn!(part, reason, "not ready");
            let (since, grace) =
                before.map_or((Instant::now(), grace), |before| (before.since, before.grace));
            problems.insert(part.to_owned(), Problem { reason: reason.to_owned(), since, grace });
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Problem>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens at the address. `[::]` means all addresses of both families (ipv6(7), bindv6only), and those of IPv4 where the kernel has
/// no IPv6: the address of a pod is of either family.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    match bound.as_ref().err().and_then(|error| without_ipv6(address, error)) {
        Some(address) => TcpListener::bind(address).await,
        None => bound,
    }
}

fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let is_unspecified = address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let is_unknown = error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32);
    (is_unspecified && is_unknown).then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

/// Serves until the process ends. Any pod can connect, and none may use up descriptors: above the limit the oldest connection is
/// closed, so that the kubelet's probe, the newest while it lasts, is always answered. Prometheus reconnects if it was the oldest.
pub async fn serve(listener: TcpListener, readiness: Arc<Readiness>, metrics: Arc<dyn Metrics>) {
    let service = TowerToHyperService::new(routes(readiness, metrics));
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
        open.push_back(tokio::spawn(connection).abort_handle());
    }
}

fn routes(readiness: Arc<Readiness>, metrics: Arc<dyn Metrics>) -> Router {
    let ready = async move || match readiness.reasons() {
        reasons if reasons.is_empty() => "ok\n".into_response(),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, reasons).into_response(),
    };
    let render = async move || match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, telemetry::TEXT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(render))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    struct Fixed;

    impl Metrics for Fixed {
        fn render(&self) -> Result<String, std::fmt::Error> {
            Ok("up 1\n".to_owned())
        }
    }

    async fn ask(readiness: &Arc<Readiness>, path: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, readiness.clone(), Arc::new(Fixed)));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    #[tokio::test]
    async fn unspecified_address_accepts_both_families() {
        let port = listen("[::]:0".parse().unwrap()).await.unwrap().local_addr().unwrap().port();
        let listener = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await.unwrap();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert!(peer.is_ipv6(), "{peer}");
    }

    #[test]
    fn unspecified_address_falls_back_to_ipv4() {
        let unknown = io::Error::from_raw_os_error(Errno::EAFNOSUPPORT as i32);
        let taken = io::Error::from_raw_os_error(Errno::EADDRINUSE as i32);
        let everything: SocketAddr = "[::]:8080".parse().unwrap();
        assert_eq!(without_ipv6(everything, &unknown), Some("0.0.0.0:8080".parse().unwrap()));
        assert_eq!(without_ipv6(everything, &taken), None);
        assert_eq!(without_ipv6("[::1]:8080".parse().unwrap(), &unknown), None);
    }

    #[tokio::test]
    async fn idle_connections_do_not_block_probes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Arc::new(Readiness::default()), Arc::new(Fixed)));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX + 1 {
            silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        let mut byte = [0];
        let ended = silent[0].read(&mut byte).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "the oldest was closed: {ended:?}");
        let mut asking = tokio::net::TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let quick =
            tokio::time::timeout(Duration::from_millis(200), silent[CONNECTIONS_MAX].read(&mut byte)).await;
        assert!(quick.is_err(), "the newest is still open");
        server.abort();
    }

    #[tokio::test]
    async fn readyz_is_503_until_nothing_is_pending() {
        let readiness = Arc::new(Readiness::default());
        readiness.pending("pods", "not listed yet");
        let answer = ask(&readiness, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("pods: not listed yet\n"), "{answer}");
        assert!(ask(&readiness, "/healthz").await.starts_with("HTTP/1.1 200"), "not a reason to restart");
        readiness.done("pods");
        assert!(ask(&readiness, "/readyz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test(start_paused = true)]
    async fn failing_watch_makes_unready_at_once_before_the_first_sync_and_later_when_it_lasts() {
        let readiness = Readiness::default();
        readiness.expect("pods");
        readiness.read_failed("pods", "403");
        assert_eq!(readiness.reasons(), "pods: 403\n");
        readiness.read_succeeded("pods");
        assert_eq!(readiness.reasons(), "pods: not synced yet\n", "a page is no list");
        readiness.done("pods");
        readiness.read_failed("pods", "500");
        tokio::time::advance(READ_GRACE - Duration::from_secs(1)).await;
        readiness.read_failed("pods", "403");
        assert_eq!(readiness.reasons(), "");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(readiness.reasons(), "pods: 403\n");
        readiness.read_succeeded("pods");
        assert_eq!(readiness.reasons(), "");
    }

    #[tokio::test]
    async fn metrics_have_the_content_type_of_the_text_format() {
        let answer = ask(&Arc::default(), "/metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.ends_with("up 1\n"), "{answer}");
    }
}
