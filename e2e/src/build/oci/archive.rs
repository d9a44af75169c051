//! An OCI image layout in a tar archive (the OCI image specification 1.1): the index, the manifests and their blobs. It has nothing of the
//! time, the machine or the user in it: the same binaries and labels give the same bytes.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::labels::{Labels, labels};
use super::{About, Platform};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A constant creation time, because builds are reproducible: the usual default of SOURCE_DATE_EPOCH.
const CREATED: &str = "1970-01-01T00:00:00Z";
/// The kubelet may run it as any uid (the pod's runAsUser).
const PROGRAM_MODE: u32 = 0o555;

/// Sizes of one platform's image, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// The platform.
    pub platform: Platform,
    /// The binary.
    pub program: usize,
    /// What a registry stores and a node pulls: manifest, configuration and layer.
    pub image: usize,
}

/// An image in an archive.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The tar archive.
    pub bytes: Vec<u8>,
    /// Digest of the index, or of the manifest if there is only one platform. The image can be pinned to it.
    pub digest: String,
    /// Sizes for each platform.
    pub sizes: Vec<Size>,
}

/// Content by its digest.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds the content; returns its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": content.len()});
        self.0.insert(digest, content);
        descriptor
    }

    /// Total size of all content.
    fn size(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

/// Packs an image into an archive that a container runtime imports under this name. Without a `revision` its label is omitted.
pub(crate) fn archive(
    about: &About,
    name: &str,
    revision: Option<&str>,
    programs: &[(Platform, Vec<u8>)],
) -> Result<Archive> {
    let labels = &labels(about, revision);
    let mut blobs = Blobs::default();
    let mut manifests = vec![];
    let mut sizes = vec![];
    for (platform, program) in programs {
        let mut image = Blobs::default();
        let mut manifest = add_image(&mut image, about, *platform, labels, program)?;
        manifest["platform"] = json!({"architecture": platform.architecture(), "os": "linux"});
        manifests.push(manifest);
        sizes.push(Size { platform: *platform, program: program.len(), image: image.size() });
        blobs.0.append(&mut image.0);
    }
    let mut top = match &mut manifests[..] {
        [manifest] => manifest.take(),
        _ => blobs.add(INDEX, serde_json::to_vec(&index(&manifests, labels))?),
    };
    let digest = top["digest"].as_str().context("a descriptor has a digest")?.to_owned();
    // The first is the specification's; containerd, Docker and podman prefer the second.
    top["annotations"] = json!({"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name});
    let mut tar = Tar::default();
    tar.add("oci-layout", 0o444, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.add("index.json", 0o444, &serde_json::to_vec(&index(&[top], &Labels::new()))?)?;
    for (digest, content) in &blobs.0 {
        tar.add(&format!("blobs/{}", digest.replace(':', "/")), 0o444, content)?;
    }
    Ok(Archive { bytes: tar.end()?, digest, sizes })
}

fn index(manifests: &[Value], labels: &Labels) -> Value {
    let mut index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    if !labels.is_empty() {
        index["annotations"] = json!(labels);
    }
    index
}

/// Adds one platform's layer, configuration and manifest; returns the descriptor of the manifest.
fn add_image(
    blobs: &mut Blobs,
    about: &About,
    platform: Platform,
    labels: &Labels,
    program: &[u8],
) -> Result<Value> {
    let mut layer = Tar::default();
    layer.add(about.program, PROGRAM_MODE, program)?;
    let layer = layer.end()?;
    let mut config = json!({
        "created": CREATED,
        "architecture": platform.architecture(),
        "os": "linux",
        "config": {"User": about.user, "Entrypoint": [format!("/{}", about.program)], "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    if !about.arguments.is_empty() {
        config["config"]["Cmd"] = json!(about.arguments);
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blobs.add(CONFIG, serde_json::to_vec(&config)?),
        "layers": [blobs.add(LAYER, compressed(&layer)?)],
        "annotations": labels,
    });
    Ok(blobs.add(MANIFEST, serde_json::to_vec(&manifest)?))
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// Compresses with gzip, without a time, a name or an operating system.
fn compressed(content: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().write(vec![], Compression::best());
    gzip.write_all(content)?;
    Ok(gzip.finish()?)
}

/// A tar archive whose files are owned by root and dated to the epoch.
struct Tar(tar::Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(tar::Builder::new(vec![]))
    }
}

impl Tar {
    fn add(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path)?;
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len().try_into()?);
        header.set_cksum();
        Ok(self.0.append(&header, content)?)
    }

    fn end(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}
