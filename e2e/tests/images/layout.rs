//! Reads an archive as a container runtime does, and trusts nothing in it: every blob is looked up by its descriptor, whose
//! digest and size it must have.

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

/// The most that the archive of one platform may take: every node holds that image.
const ARCHIVE_MAX: usize = 20_000;
/// The most that the program may take: every pod maps it.
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
        ensure!(files.insert(path.clone(), file).is_none(), "{path} is there twice");
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
            "another layout: {}",
            String::from_utf8_lossy(version)
        );
        Ok(Self(files))
    }

    /// The one image that index.json names.
    pub(crate) fn top(&self) -> Result<Value> {
        let index = &self.0.get("index.json").context("no index.json")?.content;
        let index: Value = serde_json::from_slice(index)?;
        let [top] = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err(anyhow!("not one image: {index}"));
        };
        Ok(top.clone())
    }

    /// What the descriptor describes.
    fn blob(&self, descriptor: &Value) -> Result<&[u8]> {
        let digest = descriptor["digest"].as_str().context("a descriptor without a digest")?;
        let path = format!("blobs/{}", digest.replacen(':', "/", 1));
        let blob = &self.0.get(&path).with_context(|| format!("no {path}"))?.content;
        ensure!(sha256(blob) == digest, "{path} has another digest");
        ensure!(descriptor["size"] == json!(blob.len()), "{path} is not as large as said: {descriptor}");
        Ok(blob)
    }

    fn json(&self, descriptor: &Value) -> Result<Value> {
        Ok(serde_json::from_slice(self.blob(descriptor)?)?)
    }
}

