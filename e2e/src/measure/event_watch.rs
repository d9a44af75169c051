//! A watch of Events by kubectl, with the moment at which each came: what somebody sees who watches.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};

use crate::cluster::Node;

/// The UID of whom the Event regards, and when we learned of it.
type Seen = (String, SystemTime);

pub(super) struct EventWatch {
    kubectl: Child,
    seen: Receiver<Seen>,
    /// Of other pods than the one that was asked for.
    kept: Vec<Seen>,
}

impl EventWatch {
    /// Those with this reason that come from now on.
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

    /// When the next Event regarding this object came.
    pub(super) fn next_of(&mut self, uid: &str, patience: Duration) -> Result<SystemTime> {
        if let Some(place) = self.kept.iter().position(|(of, _)| of == uid) {
            return Ok(self.kept.remove(place).1);
        }
        let begun = Instant::now();
        loop {
            let left = patience.saturating_sub(begun.elapsed());
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
        // kubectl itself is nsenter's child, and ends with the node at the latest.
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// A line for each Event.
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
    fn each_line_is_passed_on_with_its_moment() {
        let (sender, seen) = channel();
        let before = SystemTime::now();
        pass_on("u-1\nu-2\n".as_bytes(), &sender);
        let (first, at) = seen.recv().unwrap();
        assert_eq!(first, "u-1");
        assert!(at >= before && at <= SystemTime::now());
        assert_eq!(seen.recv().unwrap().0, "u-2");
    }
}
