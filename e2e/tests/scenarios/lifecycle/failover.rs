//! Leader election, and a node whose sandboxes all end at once: the leader may be killed at any moment, and every restart has one Event.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    Member, create_fleet, create_healthy, delete, delete_fleet, events, events_of, in_release, kill_in_pod,
    kill_pause, leave_zombies, pods_of, processes, restart_events_by_pod, sandbox_health, sandbox_healths,
    uid_of, wait_for_health, wait_for_restarts, wait_for_rollout, without_controllers,
};
use e2e::names::CONTROLLER;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 2] = [
    ("killed_leader_is_replaced_within_20_s", killed_leader_is_replaced_within_20_s),
    ("simultaneous_restarts_have_one_event_each", simultaneous_restarts_have_one_event_each),
];

const FAILOVER: Duration = Duration::from_secs(20);

/// The pod that holds the Lease, if it exists.
fn leader(node: &Node) -> Result<Value> {
    let holder = in_release(node, &["get", "lease", CONTROLLER, "-o", "jsonpath={.spec.holderIdentity}"])?;
    let replicas = pods_of(node, "controller")?;
    let leader = replicas.into_iter().find(|replica| replica["metadata"]["name"] == *holder);
    leader.with_context(|| format!("{holder:?} holds the Lease"))
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

fn killed_leader_is_replaced_within_20_s(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let [before, with_it, after, accumulating] =
        create_healthy(node, ["before-the-leader", "with-the-leader", "after-the-leader", "among-zombies"])?;
    let pods = [before, with_it, after];
    wait_for_rollout(node, "controller")?;
    let led = retry::until("a replica holds the Lease", TIMEOUT, || leader(node))?;
    let with_it = processes::pause_of_pod(&uid_of(node, &pods[1])?)?;

    kill_pause(node, &pods[0])?;
    retry::until("the first restart is reported to the leader", TIMEOUT, || {
        ensure!(sandbox_health(node, &pods[0])?["status"]["restarts"] == 1, "it is not in the object");
        Ok(())
    })?;
    let (killed, killed_at) = (Instant::now(), second_of_today()?);
    kill_in_pod("controller", text(&led, "uid"))?;
    with_it.signal(Signal::SIGKILL)?;
    // Its container would be restarted under the same name, and continue with the same identity.
    in_release(node, &["delete", "pod", text(&led, "name"), "--force", "--grace-period=0", "--wait=false"])?;
    kill_pause(node, &pods[2])?;
    leave_zombies(node, &accumulating, 12)?;
    let next = retry::until("another replica holds the Lease", TIMEOUT, || {
        let next = leader(node)?;
        ensure!(text(&next, "name") != text(&led, "name"), "it is the same");
        Ok(next)
    })?;
    let took = killed.elapsed();
    eprintln!("the next leader was elected after {:.1} s", took.as_secs_f32());
    ensure!(took <= FAILOVER, "{} became leader after {took:?}", text(&next, "name"));

    for pod in &pods {
        wait_for_restarts(node, pod, 1)?;
    }
    let took = (reported_at(node, &pods[1])? - killed_at).rem_euclid(86_400.0);
    eprintln!("a restart at the time of the kill was reported after {took:.1} s");
    ensure!(took <= FAILOVER.as_secs_f64(), "{} was reported after {took:.1} s", pods[1]);
    // The replica that replaces the killed one has processed everything, too.
    wait_for_rollout(node, "controller")?;
    for pod in &pods {
        wait_for_restarts(node, pod, 1)?;
        delete(node, pod)?;
    }
    wait_for_health(node, &accumulating, "False", "ZombiesAccumulating")?;
    let messages = events_of(node, &accumulating, "ZombiesAccumulating")?;
    ensure!(messages.len() == 1 && messages[0].contains("sleep"), "{messages:?}");
    delete(node, &accumulating)
}

/// When a pod's one restart was reported.
fn reported_at(node: &Node, pod: &str) -> Result<f64> {
    let selector = format!("involvedObject.uid={},reason=SandboxRestarted", uid_of(node, pod)?);
    let events = events(node, &selector)?;
    second_of_day(
        events.first().and_then(|event| event["eventTime"].as_str()).context("no Event with a time")?,
    )
}

fn second_of_today() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() % 86_400.0)
}

const FLEET: &str = "storm";
const PODS: usize = 30;

fn simultaneous_restarts_have_one_event_each(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let fleet = create_fleet(node, FLEET, PODS)?;
    // Sandboxes are recreated one after the other; without a controller in between it reads all restarts at once.
    without_controllers(node, || {
        for process in processes::all()?.iter().filter(|process| process.is_pause()) {
            if fleet.iter().any(|pod| process.is_of(&pod.uid)) {
                process.signal(Signal::SIGKILL)?;
            }
        }
        retry::until("all objects have a restart", TIMEOUT * 2, || {
            let objects = objects_of(node, &fleet)?;
            let restarted = objects.iter().filter(|object| object["status"]["restarts"] == 1).count();
            ensure!(restarted == PODS, "{restarted} objects have one");
            Ok(())
        })
    })?;
    retry::until("each restart has an Event", TIMEOUT * 2, || each_has_one_event(node, &fleet))?;
    // The next leader repeats the Events of the last hour, by the same names.
    without_controllers(node, || Ok(()))?;
    wait_for_rollout(node, "controller")?;
    let [witness] = create_healthy(node, ["after-the-storm"])?;
    kill_pause(node, &witness)?;
    wait_for_restarts(node, &witness, 1)?;
    each_has_one_event(node, &fleet)?;
    delete(node, &witness)?;
    delete_fleet(node, FLEET)
}

fn each_has_one_event(node: &Node, fleet: &[Member]) -> Result<()> {
    let by_pod = restart_events_by_pod(node)?;
    let has_one = |pod: &&Member| by_pod.get(&pod.uid).is_some_and(|messages| messages.len() == 1);
    let found = fleet.iter().filter(has_one).count();
    ensure!(found == fleet.len(), "{found} pods have one: {by_pod:?}");
    Ok(())
}

/// The objects of the pods of a fleet.
fn objects_of(node: &Node, fleet: &[Member]) -> Result<Vec<Value>> {
    let is_of_fleet = |object: &Value| fleet.iter().any(|pod| object["spec"]["podUID"] == *pod.uid);
    Ok(sandbox_healths(node)?.into_iter().filter(is_of_fleet).collect())
}

/// Seconds since midnight of a time of the API: `2026-11-25T04:25:40.123456Z`.
fn second_of_day(time: &str) -> Result<f64> {
    let of_day = time.split_once('T').context("no time of day")?.1.trim_end_matches('Z');
    of_day.split(':').try_fold(0.0, |sum, part| Ok(sum * 60.0 + part.parse::<f64>()?))
}
