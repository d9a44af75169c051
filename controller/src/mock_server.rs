//! API servers for unit tests: one expects requests in a given order, answers each as it is told to, and hands back the bodies;
//! the other answers whatever comes, and keeps it with the moment.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower_test::mock;

/// Where the requests for the pod `web` in the namespace `shop` go, and what belongs to it.
pub(crate) const POD: &str = "/api/v1/namespaces/shop/pods/web";
pub(crate) const CREATE: &str =
    "/apis/sandboxhealth.dev/v1alpha1/namespaces/shop/sandboxhealths?&fieldManager=sandbox-controller";
pub(crate) const DELETE: &str = "/apis/sandboxhealth.dev/v1alpha1/namespaces/shop/sandboxhealths/web?";
pub(crate) const STATUS: &str = "/apis/sandboxhealth.dev/v1alpha1/namespaces/shop/sandboxhealths/web/status?&force=true&fieldManager=sandbox-controller";
pub(crate) const REPORT: &str = "/apis/sandboxhealth.dev/v1alpha1/namespaces/shop/sandboxhealths/web/status?&force=true&fieldManager=sandbox-agent";
pub(crate) const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/shop/events?";

/// What the server answers to a request.
pub(crate) enum Answer {
    /// A failure.
    Refused(StatusCode),
    /// A failure that is told in more words: a `Status` with this code.
    RefusedWith(StatusCode, Value),
    /// The connection breaks.
    Broken,
    /// Success, with this object.
    Object(Value),
    /// Nothing, for as long as anybody waits.
    Silence,
}

/// A request that is expected, and the answer to it.
pub(crate) type Exchange = (Method, &'static str, Answer);

/// A client of a server that expects exactly these requests. What the server got is had by awaiting it once the client is
/// gone; a request too many is then a failed test, as is one too few.
pub(crate) fn server(script: impl IntoIterator<Item = Exchange>) -> (Client, JoinHandle<Vec<Value>>) {
    let script: Vec<_> = script.into_iter().collect();
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let client = Client::new(service, "default");
    let served = tokio::spawn(async move {
        let mut bodies = Vec::new();
        for (method, path, answer) in script {
            let (request, respond) = handle.next_request().await.expect("a request is missing");
            assert_eq!((request.method(), request.uri().to_string().as_str()), (&method, path));
            let body = request.into_body().collect_bytes().await.unwrap();
            bodies.push(serde_json::from_slice(&body).unwrap_or_default());
            match answer {
                Answer::Refused(code) => respond.send_response(response(code, &refusal(code))),
                Answer::RefusedWith(code, status) => respond.send_response(response(code, &status)),
                Answer::Broken => {
                    respond.send_error(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
                }
                Answer::Object(object) => respond.send_response(response(StatusCode::OK, &object)),
                Answer::Silence => {
                    // Kept, since to drop it is an answer too; meanwhile others may ask.
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(3600)).await;
                        drop(respond);
                    });
                }
            }
        }
        if let Some((request, _)) = handle.next_request().await {
            panic!("nobody expected {} {}", request.method(), request.uri());
        }
        bodies
    });
    (client, served)
}

/// A request as the server got it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Value,
}

/// A client of a server that answers each request as it is told to when it comes, and what it was asked so far.
pub(crate) fn answering(
    answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> (Client, Arc<Mutex<Vec<Asked>>>) {
    let (asked, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
    let all = asked.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (all, answer) = (all.clone(), answer.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
            let request = Asked { at: Instant::now(), method: head.method, path: head.uri.to_string(), body };
            let answer = answer(&request);
            all.lock().unwrap().push(request);
            match answer {
                Answer::Refused(code) => Ok(response(code, &refusal(code))),
                Answer::RefusedWith(code, status) => Ok(response(code, &status)),
                Answer::Object(object) => Ok(response(StatusCode::OK, &object)),
                Answer::Broken => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
                Answer::Silence => std::future::pending::<Result<_, tower::BoxError>>().await,
            }
        }
    });
    (Client::new(service, "default"), asked)
}

fn refusal(code: StatusCode) -> Value {
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": reason, "code": code.as_u16()})
}

fn response(code: StatusCode, body: &Value) -> Response<Body> {
    Response::builder().status(code).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}
