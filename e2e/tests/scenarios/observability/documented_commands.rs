//! The commands of the docs, run as they are written.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::build::{Image, go, images, project_file};
use e2e::cluster::Node;
use e2e::doc_blocks::{self, Mark};
use e2e::host::command::run;
use e2e::kube::{create, delete, pod, pods_of, wait_for_health};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 1] = [("documented_commands_work", documented_commands_work)];

/// A pod of its own, without restarts and zombies.
const POD: &str = "documented";
/// Values of the placeholders in capitals, of which that of the registry is the prefix of the names of our images; and an image that the
/// node has.
const VALUES: [(&str, &str); 5] = [
    ("CONTAINER", "shell"),
    ("NAMESPACE", "default"),
    ("POD", POD),
    ("REGISTRY", "localhost/sandbox-health"),
    ("image: busybox\n", "image: localhost/e2e/busybox:1\n"),
];

fn documented_commands_work(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    create(node, &pod(POD, &[]))?;
    wait_for_health(node, POD, "True", "SandboxHealthy")?;
    let (project, crictl) = (project_file(".")?, go::crictl_directory()?);
    let setup = format!("export PATH={:?}:$PATH\ncd {project:?}", crictl.display());
    let agents = pods_of(node, "agent")?;
    let agent = agents[0]["metadata"]["name"].as_str().context("an agent without a name")?;
    let archive = images::ensure(Image::Pause)?.display().to_string();
    let node_name = node.kubectl(["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    let others = [("NODE", node_name.as_str()), ("AGENT", agent), ("pause.tar", &archive)];
    let values = [&VALUES[..], &others].concat();
    let mut failed = vec![];
    for page in doc_blocks::pages(Path::new(&project))? {
        let text = fs::read_to_string(Path::new(&project).join(&page))?;
        for commands in doc_blocks::commands(&page, &text)? {
            let text = values.iter().fold(commands.text, |text, (name, value)| text.replace(name, value));
            let outcome = match commands.mark {
                Mark::NotRun(_) => continue,
                Mark::Run => run(node.command("sh").arg("-ec").arg(format!("{setup}\n{text}"))),
                Mark::RunInThePod => run(in_the_pod(node).arg(&text)),
            };
            if let Err(error) = outcome {
                failed.push(format!("{}: {error:#}", commands.place));
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    delete(node, POD)
}

fn in_the_pod(node: &Node) -> Command {
    let mut kubectl = node.command("kubectl");
    kubectl.args(["exec", POD, "--", "sh", "-ec"]);
    kubectl
}
