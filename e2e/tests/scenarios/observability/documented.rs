//! The commands of the pages, run as they stand there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::build::{Image, go, images, project_file};
use e2e::cluster::Node;
use e2e::doc_blocks::{self, Mark};
use e2e::kube::{health_of, pod};

use super::Cluster;
use e2e::host::command::run;
use e2e::kube::{create, delete, pods_of};

/// A pod of its own, so that nothing has happened to it.
const POD: &str = "documented";
/// What the names in capitals stand for on the node; of the registry, what the names of our images begin with.
const STANDS_FOR: [(&str, &str); 4] =
    [("NAMESPACE", "default"), ("POD", POD), ("NODE", "stories"), ("REGISTRY", "localhost/sandbox-health")];

pub(super) fn the_commands_of_the_pages_work(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    create(node, &pod(POD, &[]))?;
    health_of(node, POD, "True", "AllWell")?;
    let (project, crictl) = (project_file(".")?, go::crictl_folder()?);
    let place = format!("export PATH={:?}:$PATH\ncd {project:?}", crictl.display());
    let agents = pods_of(node, "agent")?;
    let agent = agents[0]["metadata"]["name"].as_str().context("an agent without a name")?;
    let archive = images::ensure(Image::Pause)?.display().to_string();
    let stands_for = [&STANDS_FOR[..], &[("AGENT", agent), ("pause.tar", &archive)]].concat();
    let mut failed = vec![];
    for page in doc_blocks::pages(Path::new(&project))? {
        let text = fs::read_to_string(Path::new(&project).join(&page))?;
        for commands in doc_blocks::commands(&page, &text)? {
            let text = stands_for.iter().fold(commands.text, |text, (name, it)| text.replace(name, it));
            let ran = match commands.mark {
                Mark::NotRun(_) => continue,
                Mark::Run => run(node.command("sh").arg("-ec").arg(format!("{place}\n{text}"))),
                Mark::RunInThePod => run(in_the_pod(node).arg(&text)),
            };
            if let Err(error) = ran {
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
