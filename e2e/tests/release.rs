//! A release: it is complete, its parts belong together, and a second build gives the same bytes. Without root or a compiler the tests are
//! reported as ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use e2e::build::oci::Platform;
use e2e::build::registry::Registry;
use e2e::build::release::{self, VERSION};
use e2e::build::{Image, go, images, pause_image, preflight};
use e2e::doc_blocks;
use e2e::trial::trial;
use flate2::read::GzDecoder;
use libtest_mimic::Arguments;
use serde_json::{Value, json};
use tempfile::TempDir;

fn main() -> ExitCode {
    // One after the other: they share what Cargo builds, and the second release is compared with the first.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let tests = vec![
        trial("release_is_complete_and_reproducible", missing, release_is_complete_and_reproducible),
        trial("release_is_pushed_by_documented_commands", missing, release_is_pushed_by_documented_commands),
        trial("release_into_used_directory_is_refused", missing, release_into_used_directory_is_refused),
    ];
    let conclusion = libtest_mimic::run(&arguments, tests);
    // A static is never dropped.
    drop(RELEASE.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

/// A directory with a release in `release`, which the tests share.
static RELEASE: Mutex<Option<TempDir>> = Mutex::new(None);

/// The directory, with a release that is built by the first call.
fn with_release() -> Result<PathBuf> {
    let mut release = RELEASE.lock().unwrap_or_else(PoisonError::into_inner);
    if release.is_none() {
        let directory = tempfile::tempdir()?;
        release::build(&directory.path().join("release"), "registry.example/x")?;
        *release = Some(directory);
    }
    release.as_ref().map(|directory| directory.path().to_owned()).context("no release")
}

/// A node, whose image of the operator is compared, and compilers for both platforms.
fn missing() -> Option<String> {
    let compilers = || {
        Platform::ALL.into_iter().find_map(|platform| {
            pause_image::lacking(platform).unwrap_or_else(|error| Some(format!("{error:#}")))
        })
    };
    preflight::missing().or_else(compilers)
}

fn release_is_complete_and_reproducible() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (first, second) = (with_release()?.join("release"), directory.path().join("second"));
    release::build(&second, "registry.example/x")?;
    for made in [&first, &second] {
        let mut sums = Command::new("sha256sum");
        let sums = sums.args(["--check", "--strict", "SHA256SUMS"]).current_dir(made).output()?;
        ensure!(sums.status.success(), "{}", String::from_utf8_lossy(&sums.stdout));
    }
    let parts = files(&first)?;
    let again = files(&second)?;
    let differ: Vec<_> = parts.iter().filter(|(name, content)| again.get(*name) != Some(content)).collect();
    ensure!(differ.is_empty(), "not the same again: {:?}", differ.iter().map(|(name, _)| name));

    let names: Vec<_> = parts.keys().map(String::as_str).collect();
    let pause = format!("pause-{VERSION}");
    let operator = format!("sandbox-health-{VERSION}");
    let [chart, operator_bill, operator_image] =
        [".tgz", ".cdx.json", ".oci.tar"].map(|end| format!("{operator}{end}"));
    let [pause_bill, pause_image] = [".cdx.json", ".oci.tar"].map(|end| format!("{pause}{end}"));
    let wanted = ["SHA256SUMS", &pause_bill, &pause_image, &operator_bill, &operator_image, &chart];
    ensure!(names == wanted, "it has {names:?}");
    the_chart_is_whole(&parts[&chart])?;
    the_operator_s_image_is_that_of_the_containerfile(&parts[&operator_image])?;
    for (bill, about, known) in [
        (&pause_bill, "pause", ["rustix", "syscalls"]),
        (&operator_bill, "sandbox-health", ["kube-runtime", "rustls"]),
    ] {
        the_bill_names(about, known, &parts[bill]).with_context(|| bill.clone())?;
    }
    Ok(())
}

/// By the commands of docs/install.md.
fn release_is_pushed_by_documented_commands() -> Result<()> {
    let (with_release, directory) = (with_release()?, tempfile::tempdir()?);
    let registry = Registry::start(&directory.path().join("registry"))?;
    let page = Path::new("docs/install.md");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page))?;
    let blocks = doc_blocks::commands(page, &text)?;
    let push =
        blocks.iter().find(|block| block.text.contains("skopeo")).context("the page pushes nothing")?;
    let commands = push.text.replace("REGISTRY", registry.address());
    let ran = registry.command("sh")?.args(["-ec", &commands]).current_dir(&with_release).output()?;
    ensure!(ran.status.success(), "{}: {}", push.place, String::from_utf8_lossy(&ran.stderr));
    for name in ["sandbox-health", "pause"] {
        let archive = with_release.join(format!("release/{name}-{VERSION}.oci.tar"));
        let files = untar(fs::File::open(archive)?)?;
        let (_, index) = files.get(Path::new("index.json")).context("no index.json")?;
        let index: Value = serde_json::from_slice(index)?;
        let digest = registry.digest(&format!("{name}:{VERSION}"))?;
        ensure!(index["manifests"][0]["digest"] == *digest, "{name} is {digest} there, and here {index}");
    }
    Ok(())
}

fn release_into_used_directory_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("precious"), "")?;
    let command = env!("CARGO_BIN_EXE_e2e");
    let ran = Command::new(command).args(["release-artifacts", "--output"]).arg(folder.path()).output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(!ran.status.success() && said.contains("needs a folder of its own"), "{said}");
    ensure!(fs::read_dir(folder.path())?.count() == 1, "it wrote something");
    Ok(())
}

