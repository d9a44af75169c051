//! What agent and controller ask of the API server, by the server's own audit log: no more than docs/writes.md says, and no
//! write that nothing calls for; and that what others change in rows and Events is made right once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::build::project_file;
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, health_of, pod, sandbox_health, shell, uid_of};
use e2e::names::RELEASE_NAMESPACE;
use serde_json::{Value, json};

use super::Cluster;
use e2e::kube::{create, delete, edit_restarts, kill_pause, never_waits, restart, told_of};

/// What is set off by something is over when pause has looked again (10 s) and the agent has read that (5 s).
const SETTLED: Duration = Duration::from_secs(20);
/// Between lists of all objects by an agent.
const LIST: Duration = Duration::from_secs(300);

/// A request of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    /// `agent` or `controller`.
    part: String,
    verb: String,
    /// With the subresource.
    resource: String,
    name: String,
    at: String,
    uri: String,
}

impl Call {
    /// Of a line of the log; `None` for a request of somebody else, and for the first of two lines of one request.
    fn of(event: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let user = text(&event["user"]["username"]);
        let account = user.strip_prefix(&format!("system:serviceaccount:{RELEASE_NAMESPACE}:"))?;
        // There is that of `helm test`, too.
        let part = ["agent", "controller"].into_iter().find(|part| account.ends_with(&format!("-{part}")))?;
        // A test holds a token of ours, and tries what it must not do with kubectl.
        if text(&event["userAgent"]).starts_with("kubectl/") {
            return None;
        }
        // A watch may last longer than the tests.
        if event["verb"] != "watch" && event["stage"] != "ResponseComplete" {
            return None;
        }
        let object = &event["objectRef"];
        let resource = match (text(&object["resource"]), text(&object["subresource"])) {
            (resource, _) if resource.is_empty() => text(&event["requestURI"]),
            (resource, subresource) if subresource.is_empty() => resource,
            (resource, subresource) => format!("{resource}/{subresource}"),
        };
        Some(Self {
            part: part.to_owned(),
            verb: text(&event["verb"]),
            resource,
            name: text(&object["name"]),
            at: text(&event["requestReceivedTimestamp"]),
            uri: text(&event["requestURI"]),
        })
    }

    /// Whether of many objects those of one node alone are asked for.
    fn is_of_one_node(&self) -> bool {
        !["list", "watch"].contains(&self.verb.as_str())
            || self.uri.contains("fieldSelector=spec.nodeName%3D")
    }

    fn is_write(&self) -> bool {
        ["create", "update", "patch", "delete", "deletecollection"].contains(&self.verb.as_str())
    }
}

fn calls(node: &Node) -> Result<Vec<Call>> {
    let log = node.audit_log()?;
    // The last line may be on its way.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut calls = Vec::new();
    for line in whole.lines().filter(|line| line.contains(RELEASE_NAMESPACE)) {
        calls.extend(Call::of(&serde_json::from_str(line)?));
    }
    Ok(calls)
}

/// All writes but for the Lease, which is renewed whatever happens.
fn writes(node: &Node) -> Result<Vec<Call>> {
    Ok(calls(node)?.into_iter().filter(|call| call.is_write() && call.resource != "leases").collect())
}

/// How often somebody wrote to the object of a pod, and how many Events were made for the pod.
#[derive(Debug, Default, PartialEq, Eq)]
struct Written {
    agent: usize,
    controller: usize,
    events: usize,
}

impl Written {
    fn less(&self, before: &Self) -> Self {
        Self {
            agent: self.agent - before.agent,
            controller: self.controller - before.controller,
            events: self.events - before.events,
        }
    }
}

fn written(node: &Node, pod: &str, since: &str) -> Result<Written> {
    let mut written = Written::default();
    for call in writes(node)?.iter().filter(|call| call.at.as_str() >= since) {
        if call.resource == "events" && call.name.starts_with(&format!("{pod}.")) {
            written.events += 1;
        } else if call.name == pod && call.part == "agent" {
            written.agent += 1;
        } else if call.name == pod {
            written.controller += 1;
        }
    }
    Ok(written)
}

