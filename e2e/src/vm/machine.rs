//! A virtual machine: started, controlled by ssh, rebooted, powered off. Every wait is bounded.

use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::acceleration;
use super::disk::Contents;
use super::node_files::{self, Runtime};
use super::rootfs::{self, Rootfs};
use crate::build::Setup;
use crate::cluster::{ADDRESS, Node, VmNode};
use crate::host::command::{checked, output};
use crate::host::retry;

/// Timeout from the start to a response by ssh: some 35 s on an idle machine without hardware virtualisation.
const BOOT: Duration = Duration::from_secs(300);
/// Timeout of a command on a booted machine.
const COMMAND: Duration = Duration::from_secs(180);
/// Timeout until QEMU answers or has exited.
const MONITOR: Duration = Duration::from_secs(20);

/// Runs its arguments as a command. Without hardware virtualisation a machine needs a core of its own, and everything beside it mostly
/// waits. If the kernel shares the CPU by sessions (sched(7), autogroup), the niceness of the session counts. QEMU has its own session, so
/// it gets no Ctrl-C; the end of the cluster ends it.
const FIRST_CALL_ON_CPU: &str =
    "{ echo -10 > /proc/self/autogroup; } 2>/dev/null; exec nice -n -10 \"$0\" \"$@\"";

/// A Debian kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The kernel of the release: 6.12, which reports an exit status only to the parent.
    Stable,
    /// The kernel of backports: later than 6.15, which reports it to a pidfd (PIDFD_INFO_EXIT).
    Backports,
}

impl Kernel {
    const fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Backports => "backports",
        }
    }
}

/// A virtual machine that is a node of a cluster. It is powered off when this value is dropped, or with the cluster.
pub struct Vm {
    node: Arc<Node>,
    vm: VmNode,
    rootfs: Rootfs,
    directory: PathBuf,
    acceleration: &'static [&'static str],
    qemu: Mutex<Option<Child>>,
}

impl Vm {
    /// Starts the machine with this place in the cluster and joins it as a node with this runtime and pause image. Progress goes to
    /// stderr.
    ///
    /// # Errors
    ///
    /// When it does not boot, or does not become Ready.
    pub fn start(
        node: &Arc<Node>,
        vm: VmNode,
        kernel: Kernel,
        runtime: Runtime,
        setup: &Setup,
        pause: &str,
    ) -> Result<Self> {
        let begun = Instant::now();
        let rootfs = rootfs::ensure()?;
        let directory = node.scratch()?.join(vm.name);
        fs::create_dir_all(&directory)?;
        let contents = Contents::new(&directory)?;
        node_files::write(&contents, node, vm, runtime, setup.images())?;
        contents.into_disk(&directory.join("node.ext4"))?;
        let layer = directory.join("root.qcow2");
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(rootfs.disk()).arg(&layer);
        output(&mut create)?;
        // QEMU forwards this address to the machine, so the API server reaches its kubelet there. The source of these packets must be
        // another address: the machine would drop packets from its own.
        let route = ["route", "replace", "local", vm.address, "dev", "lo", "table", "local", "src", ADDRESS];
        output(node.command("ip").args(["address", "add", &format!("{}/32", vm.address), "dev", "lo"]))?;
        output(node.command("ip").args(route))?;
        let acceleration = acceleration::arguments(node, &rootfs, &directory);
        let machine =
            Self { node: Arc::clone(node), vm, rootfs, directory, acceleration, qemu: Mutex::default() };
        machine.power_on(kernel)?;
        eprintln!("{} has booted after {} s", vm.name, begun.elapsed().as_secs());
        machine.join(runtime, pause)?;
        eprintln!("{} is Ready after {} s", vm.name, begun.elapsed().as_secs());
        Ok(machine)
    }

