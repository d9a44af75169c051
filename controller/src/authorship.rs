//! Which part of a row's status somebody else than agent and controller wrote, and what is known without it. What was counted is
//! kept in the row alone: whoever takes it up anew must not go on from what somebody wrote into it. The API server notes in
//! `managedFields` who wrote which field (field management, part of server-side apply); what was removed leaves no note.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Value, json};

use crate::resource::{
    AGENT_FIELD_MANAGER, CONTROLLER_FIELD_MANAGER, HISTORY_MAX, LastRestart, SandboxHealth,
    SandboxHealthStatus,
};

/// Who the API server says wrote a field, and nobody did: it was there before anybody was noted (`before-first-apply`), or so
/// many wrote that the first are not told apart any more (`ancient-changes`).
const NOBODY: [&str; 2] = ["before-first-apply", "ancient-changes"];

/// Takes out of the status what somebody else wrote, and puts in what follows from the rest. `managedFields`, half of the object,
/// are taken off, but for who wrote into what was seen.
pub fn mend(object: &mut SandboxHealth) {
    let entries = object.metadata.managed_fields.take().unwrap_or_default();
    let Some(status) = &mut object.status else { return };
    let notes = Notes::of(&entries);
    if notes.theirs.is_empty() {
        return;
    }
    let known = known_without(&notes, status);
    if known.clone().seen() != status.clone().seen() {
        let names = entries.iter().filter(|entry| is_theirs(entry) && fields_of_status(entry).is_some());
        let unnoted = |entry: &ManagedFieldsEntry| ManagedFieldsEntry { fields_v1: None, ..entry.clone() };
        object.metadata.managed_fields = Some(names.map(unnoted).collect());
    }
    *status = known;
}