pub(super) fn five_quiet_minutes_have_no_writes(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    // Beside a pod that runs, one that has ended.
    let mut finished = pod("finished", &[]);
    finished["spec"]["restartPolicy"] = json!("Never");
    finished["spec"]["containers"][0]["command"] = json!(["sleep", "3"]);
    node.apply(&finished)?;
    let quiet = create(node, &pod("quiet", &[]))?;
    health_of(node, &quiet, "True", "AllWell")?;
    let object = health_of(node, "finished", "Unknown", "PodFinished")?;
    ensure!(object["status"]["restarts"] == 0, "{object}");
    // Numbers that moved are written within five minutes. Zombies that come and go have them written at once.
    let parent = never_waits(node, &quiet, 8)?;
    health_of(node, &quiet, "False", "ZombiesAccumulating")?;
    shell(node, &quiet, &format!("kill {parent}"))?;
    health_of(node, &quiet, "True", "AllWell")?;
    thread::sleep(SETTLED);
    let before = writes(node)?;
    // Or the log would be empty whoever wrote.
    for part in ["agent", "controller"] {
        let wrote = before.iter().any(|call| call.part == part && call.name == quiet);
        ensure!(wrote, "{part} wrote nothing: {before:?}");
    }
    thread::sleep(Duration::from_secs(300));
    let after = writes(node)?;
    ensure!(after.len() == before.len(), "in five quiet minutes: {:?}", &after[before.len()..]);
    delete(node, "finished")?;
    delete(node, &quiet)
}

const STABLE: &str = "stable-again";

pub(super) fn a_restart_and_zombies_take_few_writes(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let onset = create(node, &pod("onset", &[]))?;
    restarted(node)?;
    health_of(node, &onset, "True", "AllWell")?;
    thread::sleep(SETTLED);
    let before = written(node, &onset, "")?;
    never_waits(node, &onset, 12)?;
    health_of(node, &onset, "False", "ZombiesAccumulating")?;
    thread::sleep(SETTLED);
    let expected = Written { agent: 1, controller: 1, events: 1 };
    let told = written(node, &onset, "")?.less(&before);
    ensure!(told == expected, "for the onset of zombies {told:?}");
    let told = written(node, STABLE, &restarted(node)?)?;
    ensure!(told == expected, "for a restart {told:?}");
    delete(node, &onset)
}

/// When a pod was restarted that is left alone from then on; it is made if it is not there.
fn restarted(node: &Node) -> Result<String> {
    if sandbox_health(node, STABLE).is_err() {
        create(node, &pod(STABLE, &[]))?;
        health_of(node, STABLE, "True", "AllWell")?;
        thread::sleep(SETTLED);
        kill_pause(node, STABLE)?;
        told_of(node, STABLE, 1)?;
    }
    let object = sandbox_health(node, STABLE)?;
    let time = object["status"]["lastRestart"]["time"].as_str().context("no restart")?;
    Ok(time.trim_end_matches('Z').to_owned())
}

/// Ten minutes after the restart it is stable again, and that was the last write for it.
pub(super) fn a_restart_is_forgotten_with_one_write(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let time = restarted(node)?;
    retry::until("it is stable again", Duration::from_secs(600) + TIMEOUT, || {
        let status = sandbox_health(node, STABLE)?["status"].clone();
        let conditions = status["conditions"].as_array().context("no conditions")?;
        let is_true = |type_: &str| {
            let condition = conditions.iter().find(|condition| condition["type"] == type_);
            condition.is_some_and(|condition| condition["status"] == "True")
        };
        ensure!(is_true("Healthy") && is_true("SandboxStable"), "{status}");
        Ok(())
    })?;
    thread::sleep(SETTLED);
    let written = written(node, STABLE, &time)?;
    // The agent's second is for numbers that moved since the first: the new sandbox was alone when it was found.
    ensure!(written.controller == 2 && written.events == 1 && written.agent <= 2, "{written:?}");
    delete(node, STABLE)
}

const EDITED: &str = "edited";
const DELETED: &str = "row-deleted";

