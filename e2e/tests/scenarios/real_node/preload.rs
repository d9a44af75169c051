//! The preloaded pause image: it comes from a registry by the kubelet, and stays on the node without the registry and without a pin.

use anyhow::{Result, ensure};
use e2e::build::registry::Registry;
use e2e::kube::{create, delete, install_chart, sandbox_health, wait_for_health, wait_for_rollout};
use e2e::names::PAUSE;
use e2e::vm::Runtime;

use super::RealNode;
use super::installer::upgrade;
use super::pods::{on_debian, steady_pods};

pub(super) fn preloaded_image(real: &RealNode) -> Result<()> {
    real.use_runtime(Runtime::Containerd2)?;
    // These pods use the images that the garbage collection must keep.
    steady_pods(real)?;
    let directory = tempfile::tempdir()?;
    let registry = Registry::start_by(real.node().command("setpriv"), &directory.path().join("registry"))?;
    let address = registry.address().to_owned();
    let image = format!("{address}/pause:0.1.0");
    let outcome = push(real, &address, &image).and_then(|()| {
        upgrade(real, &format!("pause.preload.enabled=true,pause.image.registry={address}"))?;
        wait_for_rollout(real.node(), "agent")?;
        real.vm.use_sandbox_image(real.runtime(), &image)?;
        drop(registry);
        collect_images(real, &image)?;
        let pod = create(real.node(), &on_debian(real, "after-collection"))?;
        wait_for_health(real.node(), &pod, "True", "SandboxHealthy")?;
        let sandbox = sandbox_health(real.node(), &pod)?["status"]["sandbox"].take();
        ensure!(sandbox["pauseVersion"] == env!("CARGO_PKG_VERSION"), "{sandbox}");
        delete(real.node(), &pod)
    });
    install_chart(real.node())?;
    // The garbage collection has removed the unused images.
    real.vm.import_images(real.runtime())?;
    real.vm.use_sandbox_image(real.runtime(), PAUSE)?;
    real.vm.ssh("systemctl disable --now -q registry.socket; rm -f /etc/systemd/system/registry.*")?;
    outcome
}

/// The machine reaches the registry on its own loopback, because containerd allows HTTP only there. Afterwards our image is in the registry
/// only.
fn push(real: &RealNode, address: &str, image: &str) -> Result<()> {
    let port = address.rsplit(':').next().unwrap_or_default();
    real.vm.write_file(
        "/etc/systemd/system/registry.socket",
        &format!("[Socket]\nListenStream=127.0.0.1:{port}\n[Install]\nWantedBy=sockets.target\n"),
    )?;
    let gateway = real.vm.ssh("ip route show default | cut -d' ' -f3")?;
    let forward = format!("/usr/lib/systemd/systemd-socket-proxyd {}:{port}", gateway.trim());
    real.vm
        .write_file("/etc/systemd/system/registry.service", &format!("[Service]\nExecStart={forward}\n"))?;
    real.vm.ssh(&format!(
        "systemctl daemon-reload && systemctl start registry.socket && ctr -n k8s.io images tag {PAUSE} {image} && \
         ctr -n k8s.io images push --plain-http {image} && ctr -n k8s.io images rm {image}"
    ))?;
    Ok(())
}

/// Removes every image that no container uses, pinned or not.
fn collect_images(real: &RealNode, image: &str) -> Result<()> {
    real.vm.ssh(&format!("ctr -n k8s.io images label {image} io.cri-containerd.pinned="))?;
    real.vm.ssh("ctr -n k8s.io images prune --all")?;
    let images = real.vm.ssh("ctr -n k8s.io images ls -q")?;
    ensure!(!images.contains("other-pause"), "nothing was collected: {images}");
    ensure!(images.lines().any(|line| line == image), "the preloaded image was collected: {images}");
    Ok(())
}
