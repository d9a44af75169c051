//! Why a sandbox ended, from what can be observed without privileges. What is certain is stated plainly; what is inferred follows
//! "likely cause". Nothing is observed here.

use jiff::{SignedDuration, Timestamp};

use crate::crd::RestartReason;
use crate::procfs::pidfd::ExitStatus;
use crate::procfs::scanner::Service;

/// Time between the exit of a pause and the restart of a service that caused it: a package upgrade stops the service for a while.
const RESTART_WINDOW: SignedDuration = SignedDuration::from_secs(60);
/// As wait(2) and shells number them.
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// What was observed when pause exited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence {
    /// `None` where the kernel does not provide it.
    pub status: Option<ExitStatus>,
    /// The shim of the container runtime, pause's parent, had exited just before.
    pub shim_exited: bool,
    /// The OOM killer had just killed a process of the node.
    pub oom_killed: bool,
}

/// The exit of the pause of a sandbox, and the facts that explain it.
#[derive(Debug, Clone, Copy)]
pub struct Exit<'a> {
    pub evidence: Evidence,
    pub time: Timestamp,
    /// Start of the sandbox.
    pub started_at: Timestamp,
    /// The container runtime and the kubelet.
    pub services: &'a [Service],
    /// Whether the pause is sandbox-health's, whose exit status shows where a signal came from.
    pub is_own_pause: bool,
}

impl Evidence {
    /// Whether it is unknown what ended pause: anything on the node may send SIGKILL, which no process of the pod can.
    pub const fn is_unexplained(self) -> bool {
        matches!(self.status, None | Some(ExitStatus::Killed(SIGKILL)))
    }
}

impl Exit<'_> {
    /// How pause exited, and the likely cause if there is a hint.
    pub fn cause(&self) -> String {
        let fact = self.fact();
        match self.likely() {
            Some(likely) => format!("{fact}; likely cause: {likely}"),
            None => fact,
        }
    }

    fn fact(&self) -> String {
        let terminated = |signals, from| format!("pause was terminated by {signals} from {from}");
        match self.evidence.status {
            None => unobserved(RestartReason::PauseExited).to_owned(),
            Some(ExitStatus::Exited(status)) if self.is_own_pause => match status - 128 {
                -128 => terminated("SIGTERM or SIGINT", "outside the pod"),
                SIGINT => terminated("SIGINT", "a process of the pod"),
                SIGTERM => terminated("SIGTERM", "a process of the pod"),
                _ => format!("pause exited with status {status}"),
            },
            Some(status) => format!("pause {status}"),
        }
    }

    /// What may have ended pause by SIGKILL, from the strongest hint to the weakest.
    fn likely(&self) -> Option<String> {
        let Evidence { shim_exited, oom_killed, .. } = self.evidence;
        if !self.evidence.is_unexplained() {
            None
        } else if shim_exited {
            Some("the shim of the container runtime exited first".to_owned())
        } else if let Some(service) = self.restarted_service() {
            Some(format!("{service} was restarted at that moment"))
        } else {
            let oom_killer = "the OOM killer (it killed a process on the node at that moment)";
            oom_killed.then(|| oom_killer.to_owned())
        }
    }

    fn restarted_service(&self) -> Option<&'static str> {
        let is_restarted = |service: &&Service| {
            let distance = service.started_at.duration_since(self.time).abs();
            service.started_at > self.started_at && distance <= RESTART_WINDOW
        };
        self.services.iter().find(is_restarted).map(|service| service.name)
    }
}

