//! Reads an archive as a container runtime does, and verifies everything: every blob is looked up by its descriptor, whose digest and size
//! it must have.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::build::oci::{Archive, Platform};
use e2e::build::pause_image::{Compiler, Recipe};
use e2e::names;
use flate2::read::GzDecoder;
use pause_status::ROOM_ARGUMENT;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

/// Maximum size of the archive of one platform: every node stores that image.
const ARCHIVE_MAX: usize = 20_000;
/// Maximum size of the binary: every pod maps it.
const PROGRAM_MAX: usize = 10_000;
pub(crate) const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file of a tar archive.
pub(crate) struct File {
    kind: EntryType,
    mode: u32,
    /// uid, gid
    owner: (u64, u64),
    mtime: u64,
    pub(crate) content: Vec<u8>,
}

/// The files of a tar archive by their paths.
fn untar(archive: &[u8]) -> Result<BTreeMap<String, File>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        let mut content = vec![];
        entry.read_to_end(&mut content)?;
        let header = entry.header();
        let file = File {
            kind: header.entry_type(),
            mode: header.mode()?,
            owner: (header.uid()?, header.gid()?),
            mtime: header.mtime()?,
            content,
        };
        ensure!(files.insert(path.clone(), file).is_none(), "{path} occurs twice");
    }
    Ok(files)
}

fn released(platforms: &[Platform]) -> Recipe {
    let revision = Some(REVISION.into());
    Recipe { compiler: Compiler::Debian, revision, ..Recipe::of_this_project(platforms) }
}

pub(crate) struct Layout(BTreeMap<String, File>);

impl Layout {
    pub(crate) fn read(archive: &[u8]) -> Result<Self> {
        let files = untar(archive)?;
        let version = &files.get("oci-layout").context("no oci-layout")?.content;
        ensure!(
            serde_json::from_slice::<Value>(version)? == json!({"imageLayoutVersion": "1.0.0"}),
            "the layout has another version: {}",
            String::from_utf8_lossy(version)
        );
        Ok(Self(files))
    }

    /// The only image in index.json.
    pub(crate) fn top(&self) -> Result<Value> {
        let index = &self.0.get("index.json").context("no index.json")?.content;
        let index: Value = serde_json::from_slice(index)?;
        let [top] = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err(anyhow!("index.json has not exactly one image: {index}"));
        };
        Ok(top.clone())
    }

    /// The blob of a descriptor.
    fn blob(&self, descriptor: &Value) -> Result<&[u8]> {
        let digest = descriptor["digest"].as_str().context("a descriptor without a digest")?;
        let path = format!("blobs/{}", digest.replacen(':', "/", 1));
        let blob = &self.0.get(&path).with_context(|| format!("no {path}"))?.content;
        ensure!(sha256(blob) == digest, "{path} has another digest");
        ensure!(
            descriptor["size"] == json!(blob.len()),
            "{path} has another size than its descriptor: {descriptor}"
        );
        Ok(blob)
    }

    fn json(&self, descriptor: &Value) -> Result<Value> {
        Ok(serde_json::from_slice(self.blob(descriptor)?)?)
    }
}

fn sha256(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// The parsed image of one platform.
pub(crate) struct Image {
    pub(crate) platform: Platform,
    /// The result of the build; `None` for an image that buildah built.
    archive: Option<Archive>,
    layout: Layout,
    manifest: Value,
    config: Value,
    /// The files of the only layer.
    files: BTreeMap<String, File>,
}

impl Image {
    /// The image of a release, built once for all tests.
    pub(crate) fn shipped(platform: Platform) -> Result<&'static Self> {
        static IMAGES: [OnceLock<Result<Image, String>>; Platform::ALL.len()] =
            [const { OnceLock::new() }; Platform::ALL.len()];
        let image = IMAGES[platform as usize].get_or_init(|| {
            let recipe = released(&[platform]);
            let made = recipe.build().and_then(|archive| {
                Ok(Self { archive: Some(archive.clone()), ..Self::read(platform, &archive.bytes)? })
            });
            made.map_err(|error| format!("{error:#}"))
        });
        image.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Reads an archive of one platform only.
    pub(crate) fn read(platform: Platform, archive: &[u8]) -> Result<Self> {
        let layout = Layout::read(archive)?;
        let top = layout.top()?;
        Self::described(platform, layout, &top)
    }

    fn described(platform: Platform, layout: Layout, descriptor: &Value) -> Result<Self> {
        let manifest = layout.json(descriptor)?;
        let config = layout.json(&manifest["config"])?;
        let [layer] = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err(anyhow!("the image has not exactly one layer: {manifest}"));
        };
        let mut uncompressed = vec![];
        GzDecoder::new(layout.blob(layer)?).read_to_end(&mut uncompressed)?;
        let diff_ids = &config["rootfs"]["diff_ids"];
        ensure!(*diff_ids == json!([sha256(&uncompressed)]), "the layer is not the one of {diff_ids}");
        let files = untar(&uncompressed)?;
        Ok(Self { platform, archive: None, layout, manifest, config, files })
    }

    fn built(&self) -> Result<&Archive> {
        self.archive.as_ref().context("buildah built the image")
    }

    /// The only file of the image.
    pub(crate) fn pause(&self) -> Result<&File> {
        ensure!(self.files.len() == 1, "the image has the files {:?}", self.files.keys());
        let pause = self.files.get("pause").context("no /pause")?;
        ensure!(pause.kind == EntryType::Regular, "/pause is a {:?}", pause.kind);
        ensure!(pause.mode & 0o7777 == 0o555, "/pause has the mode {:o}", pause.mode);
        ensure!(pause.owner == (0, 0), "/pause is owned by {:?}", pause.owner);
        Ok(pause)
    }

    /// The name that containerd gives it.
    pub(crate) fn name(&self) -> Result<String> {
        let name = &self.layout.top()?["annotations"]["io.containerd.image.name"];
        Ok(name.as_str().context("the image has no name")?.into())
    }

    /// The settings that a container runtime uses.
    pub(crate) fn settings(&self) -> [&Value; 5] {
        let config = &self.config["config"];
        [
            &config["User"],
            &config["Entrypoint"],
            &config["Labels"],
            &self.config["architecture"],
            &self.config["os"],
        ]
    }
}

