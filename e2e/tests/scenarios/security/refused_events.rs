//! A policy that refuses Events: conditions do not wait for them, and a refusal is final.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::audit_log::writes;
use e2e::kube::{
    create_healthy, delete, events_of, kill_pause, leave_zombies, wait_for_container_restarts,
    wait_for_health,
};
use serde_json::json;

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 1] =
    [("refused_events_do_not_delay_conditions", refused_events_do_not_delay_conditions)];

const POD: &str = "unannounced";
/// An Event that is retried after a failure would be sent several times meanwhile.
const RETRIES: Duration = Duration::from_secs(20);

fn refused_events_do_not_delay_conditions(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    create_healthy(node, [POD])?;
    let policy = "refuse-events";
    for manifest in [
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": policy},
            "spec": {
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": ["events.k8s.io"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["events"],
                }]},
                "matchConditions": [{"name": "pod", "expression": format!("object.regarding.name == '{POD}'")}],
                "validations": [{"expression": "false", "message": "no Events here"}],
            },
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": policy},
            "spec": {"policyName": policy, "validationActions": ["Deny"]},
        }),
    ] {
        node.apply(&manifest)?;
    }
    let outcome = refused(node);
    node.kubectl(["delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", policy])?;
    outcome?;
    ensure!(events_of(node, POD, "SandboxRestarted")?.is_empty(), "an Event was created");
    delete(node, POD)
}

fn refused(node: &Node) -> Result<()> {
    let mut tries = 0;
    retry::until("the policy is in force", TIMEOUT, || {
        tries += 1;
        let event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": format!("try-{tries}"), "namespace": "default"},
            "regarding": {"apiVersion": "v1", "kind": "Pod", "name": POD, "namespace": "default"},
            "eventTime": "2027-01-15T08:00:00.000000Z", "type": "Normal", "reason": "Try", "action": "Try",
            "reportingController": "e2e.example/test", "reportingInstance": "e2e",
        });
        ensure!(node.apply(&event).is_err(), "an Event is accepted");
        Ok(())
    })?;
    kill_pause(node, POD)?;
    wait_for_health(node, POD, "False", "SandboxRestarted")?;
    wait_for_container_restarts(node, POD, 1)?;
    leave_zombies(node, POD, 8)?;
    wait_for_health(node, POD, "False", "ZombiesAccumulating")?;
    thread::sleep(RETRIES);
    let writes = writes(node)?;
    let attempts: Vec<_> = writes
        .iter()
        .filter(|call| call.resource == "events" && call.name.starts_with(&format!("{POD}.")))
        .collect();
    // One for the restart, one for the zombies.
    ensure!(attempts.len() == 2, "{attempts:?}");
    Ok(())
}
