//! Errors of API requests, by what the caller has to do about them. The reason or code that the API server sets decides; its
//! English text is matched only where it sets neither.

use std::time::Duration;

use kube::core::Status;
use tower::timeout::error::Elapsed;

use crate::health::Readiness;

/// Time limit for the head of the response to a request that is neither a list nor a watch.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("not found: {}", brief(.0))]
    NotFound(#[source] kube::Error),
    /// The object exists already, belongs to another pod, or was changed in between.
    #[error("conflict: {}", brief(.0))]
    Conflict(#[source] kube::Error),
    /// The namespace is being deleted: nothing can be created in it.
    #[error("namespace is terminating: {}", brief(.0))]
    NamespaceTerminating(#[source] kube::Error),
    /// The CRD in the cluster is older than this program and lacks fields that it writes.
    #[error("CRD is outdated: {}", brief(.0))]
    SchemaOutdated(#[source] kube::Error),
    #[error("no response within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
    #[error("{}", brief(.0))]
    Other(#[source] kube::Error),
}

impl ApiError {
    /// Whether the server may have done what was requested although the request failed.
    pub fn may_have_been_done(&self) -> bool {
        match self {
            Self::TimedOut => true,
            // The server failed in the midst of it, or gave up waiting for etcd. Other codes are sent before anything is written.
            Self::Other(kube::Error::Api(status)) => matches!(status.code, 500 | 504),
            Self::Other(_) => true,
            Self::NotFound(_)
            | Self::Conflict(_)
            | Self::NamespaceTerminating(_)
            | Self::SchemaOutdated(_) => false,
        }
    }

    /// Whether a repetition of the same request would be refused as well: the server read and rejected it.
    pub fn is_final(&self) -> bool {
        match self {
            Self::NotFound(_) | Self::NamespaceTerminating(_) => true,
            Self::Other(kube::Error::Api(status)) => {
                (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 429)
            }
            Self::Conflict(_) | Self::SchemaOutdated(_) | Self::TimedOut | Self::Other(_) => false,
        }
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        let status = match &error {
            kube::Error::Api(status) => status,
            kube::Error::Service(cause) if cause.is::<Elapsed>() => return Self::TimedOut,
            _ => return Self::Other(error),
        };
        match status.code {
            // For an unknown group the server sends a page of plain text, of which kube keeps the code only.
            404 => Self::NotFound(error),
            409 => Self::Conflict(error),
            // The text is that of the rule in the CRD.
            422 if status.message.contains(OTHER_POD) => Self::Conflict(error),
            403 if has_cause(status, "NamespaceTerminating") => Self::NamespaceTerminating(error),
            _ if is_schema_outdated(status) => Self::SchemaOutdated(error),
            _ => Self::Other(error),
        }
    }
}

/// How the CRD's rule refuses a status of another pod than that of the object (a status write is not checked against a UID otherwise).
const OTHER_POD: &str = "status belongs to another pod";

/// Message if the server does not have the CRD.
pub(crate) const CRD_MISSING: &str =
    "the CRD sandboxhealths.sandboxhealth.dev is not installed; install the chart with crds.enabled=true";

/// Message if the server has an older version of the CRD.
const CRD_OUTDATED: &str = "the CRD sandboxhealths.sandboxhealth.dev is older than this program; upgrade the chart with \
     crds.enabled=true, or apply the output of `sandbox-health crd`";

const SCHEMA: &str = "CRD";
const WRITES: &str = "writes";

/// Records in `readiness` whether writes work. An admission policy that refuses a single object shows nothing about others.
pub(crate) fn record_write<T>(readiness: &Readiness, result: &Result<T, ApiError>) {
    match result {
        Ok(_) => reset_writes(readiness),
        Err(ApiError::SchemaOutdated(_)) => readiness.pending(SCHEMA, CRD_OUTDATED),
        Err(ApiError::Other(kube::Error::Api(status))) if lacks_permission(status) => {
            readiness.pending(WRITES, format!("the API server refuses them: {}", one_line(status)));
        }
        Err(_) => {}
    }
}

/// No write is known to be refused.
pub(crate) fn reset_writes(readiness: &Readiness) {
    readiness.done(SCHEMA);
    readiness.done(WRITES);
}

fn has_cause(status: &Status, reason: &str) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == reason)
}

/// An unknown enum value has a cause of its own. For a field that the schema lacks, server-side apply answers with code 500 and
/// text alone (structured-merge-diff, typed/validate.go).
fn is_schema_outdated(status: &Status) -> bool {
    status.message.contains("field not declared in schema")
        || (status.code == 422 && has_cause(status, "FieldValueNotSupported"))
}

/// Whether RBAC forbids the request. An admission plugin answers with the same reason and code; only the text of the authorizer
/// (apiserver, responsewriters.forbiddenMessage) differs.
fn lacks_permission(status: &Status) -> bool {
    status.code == 403 && status.message.contains("\" cannot ")
}

/// An error in one line. The display of kube's API error has the whole response.
fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => one_line(status),
        other => root_cause(other),
    }
}