/// Two pods with a restart each, in whose rows somebody meddles.
pub(super) fn somebody_edits_a_row_and_deletes_another(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    for name in [EDITED, DELETED] {
        create(node, &pod(name, &[]))?;
        health_of(node, name, "True", "AllWell")?;
        kill_pause(node, name)?;
        told_of(node, name, 1)?;
    }
    thread::sleep(SETTLED);
    edit_restarts(node, EDITED)?;
    let uid = |object: Value| object["metadata"]["uid"].clone();
    let before = uid(sandbox_health(node, DELETED)?);
    node.kubectl(["delete", "sandboxhealth", DELETED])?;
    // The controller makes another at once; what the agent knows it says at its next list.
    retry::until("there is a row again", TIMEOUT, || {
        ensure!(uid(sandbox_health(node, DELETED)?) != before, "it is the old one");
        Ok(())
    })
}

pub(super) fn what_somebody_did_to_rows_is_made_right_once(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    if sandbox_health(node, EDITED).is_err() {
        somebody_edits_a_row_and_deletes_another(cluster)?;
    }
    for name in [EDITED, DELETED] {
        retry::until(&format!("the row of {name} is right again"), LIST + TIMEOUT, || {
            let status = &sandbox_health(node, name)?["status"];
            let counts = (&status["restarts"], &status["announcedRestarts"]);
            ensure!(*counts.0 == 1 && *counts.1 == 1, "{name}: {status}");
            ensure!(status["history"].as_array().map(Vec::len) == Some(1), "{name}: {status}");
            Ok(())
        })?;
    }
    let edited_at = edited_at(node)?;
    thread::sleep(SETTLED);
    for name in [EDITED, DELETED] {
        let written = written(node, name, &edited_at)?;
        // Of the deleted one the agent writes a first report; the controller made it, and judged it before and after that. What is
        // not the agent's it does not judge; but ten minutes after a restart it writes that the sandbox is stable.
        let judged = if name == EDITED { 1 } else { 3 };
        ensure!(written.agent == 1 && written.controller <= judged, "{name} was made right by {written:?}");
        let told = told_of(node, name, 1)?;
        kill_pause(node, name)?;
        let now = told_of(node, name, 2)?;
        ensure!(now[0] == told[0], "{now:?}");
        delete(node, name)?;
    }
    Ok(())
}

/// What an agent saw of an earlier pod of the name may come late. The server does not look at the UID of a row in a write of its status.
pub(super) fn a_status_of_another_pod_is_refused(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("one-of-two", &[]))?;
    let before = health_of(node, &pod, "True", "AllWell")?;
    let own = before["spec"]["podUID"].as_str().context("no podUID")?;
    ensure!(before["status"]["podUID"] == own, "{before}");
    let late = |pod_uid: &str, zombies: i64| {
        let status = json!({"podUID": pod_uid, "processes": {"zombies": zombies}});
        let patch = json!({"metadata": {"uid": "00000000-0000-0000-0000-000000000000"}, "status": status})
            .to_string();
        node.kubectl(["patch", "sandboxhealth", &pod, "--subresource=status", "--type=merge", "-p", &patch])
    };
    let refused = late("11111111-2222-4333-8444-555555555555", 1).err().context("it was taken")?;
    ensure!(format!("{refused:#}").contains("status is of another pod"), "{refused:#}");
    ensure!(sandbox_health(node, &pod)?["status"] == before["status"], "it was written all the same");
    late(own, 0)?;
    delete(node, &pod)
}

/// Neither agent nor controller has anything in memory to go on from.
pub(super) fn an_edited_row_is_made_right_by_an_agent_that_starts(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("edited-unseen", &[]))?;
    health_of(node, &pod, "True", "AllWell")?;
    kill_pause(node, &pod)?;
    let told = told_of(node, &pod, 1)?;
    thread::sleep(SETTLED);
    edit_restarts(node, &pod)?;
    restart(node, "controller")?;
    restart(node, "agent")?;
    retry::until("the row is right again", TIMEOUT, || {
        let status = &sandbox_health(node, &pod)?["status"];
        let counts = (&status["restarts"], &status["announcedRestarts"], &status["restartsAtLeast"]);
        ensure!(*counts.0 == 1 && *counts.1 == 1 && counts.2.is_null(), "{status}");
        Ok(())
    })?;
    kill_pause(node, &pod)?;
    let now = told_of(node, &pod, 2)?;
    ensure!(now[0] == told[0] && now[1].contains("restart 2"), "{now:?}");
    delete(node, &pod)
}