fn sha256(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// One platform's image, taken apart.
pub(crate) struct Image {
    pub(crate) platform: Platform,
    /// What the builder says of it; `None` for one that buildah made.
    archive: Option<Archive>,
    layout: Layout,
    manifest: Value,
    config: Value,
    /// The only layer's.
    files: BTreeMap<String, File>,
}

impl Image {
    /// The one of a release, built once for all tests.
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

    /// From an archive of one platform alone.
    pub(crate) fn read(platform: Platform, archive: &[u8]) -> Result<Self> {
        let layout = Layout::read(archive)?;
        let top = layout.top()?;
        Self::described(platform, layout, &top)
    }

    fn described(platform: Platform, layout: Layout, descriptor: &Value) -> Result<Self> {
        let manifest = layout.json(descriptor)?;
        let config = layout.json(&manifest["config"])?;
        let [layer] = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err(anyhow!("not one layer: {manifest}"));
        };
        let mut uncompressed = vec![];
        GzDecoder::new(layout.blob(layer)?).read_to_end(&mut uncompressed)?;
        let diff_ids = &config["rootfs"]["diff_ids"];
        ensure!(*diff_ids == json!([sha256(&uncompressed)]), "the layer is not the one of {diff_ids}");
        let files = untar(&uncompressed)?;
        Ok(Self { platform, archive: None, layout, manifest, config, files })
    }

    fn said(&self) -> Result<&Archive> {
        self.archive.as_ref().context("it was not built by us")
    }

    /// The only file that there is.
    pub(crate) fn pause(&self) -> Result<&File> {
        ensure!(self.files.len() == 1, "it has {:?}", self.files.keys());
        let pause = self.files.get("pause").context("no /pause")?;
        ensure!(pause.kind == EntryType::Regular, "/pause is a {:?}", pause.kind);
        ensure!(pause.mode & 0o7777 == 0o555, "/pause has the mode {:o}", pause.mode);
        ensure!(pause.owner == (0, 0), "/pause is owned by {:?}", pause.owner);
        Ok(pause)
    }

    /// As containerd would call it.
    pub(crate) fn name(&self) -> Result<String> {
        let name = &self.layout.top()?["annotations"]["io.containerd.image.name"];
        Ok(name.as_str().context("it has no name")?.into())
    }

    /// What a container runtime takes from it.
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

pub(crate) fn every_blob_is_what_its_name_says(image: &Image) -> Result<()> {
    // Reading it has looked at those that are referred to; there are no others, and nothing tells when or by whom it was made.
    let referred_to = 3;
    let files = &image.layout.0;
    ensure!(files.len() == 2 + referred_to, "it has {:?}", files.keys());
    for (path, file) in files.iter().chain(&image.files) {
        ensure!((file.owner, file.mtime) == ((0, 0), 0), "{path} has an owner or a time");
    }
    let top = image.layout.top()?;
    ensure!(top["digest"] == image.said()?.digest, "{top} is not what was said");
    ensure!(image.config["created"] == "1970-01-01T00:00:00Z", "it was created {}", image.config["created"]);
    Ok(())
}

pub(crate) fn the_image_is_pause_and_nothing_else(image: &Image) -> Result<()> {
    image.pause()?;
    let [user, entrypoint, _, architecture, os] = image.settings();
    ensure!(user == "65535:65535" && *entrypoint == json!(["/pause"]), "it runs {entrypoint} as {user}");
    let command = &image.config["config"]["Cmd"];
    ensure!(*command == json!([ROOM_ARGUMENT]), "its Cmd is {command}");
    ensure!(*architecture == image.platform.architecture() && os == "linux", "{os}/{architecture}");
    let platform = image.layout.top()?["platform"].clone();
    ensure!(platform == json!({"architecture": architecture, "os": os}), "it is described as {platform}");
    Ok(())
}

pub(crate) fn the_image_tells_what_it_is(image: &Image) -> Result<()> {
    let labels = labels(REVISION);
    ensure!(*image.settings()[2] == labels, "its labels are {}", image.settings()[2]);
    ensure!(
        image.manifest["annotations"] == labels,
        "it is annotated with {}",
        image.manifest["annotations"]
    );
    let names = image.layout.top()?["annotations"].clone();
    ensure!(names == named(names::PAUSE), "it is called {names}");
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

pub(crate) fn the_image_is_small(image: &Image) -> Result<()> {
    let (archive, program) = (image.said()?, image.pause()?.content.len());
    let [size] = archive.sizes[..] else { return Err(anyhow!("not one size: {:?}", archive.sizes)) };
    println!(
        "{}: program {program}, image {}, archive {} bytes",
        image.platform,
        size.image,
        archive.bytes.len()
    );
    ensure!(archive.bytes.len() <= ARCHIVE_MAX, "an archive of {} bytes", archive.bytes.len());
    ensure!(program <= PROGRAM_MAX, "a program of {program} bytes");
    let blobs = image.layout.0.iter().filter(|(path, _)| path.starts_with("blobs/"));
    let stored: usize = blobs.map(|(_, blob)| blob.content.len()).sum();
    ensure!((size.program, size.image) == (program, stored), "{size:?} is said, {program} and {stored} are");
    Ok(())
}

pub(crate) fn one_name_stands_for_both() -> Result<()> {
    let name = "registry.example/pause:test";
    let recipe = Recipe { name: name.into(), ..released(&Platform::ALL) };
    let archive = recipe.build()?;
    let top = Layout::read(&archive.bytes)?.top()?;
    ensure!(top["annotations"] == named(name) && top["digest"] == archive.digest, "{top}");
    let index = Layout::read(&archive.bytes)?.json(&top)?;
    ensure!(index["annotations"] == labels(REVISION), "the index is annotated with {}", index["annotations"]);
    ensure!(index["mediaType"] == top["mediaType"], "{top} describes an {}", index["mediaType"]);
    let manifests = index["manifests"].as_array().context("no manifests")?;
    ensure!(manifests.len() == Platform::ALL.len(), "{index}");
    for (descriptor, platform) in manifests.iter().zip(Platform::ALL) {
        let said = &descriptor["platform"];
        ensure!(*said == json!({"architecture": platform.architecture(), "os": "linux"}), "{said}");
        // Its manifest is the one that it has in an archive of its own.
        let alone = Image::shipped(platform)?;
        ensure!(descriptor["digest"] == alone.said()?.digest, "{platform} has another image of its own");
        Image::described(platform, Layout::read(&archive.bytes)?, descriptor)?.pause()?;
    }
    Ok(())
}
