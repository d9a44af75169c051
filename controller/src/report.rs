//! What was seen of a sandbox, and how it is written into the pod's row: by the agent of the node, and by the controller where there is
//! none. The field manager names this part of the row, whoever writes it: the next to write takes the place of the last.

use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};

use crate::api::{ApiError, bounded};
use crate::resource::{AGENT_FIELD_MANAGER, SandboxHealth, SandboxHealthStatus};

/// The row that is meant.
#[derive(Debug, Clone)]
pub struct Row {
    /// Namespace of the pod and of its row.
    pub namespace: String,
    /// Name of both.
    pub name: String,
    /// UID of the pod: to write into the row of another pod of the name is a conflict.
    pub pod_uid: String,
    /// Its resourceVersion, where any change since is a conflict, too.
    pub version: Option<String>,
}

/// Writes what was seen by server-side apply. That takes back only what the same field manager wrote: what somebody else added is
/// removed by a second request.
pub async fn write(client: Client, row: Row, status: SandboxHealthStatus) -> Result<(), ApiError> {
    let Row { namespace, name, pod_uid, version } = row;
    let status = status.seen();
    let of_pod = SandboxHealthStatus { pod_uid: Some(pod_uid.clone()), ..status.clone() };
    let objects: Api<SandboxHealth> = Api::namespaced(client, &namespace);
    let mut seen = json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1",
        "kind": "SandboxHealth",
        "metadata": {"name": name},
        "status": of_pod,
    });
    if version.is_some() {
        seen["metadata"]["resourceVersion"] = json!(version);
    }
    let params = PatchParams::apply(AGENT_FIELD_MANAGER).force();
    let has = bounded(objects.patch_status(&name, &params, &Patch::Apply(&seen))).await?;
    let next_version = version.and(has.metadata.resource_version);
    let has = has.status.unwrap_or_default().seen();
    if has == status {
        return Ok(());
    }
    let mut added = absences(&json!(has), &json!(status));
    if added.is_null() {
        return Ok(());
    }
    added["podUID"] = json!(pod_uid);
    let mut absent = json!({"status": added});
    if next_version.is_some() {
        absent["metadata"] = json!({"resourceVersion": next_version});
    }
    let params =
        PatchParams { field_manager: Some(AGENT_FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    bounded(objects.patch_status(&name, &params, &Patch::Merge(&absent))).await.map(drop)
}

/// A merge patch (RFC 7396) that removes the fields which an object has and should not have; null if there are none.
fn absences(has: &Value, wanted: &Value) -> Value {
    let (Value::Object(has), Value::Object(wanted)) = (has, wanted) else {
        return Value::Null;
    };
    let mut absent = Map::new();
    for (field, value) in has {
        match wanted.get(field) {
            None => _ = absent.insert(field.clone(), Value::Null),
            Some(wanted) => {
                let within = absences(value, wanted);
                if !within.is_null() {
                    absent.insert(field.clone(), within);
                }
            }
        }
    }
    if absent.is_empty() { Value::Null } else { Value::Object(absent) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock_server::{Answer, REPORT, server};
    use http::{Method, StatusCode};

    const REMOVED: &str = "/apis/sandboxhealth.dev/v1alpha1/namespaces/shop/sandboxhealths/web/status?&fieldManager=sandbox-agent";

    fn object(status: &Value) -> Value {
        json!({
            "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
            "metadata": {"name": "web", "namespace": "shop", "uid": "o-1"},
            "spec": {"podName": "web", "podUID": "u-1", "nodeName": "n"},
            "status": status,
        })
    }

    fn row(version: Option<&str>) -> Row {
        let [namespace, name, pod_uid] = ["shop", "web", "u-1"].map(str::to_owned);
        Row { namespace, name, pod_uid, version: version.map(str::to_owned) }
    }

    async fn written(client: Client) -> Result<(), ApiError> {
        let status = SandboxHealthStatus { restarts: 3, ..SandboxHealthStatus::default() };
        write(client, row(None), status).await
    }

    #[tokio::test]
    async fn what_was_seen_is_applied_with_the_pod_it_is_of() {
        let (client, served) =
            server([(Method::PATCH, REPORT, Answer::Object(object(&json!({"restarts": 3}))))]);
        written(client).await.unwrap();
        let [body] = &served.await.unwrap()[..] else { panic!("not one request") };
        assert_eq!(body["metadata"], json!({"name": "web"}));
        let seen = json!({"podUID": "u-1", "restarts": 3});
        assert_eq!(body["status"], seen, "the conditions are the controller's");
    }

    #[tokio::test]
    async fn what_somebody_else_added_is_removed() {
        let added = object(&json!({
            "restarts": 3, "restartsAtLeast": true, "announcedRestarts": 2,
            "sandbox": {"id": "a", "startedAt": "2027-01-15T08:00:00Z", "pauseVersion": "9"},
        }));
        let script = [
            (Method::PATCH, REPORT, Answer::Object(added.clone())),
            (Method::PATCH, REMOVED, Answer::Object(object(&json!({"restarts": 3})))),
        ];
        let (client, served) = server(script);
        let mut status = json!({"restarts": 3, "sandbox": added["status"]["sandbox"]});
        status["sandbox"].as_object_mut().unwrap().remove("pauseVersion");
        let status = serde_json::from_value(status).unwrap();
        write(client, row(None), status).await.unwrap();
        let removal = &served.await.unwrap()[1];
        assert_eq!(
            *removal,
            json!({"status": {"podUID": "u-1", "restartsAtLeast": null, "sandbox": {"pauseVersion": null}}}),
            "what is the controller's stays"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn each_failure_of_a_write_is_told_apart() {
        for (answer, category) in [
            (Answer::Refused(StatusCode::NOT_FOUND), "not_found"),
            (Answer::Refused(StatusCode::CONFLICT), "conflict"),
            (Answer::Refused(StatusCode::TOO_MANY_REQUESTS), "error"),
            (Answer::Refused(StatusCode::SERVICE_UNAVAILABLE), "error"),
            (Answer::Silence, "timeout"),
            (Answer::Broken, "error"),
        ] {
            let (client, _served) = server([(Method::PATCH, REPORT, answer)]);
            let error = written(client).await.unwrap_err();
            assert_eq!(error.category(), category, "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_been_written_is_told_from_what_was_not() {
        for (answer, may_have_been) in [
            (Answer::Refused(StatusCode::CONFLICT), false),
            (Answer::Refused(StatusCode::TOO_MANY_REQUESTS), false),
            (Answer::Refused(StatusCode::SERVICE_UNAVAILABLE), false),
            (Answer::Refused(StatusCode::INTERNAL_SERVER_ERROR), true),
            (Answer::Refused(StatusCode::GATEWAY_TIMEOUT), true),
            (Answer::Silence, true),
            (Answer::Broken, true),
        ] {
            let (client, _served) = server([(Method::PATCH, REPORT, answer)]);
            let error = written(client).await.unwrap_err();
            assert_eq!(error.may_have_been_done(), may_have_been, "{error}");
        }
    }

    #[tokio::test]
    async fn a_version_that_is_given_is_the_one_that_is_meant_by_both_requests() {
        let mut added = object(&json!({"restarts": 3, "restartsAtLeast": true}));
        added["metadata"]["resourceVersion"] = json!("8");
        let script = [
            (Method::PATCH, REPORT, Answer::Object(added)),
            (Method::PATCH, REMOVED, Answer::Refused(StatusCode::CONFLICT)),
        ];
        let (client, served) = server(script);
        let status = SandboxHealthStatus { restarts: 3, ..SandboxHealthStatus::default() };
        let error = write(client, row(Some("7")), status).await.unwrap_err();
        assert_eq!(error.category(), "conflict");
        let versions: Vec<_> =
            served.await.unwrap().iter().map(|sent| sent["metadata"]["resourceVersion"].clone()).collect();
        assert_eq!(versions, ["7", "8"]);
    }

    #[tokio::test]
    async fn the_row_of_another_pod_is_a_conflict() {
        let message = "SandboxHealth.sandboxhealth.dev \"web\" is invalid: <nil>: Invalid value: \"object\": status is of another pod: its podUID is not that of spec";
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "Invalid", "code": 422});
        let answer = Answer::RefusedWith(StatusCode::UNPROCESSABLE_ENTITY, status);
        let (client, _served) = server([(Method::PATCH, REPORT, answer)]);
        assert_eq!(written(client).await.unwrap_err().category(), "conflict");
    }
}