pub(crate) fn every_blob_matches_its_digest(image: &Image) -> Result<()> {
    // Reading has verified the blobs with a descriptor; there must be no others, and no entry of the archive has an owner or a time.
    let referred_to = 3;
    let files = &image.layout.0;
    ensure!(files.len() == 2 + referred_to, "the archive has the files {:?}", files.keys());
    for (path, file) in files.iter().chain(&image.files) {
        ensure!((file.owner, file.mtime) == ((0, 0), 0), "{path} has an owner or a time");
    }
    let top = image.layout.top()?;
    ensure!(top["digest"] == image.built()?.digest, "{top} has another digest than the build reported");
    ensure!(
        image.config["created"] == "1970-01-01T00:00:00Z",
        "the image has the creation time {}",
        image.config["created"]
    );
    Ok(())
}

pub(crate) fn image_contains_only_pause(image: &Image) -> Result<()> {
    image.pause()?;
    let [user, entrypoint, _, architecture, os] = image.settings();
    ensure!(
        user == "65535:65535" && *entrypoint == json!(["/pause"]),
        "the image runs {entrypoint} as {user}"
    );
    let command = &image.config["config"]["Cmd"];
    ensure!(*command == json!([ROOM_ARGUMENT]), "the Cmd of the image is {command}");
    ensure!(*architecture == image.platform.architecture() && os == "linux", "{os}/{architecture}");
    let platform = image.layout.top()?["platform"].clone();
    ensure!(
        platform == json!({"architecture": architecture, "os": os}),
        "the index describes it as {platform}"
    );
    Ok(())
}

pub(crate) fn image_has_labels_and_name(image: &Image) -> Result<()> {
    let labels = labels(REVISION);
    ensure!(*image.settings()[2] == labels, "the image has the labels {}", image.settings()[2]);
    ensure!(
        image.manifest["annotations"] == labels,
        "the image has the annotations {}",
        image.manifest["annotations"]
    );
    let names = image.layout.top()?["annotations"].clone();
    ensure!(names == named(names::PAUSE), "the image has the names {names}");
    ensure!(names::PAUSE.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{}", names::PAUSE);
    Ok(())
}

fn labels(revision: &str) -> Value {
    json!({
        "org.opencontainers.image.title": "pause",
        "org.opencontainers.image.description": "PID 1 of a Kubernetes pod sandbox that shows what it reaped",
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
        "org.opencontainers.image.revision": revision,
    })
}

fn named(name: &str) -> Value {
    json!({"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name})
}

pub(crate) fn image_is_small(image: &Image) -> Result<()> {
    let (archive, program) = (image.built()?, image.pause()?.content.len());
    let [size] = archive.sizes[..] else {
        return Err(anyhow!("the build reported not exactly one size: {:?}", archive.sizes));
    };
    println!(
        "{}: program {program}, image {}, archive {} bytes",
        image.platform,
        size.image,
        archive.bytes.len()
    );
    ensure!(archive.bytes.len() <= ARCHIVE_MAX, "the archive has {} bytes", archive.bytes.len());
    ensure!(program <= PROGRAM_MAX, "the binary has {program} bytes");
    let blobs = image.layout.0.iter().filter(|(path, _)| path.starts_with("blobs/"));
    let stored: usize = blobs.map(|(_, blob)| blob.content.len()).sum();
    ensure!(
        (size.program, size.image) == (program, stored),
        "the build reported {size:?}; the sizes are {program} and {stored}"
    );
    Ok(())
}

pub(crate) fn one_name_has_both_platforms() -> Result<()> {
    let name = "registry.example/pause:test";
    let recipe = Recipe { name: name.into(), ..released(&Platform::ALL) };
    let archive = recipe.build()?;
    let top = Layout::read(&archive.bytes)?.top()?;
    ensure!(top["annotations"] == named(name) && top["digest"] == archive.digest, "{top}");
    let index = Layout::read(&archive.bytes)?.json(&top)?;
    ensure!(
        index["annotations"] == labels(REVISION),
        "the index has the annotations {}",
        index["annotations"]
    );
    ensure!(index["mediaType"] == top["mediaType"], "{top} describes an {}", index["mediaType"]);
    let manifests = index["manifests"].as_array().context("no manifests")?;
    ensure!(manifests.len() == Platform::ALL.len(), "{index}");
    for (descriptor, platform) in manifests.iter().zip(Platform::ALL) {
        let described = &descriptor["platform"];
        ensure!(*described == json!({"architecture": platform.architecture(), "os": "linux"}), "{described}");
        // Its manifest equals that of an archive for this platform only.
        let alone = Image::shipped(platform)?;
        ensure!(
            descriptor["digest"] == alone.built()?.digest,
            "{platform} has another digest in an archive of its own"
        );
        Image::described(platform, Layout::read(&archive.bytes)?, descriptor)?.pause()?;
    }
    Ok(())
}
