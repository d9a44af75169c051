//! The size of the binary, and whether it is all that an image of it needs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::contenders::{Contender, Kind};

pub(crate) fn bytes(program: &Path) -> Result<f64> {
    let size = std::fs::metadata(program).with_context(|| program.display().to_string())?.len();
    // Far below 2^52.
    Ok(size as f64)
}

/// The size of the image on a node: manifest, configuration and layer. Only ours is built here.
pub(crate) fn image(contender: &Contender, folder: &Path) -> Result<f64> {
    ensure!(contender.kind == Kind::Ours, "only our image is built here");
    let platform = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    let mut packing = Command::new(env!("CARGO"));
    packing.args(["--quiet", "pause-image", "--platform", platform, "--output"]);
    let packed = packing.arg(folder.join("pause.tar")).output().context("cargo pause-image")?;
    ensure!(packed.status.success(), "cargo pause-image: {}", String::from_utf8_lossy(&packed.stderr));
    let printed = String::from_utf8(packed.stdout)?;
    let size = printed.split(" image ").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(size.context("cargo pause-image printed no size")?.parse()?)
}

/// Whether the kernel starts it through an interpreter (PT_INTERP, elf(5)): then its image holds a libc as well.
pub(crate) fn needs_libc(program: &Path) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let file = std::fs::read(program)?;
    // Where a 64-bit ELF header has the offset, the size and the number of the program headers.
    let headers = (|| {
        let offset = u64::from_le_bytes(file.get(0x20..0x28)?.try_into().ok()?).try_into().ok()?;
        let size = u16::from_le_bytes(file.get(0x36..0x38)?.try_into().ok()?).into();
        let count = u16::from_le_bytes(file.get(0x38..0x3a)?.try_into().ok()?).into();
        let headers: &[u8] = file.get(offset..)?;
        (size >= 4).then(|| headers.chunks(size).take(count).collect::<Vec<_>>())
    })();
    let headers = headers.with_context(|| format!("{} is no 64-bit ELF file", program.display()))?;
    Ok(headers.iter().any(|header| header.starts_with(&PT_INTERP.to_le_bytes())))
}
