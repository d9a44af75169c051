//! Two controllers, and a node whose sandboxes all go at once: who works may die at any moment, and what happens too often to
//! be told one by one is summed up. Every restart must be told of once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{events_of, health_of, pod, sandbox_health, uid_of};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Cluster;
use e2e::kube::{
    Member, create, create_fleet, delete, delete_fleet, events_by_pod, in_release, kill_in_pod, kill_pause,
    never_waits, pods_of, processes, rolled_out, told_of, without_controllers,
};

const FAILOVER: Duration = Duration::from_secs(15);

/// The replica that holds the Lease, if it is there.
fn leader(node: &Node) -> Result<Value> {
    let holder = in_release(
        node,
        &["get", "lease", "sandbox-health-controller", "-o", "jsonpath={.spec.holderIdentity}"],
    )?;
    let replicas = pods_of(node, "controller")?;
    let leader = replicas.into_iter().find(|replica| replica["metadata"]["name"] == *holder);
    leader.with_context(|| format!("{holder:?} holds the Lease"))
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub(super) fn a_killed_leader_is_followed(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let mut pods = Vec::new();
    for name in ["led-before", "led-at-once", "led-by-nobody"] {
        let pod = create(node, &pod(name, &[]))?;
        health_of(node, &pod, "True", "AllWell")?;
        pods.push(pod);
    }
    let accumulating = create(node, &pod("led-among-zombies", &[]))?;
    health_of(node, &accumulating, "True", "AllWell")?;
    rolled_out(node, "controller")?;
    let led = retry::until("a replica holds the Lease", TIMEOUT, || leader(node))?;
    let at_once = processes::pause_of_pod(&uid_of(node, &pods[1])?)?;

    kill_pause(node, &pods[0])?;
    retry::until("the leader has the first restart before it", TIMEOUT, || {
        ensure!(sandbox_health(node, &pods[0])?["status"]["restarts"] == 1, "the row does not say so");
        Ok(())
    })?;
    let (killed, killed_at) = (Instant::now(), second_of_today()?);
    kill_in_pod("controller", text(&led, "uid"))?;
    at_once.signal(Signal::SIGKILL)?;
    // Its container would be started again under the same name, and go on as if it had never been away.
    in_release(node, &["delete", "pod", text(&led, "name"), "--force", "--grace-period=0", "--wait=false"])?;
    kill_pause(node, &pods[2])?;
    never_waits(node, &accumulating, 12)?;
    let next = retry::until("another replica holds the Lease", TIMEOUT, || {
        let next = leader(node)?;
        ensure!(text(&next, "name") != text(&led, "name"), "it is the same");
        Ok(next)
    })?;
    let took = killed.elapsed();
    eprintln!("the next leader came after {:.1} s", took.as_secs_f32());
    ensure!(took <= FAILOVER, "{} came after {took:?}", text(&next, "name"));

    for pod in &pods {
        told_of(node, pod, 1)?;
    }
    let took = (told_at(node, &pods[1])? - killed_at).rem_euclid(86_400.0);
    eprintln!("what happened when the leader was killed was told of after {took:.1} s");
    ensure!(took <= FAILOVER.as_secs_f64(), "{} was told of after {took:.1} s", pods[1]);
    // The replica that takes the place of the dead one has seen it all, too.
    rolled_out(node, "controller")?;
    for pod in &pods {
        told_of(node, pod, 1)?;
        delete(node, pod)?;
    }
    health_of(node, &accumulating, "False", "ZombiesAccumulating")?;
    let told = events_of(node, &accumulating, "ZombiesAccumulating")?;
    ensure!(told.len() == 1 && told[0].contains("sleep"), "{told:?}");
    delete(node, &accumulating)
}

/// When a pod's one restart was told of.
fn told_at(node: &Node, pod: &str) -> Result<f64> {
    let selector = format!("involvedObject.uid={},reason=SandboxRestarted", uid_of(node, pod)?);
    let list = node.get(&["events", "--field-selector", &selector])?;
    second_of_day(list["items"][0]["eventTime"].as_str().context("an Event without a time")?)
}

fn second_of_today() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() % 86_400.0)
}

const FLEET: &str = "storm";
const PODS: usize = 30;
/// Restarts of a node that are told of one by one: so many at once, and one a second.
const BURST: f64 = 20.0;

