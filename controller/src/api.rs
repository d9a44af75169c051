//! The way to the API server: a client that tells whether the server answers, and requests that end. What is asked of the
//! API is the callers' affair.

use std::sync::Arc;
use std::time::Duration;

use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::timeout::TimeoutLayer;
use tower::util::MapResultLayer;

use crate::serve::Readiness;

/// How long one request may take before it counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take to begin with its answer, also where that is a watch which then goes on for minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may be silent in the midst of an answer. It is for lists: the server ends a watch within 290 s, and of one
/// that it forgets kube's watcher lets go after 295 s. No connection that rests for longer is used again.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(300);
/// Name that the API server goes by in `/readyz`.
const API_SERVER: &str = "API server";

/// Why a request to the API failed, in the few ways that ask for different answers.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no such object.
    #[error("not found: {}", brief(.0))]
    NotFound(#[source] kube::Error),
    /// Something else is there, say another pod's object, or was meanwhile.
    #[error("conflict: {}", brief(.0))]
    Conflict(#[source] kube::Error),
    /// The namespace is being deleted, so that nothing new can be made in it.
    #[error("the namespace is being deleted: {}", brief(.0))]
    NamespaceEnding(#[source] kube::Error),
    /// The cluster's CRD lacks what this program writes: it's an older one.
    #[error("the CRD is older than this program: {}", brief(.0))]
    SchemaOutdated(#[source] kube::Error),
    /// The server did not answer in time.
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
    /// Anything else: asking again later may help.
    #[error("{}", brief(.0))]
    Other(#[source] kube::Error),
}

impl ApiError {
    /// A word for it, for metrics.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Conflict(_) => "conflict",
            Self::NamespaceEnding(_) => "namespace_ending",
            Self::SchemaOutdated(_) => "schema_outdated",
            Self::TimedOut => "timeout",
            Self::Other(_) => "error",
        }
    }

    /// Whether the server may have done what it was asked, though it did not say so.
    #[must_use]
    pub fn may_have_been_done(&self) -> bool {
        match self {
            Self::TimedOut => true,
            // It failed in the midst of it, or gave up waiting for its store. Others it refuses before it does anything.
            Self::Other(kube::Error::Api(status)) => matches!(status.code, 500 | 504),
            Self::Other(_) => true,
            Self::NotFound(_) | Self::Conflict(_) | Self::NamespaceEnding(_) | Self::SchemaOutdated(_) => {
                false
            }
        }
    }

    /// Every category there is, and the one for success in front.
    pub const RESULTS: [&'static str; 7] =
        ["ok", "not_found", "conflict", "namespace_ending", "schema_outdated", "timeout", "error"];
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match &error {
            _ if is_not_found(&error) => Self::NotFound(error),
            kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => {
                Self::Conflict(error)
            }
            kube::Error::Api(status) if status.code == 422 && status.message.contains(OTHER_POD) => {
                Self::Conflict(error)
            }
            kube::Error::Api(status) if is_namespace_ending(status) => Self::NamespaceEnding(error),
            kube::Error::Api(status) if is_schema_outdated(status) => Self::SchemaOutdated(error),
            _ => Self::Other(error),
        }
    }
}

/// Awaits a request, but not for ever.
pub async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ApiError::TimedOut),
    }
}

/// A client for the cluster that this process runs in (or that the kubeconfig names), whose every request tells
/// `readiness` whether the server answers.
pub async fn client(readiness: Arc<Readiness>) -> kube::Result<Client> {
    client_of(Config::infer().await.map_err(kube::Error::InferConfig)?, readiness)
}

