//! A mocked API server for unit tests: it answers every request, and keeps each request with its time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::k8s::client::Observe;

/// The answer to a request.
pub(crate) enum Answer {
    /// A failure.
    Refused(StatusCode),
    /// A failure with this code and `Status`.
    RefusedWith(StatusCode, Value),
    /// The connection breaks.
    Broken,
    /// Success, with this object.
    Object(Value),
    /// Success, with this object, after this delay.
    Late(Duration, Value),
    /// No response, ever.
    Silence,
}

/// A request as the server received it.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) at: Instant,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Value,
}

/// A client with the time limits of the real one, for a server that answers each request by this function; and the requests so far.
pub(crate) fn answering(
    answer: impl Fn(&Received) -> Answer + Send + Sync + 'static,
) -> (Client, Arc<Mutex<Vec<Received>>>) {
    let (received, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
    let all = received.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (all, answer) = (all.clone(), answer.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
            let request =
                Received { at: Instant::now(), method: head.method, path: head.uri.to_string(), body };
            let answer = answer(&request);
            all.lock().unwrap().push(request);
            match answer {
                Answer::Refused(code) => Ok(response(code, &refusal(code))),
                Answer::RefusedWith(code, status) => Ok(response(code, &status)),
                Answer::Object(object) => Ok(response(StatusCode::OK, &object)),
                Answer::Late(delay, object) => {
                    tokio::time::sleep(delay).await;
                    Ok(response(StatusCode::OK, &object))
                }
                Answer::Broken => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
                Answer::Silence => std::future::pending::<Result<_, tower::BoxError>>().await,
            }
        }
    });
    (Client::new(Observe::default().around(service), "default"), received)
}

fn refusal(code: StatusCode) -> Value {
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": reason, "code": code.as_u16()})
}

fn response(code: StatusCode, body: &Value) -> Response<Body> {
    Response::builder().status(code).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}
