//! A fake API server with a node's pods and their SandboxHealth objects, which counts its requests. Objects change only by the agent's
//! writes, which are stored without validation, so that the requests of an idle agent can be counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use futures::future::Either;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::api_objects::{self, VERSION};
use super::pods::Identity;

/// Interval between bookmarks of a watch; Kubernetes sends one about once a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Duration of a watch without a timeout.
const WATCH_FOR: Duration = Duration::from_secs(300);

/// Number of requests by verb and resource, such as `list pods`.
pub(in crate::measure) type Requests = BTreeMap<String, u64>;

pub(super) struct Api {
    pods: Vec<Value>,
    objects: Mutex<BTreeMap<String, Value>>,
    requests: Mutex<Requests>,
}

impl Api {
    pub(super) fn new(pods: &[Identity], node: &str) -> Self {
        let objects = pods.iter().map(|pod| (pod.name.clone(), api_objects::sandbox_health(pod, node)));
        Self {
            pods: pods.iter().map(|pod| api_objects::pod(pod, node)).collect(),
            objects: Mutex::new(objects.collect()),
            requests: Mutex::default(),
        }
    }

    pub(super) fn requests(&self) -> Requests {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Number of objects that an agent has written.
    pub(super) fn reported(&self) -> usize {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.values().filter(|object| !object["status"]["sandbox"].is_null()).count()
    }

    /// Serves for as long as this process lives.
    pub(super) fn serve(self: &Arc<Self>) -> Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?.to_string();
        let router = Router::new().fallback(answer).with_state(Arc::clone(self));
        std::thread::spawn(move || runtime.block_on(async { axum::serve(listener, router).await }));
        Ok(address)
    }

    fn count(&self, what: String) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    fn collection(&self, resource: &str) -> Vec<Value> {
        match resource {
            "pods" => self.pods.clone(),
            _ => self.objects.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect(),
        }
    }
}

/// The resource and object in a path.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    resource: &'a str,
    name: Option<&'a str>,
    subresource: Option<&'a str>,
}