fn client_of(mut config: Config, readiness: Arc<Readiness>) -> kube::Result<Client> {
    config.read_timeout = Some(SILENCE_TIMEOUT);
    // Whoever asks has its own way to ask again; the client's own way takes minutes and tells nobody.
    config.default_retry = false;
    let tell = MapResultLayer::new(move |answer: Result<http::Response<_>, tower::BoxError>| {
        match &answer {
            Ok(_) => readiness.done(API_SERVER),
            Err(error) => {
                readiness.pending(API_SERVER, format!("it does not answer: {}", root_cause(error.as_ref())))
            }
        }
        answer
    });
    Ok(ClientBuilder::<tower::util::BoxService<http::Request<Body>, _, tower::BoxError>>::try_from(config)?
        .with_layer(&TimeoutLayer::new(ANSWER_TIMEOUT))
        .with_layer(&tell)
        .build())
}

/// What the CRD says to a status of another pod than the object's. The UID of an object in a write of its status is not looked at.
const OTHER_POD: &str = "status is of another pod";

/// What is said where the server does not know our resource.
pub(crate) const CRD_MISSING: &str =
    "the CRD sandboxhealths.sandboxhealth.dev is not installed; install the chart with crds.enabled=true";

/// What is said where the server's schema of our resource is an older one.
pub(crate) const CRD_OUTDATED: &str = "the CRD sandboxhealths.sandboxhealth.dev is older than this program; update it: upgrade the \
     chart with crds.enabled=true, or apply what `sandbox-health crd` prints";

/// Name that the schema of our resource goes by in `/readyz`.
pub(crate) const SCHEMA: &str = "CRD";

/// Name that our writes go by in `/readyz`.
pub(crate) const WRITES: &str = "writes";

/// Tells `readiness`, by how a write ended, whether the server takes what we write: its schema may not know it, and a role may
/// not allow it. A policy that is against a single row is no reason to say nothing of the others.
pub(crate) fn write_told<T>(readiness: &Readiness, written: &Result<T, ApiError>) -> WriteTold {
    match written {
        Ok(_) => {
            writes_may_work(readiness);
            WriteTold::Taken
        }
        Err(ApiError::SchemaOutdated(_)) => {
            readiness.pending(SCHEMA, CRD_OUTDATED);
            WriteTold::NoneIsTaken
        }
        Err(ApiError::Other(error)) if lacks_right(error) => {
            readiness.pending(WRITES, format!("the API server refuses them: {}", brief(error)));
            WriteTold::NoneIsTaken
        }
        Err(_) => WriteTold::Nothing,
    }
}

/// What a write tells of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteTold {
    /// They are taken.
    Taken,
    /// None is.
    NoneIsTaken,
    /// Nothing.
    Nothing,
}

/// Nobody knows of a write that would not be taken.
pub(crate) fn writes_may_work(readiness: &Readiness) {
    readiness.done(SCHEMA);
    readiness.done(WRITES);
}

/// The server says so in the causes, next to a code that it has for every lack of rights.
fn is_namespace_ending(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// A field that the schema lacks is an internal error to server-side apply (a merge patch has it dropped in silence); a word
/// that an enumeration lacks makes the object invalid.
fn is_schema_outdated(status: &kube::core::Status) -> bool {
    status.message.contains("field not declared in schema")
        || (status.code == 422 && status.message.contains("Unsupported value"))
}

/// Whether the server does not let us.
pub(crate) fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// Whether that is for want of a right. The words are those of the authorizer; a policy, which may be against this one object,
/// has others.
fn lacks_right(error: &kube::Error) -> bool {
    is_forbidden(error) && matches!(error, kube::Error::Api(status) if status.message.contains("\" cannot "))
}

/// Whether there is no such object, or no such resource. For a group that it doesn't know the server answers with a page of
/// plain text, of which kube keeps no more than the code.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// An error in a line. What kube says of an answer holds the whole answer.
pub(crate) fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message, status.code, status.reason),
        other => root_cause(other),
    }
}

