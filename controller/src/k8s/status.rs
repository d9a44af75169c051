//! The writes of SandboxHealth objects: their creation, and the two server-side applies of `status`, the agent's observations and the
//! controller's conditions. Each field manager owns its part: what one of them leaves out of its next apply is removed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde_json::{Value, json};

use super::error::ApiError;
use crate::crd::{AGENT_FIELD_MANAGER, CONTROLLER_FIELD_MANAGER, SandboxHealth, SandboxHealthStatus};

/// Creates the object of a pod. Another object of the name is a conflict.
pub async fn create(
    client: &Client,
    pod: &impl Resource,
    node: &str,
    manager: &str,
) -> Result<SandboxHealth, ApiError> {
    let [namespace, uid] = [pod.namespace(), pod.uid()].map(Option::unwrap_or_default);
    let object = SandboxHealth::of_pod(&namespace, &pod.name_any(), &uid, node);
    let params = PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() };
    Ok(objects(client, pod).create(&params, &object).await?)
}

/// Writes the agent's observations of a pod.
pub async fn write(
    client: &Client,
    pod: &impl Resource,
    status: SandboxHealthStatus,
) -> Result<(), ApiError> {
    apply(client, pod, AGENT_FIELD_MANAGER, json!(status.observation())).await.map(drop)
}

/// Writes the controller's conditions of a pod; returns the object that has them.
pub async fn write_conditions(
    client: &Client,
    pod: &impl Resource,
    conditions: &[Condition],
) -> Result<SandboxHealth, ApiError> {
    apply(client, pod, CONTROLLER_FIELD_MANAGER, json!({ "conditions": conditions })).await
}

/// A write to the object of another pod of the name is a conflict: the CRD compares the UIDs.
async fn apply(
    client: &Client,
    pod: &impl Resource,
    manager: &str,
    mut status: Value,
) -> Result<SandboxHealth, ApiError> {
    status["podUID"] = json!(pod.uid());
    let name = pod.name_any();
    let patch = json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1",
        "kind": "SandboxHealth",
        "metadata": {"name": name},
        "status": status,
    });
    let params = PatchParams::apply(manager).force();
    Ok(objects(client, pod).patch_status(&name, &params, &Patch::Apply(&patch)).await?)
}

fn objects(client: &Client, pod: &impl Resource) -> Api<SandboxHealth> {
    Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, answering};
    use http::StatusCode;
    use k8s_openapi::api::core::v1::Pod;

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "web", "uid": "u-1"}}))
            .unwrap()
    }

    fn condition() -> Condition {
        serde_json::from_value(json!({
            "type": "Healthy", "status": "True", "reason": "SandboxHealthy", "message": "",
            "lastTransitionTime": "2027-01-15T08:00:00Z",
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn agent_and_controller_each_apply_their_part_with_the_pod_uid() {
        let object = json!(SandboxHealth::of_pod("shop", "web", "u-1", "n"));
        let (client, requests) = answering(move |_| Answer::Object(object.clone()));
        let conditions = vec![condition()];
        let status =
            SandboxHealthStatus { restarts: 3, conditions: conditions.clone(), ..Default::default() };
        write(&client, &pod(), status).await.unwrap();
        write_conditions(&client, &pod(), &conditions).await.unwrap();
        let requests = requests.lock().unwrap();
        let bodies: Vec<_> = requests.iter().map(|request| request.body["status"].clone()).collect();
        assert_eq!(
            bodies,
            [json!({"podUID": "u-1", "restarts": 3}), json!({"podUID": "u-1", "conditions": conditions})]
        );
        assert!(requests[0].path.contains("fieldManager=sandbox-agent"), "{}", requests[0].path);
        assert!(requests[1].path.contains("fieldManager=sandbox-controller"), "{}", requests[1].path);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_write_is_classified() {
        let of = |code: u16| Answer::Refused(StatusCode::from_u16(code).unwrap());
        for (answer, variant, may_have_been_done) in [
            (of(404), "NotFound", false),
            (of(409), "Conflict", false),
            (of(429), "Other", false),
            (of(503), "Other", false),
            (of(500), "Other", true),
            (of(504), "Other", true),
            (Answer::Silence, "TimedOut", true),
            (Answer::Broken, "Other", true),
        ] {
            let answer = std::sync::Mutex::new(Some(answer));
            let (client, _) = answering(move |_| answer.lock().unwrap().take().unwrap());
            let error = write_conditions(&client, &pod(), &[condition()]).await.unwrap_err();
            assert!(format!("{error:?}").starts_with(variant), "{error:?}");
            assert_eq!(error.may_have_been_done(), may_have_been_done, "{error:?}");
        }
    }
}
