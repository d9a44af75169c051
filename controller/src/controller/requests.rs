//! The controller's requests: it creates the SandboxHealth object of a pod, replaces one that an earlier pod of the name left
//! behind, writes conditions, and creates Events. When to make them is decided elsewhere.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::events;
use crate::api::{ApiError, bounded};
use crate::resource::{CONTROLLER_FIELD_MANAGER, SandboxHealth};

/// Events that are read at a time.
const PAGE: u32 = 500;

/// Creates the object. One that is there already is no error: the watch will bring it.
pub async fn create(client: &Client, object: &SandboxHealth) -> Result<(), ApiError> {
    let api: Api<SandboxHealth> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let params =
        PostParams { field_manager: Some(CONTROLLER_FIELD_MANAGER.to_owned()), ..PostParams::default() };
    already_there_is_fine(bounded(api.create(&params, object)).await.map(drop))
}

/// Deletes an object that is not of the pod with this UID, if that is still the one that the server has of its name.
pub async fn delete_stale(client: &Client, object: &SandboxHealth, pod_uid: &str) -> Result<(), ApiError> {
    let live = live_pod(client, object).await?;
    if live.and_then(|live| live.metadata.uid).as_deref() != Some(pod_uid) {
        return Ok(());
    }
    delete(client, object).await
}

/// The pod that the server has of the object's name.
pub async fn live_pod(client: &Client, object: &SandboxHealth) -> Result<Option<Pod>, ApiError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    bounded(pods.get_opt(&object.name_any())).await
}

/// Deletes this very object. One that is gone is no error.
pub async fn delete(client: &Client, object: &SandboxHealth) -> Result<(), ApiError> {
    let api: Api<SandboxHealth> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let this_one = Preconditions { uid: object.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(this_one), ..DeleteParams::default() };
    match bounded(api.delete(&object.name_any(), &params)).await {
        Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes the controller's part of the status. To write into the row of another pod of the name is a conflict.
pub async fn apply_judgement(
    client: &Client,
    object: &SandboxHealth,
    conditions: &[Condition],
    announced_restarts: Option<i64>,
) -> Result<(), ApiError> {
    let api: Api<SandboxHealth> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let mut ours = json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1",
        "kind": "SandboxHealth",
        "metadata": {"name": object.name_any()},
        "status": {"podUID": object.spec.pod_uid, "conditions": conditions},
    });
    if let Some(announced) = announced_restarts {
        ours["status"]["announcedRestarts"] = json!(announced);
    }
    let params = PatchParams::apply(CONTROLLER_FIELD_MANAGER).force();
    bounded(api.patch_status(&object.name_any(), &params, &Patch::Apply(&ours))).await.map(drop)
}

/// Creates an Event. One that is there already was made for the same happening.
pub async fn create_event(client: &Client, event: &Event) -> Result<(), ApiError> {
    let api: Api<Event> = Api::namespaced(client.clone(), &event.namespace().unwrap_or_default());
    already_there_is_fine(bounded(api.create(&PostParams::default(), event)).await.map(drop))
}

/// Reads the Events that controllers made, page by page.
pub async fn each_of_our_events(client: &Client, mut read: impl FnMut(&Event)) -> Result<(), ApiError> {
    let api: Api<Event> = Api::all(client.clone());
    let mut params = ListParams::default().fields(&events::ours()).limit(PAGE);
    loop {
        let page = bounded(api.list(&params)).await?;
        page.items.iter().for_each(&mut read);
        match page.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => params = params.continue_token(&next),
            None => return Ok(()),
        }
    }
}