fn files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.insert(entry.file_name().display().to_string(), fs::read(entry.path())?);
    }
    Ok(files)
}

/// The files of a tar archive by their paths, each with its time.
fn untar(archive: impl std::io::Read) -> Result<BTreeMap<PathBuf, (u64, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let mut content = vec![];
        entry.read_to_end(&mut content)?;
        files.insert(entry.path()?.into_owned(), (entry.header().mtime()?, content));
    }
    Ok(files)
}

/// All files of the chart's folder, as they are there but for the name of the image, and one time.
fn the_chart_is_whole(archive: &[u8]) -> Result<()> {
    let packed = untar(GzDecoder::new(archive))?;
    let times: BTreeSet<_> = packed.values().map(|(time, _)| time).collect();
    ensure!(times.len() == 1, "its files have the times {times:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts");
    for file in ["values.schema.json", "README.md", "generated/crd.yaml", "templates/agent.yaml"] {
        let path = Path::new("sandbox-health").join(file);
        let (_, content) = packed.get(&path).with_context(|| format!("the package has no {file}"))?;
        ensure!(*content == fs::read(root.join(&path))?, "{file} is another in the package");
    }
    let (_, chart) = packed.get(Path::new("sandbox-health/Chart.yaml")).context("no Chart.yaml")?;
    let chart: Value = serde_saphyr::from_str(&String::from_utf8(chart.clone())?)?;
    let folder = tempfile::tempdir()?;
    let package = folder.path().join("chart.tgz");
    fs::write(&package, archive)?;
    let rendered = Command::new(go::helm()?).args(["template", "x"]).arg(&package).output()?;
    let said = String::from_utf8_lossy(&rendered.stdout);
    let image = format!("image: \"registry.example/x/sandbox-health:{VERSION}\"");
    // Of agent, controller and `helm test`.
    ensure!(said.matches(&image).count() == 3, "{said}{}", String::from_utf8_lossy(&rendered.stderr));
    ensure!(chart["version"] == VERSION && chart["appVersion"] == VERSION, "{chart}");
    Ok(())
}

/// The node of the tests runs what buildah makes of the Containerfile.
fn the_operator_s_image_is_that_of_the_containerfile(archive: &[u8]) -> Result<()> {
    let (ours, our_program) = only_image(archive)?;
    let (theirs, their_program) = only_image(&fs::read(images::ensure(Image::SandboxHealth)?)?)?;
    ensure!(our_program == their_program, "/sandbox-health has other bytes");
    for key in ["User", "Entrypoint"] {
        ensure!(ours[key] == theirs[key], "{key} is {} here and {} there", ours[key], theirs[key]);
    }
    let [ours, mut theirs] =
        [ours, theirs].map(|config| config["Labels"].as_object().cloned().unwrap_or_default());
    // Of buildah's own, and what it was not told.
    theirs.retain(|label, value| label != "io.buildah.version" && *value != "unknown");
    let missing: Vec<_> = theirs.iter().filter(|(label, value)| ours.get(*label) != Some(value)).collect();
    ensure!(theirs.len() == 5 && missing.is_empty(), "labels {theirs:?} there, {ours:?} here");
    for place in [env!("CARGO_MANIFEST_DIR"), "/.cargo/", "/home/"] {
        let seen = our_program.windows(place.len()).any(|part| part == place.as_bytes());
        ensure!(!seen, "the program names {place}");
    }
    Ok(())
}

/// The configuration of an archive's one image, and its one program.
fn only_image(archive: &[u8]) -> Result<(Value, Vec<u8>)> {
    let files = untar(archive)?;
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().context("a descriptor without a digest")?;
        let path = format!("blobs/{}", digest.replace(':', "/"));
        Ok::<_, anyhow::Error>(&files.get(Path::new(&path)).with_context(|| format!("no {path}"))?.1)
    };
    let (_, index) = files.get(Path::new("index.json")).context("no index.json")?;
    let index: Value = serde_json::from_slice(index)?;
    let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])?)?;
    let config: Value = serde_json::from_slice(blob(&manifest["config"])?)?;
    let layer = untar(GzDecoder::new(blob(&manifest["layers"][0])?.as_slice()))?;
    let (_, program) = layer.get(Path::new("sandbox-health")).context("no program")?;
    ensure!(layer.len() == 1 && manifest["layers"][1].is_null(), "there is more in it: {manifest}");
    Ok((config["config"].clone(), program.clone()))
}

fn the_bill_names(about: &str, known: [&str; 2], bill: &[u8]) -> Result<()> {
    let text = String::from_utf8(bill.to_vec())?;
    ensure!(!text.contains(env!("CARGO_MANIFEST_DIR").trim_end_matches("e2e")), "it tells where it was made");
    let bill: Value = serde_json::from_str(&text)?;
    ensure!(bill["bomFormat"] == "CycloneDX" && bill["metadata"]["component"]["name"] == about, "{bill}");
    let components = bill["components"].as_array().context("no components")?;
    let names: BTreeSet<_> = components.iter().filter_map(|component| component["name"].as_str()).collect();
    ensure!(known.iter().all(|name| names.contains(name)), "it names {names:?}");
    // What tests alone need is in no program.
    ensure!(!names.contains("proptest"), "it names what only tests need");
    for component in components.iter().filter(|component| component["name"] != "pause") {
        ensure!(component["hashes"][0]["alg"] == json!("SHA-256"), "{component} has no hash");
    }
    Ok(())
}
