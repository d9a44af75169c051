//! What the kubelet itself says of a pod's sandbox: the pod's condition `PodReadyToStartContainers` (KEP-3085). It is False while
//! there is no sandbox that containers can be started in. What to make of it is decided by those who read it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::text::cut;

/// The condition's type.
pub const READY_TO_START: &str = "PodReadyToStartContainers";
/// Bytes that are kept of what the kubelet says.
const MESSAGE_MAX: usize = 200;

/// The condition of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxCondition {
    /// Whether there is a sandbox that containers can be started in.
    pub ready: bool,
    /// Since when.
    pub at: Timestamp,
    /// What the kubelet says of it: one line, cut short.
    pub message: Option<String>,
}

/// What the kubelet said of a sandbox that was gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletSaid {
    /// Since when it was gone.
    pub at: Timestamp,
    /// In its own words, cut short.
    pub message: String,
}

impl KubeletSaid {
    /// A cause, and what the kubelet said of it if it did.
    #[must_use]
    pub fn added_to(cause: &str, said: Option<&Self>) -> String {
        said.map_or_else(|| cause.to_owned(), |said| format!("{cause}; the kubelet said: {}", said.message))
    }
}

impl SandboxCondition {
    /// What the kubelet says of a sandbox that is gone, if it says anything.
    #[must_use]
    pub fn said(self) -> Option<KubeletSaid> {
        let Self { ready, at, message } = self;
        message.filter(|_| !ready).map(|message| KubeletSaid { at, message })
    }

    /// As the pod has it now.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        let condition = conditions.iter().find(|condition| condition.type_ == READY_TO_START)?;
        let message = condition.message.as_deref().map(one_line).filter(|message| !message.is_empty());
        Some(Self {
            ready: condition.status == "True",
            at: condition.last_transition_time.as_ref()?.0,
            message,
        })
    }
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

    fn message(message: &str) -> Option<String> {
        let condition = json!({
            "type": READY_TO_START, "status": "False", "lastTransitionTime": "2027-01-15T08:00:00Z", "message": message,
        });
        let other = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2027-01-15T09:00:00Z"});
        let pod = serde_json::from_value(json!({"status": {"conditions": [other, condition]}})).unwrap();
        let condition = SandboxCondition::of(&pod).unwrap();
        assert!(!condition.ready && condition.at.as_second() == 1_800_000_000);
        condition.message
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