/// Who wrote into what was seen, so that the row in the API says something else than this one, which was mended. What the controller
/// makes of it is written again by the controller anyway.
#[must_use]
pub fn edited_by(object: &SandboxHealth) -> Option<String> {
    let names: Vec<_> = left(object).filter_map(|entry| entry.manager.as_deref()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// When they last did.
#[must_use]
pub fn edited_at(object: &SandboxHealth) -> Option<Timestamp> {
    left(object).filter_map(|entry| Some(entry.time.as_ref()?.0)).max()
}

/// What was left of the notes.
fn left(object: &SandboxHealth) -> impl Iterator<Item = &ManagedFieldsEntry> {
    let entries = object.metadata.managed_fields.iter().flatten();
    entries.filter(|entry| entry.fields_v1.is_none() && is_theirs(entry))
}

/// The fields that are noted, by us and by others; or what is noted below one of them.
struct Notes<'a> {
    ours: Vec<&'a Value>,
    theirs: Vec<&'a Value>,
}

impl<'a> Notes<'a> {
    fn of(entries: &'a [ManagedFieldsEntry]) -> Self {
        let noted = |whose: fn(&ManagedFieldsEntry) -> bool| {
            entries.iter().filter(move |entry| whose(entry)).filter_map(fields_of_status).collect()
        };
        Self { ours: noted(is_ours), theirs: noted(is_theirs) }
    }

    fn below(&self, key: &str) -> Self {
        let below = |noted: &[&'a Value]| noted.iter().filter_map(|noted| noted.get(key)).collect();
        Self { ours: below(&self.ours), theirs: below(&self.theirs) }
    }

    /// Whether somebody else wrote some of a value, and we did not. A list is noted as a whole.
    fn are_theirs(&self, value: &Value) -> bool {
        match value {
            Value::Object(fields) => {
                fields.iter().any(|(field, value)| self.below(&format!("f:{field}")).are_theirs(value))
            }
            _ => self.ours.is_empty() && !self.theirs.is_empty(),
        }
    }
}

fn known_without(notes: &Notes, status: &SandboxHealthStatus) -> SandboxHealthStatus {
    let Value::Object(mut fields) = json!(status) else { return status.clone() };
    let mut left_out = Vec::new();
    fields.retain(|field, value| match value {
        // Each is noted by its type.
        Value::Array(conditions) if field == "conditions" => {
            let notes = notes.below("f:conditions");
            conditions
                .retain(|has| !notes.below(&format!("k:{}", json!({"type": has["type"]}))).are_theirs(has));
            true
        }
        _ => {
            let theirs = notes.below(&format!("f:{field}")).are_theirs(value);
            if theirs {
                left_out.push(field.clone());
            }
            !theirs
        }
    });
    // What was written can be read again without some of it: each field may be absent.
    let Ok(mut known) = serde_json::from_value::<SandboxHealthStatus>(Value::Object(fields)) else {
        return status.clone();
    };
    let lacks = |field: &str| left_out.iter().any(|left_out| left_out == field);
    if lacks("sandbox") {
        // One that was replaced meanwhile would not be found out.
        known.restarts_at_least = Some(true);
    }
    if lacks("lastRestart") {
        known.last_restart = last_restart(&known);
    }
    if lacks("restarts") {
        count_restarts(&mut known);
    }
    known
}

/// How many there were at least, by what was kept of them and what was told of them. A history that is not full has them all, unless
/// something was taken out of it.
fn count_restarts(known: &mut SandboxHealthStatus) {
    let kept = i64::try_from(known.history.len()).unwrap_or(i64::MAX);
    known.restarts = kept.max(known.announced_restarts.unwrap_or_default());
    let lacks_some = known.history.len() >= HISTORY_MAX || (kept > 0) != known.last_restart.is_some();
    if known.restarts > kept || lacks_some {
        known.restarts_at_least = Some(true);
    }
}

/// The sandbox that is there now started with the last restart, which ended the newest of the past ones.
fn last_restart(known: &SandboxHealthStatus) -> Option<LastRestart> {
    let (past, sandbox) = (known.history.first()?, known.sandbox.as_ref()?);
    let message = past.message.clone().unwrap_or_else(|| past.reason.in_words().to_owned());
    Some(LastRestart { time: sandbox.started_at.clone(), reason: past.reason, message })
}

fn is_ours(entry: &ManagedFieldsEntry) -> bool {
    let manager = entry.manager.as_deref();
    manager == Some(AGENT_FIELD_MANAGER) || manager == Some(CONTROLLER_FIELD_MANAGER)
}

fn is_theirs(entry: &ManagedFieldsEntry) -> bool {
    !is_ours(entry) && entry.manager.as_deref().is_some_and(|manager| !NOBODY.contains(&manager))
}

fn fields_of_status(entry: &ManagedFieldsEntry) -> Option<&Value> {
    entry.fields_v1.as_ref()?.0.get("f:status")
}

/// Rows as the API server would note who wrote them.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use serde_json::json;

    /// All of the status was written by agent and controller.
    pub(crate) fn note_as_ours(row: &mut Value) {
        let (mut agents, mut controllers) = (row["status"].clone(), json!({}));
        for field in ["announcedRestarts", "conditions"] {
            if let Some(value) = agents.as_object_mut().and_then(|fields| fields.remove(field)) {
                controllers[field] = value;
            }
        }
        row["metadata"]["managedFields"] = json!([
            entry(AGENT_FIELD_MANAGER, noted(&agents)),
            entry(CONTROLLER_FIELD_MANAGER, noted(&controllers)),
        ]);
    }

    /// A list is noted as a whole, but for conditions, of which each is by its type.
    fn noted(value: &Value) -> Value {
        let Some(fields) = value.as_object() else { return json!({}) };
        let field = |(name, value): (&String, &Value)| {
            let below = match value.as_array().filter(|_| name == "conditions") {
                Some(conditions) => conditions.iter().map(|has| (key(&has["type"]), noted(has))).collect(),
                None => noted(value),
            };
            (format!("f:{name}"), below)
        };
        fields.iter().map(field).collect()
    }

    fn key(type_: &Value) -> String {
        format!("k:{}", json!({"type": type_}))
    }

    pub(crate) fn entry(manager: &str, fields: Value) -> Value {
        let operation = if manager.starts_with("sandbox-") { "Apply" } else { "Update" };
        json!({"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "subresource": "status",
               "fieldsV1": {"f:status": fields}})
    }

    /// What somebody's update does: it changes a field of the status, and takes it from those who wrote it before. One that has the
    /// value already is not touched.
    pub(crate) fn edit(row: &mut Value, path: &[&str], value: Value) {
        let (field, parents) = path.split_last().unwrap();
        let edited = parents.iter().fold(&mut row["status"], |value, parent| &mut value[*parent]);
        if edited[*field] == value {
            return;
        }
        let theirs = noted(&json!({*field: value.clone()}));
        edited[*field] = value;
        for entry in row["metadata"]["managedFields"].as_array_mut().unwrap() {
            let status = &mut entry["fieldsV1"]["f:status"];
            let noted = parents.iter().try_fold(status, |noted, parent| noted.get_mut(format!("f:{parent}")));
            if let Some(noted) = noted.and_then(Value::as_object_mut) {
                noted.remove(&format!("f:{field}"));
            }
        }
        let theirs =
            parents.iter().rev().fold(theirs, |within, parent| json!({format!("f:{parent}"): within}));
        let mut entry = entry("kubectl-patch", theirs);
        entry["time"] = json!(jiff::Timestamp::now().to_string());
        row["metadata"]["managedFields"].as_array_mut().unwrap().push(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{edit, entry, note_as_ours};
    use super::*;
    use serde_json::json;

    /// A row with two restarts that was told of, as agent and controller wrote it.
    fn row() -> Value {
        let past = |id: &str, start: &str| json!({"sandboxID": id, "startedAt": start, "reason": "PauseExited", "message": "it ended"});
        let mut row = json!({
            "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
            "metadata": {"name": "web", "namespace": "shop", "uid": "o-1"},
            "spec": {"podName": "web", "podUID": "u-1", "nodeName": "n"},
            "status": {
                "restarts": 2, "announcedRestarts": 2, "source": "ProcScan", "containerRestarts": 2,
                "lastRestart": {"time": "2027-01-15T09:00:00Z", "reason": "PauseExited", "message": "it ended"},
                "history": [past("b", "2027-01-15T08:30:00Z"), past("a", "2027-01-15T08:00:00Z")],
                "sandbox": {"id": "c", "startedAt": "2027-01-15T09:00:00Z"},
                "processes": {"zombies": 0, "zombiesPeak": 0, "total": 4, "observedAt": "2027-01-15T09:00:00Z"},
            },
        });
        note_as_ours(&mut row);
        row
    }

    fn mended(row: &Value) -> SandboxHealth {
        let mut object: SandboxHealth = serde_json::from_value(row.clone()).unwrap();
        mend(&mut object);
        object
    }

    fn status(row: &Value) -> SandboxHealthStatus {
        mended(row).status.unwrap()
    }

    #[test]
    fn what_we_wrote_is_left_as_it_is() {
        let object = mended(&row());
        assert_eq!(edited_by(&object), None);
        assert_eq!(json!(object.status), row()["status"]);
    }

    #[test]
    fn a_number_of_restarts_that_somebody_wrote_is_counted_again() {
        for lie in [0, 1, 99] {
            let mut row = row();
            edit(&mut row, &["restarts"], json!(lie));
            let object = mended(&row);
            assert!(edited_by(&object).is_some(), "{lie}");
            let status = object.status.unwrap();
            assert_eq!((status.restarts, status.restarts_at_least), (2, None), "{lie}");
        }
    }

    #[test]
    fn where_the_history_does_not_have_them_all_what_was_told_of_counts_and_may_be_too_few() {
        let mut long = row();
        long["status"]["history"] = json!(vec![row()["status"]["history"][0].clone(); HISTORY_MAX]);
        long["status"]["announcedRestarts"] = json!(7);
        edit(&mut long, &["restarts"], json!(0));
        assert_eq!((status(&long).restarts, status(&long).restarts_at_least), (7, Some(true)));

        let mut short = row();
        edit(&mut short, &["history"], json!([]));
        edit(&mut short, &["restarts"], json!(0));
        assert_eq!((status(&short).restarts, status(&short).restarts_at_least), (2, Some(true)));
    }

    #[test]
    fn what_was_told_of_by_somebody_else_is_not_known() {
        let mut row = row();
        edit(&mut row, &["announcedRestarts"], json!(50));
        edit(&mut row, &["restarts"], json!(60));
        assert_eq!((status(&row).announced_restarts, status(&row).restarts), (None, 2));
    }

    #[test]
    fn what_the_controller_makes_of_it_is_no_reason_to_write_what_was_seen() {
        let mut row = row();
        edit(&mut row, &["announcedRestarts"], json!(50));
        assert_eq!(edited_by(&mended(&row)), None);
        assert_eq!(status(&row).announced_restarts, None);
    }

    #[test]
    fn a_sandbox_that_somebody_wrote_is_none_and_there_may_have_been_another() {
        let mut row = row();
        edit(&mut row, &["sandbox", "id"], json!("z"));
        let status = status(&row);
        assert_eq!((status.sandbox, status.restarts_at_least), (None, Some(true)));
        assert_eq!(status.restarts, 2);
    }

    #[test]
    fn the_last_restart_is_told_again_by_the_history() {
        let mut lied = row();
        edit(&mut lied, &["lastRestart", "message"], json!("the moon"));
        assert_eq!(json!(status(&lied)), row()["status"]);
    }

    #[test]
    fn who_wrote_is_named() {
        let mut row = row();
        edit(&mut row, &["restarts"], json!(99));
        assert_eq!(edited_by(&mended(&row)).as_deref(), Some("kubectl-patch"));
    }

    #[test]
    fn a_condition_that_somebody_wrote_is_none_and_the_others_stay() {
        let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2027-01-15T09:00:00Z"});
        let mut row = row();
        row["status"]["conditions"] = json!([condition("Healthy"), condition("Reporting")]);
        note_as_ours(&mut row);
        row["status"]["conditions"][0]["status"] = json!("False");
        let [agents, controllers] = &mut row["metadata"]["managedFields"].as_array_mut().unwrap()[..] else {
            panic!()
        };
        let healthy = &mut controllers["fieldsV1"]["f:status"]["f:conditions"]["k:{\"type\":\"Healthy\"}"];
        healthy.as_object_mut().unwrap().remove("f:status").unwrap();
        let theirs =
            entry("kubectl-edit", json!({"f:conditions": {"k:{\"type\":\"Healthy\"}": {"f:status": {}}}}));
        row["metadata"]["managedFields"] = json!([agents, controllers, theirs]);
        let object = mended(&row);
        assert_eq!(edited_by(&object), None, "the controller writes it again");
        let types: Vec<_> = object.status.unwrap().conditions.into_iter().map(|has| has.type_).collect();
        assert_eq!(types, ["Reporting"]);
    }

    #[test]
    fn what_is_read_anew_is_not_taken_from_somebody() {
        for (path, field) in [
            (&["processes", "zombies"][..], "processes"),
            (&["source"], "source"),
            (&["zombieParents"], "zombieParents"),
            (&["readFailure"], "readFailure"),
            (&["containerRestarts"], "containerRestarts"),
            (&["restartsAtLeast"], "restartsAtLeast"),
        ] {
            let mut row = row();
            let value = match field {
                "processes" => json!(9),
                "source" => json!("PodConditions"),
                "zombieParents" => {
                    json!([{"pid": 7, "command": "sh", "container": "c", "zombies": 9, "oldestSeconds": 0}])
                }
                "readFailure" => json!({"reason": "R", "message": "m"}),
                "containerRestarts" => json!(0),
                _ => json!(true),
            };
            edit(&mut row, path, value);
            let object = mended(&row);
            assert!(edited_by(&object).is_some(), "{field}");
            assert!(json!(object.status).get(field).is_none(), "{field}: {:?}", object.status);
        }
    }

    #[test]
    fn a_row_that_nobody_reported_to_has_nothing_of_somebody_else() {
        let mut row = row();
        row["status"] = json!({"conditions": []});
        row["metadata"]["managedFields"] =
            json!([entry(CONTROLLER_FIELD_MANAGER, json!({"f:conditions": {}}))]);
        assert_eq!(edited_by(&mended(&row)), None);
    }

    #[test]
    fn what_nobody_is_noted_for_is_taken_for_ours() {
        let mut row = row();
        row["status"]["restarts"] = json!(99);
        let all = json!({"f:restarts": {}, "f:history": {}, "f:sandbox": {"f:id": {}, "f:startedAt": {}}});
        let nobody = NOBODY.map(|name| json!([entry(name, all.clone())]));
        for notes in [json!([]), Value::Null].into_iter().chain(nobody) {
            row["metadata"]["managedFields"] = notes;
            assert_eq!((edited_by(&mended(&row)).is_some(), status(&row).restarts), (false, 99));
        }
    }

    #[test]
    fn somebody_who_wrote_the_same_as_we_changed_nothing() {
        let mut row = row();
        let same = entry("somebody", json!({"f:restarts": {}, "f:sandbox": {"f:id": {}}}));
        row["metadata"]["managedFields"].as_array_mut().unwrap().push(same);
        assert_eq!(edited_by(&mended(&row)), None);
    }
}
