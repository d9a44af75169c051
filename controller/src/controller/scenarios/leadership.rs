//! Terms of a leader.

use super::super::run;
use super::*;

/// An API server with one Lease, which the test may give to another replica, and one pod.
fn server(holder: Arc<Mutex<String>>) -> impl Fn(&Received) -> Answer + Send + Sync + 'static {
    move |request| {
        let path = request.path.split('?').next().unwrap_or_default();
        let list =
            |items: Value| Answer::Object(json!({"metadata": {"resourceVersion": "1"}, "items": items}));
        let lease = |holder: &str| {
            let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": 15});
            json!({"metadata": {"name": "l", "resourceVersion": "1"}, "spec": spec})
        };
        let mut holder = holder.lock().unwrap();
        match (&request.method, path.rsplit('/').next().unwrap_or_default()) {
            (&Method::GET, "l") => Answer::Object(lease(&holder)),
            (&Method::PUT, "l") if ["", "me"].contains(&holder.as_str()) => {
                *holder = "me".to_owned();
                Answer::Object(lease("me"))
            }
            (&Method::PUT, "l") => Answer::Refused(StatusCode::CONFLICT),
            (&Method::GET, _) if request.path.contains("watch=true") => Answer::Silence,
            (&Method::GET, "pods") => list(json!([pod("web", "u-1")])),
            (&Method::GET, "sandboxhealths" | "nodes" | "daemonsets") => list(json!([])),
            _ => Answer::Object(object("u-1", json!({}))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn regained_term_starts_with_the_caches_of_the_last_one() {
    let holder = Arc::new(Mutex::new(String::new()));
    let (client, requests) = answering(server(holder.clone()));
    let metrics = Arc::<ControllerMetrics>::default();
    let count = |what: &str| {
        let requests = requests.lock().unwrap();
        requests
            .iter()
            .filter(|request| brief(request) == what && !request.path.contains("watch=true"))
            .count()
    };
    let is_leader = || metrics.render().unwrap().contains("\nsandboxhealth_leader 1\n");
    let story = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(is_leader());
        assert_eq!(count("POST shop/sandboxhealths"), 1);
        *holder.lock().unwrap() = "other".to_owned();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!is_leader());
        holder.lock().unwrap().clear();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(is_leader());
        assert_eq!(count("POST shop/sandboxhealths"), 2, "all pods are reconciled again");
    };
    run(options(100), client, Arc::default(), metrics.clone(), story).await;
    for list in ["GET /api/v1/pods", "GET /api/v1/nodes", "GET ops/daemonsets"] {
        assert_eq!(count(list), 1, "{list}");
    }
    let last = requests.lock().unwrap().last().map(|request| request.body["spec"]["holderIdentity"].clone());
    assert_eq!(last, Some(Value::Null), "the Lease is released at the end");
}
