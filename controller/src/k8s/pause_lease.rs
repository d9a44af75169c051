//! The Leases that limit how many nodes switch their pause image at a time, as installer and controller both read and write them. The
//! installer of the holder writes everything but the proof, which is the controller's. When a step follows is decided by them.

use std::str::FromStr as _;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use strum::{EnumString, IntoStaticStr};

const STEP: &str = "sandboxhealth.dev/step";
const SINCE: &str = "sandboxhealth.dev/since";
const PAUSE_VERSION: &str = "sandboxhealth.dev/pause-version";
const IMAGE: &str = "sandboxhealth.dev/image";
const MESSAGE: &str = "sandboxhealth.dev/message";
const PROVEN: &str = "sandboxhealth.dev/proven";

/// How far the holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(const_into_str)]
pub enum Step {
    /// It writes the configuration and restarts the runtime.
    Switching,
    /// The runtime has the configuration. The proof is awaited.
    Switched,
    /// The switch failed. It removes the configuration and restarts the runtime.
    Reverting,
    /// The switch failed, and the node has none of the installer's settings. No node starts a switch.
    Failed,
}

impl Step {
    pub const fn has_failed(self) -> bool {
        matches!(self, Self::Reverting | Self::Failed)
    }
}

/// The switch of one node: the contents of a Lease that is not free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    pub node: String,
    pub step: Step,
    /// Time of the step, by the clock of the node. [`Step::Failed`] keeps that of [`Step::Reverting`]: it is the time of the failure.
    pub since: Timestamp,
    /// Version and image of the pause that the node is to have.
    pub pause_version: String,
    pub image: String,
    /// Why the switch failed. Empty before.
    pub message: String,
    /// `since` of the [`Step::Switched`] that was proven.
    pub proven: Option<Timestamp>,
}

/// A Lease with a holder whose annotations cannot be read: a user or a newer version wrote them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has a holder, and the annotation {0} is missing or unknown")]
pub struct UnreadableLease(&'static str);

impl Switch {
    pub fn new(node: &str, pause_version: &str, image: &str, now: Timestamp) -> Self {
        Self {
            node: node.to_owned(),
            step: Step::Switching,
            since: now,
            pause_version: pause_version.to_owned(),
            image: image.to_owned(),
            message: String::new(),
            proven: None,
        }
    }

    /// The switch of the Lease's holder. `None` if the Lease is free.
    pub fn read(lease: &Lease) -> Result<Option<Self>, UnreadableLease> {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        let Some(node) = holder.filter(|holder| !holder.is_empty()) else { return Ok(None) };
        let annotation = |name| lease.metadata.annotations.as_ref()?.get(name).map(String::as_str);
        let required = |name| annotation(name).ok_or(UnreadableLease(name));
        let proven: Option<Result<Timestamp, _>> = annotation(PROVEN).map(str::parse);
        Ok(Some(Self {
            node: node.to_owned(),
            step: Step::from_str(required(STEP)?).map_err(|_| UnreadableLease(STEP))?,
            since: required(SINCE)?.parse().map_err(|_| UnreadableLease(SINCE))?,
            pause_version: required(PAUSE_VERSION)?.to_owned(),
            image: required(IMAGE)?.to_owned(),
            message: annotation(MESSAGE).unwrap_or_default().to_owned(),
            proven: proven.transpose().map_err(|_| UnreadableLease(PROVEN))?,
        }))
    }

    /// Writes it into a Lease, which may be empty. Everything else of the Lease stays, such as the version that was read.
    pub fn write(&self, lease: &mut Lease) {
        release(lease);
        lease.spec.get_or_insert_default().holder_identity = Some(self.node.clone());
        let annotations = [
            (STEP, self.step.into_str().to_owned()),
            (SINCE, self.since.to_string()),
            (PAUSE_VERSION, self.pause_version.clone()),
            (IMAGE, self.image.clone()),
        ];
        let message = Some(self.message.clone()).filter(|message| !message.is_empty());
        let proven = self.proven.map(|proven| proven.to_string());
        let optional = [(MESSAGE, message), (PROVEN, proven)];
        let optional = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let annotations =
            annotations.into_iter().chain(optional).map(|(name, value)| (name.to_owned(), value));
        lease.metadata.annotations.get_or_insert_default().extend(annotations);
    }

    /// Advances to this step. A failure has a message.
    pub fn advance(&mut self, step: Step, message: &str, now: Timestamp) {
        if step != Step::Failed || self.step != Step::Reverting {
            self.since = now;
        }
        self.step = step;
        message.clone_into(&mut self.message);
    }

    pub fn is_proven(&self) -> bool {
        self.step == Step::Switched && self.proven == Some(self.since)
    }
}

/// Makes a Lease free.
pub fn release(lease: &mut Lease) {
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = None;
    }
    if let Some(annotations) = &mut lease.metadata.annotations {
        annotations
            .retain(|name, _| ![STEP, SINCE, PAUSE_VERSION, IMAGE, MESSAGE, PROVEN].contains(&&**name));
    }
}

