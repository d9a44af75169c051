//! What the kubelet itself says of a pod's sandbox: the pod's condition `PodReadyToStartContainers` (KEP-3085). It is False while
//! there is no sandbox that containers can be started in. What to make of it is decided by those who read it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

use crate::text::cut;

/// The condition's type.
pub const READY_TO_START: &str = "PodReadyToStartContainers";
/// Bytes that are kept of what the kubelet says.
const MESSAGE_MAX: usize = 200;

/// The condition of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxCondition {
    /// Whether there is a sandbox that containers can be started in.
    pub ready: bool,
    /// Since when.
    pub at: Timestamp,
}

/// What the kubelet said of a sandbox that was gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletSaid {
    /// Since when it was gone.
    pub at: Timestamp,
    /// In its own words: one line, cut short.
    pub message: String,
}

impl KubeletSaid {
    /// What it says of the pod's sandbox now, if that is gone and it says anything.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let SandboxCondition { ready, at } = SandboxCondition::of(pod)?;
        let message = one_line(condition(pod)?.message.as_deref()?);
        (!ready && !message.is_empty()).then_some(Self { at, message })
    }

    /// A cause, and what the kubelet said of it if it did.
    #[must_use]
    pub fn added_to(cause: &str, said: Option<&Self>) -> String {
        said.map_or_else(|| cause.to_owned(), |said| format!("{cause}; the kubelet said: {}", said.message))
    }
}

impl SandboxCondition {
    /// As the pod has it now.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let condition = condition(pod)?;
        Some(Self { ready: condition.status == "True", at: condition.last_transition_time.as_ref()?.0 })
    }
}

fn condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == READY_TO_START)
}

/// In one line, at most [`MESSAGE_MAX`] bytes.
fn one_line(message: &str) -> String {
    let line: String = message.chars().map(|it| if it.is_control() { ' ' } else { it }).collect();
    cut(line.trim(), MESSAGE_MAX).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(status: &str, message: &str) -> Pod {
        let condition = json!({
            "type": READY_TO_START, "status": status, "lastTransitionTime": "2027-01-15T08:00:00Z", "message": message,
        });
        let other = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2027-01-15T09:00:00Z"});
        serde_json::from_value(json!({"status": {"conditions": [other, condition]}})).unwrap()
    }

    fn message(message: &str) -> Option<String> {
        let said = KubeletSaid::of(&pod("False", message))?;
        assert_eq!(said.at.as_second(), 1_800_000_000);
        Some(said.message)
    }

    #[test]
    fn the_condition_tells_whether_there_is_a_sandbox_and_since_when() {
        for (status, ready) in [("True", true), ("False", false), ("Unknown", false)] {
            let condition = SandboxCondition::of(&pod(status, "")).unwrap();
            assert_eq!((condition.ready, condition.at.as_second()), (ready, 1_800_000_000), "{status}");
        }
    }

    #[test]
    fn what_the_kubelet_says_of_a_sandbox_that_is_there_is_no_cause() {
        assert_eq!(KubeletSaid::of(&pod("True", "all is well")), None);
    }

    #[test]
    fn what_the_kubelet_says_is_one_line() {
        assert_eq!(message(" the sandbox\nwas killed\n").as_deref(), Some("the sandbox was killed"));
        assert_eq!((message(""), message(" \n")), (None, None));
    }

    #[test]
    fn what_the_kubelet_says_is_kept_in_200_bytes_at_most() {
        assert_eq!(message(&"ä".repeat(150)).unwrap(), "ä".repeat(100));
        let cut = message(&format!("x{}", "ä".repeat(150))).unwrap();
        assert_eq!(cut.len(), 199, "no character is cut in two");
    }

    #[test]
    fn a_pod_without_the_condition_has_none() {
        assert_eq!(SandboxCondition::of(&Pod::default()), None);
    }
}
