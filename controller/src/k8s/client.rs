//! The client for the API server. One layer limits the time until the response, counts each request, and records in `/readyz` whether
//! lists and watches succeed.

use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use http::{Method, Request, Response, StatusCode};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tower::layer::layer_fn;
use tower::timeout::error::Elapsed;
use tower::{BoxError, Service};

use super::error::{CRD_MISSING, REQUEST_TIMEOUT, root_cause};
use crate::health::Readiness;

/// Time limit for the head of the response to a list or watch: a large list takes long, and the body of a watch goes on for minutes.
const READ_RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit between two reads of a response. It is for lists: the server ends a watch within 290 s, and kube's watcher drops a
/// silent one after 295 s. Connections that are idle for longer are not reused.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
const API_SERVER: &str = "API server";

/// Counter of API requests, by verb, resource and outcome. It is shared by the client and the metrics of the process.
#[derive(Debug, Clone, Default)]
pub struct ApiRequests(Family<[(&'static str, String); 3], Counter>);

impl ApiRequests {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "sandboxhealth_api_requests",
            "Number of requests to the API server by verb, resource and outcome (ok, HTTP status code, timeout, or error for a failed connection)",
            self.0.clone(),
        );
    }

    /// Adds a series, for the table in the documentation.
    pub fn example(&self) {
        self.count(&Call { verb: "list", resource: "pods".to_owned() }, "ok");
    }

    fn count(&self, call: &Call, outcome: &str) {
        // A ratio of errors needs the successes from the start.
        for (outcome, requests) in [("ok", 0), (outcome, 1)] {
            let [verb, outcome] = [call.verb, outcome].map(str::to_owned);
            let labels = [("verb", verb), ("resource", call.resource.clone()), ("outcome", outcome)];
            self.0.get_or_create(&labels).inc_by(requests);
        }
    }
}

/// The client of a pod, or that of the kubeconfig in `KUBECONFIG`.
pub async fn client(readiness: Arc<Readiness>, requests: ApiRequests) -> anyhow::Result<Client> {
    let config = match std::env::var_os("KUBECONFIG") {
        Some(path) => from_kubeconfig(path.as_ref()).await?,
        None => Config::incluster().context("this is no pod, and KUBECONFIG is not set")?,
    };
    Ok(client_of(config, readiness, requests)?)
}

/// JSON only: parsing YAML makes the binary 0.26 MB larger, in the memory of each agent, and no pod needs it.
async fn from_kubeconfig(path: &Path) -> anyhow::Result<Config> {
    let text = fs::read(path).with_context(|| format!("reading the kubeconfig {}", path.display()))?;
    let kubeconfig: Kubeconfig = serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is no kubeconfig in JSON; kubectl config view --raw --flatten -o json writes one",
            path.display()
        )
    })?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

fn client_of(mut config: Config, readiness: Arc<Readiness>, requests: ApiRequests) -> kube::Result<Client> {
    config.read_timeout = Some(READ_TIMEOUT);
    // Callers have their own backoff; the client's own retries take minutes and log nothing.
    config.default_retry = false;
    type Transport<B> = tower::util::BoxService<Request<Body>, Response<B>, BoxError>;
    let observe = Observe { readiness, requests };
    Ok(ClientBuilder::<Transport<_>>::try_from(config)?
        .with_layer(&layer_fn(|inner| observe.around(inner)))
        .build())
}

/// What a request is about, read from its path, as client-go's metrics do it.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    verb: &'static str,
    /// With the subresource, as `sandboxhealths/status`.
    resource: String,
}

impl Call {
    /// Whether it is a list or a watch. One that fails is repeated until it succeeds: a failure that lasts hides changes.
    fn is_read(&self) -> bool {
        matches!(self.verb, "list" | "watch")
    }

    fn of(request: &Request<Body>) -> Self {
        let mut parts = request.uri().path().split('/').filter(|part| !part.is_empty());
        // /api/v1/… or /apis/<group>/<version>/…
        let prefix = if parts.next() == Some("api") { 1 } else { 2 };
        let mut parts: Vec<_> = parts.skip(prefix).collect();
        if parts.first() == Some(&"namespaces") && parts.len() > 2 {
            parts.drain(..2);
        }
        let resource = match parts[..] {
            [resource, _, subresource] => format!("{resource}/{subresource}"),
            [resource, ..] => resource.to_owned(),
            [] => String::new(),
        };
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let verb = match *request.method() {
            Method::GET if is_watch => "watch",
            Method::GET if parts.len() == 1 => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "other",
        };
        Self { verb, resource }
    }
}

#[derive(Clone, Default)]
pub(crate) struct Observe {
    readiness: Arc<Readiness>,
    requests: ApiRequests,
}

impl Observe {
    pub(crate) fn around<S>(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: self.clone() }
    }

    fn record<B>(&self, call: &Call, result: &Result<Response<B>, BoxError>) {
        let Self { readiness, requests } = self;
        let status = match result {
            Ok(response) => response.status(),
            Err(error) => {
                let is_timeout = error.is::<Elapsed>();
                requests.count(call, if is_timeout { "timeout" } else { "error" });
                // The webhooks of one namespace may be why a single write takes long.
                if !is_timeout || call.is_read() {
                    readiness.pending(API_SERVER, format!("no response: {}", root_cause(error.as_ref())));
                }
                return;
            }
        };
        requests.count(call, if status.is_success() { "ok" } else { status.as_str() });
        readiness.done(API_SERVER);
        if !call.is_read() {
            return;
        }
        if status.is_success() {
            readiness.read_succeeded(&call.resource);
        } else if status == StatusCode::NOT_FOUND && call.resource == "sandboxhealths" {
            readiness.read_failed(&call.resource, CRD_MISSING);
        } else {
            readiness.read_failed(&call.resource, &format!("cannot {} it: {status}", call.verb));
        }
    }
}