/// When somebody edited the row.
fn edited_at(node: &Node) -> Result<String> {
    let log = node.audit_log()?;
    for line in log.lines().rev().filter(|line| line.contains(EDITED) && line.contains("patch")) {
        let event: Value = serde_json::from_str(line)?;
        let by_us = event["user"]["username"].as_str().is_some_and(|user| user.contains(RELEASE_NAMESPACE));
        if event["objectRef"]["name"] == EDITED
            && event["objectRef"]["subresource"] == "status"
            && !by_us
            && event["objectRef"]["resource"] == "sandboxhealths"
        {
            return Ok(event["requestReceivedTimestamp"].as_str().context("no time")?.to_owned());
        }
    }
    anyhow::bail!("nobody edited {EDITED}")
}

/// Events are kept for an hour or so. That one is gone does not mean that it was never told.
pub(super) fn an_event_that_expired_is_not_told_again(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod_ = create(node, &pod("expired", &[]))?;
    health_of(node, &pod_, "True", "AllWell")?;
    kill_pause(node, &pod_)?;
    told_of(node, &pod_, 1)?;
    retry::until("the row says that it is told", TIMEOUT, || {
        let status = &sandbox_health(node, &pod_)?["status"];
        ensure!(status["announcedRestarts"] == 1, "{status}");
        Ok(())
    })?;
    let uid = uid_of(node, &pod_)?;
    node.kubectl(["delete", "events", "--field-selector", &format!("involvedObject.uid={uid}")])?;
    restart(node, "controller")?;
    restart(node, "agent")?;
    // What comes later is told, and what came before is not.
    kill_pause(node, &pod_)?;
    let told = retry::until("the next restart is told of", TIMEOUT, || {
        let told = events_of(node, &pod_, "SandboxRestarted")?;
        ensure!(!told.is_empty(), "nothing is told");
        Ok(told)
    })?;
    ensure!(told.len() == 1 && told[0].contains("restart 2"), "{told:?}");
    delete(node, &pod_)
}

/// A row of the table of docs/writes.md.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    part: String,
    verb: String,
    resource: String,
    seen_in_tests: bool,
}

/// The rows of the one table that has these columns.
fn table(page: &str) -> Result<Vec<Row>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let mut lines = page.lines().skip_while(|line| !line.starts_with("| part | verb | resource |"));
    let head = cells(lines.next().context("no table of calls")?);
    let in_tests = head.iter().position(|title| title == "in the tests").context("no last column")?;
    let rows = lines.skip(1).take_while(|line| line.starts_with('|')).map(|line| {
        let cells = cells(line);
        let in_tests = cells.get(in_tests).with_context(|| line.to_owned())?;
        ensure!(["yes", "may be"].contains(&in_tests.as_str()), "{line}");
        Ok(Row {
            part: cells[0].clone(),
            verb: cells[1].clone(),
            resource: cells[2].clone(),
            seen_in_tests: in_tests == "yes",
        })
    });
    rows.collect()
}

pub(super) fn every_call_is_in_the_table(cluster: &Cluster) -> Result<()> {
    let rows = table(&fs::read_to_string(project_file("docs/writes.md")?)?)?;
    ensure!(!rows.is_empty(), "the table is empty");
    let mut counts = BTreeMap::new();
    for call in calls(&cluster.node)? {
        ensure!(call.part != "agent" || call.is_of_one_node(), "an agent asked for {}", call.uri);
        let Call { part, verb, resource, .. } = call;
        *counts.entry((part, verb, resource)).or_insert(0) += 1;
    }
    let unknown: Vec<_> = counts
        .keys()
        .filter(|(part, verb, resource)| {
            !rows.iter().any(|row| (&row.part, &row.verb, &row.resource) == (part, verb, resource))
        })
        .collect();
    ensure!(unknown.is_empty(), "docs/writes.md does not have {unknown:?}");
    let missed: BTreeSet<_> = rows
        .iter()
        .filter(|row| row.seen_in_tests)
        .filter(|row| !counts.contains_key(&(row.part.clone(), row.verb.clone(), row.resource.clone())))
        .map(|row| format!("{} {} {}", row.part, row.verb, row.resource))
        .collect();
    ensure!(missed.is_empty(), "docs/writes.md has what nobody did: {missed:?}; there were {counts:?}");
    Ok(())
}