fn already_there_is_fine(outcome: Result<(), ApiError>) -> Result<(), ApiError> {
    match outcome {
        Err(ApiError::Conflict(_)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock_server::{Answer, CREATE, DELETE, EVENTS, POD, STATUS, server};
    use http::{Method, StatusCode};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn pod(uid: &str) -> Pod {
        let pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": uid}, "spec": {"nodeName": "n", "containers": []}});
        serde_json::from_value(pod).unwrap()
    }

    fn object(pod_uid: &str) -> SandboxHealth {
        let mut object = SandboxHealth::of_pod("shop", "web", pod_uid, "n");
        object.metadata.uid = Some("o-1".to_owned());
        object
    }

    fn json_of(value: &impl serde::Serialize) -> serde_json::Value {
        serde_json::to_value(value).unwrap()
    }

    fn failures() -> [(Answer, &'static str); 4] {
        [
            (Answer::Refused(StatusCode::NOT_FOUND), "not_found"),
            (Answer::Refused(StatusCode::TOO_MANY_REQUESTS), "error"),
            (Answer::Refused(StatusCode::SERVICE_UNAVAILABLE), "error"),
            (Answer::Silence, "timeout"),
        ]
    }

    #[tokio::test]
    async fn an_object_is_owned_by_its_pod() {
        let (client, served) = server([(Method::POST, CREATE, Answer::Object(json_of(&object("u-1"))))]);
        create(&client, &object("u-1")).await.unwrap();
        drop(client);
        let sent = &served.await.unwrap()[0];
        assert_eq!(sent["metadata"]["ownerReferences"][0]["uid"], "u-1");
        assert_eq!(sent["spec"], json!({"podName": "web", "podUID": "u-1", "nodeName": "n"}));
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_there_is_no_failure_but_all_else_is() {
        let (client, _served) = server([(Method::POST, CREATE, Answer::Refused(StatusCode::CONFLICT))]);
        create(&client, &object("u-1")).await.unwrap();
        for (answer, category) in failures() {
            let (client, _served) = server([(Method::POST, CREATE, answer)]);
            assert_eq!(create(&client, &object("u-1")).await.unwrap_err().category(), category);
        }
    }

    #[tokio::test]
    async fn what_an_earlier_pod_left_is_deleted_by_its_uid() {
        let script = [
            (Method::GET, POD, Answer::Object(json_of(&pod("u-2")))),
            (Method::DELETE, DELETE, Answer::Object(json_of(&object("u-1")))),
        ];
        let (client, served) = server(script);
        delete_stale(&client, &object("u-1"), "u-2").await.unwrap();
        drop(client);
        assert_eq!(served.await.unwrap()[1]["preconditions"], json!({"uid": "o-1"}));
    }

    #[tokio::test]
    async fn nothing_is_deleted_for_a_pod_that_is_itself_outdated() {
        for live in [Answer::Object(json_of(&pod("u-3"))), Answer::Refused(StatusCode::NOT_FOUND)] {
            let (client, served) = server([(Method::GET, POD, live)]);
            delete_stale(&client, &object("u-1"), "u-2").await.unwrap();
            drop(client);
            served.await.unwrap();
        }
    }

    fn condition() -> Condition {
        Condition {
            type_: "Healthy".to_owned(),
            status: "True".to_owned(),
            reason: "AllWell".to_owned(),
            message: String::new(),
            last_transition_time: Time(Timestamp::from_second(1_800_000_000).unwrap()),
            observed_generation: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_controllers_part_of_the_status_is_applied_with_the_pod_it_is_of() {
        let (client, served) = server([(Method::PATCH, STATUS, Answer::Object(json_of(&object("u-1"))))]);
        apply_judgement(&client, &object("u-1"), &[condition()], Some(2)).await.unwrap();
        drop(client);
        let sent = &served.await.unwrap()[0];
        assert_eq!(sent["metadata"], json!({"name": "web"}));
        let fields: Vec<_> = sent["status"].as_object().unwrap().keys().collect();
        assert_eq!(fields, ["announcedRestarts", "conditions", "podUID"], "the rest is the agent's");
        assert_eq!(sent["status"]["podUID"], "u-1");
        for (answer, category) in failures() {
            let (client, _served) = server([(Method::PATCH, STATUS, answer)]);
            let failed = apply_judgement(&client, &object("u-1"), &[condition()], Some(2)).await;
            assert_eq!(failed.unwrap_err().category(), category);
        }
    }

    #[tokio::test]
    async fn an_event_that_was_made_before_is_no_failure() {
        let metadata = ObjectMeta { namespace: Some("shop".to_owned()), ..ObjectMeta::default() };
        let event = Event { metadata, ..Event::default() };
        let (client, _served) = server([(Method::POST, EVENTS, Answer::Refused(StatusCode::CONFLICT))]);
        create_event(&client, &event).await.unwrap();
        let (client, _served) =
            server([(Method::POST, EVENTS, Answer::Refused(StatusCode::SERVICE_UNAVAILABLE))]);
        assert_eq!(create_event(&client, &event).await.unwrap_err().category(), "error");
    }
}