pub(crate) struct Observed<S> {
    inner: S,
    observe: Observe,
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (call, observe) = (Call::of(&request), self.observe.clone());
        let limit = if call.is_read() { READ_RESPONSE_TIMEOUT } else { REQUEST_TIMEOUT };
        let response = tokio::time::timeout(limit, self.inner.call(request));
        Box::pin(async move {
            let result = response.await.unwrap_or_else(|_| Err(Elapsed::new().into()));
            observe.record(&call, &result);
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use tower::ServiceExt as _;

    fn call(method: Method, uri: &str) -> (&'static str, String) {
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        let Call { verb, resource } = Call::of(&request);
        (verb, resource)
    }

    #[tokio::test]
    async fn kubeconfig_is_read_as_json_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        fs::write(&path, "apiVersion: v1\nkind: Config\n").unwrap();
        let error = format!("{:#}", from_kubeconfig(&path).await.unwrap_err());
        assert!(error.contains("kubectl config view --raw --flatten -o json"), "{error}");
        let text = serde_json::json!({
            "clusters": [{"name": "c", "cluster": {"server": "https://api.example:6443"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        });
        fs::write(&path, text.to_string()).unwrap();
        assert_eq!(from_kubeconfig(&path).await.unwrap().cluster_url.host(), Some("api.example"));
    }

    #[test]
    fn request_is_counted_by_verb_and_resource() {
        let objects = "/apis/sandboxhealth.dev/v1alpha1/namespaces/shop/sandboxhealths";
        for (method, uri, verb, resource) in [
            (Method::GET, "/api/v1/pods?&limit=100", "list", "pods"),
            (Method::GET, "/api/v1/nodes?&watch=true&timeoutSeconds=290", "watch", "nodes"),
            (Method::GET, "/api/v1/namespaces/shop/pods/web", "get", "pods"),
            (Method::POST, "/apis/events.k8s.io/v1/namespaces/shop/events?", "create", "events"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/ops/leases/l?", "update", "leases"),
            (Method::PATCH, &format!("{objects}/web/status?&force=true"), "patch", "sandboxhealths/status"),
            (Method::DELETE, &format!("{objects}/web?"), "delete", "sandboxhealths"),
        ] {
            assert_eq!(call(method, uri), (verb, resource.to_owned()), "{uri}");
        }
    }

    async fn respond(observe: &Observe, uri: &str, code: u16) {
        let server = tower::service_fn(move |_: Request<Body>| async move {
            Ok::<_, BoxError>(Response::builder().status(code).body(()).unwrap())
        });
        let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
        observe.around(server).oneshot(request).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn watch_that_keeps_failing_makes_process_unready_until_it_succeeds() {
        let readiness = Arc::new(Readiness::default());
        let mut registry = Registry::default();
        let requests = ApiRequests::default();
        requests.register(&mut registry);
        let observe = Observe { readiness: readiness.clone(), requests };
        let watch = "/api/v1/pods?&watch=true";
        for code in [401, 429, 500, 403] {
            respond(&observe, watch, code).await;
            assert_eq!(readiness.reasons(), "", "a single failure of {code} is no reason");
            tokio::time::sleep(Duration::from_secs(200)).await;
            respond(&observe, watch, code).await;
            let reasons = readiness.reasons();
            assert!(reasons.starts_with("pods: ") && reasons.contains(&code.to_string()), "{reasons}");
            respond(&observe, watch, 200).await;
            assert_eq!(readiness.reasons(), "");
        }
        let text = crate::telemetry::text(&registry).unwrap();
        let line = "sandboxhealth_api_requests_total{verb=\"watch\",resource=\"pods\",outcome=\"401\"} 2";
        assert!(text.contains(line), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn request_without_response_times_out_and_is_counted() {
        let mut registry = Registry::default();
        let requests = ApiRequests::default();
        requests.register(&mut registry);
        let observe = Observe { readiness: Arc::default(), requests };
        for (uri, limit) in [("/api/v1/namespaces/shop/pods/web", 10), ("/api/v1/pods", 30)] {
            let server = tower::service_fn(|_: Request<Body>| {
                std::future::pending::<Result<Response<()>, BoxError>>()
            });
            let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
            let start = tokio::time::Instant::now();
            let error = observe.around(server).oneshot(request).await.unwrap_err();
            assert_eq!((error.is::<Elapsed>(), start.elapsed().as_secs()), (true, limit), "{uri}");
            assert_eq!(observe.readiness.reasons().is_empty(), limit == 10, "a single write may be slow");
        }
        let text = crate::telemetry::text(&registry).unwrap();
        for verb in ["get", "list"] {
            let line = format!("{{verb=\"{verb}\",resource=\"pods\",outcome=\"timeout\"}} 1");
            assert!(text.contains(&line), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_never_responds_is_not_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let readiness = Arc::new(Readiness::default());
        // No certificates are looked for on the machine.
        let mut config = Config::new(url);
        config.root_cert = Some(Vec::new());
        let client = client_of(config, readiness.clone(), ApiRequests::default()).unwrap();
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::all(client);
        let mut events =
            std::pin::pin!(kube::runtime::watcher(pods, kube::runtime::watcher::Config::default()));
        let started_at = tokio::time::Instant::now();
        while tokio::time::timeout(Duration::from_secs(3600), events.next()).await.unwrap().unwrap().is_ok() {
        }
        assert!(started_at.elapsed() <= READ_RESPONSE_TIMEOUT + Duration::from_secs(1));
        assert!(readiness.reasons().starts_with(API_SERVER), "{}", readiness.reasons());
    }
}
