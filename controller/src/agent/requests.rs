//! The agent's requests for SandboxHealth objects: a list now and then, a get when a pod is new, and an object made where the
//! controller made none. When to make them is decided elsewhere; what is written into one is in `report`.

use kube::api::{ListParams, PostParams};
use kube::core::DeserializeGuard;
use kube::{Api, Client, ResourceExt as _};

use crate::api::{ApiError, bounded};
use crate::authorship::mend;
use crate::resource::{AGENT_FIELD_MANAGER, SandboxHealth};

/// Objects of a page of the list: a page is in memory as a whole, and that is what the agent needs most memory for.
const AT_ONCE: u32 = 20;

/// Every object of the node.
pub async fn list(client: Client, node: String) -> Result<Vec<SandboxHealth>, ApiError> {
    let objects: Api<DeserializeGuard<SandboxHealth>> = Api::all(client);
    let mut page = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(AT_ONCE);
    let mut found = Vec::new();
    loop {
        let list = bounded(objects.list(&page)).await?;
        found.extend(list.items.into_iter().filter_map(understood));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// One object that is not as we know them, say of a later version, must not keep us from all others. Of one that is, what
/// somebody else wrote is left out.
fn understood(object: DeserializeGuard<SandboxHealth>) -> Option<SandboxHealth> {
    let name = object.name_any();
    let mut object = object
        .0
        .inspect_err(|invalid| tracing::warn!(object = name, error = invalid.error, "left out"))
        .ok()?;
    mend(&mut object);
    Some(object)
}

/// The object of a pod, if there is one for this very pod.
pub async fn get(
    client: Client,
    namespace: String,
    name: String,
    pod_uid: String,
) -> Result<Option<SandboxHealth>, ApiError> {
    let objects: Api<DeserializeGuard<SandboxHealth>> = Api::namespaced(client, &namespace);
    let found = bounded(objects.get_opt(&name)).await?.and_then(understood);
    Ok(found.filter(|object| object.spec.pod_uid == pod_uid))
}

/// Makes the object of a pod. That there is one of its name is a conflict.
pub async fn create(client: Client, object: SandboxHealth) -> Result<SandboxHealth, ApiError> {
    let namespace = object.namespace().unwrap_or_default();
    let objects: Api<SandboxHealth> = Api::namespaced(client, &namespace);
    let params = PostParams { field_manager: Some(AGENT_FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let mut made = bounded(objects.create(&params, &object)).await?;
    mend(&mut made);
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock_server::{Answer, server};
    use http::{Method, StatusCode};
    use serde_json::json;

    fn object(pod_uid: &str) -> serde_json::Value {
        json!({
            "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
            "metadata": {"name": "web", "namespace": "shop", "uid": "o-1"},
            "spec": {"podName": "web", "podUID": pod_uid, "nodeName": "n"},
            "status": {"restarts": 2},
        })
    }

    const OBJECT: &str = "/apis/sandboxhealth.dev/v1alpha1/namespaces/shop/sandboxhealths/web";
    const MADE: &str =
        "/apis/sandboxhealth.dev/v1alpha1/namespaces/shop/sandboxhealths?&fieldManager=sandbox-agent";

    fn wanted() -> SandboxHealth {
        SandboxHealth::of_pod("shop", "web", "u-1", "n")
    }

    #[tokio::test]
    async fn an_object_is_made_for_its_pod_by_the_agent() {
        let (client, served) = server([(Method::POST, MADE, Answer::Object(object("u-1")))]);
        assert_eq!(create(client, wanted()).await.unwrap().metadata.uid.as_deref(), Some("o-1"));
        let [body] = &served.await.unwrap()[..] else { panic!("not one request") };
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u-1");
        assert_eq!(body["spec"], json!({"podName": "web", "podUID": "u-1", "nodeName": "n"}));
    }

    #[tokio::test(start_paused = true)]
    async fn each_failure_to_make_an_object_is_told_apart() {
        for (answer, category) in [
            (Answer::Refused(StatusCode::CONFLICT), "conflict"),
            (Answer::Refused(StatusCode::TOO_MANY_REQUESTS), "error"),
            (Answer::Refused(StatusCode::SERVICE_UNAVAILABLE), "error"),
            (Answer::Silence, "timeout"),
            (Answer::Broken, "error"),
        ] {
            let (client, _served) = server([(Method::POST, MADE, answer)]);
            let error = create(client, wanted()).await.unwrap_err();
            assert_eq!(error.category(), category, "{error}");
        }
    }

    async fn fetch(client: Client, pod_uid: &str) -> Result<Option<SandboxHealth>, ApiError> {
        get(client, "shop".to_owned(), "web".to_owned(), pod_uid.to_owned()).await
    }

    #[tokio::test]
    async fn the_object_of_an_earlier_pod_of_the_name_is_not_ours() {
        let (client, _served) = server([(Method::GET, OBJECT, Answer::Object(object("u-0")))]);
        assert!(fetch(client, "u-1").await.unwrap().is_none());
        let (client, _served) = server([(Method::GET, OBJECT, Answer::Object(object("u-1")))]);
        assert_eq!(fetch(client, "u-1").await.unwrap().unwrap().status.unwrap().restarts, 2);
    }

    #[tokio::test]
    async fn a_missing_object_is_no_error() {
        let (client, _served) = server([(Method::GET, OBJECT, Answer::Refused(StatusCode::NOT_FOUND))]);
        assert!(fetch(client, "u-1").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn the_list_is_of_the_own_node_alone_in_pages_and_without_what_it_does_not_know() {
        let first =
            "/apis/sandboxhealth.dev/v1alpha1/sandboxhealths?&fieldSelector=spec.nodeName%3Dn&limit=20";
        let second = "/apis/sandboxhealth.dev/v1alpha1/sandboxhealths?&fieldSelector=spec.nodeName%3Dn&limit=20&continue=more";
        let mut of_a_later_version = object("u-2");
        of_a_later_version["status"]["source"] = json!("Telepathy");
        let page = |token: &str, items: Vec<serde_json::Value>| {
            Answer::Object(json!({
                "kind": "SandboxHealthList", "apiVersion": "sandboxhealth.dev/v1alpha1",
                "metadata": {"continue": token}, "items": items,
            }))
        };
        let (client, _served) = server([
            (Method::GET, first, page("more", vec![object("u-1"), of_a_later_version])),
            (Method::GET, second, page("", vec![object("u-3")])),
        ]);
        let found = list(client, "n".to_owned()).await.unwrap();
        let uids: Vec<_> = found.iter().map(|object| object.spec.pod_uid.as_str()).collect();
        assert_eq!(uids, ["u-1", "u-3"]);
    }
}
