//! What the process shows over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for the kubelet. It shows what the
//! parts tell it and asks nothing of them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::exposition;

/// Connections at a time. Prometheus and the kubelet need three.
const CONNECTIONS_MAX: usize = 32;
/// After a connection that could not be accepted, say for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// What keeps the process from doing its work, part by part. Each change is one line in the log.
#[derive(Debug, Default)]
pub struct Readiness {
    pending: Mutex<BTreeMap<&'static str, String>>,
}

impl Readiness {
    /// `part` has yet to begin, as it must at every start.
    pub fn expect(&self, part: &'static str) {
        self.lock().insert(part, "not there yet".to_owned());
    }

    /// `part` cannot go on, for this reason.
    pub fn pending(&self, part: &'static str, reason: impl Into<String>) {
        let reason = reason.into();
        let mut pending = self.lock();
        if pending.get(part) != Some(&reason) {
            tracing::warn!(part, reason, "waiting");
            pending.insert(part, reason);
        }
    }

    /// `part` goes on.
    pub fn done(&self, part: &'static str) {
        if self.lock().remove(part).is_some() {
            tracing::info!(part, "going on");
        }
    }

    /// What is waited for, a line a part; empty when all is well.
    #[must_use]
    pub fn reasons(&self) -> String {
        self.lock().iter().map(|(part, reason)| format!("{part}: {reason}\n")).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that can be shown in the text format of Prometheus.
pub trait Metrics: Send + Sync + 'static {
    /// All of it, as it is now.
    fn render(&self) -> Result<String, std::fmt::Error>;
}

struct Shown<M> {
    readiness: Arc<Readiness>,
    metrics: Arc<M>,
}

/// Listens there. `[::]` stands for all addresses of both families (ipv6(7), bindv6only), and for those of IPv4 where the kernel
/// has no IPv6: the address of a pod is of either.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) => match without_ipv6(address, &error) {
            Some(address) => TcpListener::bind(address).await,
            None => Err(error),
        },
        bound => bound,
    }
}

fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let is_everything = address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let is_unknown = error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32);
    (is_everything && is_unknown).then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

/// Serves until the process ends. Any pod can connect, and none may use up what the process needs: of too many connections the
/// oldest ends, so that the kubelet's probe, which is the newest for the moment that it takes, is always answered.
pub async fn serve<M: Metrics>(listener: TcpListener, readiness: Arc<Readiness>, metrics: Arc<M>) {
    let service = TowerToHyperService::new(routes(readiness, metrics));
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
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

fn routes<M: Metrics>(readiness: Arc<Readiness>, metrics: Arc<M>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz::<M>))
        .route("/metrics", get(show_metrics::<M>))
        .with_state(Arc::new(Shown { readiness, metrics }))
}

async fn readyz<M: Metrics>(State(shown): State<Arc<Shown<M>>>) -> Response {
    let reasons = shown.readiness.reasons();
    if reasons.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, reasons).into_response()
    }
}

async fn show_metrics<M: Metrics>(State(shown): State<Arc<Shown<M>>>) -> Response {
    match shown.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, exposition::TEXT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
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
    async fn everything_is_both_families() {
        let port = listen("[::]:0".parse().unwrap()).await.unwrap().local_addr().unwrap().port();
        let listener = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await.unwrap();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert!(peer.is_ipv6(), "it came through the socket of both: {peer}");
    }

    #[test]
    fn without_ipv6_everything_is_ipv4_and_nothing_else_is() {
        let unknown = io::Error::from_raw_os_error(Errno::EAFNOSUPPORT as i32);
        let taken = io::Error::from_raw_os_error(Errno::EADDRINUSE as i32);
        let everything: SocketAddr = "[::]:8080".parse().unwrap();
        assert_eq!(without_ipv6(everything, &unknown), Some("0.0.0.0:8080".parse().unwrap()));
        assert_eq!(without_ipv6(everything, &taken), None);
        assert_eq!(without_ipv6("[::1]:8080".parse().unwrap(), &unknown), None);
    }

    #[tokio::test]
    async fn connections_that_say_nothing_keep_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Arc::new(Readiness::default()), Arc::new(Fixed)));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX + 1 {
            silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        let mut byte = [0];
        let ended = silent[0].read(&mut byte).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "the oldest was ended: {ended:?}");
        let mut asking = tokio::net::TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let quick =
            tokio::time::timeout(Duration::from_millis(200), silent[CONNECTIONS_MAX].read(&mut byte)).await;
        assert!(quick.is_err(), "the youngest of them is still there");
        server.abort();
    }

    #[tokio::test]
    async fn readyz_is_503_with_the_reason_until_nothing_is_pending() {
        let readiness = Arc::new(Readiness::default());
        readiness.pending("pods", "not listed yet");
        let answer = ask(&readiness, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("pods: not listed yet\n"), "{answer}");
        assert!(
            ask(&readiness, "/healthz").await.starts_with("HTTP/1.1 200"),
            "waiting is no reason to be restarted"
        );
        readiness.done("pods");
        assert!(ask(&readiness, "/readyz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn metrics_are_shown_in_the_text_format_of_prometheus() {
        let answer = ask(&Arc::default(), "/metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.ends_with("up 1\n"), "{answer}");
    }
}
