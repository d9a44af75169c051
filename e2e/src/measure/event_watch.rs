//! A watch of Events by kubectl, with the time at which each was received.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};

use crate::cluster::Node;

/// The UID of the object that the Event regards, and the time at which it was received.
type Seen = (String, SystemTime);

pub(super) struct EventWatch {
    kubectl: Child,
    seen: Receiver<Seen>,
    /// Received Events of other pods than the requested one.
    kept: Vec<Seen>,
}

impl EventWatch {
    /// Starts a watch of Events with this reason.
    pub(super) fn start(node: &Node, reason: &str) -> Result<Self> {
        let mut kubectl = node
            .command("kubectl")
            .args(["get", "events", "--namespace", "default", "--watch-only", "--field-selector"])
            .arg(format!("reason={reason}"))
            .args(["--output", r#"jsonpath={.involvedObject.uid}{"\n"}"#])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run kubectl")?;
        let stdout = kubectl.stdout.take().context("kubectl has no stdout")?;
        let (sender, seen) = channel();
        thread::spawn(move || pass_on(stdout, &sender));
        Ok(Self { kubectl, seen, kept: vec![] })
    }

    /// The time at which the next Event of this object was received.
    pub(super) fn next_of(&mut self, uid: &str, timeout: Duration) -> Result<SystemTime> {
        if let Some(place) = self.kept.iter().position(|(of, _)| of == uid) {
            return Ok(self.kept.remove(place).1);
        }
        let begun = Instant::now();
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            let (of, at) = self.seen.recv_timeout(left).context("no Event was seen")?;
            if of == uid {
                return Ok(at);
            }
            self.kept.push((of, at));
        }
    }
}

impl Drop for EventWatch {
    fn drop(&mut self) {
        // kubectl itself is a child of nsenter, and ends with the node at the latest.
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// Sends each Event, which is one line, to the channel.
fn pass_on(events: impl Read, to: &Sender<Seen>) {
    for line in BufReader::new(events).lines().map_while(Result::ok) {
        if to.send((line, SystemTime::now())).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_sent_with_time_of_receipt() {
        let (sender, seen) = channel();
        let before = SystemTime::now();
        pass_on("u-1\nu-2\n".as_bytes(), &sender);
        let (first, at) = seen.recv().unwrap();
        assert_eq!(first, "u-1");
        assert!(at >= before && at <= SystemTime::now());
        assert_eq!(seen.recv().unwrap().0, "u-2");
    }
}
