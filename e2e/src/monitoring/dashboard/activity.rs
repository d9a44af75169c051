//! A few minutes in the life of a small fleet, so that a dashboard has something to show: pods that leave orphans, parents that
//! don't wait, and a hand that kills pauses now and then. All of it really happens on the node.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cluster::Node;
use crate::kube::pause_pid_in_cgroup;
use crate::names::BUSYBOX;

/// A pod of the fleet.
struct Actor {
    namespace: &'static str,
    name: &'static str,
    /// Orphans a second, at most; the number rises and falls.
    orphans: u32,
    /// Seconds from one parent that doesn't wait to the next; 0 for none.
    zombie_every: u32,
}

const FLEET: [Actor; 8] = [
    Actor { namespace: "shop", name: "checkout", orphans: 12, zombie_every: 6 },
    Actor { namespace: "shop", name: "cart", orphans: 8, zombie_every: 0 },
    Actor { namespace: "shop", name: "search", orphans: 5, zombie_every: 45 },
    Actor { namespace: "batch", name: "import", orphans: 30, zombie_every: 12 },
    Actor { namespace: "batch", name: "report", orphans: 18, zombie_every: 0 },
    Actor { namespace: "build", name: "runner-1", orphans: 22, zombie_every: 20 },
    Actor { namespace: "build", name: "runner-2", orphans: 26, zombie_every: 90 },
    Actor { namespace: "build", name: "cache", orphans: 2, zombie_every: 0 },
];

/// The one that a picture of one pod shows.
pub(crate) const SHOWN: &str = "checkout";

/// At which share of the whole time whose pause is killed.
const KILLS: [(f64, &str); 7] = [
    (0.20, "runner-1"),
    (0.24, "runner-2"),
    (0.42, "import"),
    (0.58, SHOWN),
    (0.60, "runner-1"),
    (0.78, "report"),
    (0.80, "cart"),
];

/// Has it live for so long.
///
/// # Errors
///
/// When a pod does not come up or cannot be found.
pub(crate) fn play(node: &Node, time: Duration) -> Result<()> {
    let namespaces = ["shop", "batch", "build"]
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": namespaces}))?;
    for namespace in ["shop", "batch", "build"] {
        // A pod before it would be refused.
        crate::host::retry::until("the namespace is ready", crate::host::retry::TIMEOUT, || {
            node.kubectl(["-n", namespace, "get", "serviceaccount/default"])
        })?;
    }
    let pods: Vec<_> = FLEET.iter().map(Actor::pod).collect();
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
    let begun = Instant::now();
    for (share, name) in KILLS {
        thread::sleep(time.mul_f64(share).saturating_sub(begun.elapsed()));
        let actor = FLEET.iter().find(|actor| actor.name == name).context("no such pod")?;
        eprintln!("{} s: the pause of {name} is killed", begun.elapsed().as_secs());
        kill(Pid::from_raw(actor.pause(node)?.cast_signed()), Signal::SIGKILL)?;
    }
    thread::sleep(time.saturating_sub(begun.elapsed()));
    Ok(())
}

impl Actor {
    fn pause(&self, node: &Node) -> Result<u32> {
        let uid =
            node.kubectl(["-n", self.namespace, "get", "pod", self.name, "-o", "jsonpath={.metadata.uid}"])?;
        pause_pid_in_cgroup(&uid)
    }

    fn pod(&self) -> Value {
        let Self { namespace, name, orphans, zombie_every } = self;
        // A child whose parent ends first is an orphan; one whose parent became a program that never waits, a zombie.
        let work = format!(
            "i=0; while :; do i=$((i + 1)); n=$((({orphans} * (i % 60) + 30) / 60)); \
             sh -c \"for j in \\$(seq $n); do sleep 0.2 & done\"; \
             if [ {zombie_every} -gt 0 ] && [ $((i % ({zombie_every} + 1))) -eq {zombie_every} ]; then \
             sh -c 'sleep 0.1 & exec sleep 100000' & fi; sleep 1; done"
        );
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "shareProcessNamespace": true,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "work", "image": BUSYBOX, "command": ["sh", "-c", work]}],
            },
        })
    }
}