fn one_line(status: &Status) -> String {
    format!("{} ({} {})", status.message, status.code, status.reason)
}

/// The innermost error: the outer ones of a failed connection say "client error" and no more.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(code: u16, reason: &str, message: &str, cause: &str) -> ApiError {
        let status: Status = serde_json::from_value(json!({
            "status": "Failure", "message": message, "reason": reason, "code": code,
            "details": {"causes": [{"reason": cause, "message": "m"}]},
        }))
        .unwrap();
        ApiError::from(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn server_error_is_shown_in_one_line() {
        let error = error(429, "TooManyRequests", "storage is (re)initializing", "");
        assert_eq!(error.to_string(), "storage is (re)initializing (429 TooManyRequests)");
    }

    #[test]
    fn error_is_classified_by_reason_and_code() {
        let undeclared =
            "failed to create typed patch object: .status.restartsAtLeast: field not declared in schema";
        for (code, message, cause, variant) in [
            (404, "404 page not found\n", "", "NotFound"),
            (409, "", "", "Conflict"),
            (422, "is invalid: status belongs to another pod: status.podUID differs", "", "Conflict"),
            (403, "", "NamespaceTerminating", "NamespaceTerminating"),
            (403, "", "Quota", "Other"),
            (422, "", "FieldValueNotSupported", "SchemaOutdated"),
            (422, "", "FieldValueInvalid", "Other"),
            (500, undeclared, "", "SchemaOutdated"),
            (500, "etcdserver: request timed out", "", "Other"),
        ] {
            let error = format!("{:?}", error(code, "", message, cause));
            assert!(error.starts_with(&format!("{variant}(")), "{error}");
        }
    }

    #[test]
    fn crd_has_the_text_that_is_matched() {
        assert!(crate::crd_yaml().unwrap().contains(OTHER_POD));
    }

    #[test]
    fn refusal_is_final_and_overload_is_not() {
        for (code, cause, is_final) in [
            (400, "", true),
            (403, "", true),
            (403, "NamespaceTerminating", true),
            (404, "", true),
            (422, "", true),
            (401, "", false),
            (429, "", false),
            (500, "", false),
            (503, "", false),
        ] {
            assert_eq!(error(code, "", "", cause).is_final(), is_final, "{code} {cause}");
        }
        assert!(!ApiError::TimedOut.is_final());
    }

    #[test]
    fn refused_write_is_pending_until_one_succeeds() {
        let readiness = Readiness::default();
        let rbac = "\"web\" is forbidden: User \"agent\" cannot patch resource \"sandboxhealths/status\"";
        for (code, message, is_pending) in [
            (403, rbac, true),
            (403, "admission webhook \"frozen\" denied the request: nothing changes in shop", false),
            (422, "ValidatingAdmissionPolicy 'p' with binding 'p' denied request: another node's", false),
            (409, "the object has been modified", false),
            (503, "the server is shutting down", false),
        ] {
            record_write(&readiness, &Err::<(), _>(error(code, "", message, "")));
            assert_eq!(!readiness.reasons().is_empty(), is_pending, "{message}");
            record_write(&readiness, &Ok(()));
            assert!(readiness.reasons().is_empty());
        }
    }

    #[test]
    fn connection_error_is_shown_by_its_cause() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = ApiError::from(kube::Error::Service(Box::new(refused)));
        assert_eq!(error.to_string(), "connection refused");
    }
}