/// The cause of a restart without an exit status.
pub const fn unobserved(reason: RestartReason) -> &'static str {
    match reason {
        RestartReason::PauseExited => "pause exited; exit status unavailable (requires Linux 6.15)",
        RestartReason::NodeRebooted => "the node was rebooted",
        RestartReason::Replaced => "the sandbox was recreated while no agent was running",
        RestartReason::Unknown => "unknown cause",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ExitStatus::{Exited, Killed};

    const EXIT: i64 = 1_800_000_000;
    const UNAVAILABLE: &str = "pause exited; exit status unavailable (requires Linux 6.15)";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(EXIT + second).unwrap()
    }

    fn exit(evidence: Evidence, services: &[Service]) -> Exit<'_> {
        Exit { evidence, time: at(0), started_at: at(-3600), services, is_own_pause: true }
    }

    fn service(name: &'static str, second: i64) -> Service {
        Service { name, started_at: at(second) }
    }

    /// Each cause with the exit status that Linux 6.15 provides, and the hints, which every kernel gives.
    #[test]
    fn cause_follows_from_kernel_and_evidence() {
        let none = Evidence::default();
        let oom = Evidence { oom_killed: true, ..none };
        let shim = Evidence { shim_exited: true, ..none };
        let boot = [service("containerd", -9000), service("kubelet", -8990)];
        let restarted = [service("containerd", 5), service("kubelet", -8990)];
        let killed = "pause was killed by SIGKILL";
        let by_oom = "; likely cause: the OOM killer (it killed a process on the node at that moment)";
        let by_shim = "; likely cause: the shim of the container runtime exited first";
        let by_service = "; likely cause: containerd was restarted at that moment";
        let outside = "pause was terminated by SIGTERM or SIGINT from outside the pod";
        let inside = "pause was terminated by SIGTERM from a process of the pod";
        for (name, status, hints, services, fact, likely) in [
            ("SIGKILL", Killed(9), none, &boot, killed, ""),
            ("OOM killer", Killed(9), oom, &boot, killed, by_oom),
            ("SIGTERM from the node", Exited(0), none, &boot, outside, ""),
            ("kubectl exec kill 1", Exited(143), none, &boot, inside, ""),
            ("shim killed", Killed(9), shim, &boot, killed, by_shim),
            ("containerd restarted", Killed(9), none, &restarted, killed, by_service),
            ("restart and OOM killer", Killed(9), oom, &restarted, killed, by_service),
            ("all", Killed(9), Evidence { oom_killed: true, ..shim }, &restarted, killed, by_shim),
        ] {
            let since = exit(Evidence { status: Some(status), ..hints }, services).cause();
            assert_eq!(since, format!("{fact}{likely}"), "{name} since Linux 6.15");
            assert_eq!(exit(hints, services).cause(), format!("{UNAVAILABLE}{likely}"), "{name} before");
        }
    }

    #[test]
    fn explained_exit_has_no_likely_cause() {
        let hints = Evidence { shim_exited: true, oom_killed: true, status: None };
        for (status, expected) in [
            (Exited(0), "pause was terminated by SIGTERM or SIGINT from outside the pod"),
            (Exited(130), "pause was terminated by SIGINT from a process of the pod"),
            (Exited(1), "pause exited with status 1"),
            (Killed(11), "pause was killed by SIGSEGV"),
        ] {
            assert_eq!(exit(Evidence { status: Some(status), ..hints }, &[]).cause(), expected);
        }
    }

    #[test]
    fn status_of_a_third_party_pause_does_not_name_the_sender() {
        for status in [0, 143] {
            let evidence = Evidence { status: Some(Exited(status)), ..Evidence::default() };
            let third_party = Exit { is_own_pause: false, ..exit(evidence, &[]) };
            assert_eq!(third_party.cause(), format!("pause exited with status {status}"));
        }
    }

    #[test]
    fn service_is_a_cause_only_if_it_was_restarted_then() {
        let names = |second, sandbox| {
            let services = [service("kubelet", second)];
            let exit = Exit { started_at: at(sandbox), ..exit(Evidence::default(), &services) };
            exit.restarted_service()
        };
        for second in [-60, -1, 0, 60] {
            assert_eq!(names(second, -3600), Some("kubelet"), "{second}");
        }
        for second in [-61, 61] {
            assert_eq!(names(second, -3600), None, "{second}");
        }
        assert_eq!(names(-20, -10), None, "the node was booted, and the sandbox started after the kubelet");
    }
}
