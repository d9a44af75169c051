//! The notes that Helm prints after an install.

use anyhow::{Result, ensure};

use crate::helm::Helm;

pub(super) fn notes_have_next_steps_in_15_lines(helm: &Helm) -> Result<()> {
    let notes = helm.notes(&[])?;
    for line in [
        "kubectl label --overwrite namespace watch pod-security.kubernetes.io/enforce=privileged",
        "rollout status daemonset/blue-sandbox-health-agent",
        "kubectl get sandboxhealth -A",
        "REAPED is empty until",
        "docs/install/README.md the next steps",
    ] {
        ensure!(notes.contains(line), "the notes lack {line}:\n{notes}");
    }
    for set in [vec![], vec!["podMonitor.enabled=true"], vec!["crds.enabled=false"]] {
        let notes = helm.notes(&set)?;
        ensure!(notes.trim().lines().count() <= 15, "{notes}");
    }
    Ok(())
}

/// The nodes of the tests are configured with these snippets.
pub(super) fn node_settings_are_complete() -> Result<()> {
    let page =
        include_str!("../../../docs/nodes/settings.md").replace("REGISTRY/pause:0.1.0", "<pause image>");
    let flush_left: String = page.lines().flat_map(|line| [line.trim(), "\n"]).collect();
    for setting in [
        "[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"<pause image>\"\n",
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"<pause image>\"\n",
        "[crio.image]\npause_image = \"<pause image>\"\n",
    ] {
        ensure!(flush_left.contains(setting), "docs/nodes/settings.md lacks {setting}");
    }
    Ok(())
}

pub(super) fn notes_name_what_uninstall_leaves(helm: &Helm) -> Result<()> {
    let (kept, gone, foreign) =
        (helm.notes(&[])?, helm.notes(&["crds.keep=false"])?, helm.notes(&["crds.enabled=false"])?);
    ensure!(kept.contains("the CRD stays"), "{kept}");
    ensure!(gone.contains("the CRD is deleted"), "{gone}");
    ensure!(foreign.contains("is not part of this release"), "{foreign}");
    Ok(())
}