/// The innermost error: the outer ones of a failed connection say "client error" and no more.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use kube::core::Status;

    #[test]
    fn an_answer_of_the_server_is_told_in_a_line() {
        let status = Status::failure("storage is (re)initializing", "TooManyRequests").with_code(429);
        let error = ApiError::from(kube::Error::Api(Box::new(status)));
        assert_eq!(error.to_string(), "storage is (re)initializing (429 TooManyRequests)");
        assert_eq!(error.category(), "error");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_a_connection_and_never_answers_is_not_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let readiness = Arc::new(Readiness::default());
        // No certificates are looked for on the machine.
        let mut config = Config::new(url);
        config.root_cert = Some(Vec::new());
        let client = client_of(config, readiness.clone()).unwrap();
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::all(client);
        let mut events =
            std::pin::pin!(kube::runtime::watcher(pods, kube::runtime::watcher::Config::default()));
        let asked_at = tokio::time::Instant::now();
        let mut failed = false;
        while !failed {
            failed = tokio::time::timeout(Duration::from_secs(3600), events.next())
                .await
                .unwrap()
                .unwrap()
                .is_err();
        }
        assert!(asked_at.elapsed() <= ANSWER_TIMEOUT + Duration::from_secs(1), "{:?}", asked_at.elapsed());
        let reasons = readiness.reasons();
        assert!(reasons.contains("API server: it does not answer"), "{reasons}");
    }

    #[test]
    fn an_unknown_group_is_not_found() {
        let page = Status::failure("404 page not found\n", "Failed to parse error data").with_code(404);
        assert_eq!(ApiError::from(kube::Error::Api(Box::new(page))).category(), "not_found");
    }

    #[test]
    fn a_field_that_the_schema_lacks_asks_for_a_newer_crd() {
        let undeclared = "failed to create typed patch object (shop/web; sandboxhealth.dev/v1alpha1, Kind=SandboxHealth): .status.restartsAtLeast: field not declared in schema";
        let unsupported = "SandboxHealth.sandboxhealth.dev \"web\" is invalid: status.source: Unsupported value: \"PodConditions\": supported values: \"PauseStatusFile\"";
        for (message, reason, code) in [(undeclared, "", 500), (unsupported, "Invalid", 422)] {
            let status = Status::failure(message, reason).with_code(code);
            assert_eq!(ApiError::from(kube::Error::Api(Box::new(status))).category(), "schema_outdated");
        }
        let other = Status::failure("etcdserver: request timed out", "InternalError").with_code(500);
        assert_eq!(ApiError::from(kube::Error::Api(Box::new(other))).category(), "error");
    }

    #[test]
    fn a_write_that_is_refused_is_told_until_one_is_taken() {
        let refused = |code, message: &str| {
            let status = Status::failure(message, "").with_code(code);
            Err::<(), _>(ApiError::from(kube::Error::Api(Box::new(status))))
        };
        let readiness = Readiness::default();
        for (code, message, told) in [
            (
                403,
                "\"web\" is forbidden: User \"agent\" cannot patch resource \"sandboxhealths/status\"",
                true,
            ),
            (403, "admission webhook \"frozen\" denied the request: nothing changes in shop", false),
            (422, "ValidatingAdmissionPolicy 'p' with binding 'p' denied request: another node's", false),
            (409, "the object has been modified", false),
            (503, "the server is shutting down", false),
        ] {
            write_told(&readiness, &refused(code, message));
            assert_eq!(readiness.reasons().contains(message), told, "{message}");
            write_told(&readiness, &Ok(()));
            assert!(readiness.reasons().is_empty());
        }
    }

    #[test]
    fn a_namespace_that_is_being_deleted_is_told_apart_from_a_lack_of_rights() {
        let forbidden = |cause: &str| {
            let status = serde_json::json!({
                "status": "Failure", "message": "forbidden", "reason": "Forbidden", "code": 403,
                "details": {"causes": [{"reason": cause, "message": "namespace shop is being terminated"}]},
            });
            let status: Status = serde_json::from_value(status).unwrap();
            ApiError::from(kube::Error::Api(Box::new(status))).category()
        };
        assert_eq!((forbidden("NamespaceTerminating"), forbidden("Quota")), ("namespace_ending", "error"));
    }

    #[test]
    fn an_unreachable_server_is_told_by_the_cause() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = ApiError::from(kube::Error::Service(Box::new(refused)));
        assert_eq!(error.to_string(), "connection refused");
    }
}