/// Name of the Lease of this number.
pub fn name(base: &str, number: u32) -> String {
    format!("{base}-{number}")
}

/// Whether it is the name of a Lease of this base name.
pub fn is_name(base: &str, name: &str) -> bool {
    let number = name.strip_prefix(base).and_then(|rest| rest.strip_prefix('-'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(time: &str) -> Timestamp {
        format!("2027-01-15T{time}Z").parse().unwrap()
    }

    fn switch() -> Switch {
        Switch::new("n", "0.1.0", "registry.example/pause:0.1.0", at("12:00:00.123456789"))
    }

    fn read(lease: Value) -> Result<Option<Switch>, UnreadableLease> {
        Switch::read(&serde_json::from_value(lease).unwrap())
    }

    #[test]
    fn lease_has_the_documented_annotations() {
        let mut lease = Lease::default();
        let mut switch = switch();
        switch.advance(Step::Switched, "", at("12:00:05"));
        switch.proven = Some(switch.since);
        switch.write(&mut lease);
        let expected = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "annotations": {
                    "sandboxhealth.dev/step": "Switched", "sandboxhealth.dev/since": "2027-01-15T12:00:05Z",
                    "sandboxhealth.dev/pause-version": "0.1.0", "sandboxhealth.dev/image": "registry.example/pause:0.1.0",
                    "sandboxhealth.dev/proven": "2027-01-15T12:00:05Z",
                },
            },
            "spec": {"holderIdentity": "n"},
        });
        assert_eq!(json!(lease), expected);
    }

    #[test]
    fn switch_is_read_as_it_was_written() {
        for step in [Step::Switching, Step::Switched, Step::Reverting, Step::Failed] {
            let mut switch = switch();
            switch.advance(step, "containerd did not start", at("12:00:05.000000001"));
            switch.proven = Some(at("11:00:00.5"));
            let mut lease = Lease::default();
            switch.write(&mut lease);
            assert_eq!(Switch::read(&lease), Ok(Some(switch)));
        }
    }

    #[test]
    fn write_and_release_keep_the_rest_of_the_lease() {
        let annotations =
            json!({"other": "x", "sandboxhealth.dev/message": "old", "sandboxhealth.dev/proven": "old"});
        let metadata = json!({"name": "l-0", "resourceVersion": "7", "annotations": annotations});
        let mut lease: Lease = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        switch().write(&mut lease);
        assert_eq!(Switch::read(&lease), Ok(Some(switch())));
        assert_eq!(lease.metadata.resource_version.as_deref(), Some("7"));
        release(&mut lease);
        assert_eq!(Switch::read(&lease), Ok(None));
        assert_eq!(json!(lease.metadata.annotations), json!({"other": "x"}));
    }

    #[test]
    fn lease_without_holder_is_free() {
        let annotations = json!({"sandboxhealth.dev/step": "Failed"});
        for spec in [Value::Null, json!({}), json!({"holderIdentity": ""})] {
            assert_eq!(read(json!({"metadata": {"annotations": annotations}, "spec": spec})), Ok(None));
        }
    }

    #[test]
    fn held_lease_with_unknown_annotations_is_unreadable() {
        let mut lease = Lease::default();
        switch().write(&mut lease);
        for (name, value) in [
            (STEP, Some("Paused")),
            (STEP, None),
            (SINCE, Some("noon")),
            (SINCE, None),
            (PAUSE_VERSION, None),
            (IMAGE, None),
            (PROVEN, Some("yes")),
        ] {
            let mut lease = json!(lease);
            lease["metadata"]["annotations"][name] = json!(value);
            if value.is_none() {
                lease["metadata"]["annotations"].as_object_mut().unwrap().remove(name);
            }
            assert_eq!(read(lease), Err(UnreadableLease(name)));
        }
    }

    #[test]
    fn failure_keeps_the_time_at_which_it_began() {
        let mut switch = switch();
        switch.advance(Step::Reverting, "no proof", at("12:01:00"));
        switch.advance(Step::Failed, "no proof", at("12:02:00"));
        assert_eq!((switch.step, switch.since), (Step::Failed, at("12:01:00")));
        switch.advance(Step::Switching, "", at("12:03:00"));
        assert_eq!((switch.since, switch.message.as_str()), (at("12:03:00"), ""));
    }

    #[test]
    fn proof_is_about_one_switch() {
        let mut switch = switch();
        switch.advance(Step::Switched, "", at("12:01:00"));
        assert!(!switch.is_proven());
        switch.proven = Some(at("12:00:00"));
        assert!(!switch.is_proven(), "that of an earlier switch");
        switch.proven = Some(switch.since);
        assert!(switch.is_proven());
        switch.step = Step::Reverting;
        assert!(!switch.is_proven());
    }

    #[test]
    fn name_is_the_base_name_with_a_number() {
        assert!(is_name("pause", &name("pause", 0)) && is_name("pause", &name("pause", 12)));
        for other in ["pause", "pause-", "pause-x", "pause-1x", "pause-0-1", "other-0"] {
            assert!(!is_name("pause", other), "{other}");
        }
    }
}
