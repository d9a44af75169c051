//! What Helm says after an install.

use anyhow::{Result, ensure};

use crate::helm::Helm;

pub(super) fn notes_tell_the_label_and_the_switch(helm: &Helm) -> Result<()> {
    let notes = helm.notes(&[])?;
    for line in [
        "kubectl label --overwrite namespace watch pod-security.kubernetes.io/enforce=privileged",
        "rollout status daemonset/blue-sandbox-health-agent",
        "kubectl get sandboxhealth -A",
        "systemctl restart containerd",
        "until its sandbox is recreated",
        "REAPED is empty",
        "docs/install.md of the source leads from there to the first alert",
    ] {
        ensure!(notes.contains(line), "the notes lack {line}:\n{notes}");
    }
    let also = "and each other pod once it is unhealthy";
    ensure!(!notes.contains(also) && helm.notes(&["watch.pods=All"])?.contains(also), "{notes}");
    // The settings are those of the page about it, whose snippets for containerd 2 the e2e node is configured with.
    let page = include_str!("../../../docs/pause.md").replace("REGISTRY/pause:0.1.0", "<pause image>");
    for setting in [
        "[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"<pause image>\"\n",
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"<pause image>\"\n",
        "[crio.image]\npause_image = \"<pause image>\"\n",
    ] {
        for (text, whose) in [(notes.as_str(), "the notes"), (&page, "docs/pause.md")] {
            let flush_left: String = text.lines().flat_map(|line| [line.trim(), "\n"]).collect();
            ensure!(flush_left.contains(setting), "{whose} lack {setting}");
        }
    }
    Ok(())
}

pub(super) fn notes_tell_what_an_uninstall_leaves(helm: &Helm) -> Result<()> {
    let delete = "kubectl delete crd sandboxhealths.sandboxhealth.dev";
    let (kept, gone, foreign) =
        (helm.notes(&[])?, helm.notes(&["crds.keep=false"])?, helm.notes(&["crds.enabled=false"])?);
    ensure!(kept.contains("The CRD stays") && kept.contains(delete), "{kept}");
    ensure!(gone.contains("The CRD is deleted") && !gone.contains(delete), "{gone}");
    ensure!(foreign.contains("is not part of this release") && !foreign.contains(delete), "{foreign}");
    Ok(())
}