    /// The name of its Node object.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.vm.name
    }

    /// Starts a machine that is powered off, and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it does not boot; the error has the end of its console.
    pub fn power_on(&self, kernel: Kernel) -> Result<()> {
        let console = self.console();
        let mut qemu = self.node.command("setsid");
        qemu.args(["sh", "-c", FIRST_CALL_ON_CPU, "qemu-system-x86_64"]);
        qemu.args([
            "-name",
            self.vm.name,
            "-smp",
            "2",
            "-m",
            "3G",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ])
        .args(self.acceleration)
        .arg("-kernel")
        .arg(self.rootfs.boot_file(kernel.name(), "vmlinuz"))
        .arg("-initrd")
        .arg(self.rootfs.boot_file(kernel.name(), "initrd"))
        .args(["-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1 mitigations=off quiet"])
        .args([
            "-drive",
            &format!("file={},if=virtio,cache=unsafe", self.directory.join("root.qcow2").display()),
        ])
        .args([
            "-drive",
            &format!("file={},format=raw,if=virtio,readonly=on", self.directory.join("node.ext4").display()),
        ])
        .args(["-netdev", &self.network(), "-device", "virtio-net-pci,netdev=n0,romfile="])
        .args(["-device", "virtio-rng-pci"])
        .args(["-chardev", &format!("file,id=console,path={},append=on", console.display())])
        .args(["-serial", "chardev:console"])
        .args(["-monitor", &format!("unix:{},server,nowait", self.monitor().display())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(self.qemu_log())?);
        *self.qemu.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(qemu.spawn().context("cannot run qemu-system-x86_64")?);
        self.wait_for_ssh("")
    }

    /// User-mode networking: the machine reaches every address of the cluster's network namespace, and is reached at its own.
    fn network(&self) -> String {
        let VmNode { address, subnet, .. } = self.vm;
        format!(
            "user,id=n0,net={subnet},dhcpstart={address},hostfwd=tcp:{address}:22-:22,hostfwd=tcp:{address}:10250-:10250"
        )
    }

    /// The output of a shell script that root runs there.
    ///
    /// # Errors
    ///
    /// When it fails or takes more than three minutes.
    pub fn ssh(&self, script: &str) -> Result<String> {
        self.ssh_within(COMMAND, script)
    }

    fn ssh_within(&self, timeout: Duration, script: &str) -> Result<String> {
        let mut ssh = self.ssh_command(timeout);
        ssh.arg(script);
        let ran = ssh.stdin(Stdio::null()).output().context("cannot run ssh")?;
        checked(&ssh, &ran).with_context(|| format!("on {}", self.vm.name))
    }

    /// Writes a file there.
    ///
    /// # Errors
    ///
    /// As [`Vm::ssh`].
    pub fn write_file(&self, path: &str, text: &str) -> Result<()> {
        let mut ssh = self.ssh_command(COMMAND);
        ssh.arg(format!("mkdir -p \"$(dirname {path})\" && cat > {path}"));
        let mut process = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        process.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
        checked(&ssh, &process.wait_with_output()?).with_context(|| format!("on {}", self.vm.name)).map(drop)
    }

    fn ssh_command(&self, timeout: Duration) -> Command {
        let mut ssh = self.node.command("timeout");
        ssh.args([&timeout.as_secs().to_string(), "ssh", "-q", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10", "-o", "BatchMode=yes"])
            .arg("-i")
            .arg(self.rootfs.key())
            .arg(format!("root@{}", self.vm.address));
        ssh
    }

    fn boot_id(&self) -> Result<String> {
        self.ssh_within(Duration::from_secs(20), "cat /proc/sys/kernel/random/boot_id")
    }

    /// Waits for an answer of another boot than this one.
    fn wait_for_ssh(&self, boot_before: &str) -> Result<()> {
        retry::until(&format!("{} answers by ssh", self.vm.name), BOOT, || {
            if let Some(status) = self.qemu_exit()? {
                return Ok(Err(anyhow!(
                    "QEMU: {status}; {}",
                    fs::read_to_string(self.qemu_log()).unwrap_or_default()
                )));
            }
            ensure!(self.boot_id()? != boot_before, "it has not rebooted");
            Ok(Ok(()))
        })
        .and_then(|outcome| outcome)
        .with_context(|| self.console_end())
    }

    /// The exit status of QEMU, if it has exited.
    fn qemu_exit(&self) -> Result<Option<ExitStatus>> {
        let mut qemu = self.qemu.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(qemu.as_mut().context("it is powered off")?.try_wait()?)
    }

    fn qemu_log(&self) -> PathBuf {
        self.node.log_dir().join(format!("{}.qemu.log", self.vm.name))
    }

    /// `systemctl reboot`, until it answers again.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn reboot(&self) -> Result<()> {
        let boot = self.boot_id()?;
        // The connection may end before the command does.
        let _ = self.ssh("systemctl reboot");
        self.wait_for_ssh(&boot)
    }

    /// A power failure: the machine is reset without a shutdown and boots again.
    ///
    /// # Errors
    ///
    /// When it does not answer afterwards.
    pub fn power_failure(&self) -> Result<()> {
        let boot = self.boot_id()?;
        self.ask_monitor("system_reset")?;
        self.wait_for_ssh(&boot)
    }

    /// Cuts the power for good, until [`Vm::power_on`].
    ///
    /// # Errors
    ///
    /// When QEMU does not end.
    pub fn power_off(&self) -> Result<()> {
        self.ask_monitor("quit")?;
        let mut qemu = self.qemu.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(process) = qemu.as_mut() else { return Ok(()) };
        retry::until("QEMU ends", MONITOR, || process.try_wait()?.context("it runs"))?;
        *qemu = None;
        Ok(())
    }

    /// QEMU drops a command whose sender closes the connection before it is read, so this waits for the response: the next prompt, or the
    /// exit of QEMU.
    fn ask_monitor(&self, command: &str) -> Result<()> {
        let mut monitor = UnixStream::connect(self.monitor()).context("QEMU's monitor")?;
        monitor.set_read_timeout(Some(MONITOR))?;
        read_prompt(&mut monitor)?;
        writeln!(monitor, "{command}")?;
        read_prompt(&mut monitor)
    }

    /// Makes the booted machine a node.
    fn join(&self, runtime: Runtime, pause: &str) -> Result<()> {
        // On a busy machine the boot may have given up waiting for the disk.
        self.ssh("systemctl start systemd-modules-load node.mount; systemctl disable --now containerd -q; cp -rT /node/etc /etc && systemctl daemon-reload")?;
        self.use_runtime(runtime, pause)?;
        self.import_images(runtime)?;
        self.ssh(&format!("systemctl enable --now -q {} kubelet kube-proxy", runtime.unit()))?;
        self.wait_until_ready()
    }

    /// Imports all images that the machine was started with.
    ///
    /// # Errors
    ///
    /// When the last of them cannot be imported.
    pub fn import_images(&self, runtime: Runtime) -> Result<()> {
        self.ssh(&format!("for image in /node/images/*; do {}; done", runtime.import())).map(drop)
    }

    /// Waits until the node is Ready.
    ///
    /// # Errors
    ///
    /// When it is not; the error has the kubelet's last lines.
    pub fn wait_until_ready(&self) -> Result<()> {
        let wait = ["wait", "--for=condition=Ready", &format!("node/{}", self.vm.name), "--timeout=5s"];
        retry::until(&format!("{} is Ready", self.vm.name), BOOT, || self.node.kubectl(wait).map(drop))
            .with_context(|| self.ssh("journalctl -u kubelet -n 20 --no-pager").unwrap_or_default())
    }

    /// Switches the node to a runtime with this pause image. Running sandboxes stay when one containerd replaces another.
    ///
    /// # Errors
    ///
    /// When it does not answer afterwards.
    pub fn use_runtime(&self, runtime: Runtime, pause: &str) -> Result<()> {
        let directory = runtime.directory();
        self.ssh(&format!(
            "rm -rf /etc/containerd /etc/systemd/system/containerd.service.d; cp -rT /node/{directory} / && systemctl daemon-reload"
        ))?;
        self.use_sandbox_image(runtime, pause)
    }

    /// Switches the sandbox image as docs/nodes/settings.md describes. Running sandboxes keep their image.
    ///
    /// # Errors
    ///
    /// When the runtime does not answer afterwards.
    pub fn use_sandbox_image(&self, runtime: Runtime, image: &str) -> Result<()> {
        let (path, text) = node_files::sandbox_image(runtime, image)?;
        self.write_file(path, &text)?;
        self.restart_runtime(runtime)
    }

    /// Restarts the runtime. Running sandboxes stay.
    ///
    /// # Errors
    ///
    /// When it does not answer afterwards.
    pub fn restart_runtime(&self, runtime: Runtime) -> Result<()> {
        let (unit, probe) = (runtime.unit(), runtime.probe());
        self.ssh(&format!(
            "systemctl restart {unit} && timeout 60 sh -c 'until {probe} >/dev/null 2>&1; do sleep 1; done'"
        ))
        .map(drop)
    }

    fn console(&self) -> PathBuf {
        self.node.log_dir().join(format!("{}.console", self.vm.name))
    }

    fn console_end(&self) -> String {
        let text = fs::read(self.console()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().collect();
        format!("console of {}:\n{}", self.vm.name, lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    fn monitor(&self) -> PathBuf {
        self.directory.join("monitor")
    }

    /// Saves the journals of the machine's services with the logs of the cluster.
    ///
    /// # Errors
    ///
    /// When the machine does not answer.
    pub fn save_journals(&self) -> Result<()> {
        for unit in ["kubelet", "containerd", "crio", "kube-proxy"] {
            let text = self.ssh(&format!("journalctl -u {unit} --no-pager -o short-precise"))?;
            fs::write(self.node.log_dir().join(format!("{}.{unit}.log", self.vm.name)), text)?;
        }
        Ok(())
    }

    /// Lets the machine run for as long as the cluster does.
    pub fn leave_running(self) {
        *self.qemu.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Reads up to QEMU's prompt or to the end.
fn read_prompt(monitor: &mut impl Read) -> Result<()> {
    let (mut text, mut byte) = (vec![], [0]);
    while !text.ends_with(b"(qemu) ") && monitor.read(&mut byte).context("QEMU's monitor")? > 0 {
        text.push(byte[0]);
    }
    Ok(())
}

impl Drop for Vm {
    fn drop(&mut self) {
        if self.qemu.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            // Our child is nsenter, which may exit before QEMU. If QEMU does not answer, the end of the cluster ends it.
            let _ = self.power_off();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitor_is_read_to_prompt_or_end() {
        let mut rest: &[u8] = b"QEMU 7.2 monitor\r\n(qemu) quit\r\n";
        read_prompt(&mut rest).unwrap();
        assert_eq!(rest, b"quit\r\n");
        read_prompt(&mut rest).unwrap();
        assert_eq!(rest, b"");
    }
}
