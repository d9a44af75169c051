//! The controller's part in switching nodes to our pause image: it replaces the canary pod of a node that was switched, writes into the
//! installer's Lease that the new one runs our pause, and reports switches that failed. Files and runtimes of nodes are the installer's.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};

use super::context::Context;
use super::kubelet_events::one_line;
use crate::core::events::{DueEvent, MAX_AGE, Reason, node_event};
use crate::crd::{REPORTING, SandboxHealthStatus};
use crate::k8s::error::ApiError;
use crate::k8s::pause_lease::{Step, Switch, is_name};
use crate::k8s::pod::LeanPod;

/// Between searches in the caches, which make no request.
const INTERVAL: Duration = Duration::from_secs(2);
/// Wait after a request that failed.
const RETRY: Duration = Duration::from_secs(10);

/// A canary pod, with the status of its SandboxHealth object if it has one.
#[derive(Debug, Clone)]
pub(super) struct Canary {
    pub(super) node: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Whether it is finished or terminating: its DaemonSet replaces it.
    pub(super) is_ending: bool,
    pub(super) status: Option<SandboxHealthStatus>,
}

impl Canary {
    fn new(pod: &LeanPod, context: &Context) -> Self {
        let object = context.index.object(pod);
        let object = object.as_ref().and_then(|object| object.0.as_ref().ok());
        let object = object.filter(|object| object.spec.pod_uid == pod.uid());
        Self {
            node: pod.node.to_string(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            is_ending: pod.deletion_grace.is_some() || pod.is_finished,
            status: object.map(|object| object.status.clone().unwrap_or_default()),
        }
    }

    /// The state of its sandbox.
    fn describe(&self) -> String {
        let Some(status) = &self.status else { return "has no SandboxHealth object".to_owned() };
        let reporting = status.condition(REPORTING).filter(|condition| condition.status != "True");
        if let Some(condition) = reporting {
            return format!("is {} ({})", condition.reason, one_line(&condition.message));
        }
        match status.sandbox.as_ref().map(|sandbox| &sandbox.pause_version) {
            Some(Some(version)) => format!("runs pause {}", one_line(version)),
            Some(None) => "runs a third-party pause image".to_owned(),
            None => "has no sandbox yet".to_owned(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    None,
    /// Deletes a canary pod whose sandbox is older than the switch. Its DaemonSet creates another one.
    DeleteCanary {
        name: String,
        uid: String,
    },
    WriteProof,
    Emit(DueEvent),
}

/// The next action for the switch of a node. `resume` is the command that resumes the roll-out.
fn next(switch: &Switch, canaries: &[Canary], resume: &str, now: Timestamp) -> Action {
    let canary = canaries.iter().find(|canary| canary.node == switch.node && !canary.is_ending);
    match switch.step {
        Step::Switched if !switch.is_proven() => canary.map_or(Action::None, |canary| prove(switch, canary)),
        Step::Reverting | Step::Failed if now.duration_since(switch.since) < MAX_AGE => {
            Action::Emit(failure(switch, canary, resume))
        }
        Step::Switching | Step::Switched | Step::Reverting | Step::Failed => Action::None,
    }
}

fn prove(switch: &Switch, canary: &Canary) -> Action {
    let sandbox = canary.status.as_ref().and_then(|status| status.sandbox.as_ref());
    // A pod that has no sandbox gets one from the runtime as it is now configured.
    let Some(sandbox) = sandbox else { return Action::None };
    // Both are times of the node's clock; a pod's creation is one of the API server's. That of the object has whole seconds.
    let is_newer = sandbox.started_at.0.duration_since(switch.since) > SignedDuration::ZERO;
    if !is_newer {
        return Action::DeleteCanary { name: canary.name.clone(), uid: canary.uid.clone() };
    }
    if sandbox.pause_version.as_ref() == Some(&switch.pause_version) {
        Action::WriteProof
    } else {
        Action::None
    }
}

pub(super) fn failure(switch: &Switch, canary: Option<&Canary>, resume: &str) -> DueEvent {
    let Switch { pause_version, message, since, .. } = switch;
    let canary = canary.map_or_else(
        || "No canary pod of the node is observed".to_owned(),
        |canary| format!("The canary pod {} {}", canary.name, canary.describe()),
    );
    let note = format!(
        "Switching the node to pause {} failed: {}. {canary}. The installer removes its settings from the node, and no other node \
         is switched. Once the cause is fixed, resume with: {resume}",
        one_line(pause_version),
        one_line(message).trim_end_matches('.'),
    );
    DueEvent { reason: Reason::PauseSwitchFailed, key: since.to_string(), note }
}

/// Acts forever. Without the options it does nothing.
pub async fn run(context: &Context) {
    while let Some((base, canary)) = options(context) {
        let is_ok = update(base, canary, context).await;
        tokio::time::sleep(if is_ok { INTERVAL } else { RETRY }).await;
    }
}

fn options(context: &Context) -> Option<(&str, &str)> {
    context.options.pause_installer_lease.as_deref().zip(context.options.pause_canary.as_deref())
}

/// Acts once on each Lease of a node; returns whether all requests succeeded.
pub(super) async fn update(base: &str, canary: &str, context: &Context) -> bool {
    let leases = context.index.leases.state();
    let leases = leases.iter().filter(|lease| is_name(base, &lease.name_any()));
    // The installers stop at a Lease whose annotations a user changed, and name it in `/readyz` and their log.
    let switches: Vec<_> = leases.filter_map(|lease| Some((lease, Switch::read(lease).ok()??))).collect();
    let failed = switches.iter().filter(|(_, switch)| switch.step.has_failed());
    context.metrics.set_failed_switches(failed.map(|(_, switch)| switch.node.clone()));
    if switches.is_empty() {
        return true;
    }
    let canaries = canaries(canary, &switches, context);
    let (mut is_ok, now) = (true, Timestamp::now());
    for (lease, switch) in switches {
        let resume =
            format!("kubectl -n {} delete lease {}", context.options.lease_namespace, lease.name_any());
        let action = next(&switch, &canaries, &resume, now);
        let node = switch.node.clone();
        if let Err(error) = act(action, lease, switch, context, now).await {
            tracing::warn!(node, %error, "failed to act on the switch of a node's pause image; will retry");
            is_ok = false;
        }
    }
    is_ok
}

/// The DaemonSet's pods of these nodes, identified by their owner: any pod may have their label, such as a copy for debugging.
fn canaries(daemon_set: &str, switches: &[(&Arc<Lease>, Switch)], context: &Context) -> Vec<Canary> {
    let is_canary = |pod: &LeanPod| {
        pod.namespace() == context.options.lease_namespace
            && pod.daemon_set.as_deref() == Some(daemon_set)
            && switches.iter().any(|(_, switch)| *switch.node == *pod.node)
    };
    let pods = context.index.pods.state();
    pods.iter().filter(|pod| is_canary(pod)).map(|pod| Canary::new(pod, context)).collect()
}

async fn act(
    action: Action,
    lease: &Lease,
    mut switch: Switch,
    context: &Context,
    now: Timestamp,
) -> Result<(), ApiError> {
    let (client, namespace) = (context.client.clone(), &context.options.lease_namespace);
    let result = match action {
        Action::None => return Ok(()),
        Action::Emit(due) => {
            let event = node_event(&switch.node, &due, &context.options.identity, now);
            context.emitter.emit(due.reason, event);
            return Ok(());
        }
        Action::DeleteCanary { name, uid } => {
            let preconditions = Preconditions { uid: Some(uid), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            let deleted = Api::<LeanPod>::namespaced(client, namespace).delete(&name, &params).await;
            deleted.map(|_| {
                tracing::info!(node = switch.node, pod = name, "deleted a canary pod older than the switch")
            })
        }
        Action::WriteProof => {
            switch.proven = Some(switch.since);
            let mut proven = lease.clone();
            switch.write(&mut proven);
            let api = Api::<Lease>::namespaced(client, namespace);
            let written = api.replace(&lease.name_any(), &PostParams::default(), &proven).await;
            written.map(|_| tracing::info!(node = switch.node, "proved that new pods run the pause image"))
        }
    };
    match result.map_err(ApiError::from) {
        // The pod is gone, or the installer wrote the Lease first. The watch delivers the current state.
        Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const RESUME: &str = "kubectl -n ops delete lease pause-0";

    fn at(time: &str) -> Timestamp {
        format!("2027-01-15T{time}Z").parse().unwrap()
    }

    fn switch(step: Step, message: &str) -> Switch {
        let mut switch = Switch::new("n", "0.1.0", "registry.example/pause:0.1.0", at("11:59:00"));
        switch.advance(step, message, at("12:00:00.5"));
        switch
    }

    fn canary(node: &str, status: Value) -> Canary {
        let [name, uid] = ["canary-x", "c-1"].map(str::to_owned);
        let status = serde_json::from_value(status).unwrap();
        Canary { node: node.to_owned(), name, uid, is_ending: false, status }
    }

    fn sandbox(started_at: &str, version: Option<&str>) -> Value {
        json!({"sandbox": {"id": "a", "startedAt": at(started_at), "pauseVersion": version}})
    }

    fn delete() -> Action {
        Action::DeleteCanary { name: "canary-x".to_owned(), uid: "c-1".to_owned() }
    }

    fn after(switch: &Switch, canaries: &[Canary]) -> Action {
        next(switch, canaries, RESUME, at("12:01:00"))
    }

    #[test]
    fn switched_node_is_proven_by_a_newer_sandbox_of_the_version() {
        let terminating = |status| Canary { is_ending: true, ..canary("n", status) };
        let old = || sandbox("12:00:00", Some("0.1.0"));
        let new = || sandbox("12:00:01", Some("0.1.0"));
        for (case, canaries, expected) in [
            ("no canary", vec![], Action::None),
            ("no object", vec![canary("n", Value::Null)], Action::None),
            ("no sandbox", vec![canary("n", json!({}))], Action::None),
            ("older", vec![canary("n", old())], delete()),
            ("older, third-party", vec![canary("n", sandbox("11:00:00", None))], delete()),
            ("older, terminating", vec![terminating(old())], Action::None),
            ("newer, terminating", vec![terminating(new())], Action::None),
            ("newer", vec![canary("n", new())], Action::WriteProof),
            ("newer beside terminating", vec![terminating(old()), canary("n", new())], Action::WriteProof),
            ("newer, wrong version", vec![canary("n", sandbox("12:00:01", Some("0.0.9")))], Action::None),
            ("newer, third-party", vec![canary("n", sandbox("12:00:01", None))], Action::None),
            ("older of another node", vec![canary("m", old())], Action::None),
            ("newer of another node", vec![canary("m", new())], Action::None),
        ] {
            assert_eq!(after(&switch(Step::Switched, ""), &canaries), expected, "{case}");
        }
    }

    #[test]
    fn switch_that_is_proven_or_under_way_needs_nothing() {
        let mut proven = switch(Step::Switched, "");
        proven.proven = Some(proven.since);
        for switch in [proven, switch(Step::Switching, "")] {
            for status in [sandbox("11:00:00", None), sandbox("12:00:01", Some("0.1.0"))] {
                assert_eq!(after(&switch, &[canary("n", status)]), Action::None);
            }
        }
    }

    #[test]
    fn proof_of_an_earlier_switch_does_not_count() {
        let mut switch = switch(Step::Switched, "");
        switch.proven = Some(at("11:00:00"));
        assert_eq!(after(&switch, &[canary("n", sandbox("12:00:01", Some("0.1.0")))]), Action::WriteProof);
    }

    fn note(message: &str, canaries: &[Canary]) -> String {
        match after(&switch(Step::Reverting, message), canaries) {
            Action::Emit(due) => due.note,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn failure_names_the_canary_of_its_node() {
        let third_party = || sandbox("12:00:01", None);
        for (canaries, expected) in [
            (vec![], "No canary pod of the node is observed."),
            (vec![canary("m", third_party())], "No canary pod of the node is observed."),
            (vec![canary("n", third_party())], "The canary pod canary-x runs a third-party pause image."),
        ] {
            let note = note("no proof within 180 s.", &canaries);
            assert!(note.contains(expected), "{note}");
        }
    }

    #[test]
    fn long_texts_leave_room_for_the_next_step() {
        let mut status = sandbox("12:00:01", None);
        status["conditions"] = json!([{
            "type": "Reporting", "status": "Unknown", "reason": "SandboxNotCreated", "message": "ä".repeat(5000),
            "lastTransitionTime": at("12:00:30"),
        }]);
        let note = note(&"x\n".repeat(5000), &[canary("n", status)]);
        assert!(note.len() <= 1024 && note.ends_with(RESUME) && !note.contains('\n'), "{}", note.len());
    }

    #[test]
    fn failure_has_one_event_from_reverting_to_failed_for_an_hour() {
        let reverting = switch(Step::Reverting, "x");
        let mut failed = reverting.clone();
        failed.advance(Step::Failed, "x", at("12:05:00"));
        let key = |switch: &Switch, now| match next(switch, &[], RESUME, now) {
            Action::Emit(due) => Some(due.key),
            _ => None,
        };
        let expected = Some("2027-01-15T12:00:00.5Z".to_owned());
        assert_eq!(key(&reverting, at("12:01:00")), expected);
        assert_eq!(key(&failed, at("12:06:00")), expected);
        assert_eq!(key(&failed, at("13:00:01")), None);
        let mut again = failed;
        again.advance(Step::Switching, "", at("12:10:00"));
        again.advance(Step::Reverting, "x", at("12:11:00"));
        assert_ne!(key(&again, at("12:12:00")), expected);
    }
}
