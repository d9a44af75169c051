//! What Events say, in words that are true of what was seen and no more. Names that tenants chose are told such that they cannot
//! pass for the text around them.

use super::pods::PodKey;
use super::storm::Summary;
use crate::resource::{LastRestart, PastSandbox, Processes, ZombieParent};
use crate::text::cut;

/// Bytes of the longest note (`Event.note`).
const NOTE_MAX: usize = 1024;
/// Pods that a summary names.
const NAMED_PODS: usize = 5;

/// Of a restart with this number; `at_least` if there may have been more. `last`: if it's the last one.
#[must_use]
pub fn restart(
    number: i64,
    at_least: bool,
    last: Option<&LastRestart>,
    past: Option<&PastSandbox>,
) -> String {
    let cause = match (last, past) {
        (Some(last), _) => last.message.clone(),
        (None, Some(past)) => cause(past),
        (None, None) => "the cause is not known".to_owned(),
    };
    let at_least = if at_least { ", at least" } else { "" };
    format!(
        "Sandbox restart {number}{at_least}: {cause}. The containers that ran in it ended; the kubelet starts them anew."
    )
}

/// Of restarts before the one that is told of.
#[must_use]
pub fn earlier(restarts: i64) -> String {
    let restarts =
        if restarts == 1 { "1 earlier restart is" } else { &format!("{restarts} earlier restarts are") };
    format!(" {restarts} not told of one by one.")
}

/// What is said of an earlier restart: how its pause process ended, if that was kept.
fn cause(past: &PastSandbox) -> String {
    let told = past.message.clone().filter(|message| !message.is_empty());
    told.unwrap_or_else(|| past.reason.in_words().to_owned())
}

/// Of zombies that are too many.
#[must_use]
pub fn accumulating(processes: &Processes, parents: &[ZombieParent]) -> String {
    let mut note = format!(
        "{} zombies: processes that ended and that their parents do not reap. Each holds a PID of the pod's limit.",
        processes.zombies
    );
    if !parents.is_empty() {
        let parents: Vec<_> = parents.iter().map(parent).collect();
        note.push_str(&format!(" Their parents: {}.", parents.join("; ")));
    }
    note
}

/// Of zombies that are not too many any more.
#[must_use]
pub fn cleared(processes: &Processes) -> String {
    format!("Zombies do not accumulate any more; {} are left.", processes.zombies)
}

fn parent(parent: &ZombieParent) -> String {
    let container = match plain(&parent.container) {
        // The pod's status names neither the pause container nor one that is new.
        name if name.is_empty() => "the sandbox or a container without a name yet".to_owned(),
        name => format!("container \"{name}\""),
    };
    let ZombieParent { pid, zombies, oldest_seconds, .. } = parent;
    let command = plain(&parent.command);
    format!("PID {pid} ({command}) in {container}: {zombies}, the oldest known for {oldest_seconds} s")
}

/// A name that a tenant chose, such that it cannot pass for the text around it.
fn plain(name: &str) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || " -_.,/@+=#%*[]".contains(it);
    name.chars().take(64).map(|it| if is_plain(it) { it } else { '?' }).collect()
}

/// Of many pods of a node.
#[must_use]
pub fn summary(summary: &Summary) -> String {
    let (pods, restarts) = (summary.pods.len(), summary.restarts());
    let mut reasons: Vec<_> =
        summary.reasons().into_iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
    let unknown = restarts - summary.reasons().values().sum::<i64>();
    if unknown > 0 {
        reasons.push(format!("not known any more: {unknown}"));
    }
    let named: Vec<_> = summary.pods.keys().take(NAMED_PODS).map(PodKey::to_string).collect();
    let more = match pods.saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let what = if pods == 1 {
        "The sandbox of 1 pod was".to_owned()
    } else {
        format!("The sandboxes of {pods} pods were")
    };
    format!(
        "{what} restarted, {restarts} restarts in all ({}), too many to tell of each: {}{more}.",
        reasons.join(", "),
        named.join(", ")
    )
}

/// A note of a length that the API takes.
#[must_use]
pub fn bounded(note: &str) -> String {
    if note.len() <= NOTE_MAX {
        return note.to_owned();
    }
    format!("{}…", cut(note, NOTE_MAX - '…'.len_utf8()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::events::tests::summary as many;
    use serde_json::json;

    fn blamed(parents: serde_json::Value) -> String {
        let processes =
            json!({"zombies": 7, "zombiesPeak": 9, "total": 12, "observedAt": "2027-01-15T08:00:00Z"});
        let parents: Vec<_> = serde_json::from_value(parents).unwrap();
        accumulating(&serde_json::from_value(processes).unwrap(), &parents)
    }

    #[test]
    fn the_parents_of_zombies_are_named() {
        let note = blamed(json!([
            {"pid": 17, "command": "sh", "container": "shell", "zombies": 6, "oldestSeconds": 40},
            {"pid": 9, "command": "java", "container": "", "zombies": 1, "oldestSeconds": 3},
        ]));
        let parents = "PID 17 (sh) in container \"shell\": 6, the oldest known for 40 s; PID 9 (java) in the sandbox or a \
                       container without a name yet: 1, the oldest known for 3 s";
        assert!(note.ends_with(&format!(" Their parents: {parents}.")), "{note}");
        assert!(blamed(json!([])).ends_with("Each holds a PID of the pod's limit."));
    }

    #[test]
    fn a_command_cannot_pass_for_the_text_around_it() {
        let command = "x) in \"y\": 1;\n\u{202e}\u{1b}[31m";
        let note = blamed(
            json!([{"pid": 1, "command": command, "container": "c", "zombies": 1, "oldestSeconds": 0}]),
        );
        assert!(note.contains("PID 1 (x? in ?y?? 1????[31m) in container \"c\": 1,"), "{note}");
    }

    #[test]
    fn a_summary_says_how_many_why_and_which() {
        assert_eq!(
            summary(&many(7, "p")),
            "The sandboxes of 7 pods were restarted, 7 restarts in all (NodeRebooted: 6, Replaced: 1), too many to tell of each: \
             shop/p0, shop/p1, shop/p2, shop/p3, shop/p4 and 2 more."
        );
        let mut one = many(1, "p");
        one.pods.get_mut(&PodKey::new("shop", "p0")).unwrap().untold = 9;
        assert_eq!(
            summary(&one),
            "The sandbox of 1 pod was restarted, 9 restarts in all (Replaced: 1, not known any more: 8), too many to tell of \
             each: shop/p0."
        );
    }

    #[test]
    fn what_fits_is_left_as_it_is() {
        assert_eq!(bounded(&"x".repeat(1024)), "x".repeat(1024));
        assert_eq!(bounded(&"x".repeat(1025)), format!("{}…", "x".repeat(1021)));
    }
}