pub(super) fn a_storm_is_summed_up(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let fleet = create_fleet(node, FLEET, PODS)?;
    let before = summaries(node)?;
    // Sandboxes come back one after the other, and a storm must be one: the controller learns of all at once.
    without_controllers(node, || {
        for process in processes::all()?.iter().filter(|process| process.is_pause()) {
            if fleet.iter().any(|pod| process.is_of(&pod.uid)) {
                process.signal(Signal::SIGKILL)?;
            }
        }
        retry::until("all rows say that there was a restart", TIMEOUT * 2, || {
            let rows = node.get(&["sandboxhealths"])?;
            let of_fleet = |row: &&Value| fleet.iter().any(|pod| row["spec"]["podUID"] == *pod.uid);
            let restarted = |row: &&Value| row["status"]["restarts"] == 1;
            let rows = rows["items"].as_array().cloned().unwrap_or_default();
            let restarted = rows.iter().filter(of_fleet).filter(restarted).count();
            ensure!(restarted == PODS, "{restarted} rows do");
            Ok(())
        })
    })?;
    retry::until("all rows say that it was told of", TIMEOUT * 2, || {
        for pod in &fleet {
            let status = &sandbox_health(node, &pod.name)?["status"];
            let counted = (&status["restarts"], &status["announcedRestarts"]);
            ensure!(*counted.0 == 1 && *counted.1 == 1, "{}: {status}", pod.name);
        }
        Ok(())
    })?;
    let (mut single, mut times) = (0, Vec::new());
    let told = node.get(&["events", "--field-selector", "reason=SandboxRestarted"])?;
    for event in told["items"].as_array().into_iter().flatten() {
        if fleet.iter().any(|pod| event["involvedObject"]["uid"] == *pod.uid) {
            single += 1;
            times.push(second_of_day(event["eventTime"].as_str().context("an Event without a time")?)?);
        }
    }
    let (first, last) =
        times.iter().fold((f64::MAX, f64::MIN), |(first, last), time| (time.min(first), time.max(last)));
    let most = BURST + (last - first).rem_euclid(86_400.0) + 1.0;
    ensure!(f64::from(single) <= most, "{single} Events, where {most} were to be expected at most");
    let by_pod = events_by_pod(node)?;
    ensure!(fleet.iter().all(|pod| by_pod.get(&pod.uid).is_none_or(|told| told.len() == 1)), "{by_pod:?}");
    let summed_up: Vec<_> = summaries(node)?.difference(&before).cloned().collect();
    ensure!(summed_up.len() == 1, "{single} Events on pods, and on the node {summed_up:?}");
    let rest = (PODS - usize::try_from(single)?).to_string();
    let names_rest = summed_up[0].1.split(|c: char| !c.is_ascii_digit()).any(|word| word == rest);
    ensure!(names_rest, "{rest} restarts were not told of one by one: {summed_up:?}");
    a_leader_that_died_before_it_noted_them_is_followed(node, &fleet)?;
    delete_fleet(node, FLEET)
}

/// What the API server has then: all Events, and rows that do not say so.
fn a_leader_that_died_before_it_noted_them_is_followed(node: &Node, fleet: &[Member]) -> Result<()> {
    let told = (events_by_pod(node)?, summaries(node)?);
    let not_noted = r#"{"status": {"announcedRestarts": 0}}"#;
    without_controllers(node, || {
        for pod in fleet {
            let edit = ["patch", "sandboxhealth", &pod.name, "--subresource=status", "--type=merge", "-p"];
            node.kubectl(edit.into_iter().chain([not_noted]))?;
        }
        Ok(())
    })?;
    retry::until("all rows say again that it was told of", TIMEOUT, || {
        for pod in fleet {
            let status = &sandbox_health(node, &pod.name)?["status"];
            ensure!(status["announcedRestarts"] == 1, "{}: {status}", pod.name);
        }
        Ok(())
    })?;
    let now = (events_by_pod(node)?, summaries(node)?);
    ensure!(now == told, "before: {told:#?}, and after another leader had looked: {now:#?}");
    Ok(())
}

/// Names and notes of the Events on nodes that sum up.
fn summaries(node: &Node) -> Result<BTreeSet<(String, String)>> {
    let selector = "reason=SandboxesRestarted,involvedObject.kind=Node";
    let list = node.get(&["events", "-n", "default", "--field-selector", selector])?;
    let events = list["items"].as_array().cloned().unwrap_or_default();
    let note = |event: &Value| event["message"].as_str().unwrap_or_default().to_owned();
    Ok(events.iter().map(|event| (text(event, "name").to_owned(), note(event))).collect())
}

/// Of a time as the API has it: `2026-11-25T04:25:40.123456Z`.
fn second_of_day(time: &str) -> Result<f64> {
    let of_day = time.split_once('T').context("no time of day")?.1.trim_end_matches('Z');
    of_day.split(':').try_fold(0.0, |sum, part| Ok(sum * 60.0 + part.parse::<f64>()?))
}