impl<'a> Named<'a> {
    /// `/api/v1/…` or `/apis/<group>/<version>/…`, with or without `namespaces/<namespace>/`.
    fn of(path: &'a str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        let versions = if parts.next()? == "api" { 1 } else { 2 };
        let mut parts = parts.skip(versions).peekable();
        if parts.next_if_eq(&"namespaces").is_some() {
            parts.next()?;
        }
        Some(Self { resource: parts.next()?, name: parts.next(), subresource: parts.next() })
    }
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

async fn answer(State(api): State<Arc<Api>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let Some(named) = Named::of(uri.path()) else { return refused(StatusCode::NOT_FOUND) };
    let query = uri.query().unwrap_or_default();
    let watched = matches!(parameter(query, "watch"), Some("true" | "1"));
    let verb = match (&method, named.name) {
        (&Method::GET, None) if watched => "watch",
        (&Method::GET, None) => "list",
        (&Method::GET, Some(_)) => "get",
        (&Method::PATCH, _) => "patch",
        (&Method::POST, _) => "create",
        _ => "other",
    };
    let subresource = named.subresource.map(|name| format!("/{name}")).unwrap_or_default();
    api.count(format!("{verb} {}{subresource}", named.resource));
    match (verb, named.resource, named.name) {
        ("watch", "pods" | "sandboxhealths", _) => watch(&api, named.resource, query),
        ("list", "pods" | "sandboxhealths", _) => list(&api, named.resource, query),
        ("get", "sandboxhealths", Some(name)) => found(&api, name, |_| ()),
        ("patch", "sandboxhealths", Some(name)) => {
            let Ok(patch) = serde_json::from_slice::<Value>(&body) else {
                return refused(StatusCode::BAD_REQUEST);
            };
            found(&api, name, |object| merge(&mut object["status"], &patch["status"]))
        }
        _ => refused(StatusCode::NOT_FOUND),
    }
}

/// The patch has all fields of our field manager; those of others stay.
fn merge(status: &mut Value, patch: &Value) {
    for (field, value) in patch.as_object().into_iter().flatten() {
        status[field] = value.clone();
    }
}

fn found(api: &Api, name: &str, change: impl FnOnce(&mut Value)) -> Response {
    let mut objects = api.objects.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(object) = objects.get_mut(name) else { return refused(StatusCode::NOT_FOUND) };
    change(object);
    document(StatusCode::OK, object)
}

fn list(api: &Api, resource: &str, query: &str) -> Response {
    let (kind, version) = kind_of(resource);
    let (mut items, next) = page(api.collection(resource), query);
    for item in &mut items {
        // Items of a list have neither.
        if let Some(fields) = item.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
    }
    let list = json!({
        "kind": format!("{kind}List"), "apiVersion": version,
        "metadata": {"resourceVersion": VERSION, "continue": next}, "items": items,
    });
    document(StatusCode::OK, &list)
}

/// The page of a list that `limit` and `continue` select, and the token of the next page: its position, as a number.
fn page<T>(all: Vec<T>, query: &str) -> (Vec<T>, String) {
    let number = |name| parameter(query, name).and_then(|value| value.parse::<usize>().ok());
    let (from, limit) = (number("continue").unwrap_or_default(), number("limit").unwrap_or(usize::MAX));
    let next = from.saturating_add(limit);
    let more = if next < all.len() { next.to_string() } else { String::new() };
    (all.into_iter().skip(from).take(limit).collect(), more)
}

fn watch(api: &Api, resource: &str, query: &str) -> Response {
    let (kind, version) = kind_of(resource);
    let bookmark = |annotations: Value| {
        let metadata = json!({"resourceVersion": VERSION, "annotations": annotations});
        line(
            &json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": metadata}}),
        )
    };
    let mut first = vec![];
    if parameter(query, "sendInitialEvents") == Some("true") {
        first.extend(
            api.collection(resource).iter().map(|object| line(&json!({"type": "ADDED", "object": object}))),
        );
        first.push(bookmark(json!({"k8s.io/initial-events-end": "true"})));
    }
    let time = parameter(query, "timeoutSeconds").and_then(|seconds| seconds.parse().ok());
    let time = time.map_or(WATCH_FOR, Duration::from_secs);
    let later = match parameter(query, "allowWatchBookmarks") {
        Some("true") => {
            let bookmark = bookmark(json!({}));
            Either::Left(futures::stream::repeat(bookmark).then(async |bookmark| {
                sleep(BOOKMARK_EVERY).await;
                bookmark
            }))
        }
        _ => Either::Right(futures::stream::pending()),
    };
    let events = futures::stream::iter(first).chain(later).map(Ok::<_, std::io::Error>);
    let body = Body::from_stream(events.take_until(Box::pin(sleep(time))));
    ([("content-type", "application/json")], body).into_response()
}

fn kind_of(resource: &str) -> (&'static str, &'static str) {
    if resource == "pods" { ("Pod", "v1") } else { ("SandboxHealth", api_objects::API_VERSION) }
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn document(status: StatusCode, value: &Value) -> Response {
    (status, [("content-type", "application/json")], value.to_string()).into_response()
}

fn refused(code: StatusCode) -> Response {
    let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "BadRequest" };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "not served here", "reason": reason, "code": code.as_u16(),
    });
    document(code, &status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_path_is_parsed() {
        let named = |path| Named::of(path).map(|named| (named.resource, named.name, named.subresource));
        assert_eq!(named("/api/v1/pods"), Some(("pods", None, None)));
        let collection = "/apis/sandboxhealth.dev/v1alpha1/sandboxhealths";
        assert_eq!(named(collection), Some(("sandboxhealths", None, None)));
        let status = "/apis/sandboxhealth.dev/v1alpha1/namespaces/default/sandboxhealths/web/status";
        assert_eq!(named(status), Some(("sandboxhealths", Some("web"), Some("status"))));
        assert_eq!(named("/version"), None);
    }

    #[test]
    fn list_is_served_in_pages() {
        let pages = |query| page((0..5).collect(), query);
        assert_eq!(pages("fieldSelector=x"), (vec![0, 1, 2, 3, 4], String::new()));
        assert_eq!(pages("limit=2"), (vec![0, 1], "2".to_owned()));
        assert_eq!(pages("limit=2&continue=2"), (vec![2, 3], "4".to_owned()));
        assert_eq!(pages("limit=2&continue=4"), (vec![4], String::new()));
        assert_eq!(pages("limit=5"), (vec![0, 1, 2, 3, 4], String::new()));
    }

    #[test]
    fn fields_of_other_managers_are_kept() {
        let mut status = json!({"conditions": [1], "restarts": 0});
        merge(&mut status, &json!({"restarts": 2, "sandbox": {}}));
        assert_eq!(status, json!({"conditions": [1], "restarts": 2, "sandbox": {}}));
    }
}
