//! A release as it is handed out: that its parts are all there, belong together and are the same bytes when made again. What
//! needs a compiler or a right that isn't here is reported as ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use e2e::build::oci::Platform;
use e2e::build::registry::Registry;
use e2e::build::release::{self, VERSION};
use e2e::build::{Image, go, images, pause_image, preflight};
use e2e::doc_blocks;
use flate2::read::GzDecoder;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};

fn main() -> ExitCode {
    // One after the other: they share what Cargo builds, and the second release is compared with the first.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let tests = vec![
        trial("a_release_has_all_its_parts_and_is_the_same_when_made_again", made_again),
        trial("a_release_is_pushed_as_the_page_says", pushed),
        trial("a_release_needs_a_folder_of_its_own", needs_its_own_folder),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}

fn trial(name: &str, test: fn() -> Result<()>) -> Trial {
    let failed = |error: anyhow::Error| Failed::from(format!("{error:#}"));
    Trial::ignorable_test(name, move || {
        if let Some(lack) = preflight::missing() {
            return Ok(Completion::ignored_with(lack));
        }
        for platform in Platform::ALL {
            if let Some(lack) = pause_image::lacking(platform).map_err(failed)? {
                return Ok(Completion::ignored_with(lack));
            }
        }
        test().map(|()| Completion::Completed).map_err(failed)
    })
}

fn made_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    for made in [&first, &second] {
        release::build(made, "registry.example/x")?;
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
fn pushed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    release::build(&folder.path().join("release"), "registry.example/x")?;
    let registry = Registry::start(&folder.path().join("registry"))?;
    let page = Path::new("docs/install.md");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page))?;
    let blocks = doc_blocks::commands(page, &text)?;
    let push =
        blocks.iter().find(|block| block.text.contains("skopeo")).context("the page pushes nothing")?;
    let commands = push.text.replace("REGISTRY", registry.address());
    let ran = registry.command("sh")?.args(["-ec", &commands]).current_dir(folder.path()).output()?;
    ensure!(ran.status.success(), "{}: {}", push.place, String::from_utf8_lossy(&ran.stderr));
    for name in ["sandbox-health", "pause"] {
        let archive = folder.path().join(format!("release/{name}-{VERSION}.oci.tar"));
        let files = untar(fs::File::open(archive)?)?;
        let (_, index) = files.get(Path::new("index.json")).context("no index.json")?;
        let index: Value = serde_json::from_slice(index)?;
        let digest = registry.digest(&format!("{name}:{VERSION}"))?;
        ensure!(index["manifests"][0]["digest"] == *digest, "{name} is {digest} there, and here {index}");
    }
    Ok(())
}

fn needs_its_own_folder() -> Result<()> {
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
