//! A release: it is complete, its parts match, and a second build gives the same bytes. Without root or a compiler the tests are reported
//! as ignored.

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
use e2e::build::{Image, go, images, operator, preflight};
use e2e::doc_blocks;
use e2e::trial::trial;
use flate2::read::GzDecoder;
use libtest_mimic::Arguments;
use serde_json::{Value, json};
use tempfile::TempDir;

fn main() -> ExitCode {
    // One after the other: they share Cargo's build, and the second release is compared with the first.
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

/// They need a node, whose operator image is compared, and compilers for both platforms.
fn missing() -> Option<String> {
    let missing = || release::missing().unwrap_or_else(|error| Some(format!("{error:#}")));
    preflight::missing().or_else(missing)
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
    ensure!(differ.is_empty(), "the second build differs in {:?}", differ.iter().map(|(name, _)| name));

    let names: Vec<_> = parts.keys().cloned().collect();
    let part = |name: &str, end: &str| format!("{name}-{VERSION}{end}");
    let mut expected = vec!["SHA256SUMS".to_owned(), part("toolchain", ".sha256")];
    for name in ["pause", "sandbox-health"] {
        let ends = ["-amd64.cdx.json", "-arm64.cdx.json", ".oci.tar"];
        expected.extend(ends.map(|end| part(name, end)));
    }
    let chart = part("sandbox-health", ".tgz");
    expected.push(chart.clone());
    expected.sort();
    ensure!(names == expected, "the release has {names:?}");
    chart_is_complete(&parts[&chart])?;
    operator_image_is_of_containerfile_and_both_platforms(&parts[&part("sandbox-health", ".oci.tar")])?;
    let packages = packages(&parts[&part("toolchain", ".sha256")])?;
    for platform in Platform::ALL {
        let architecture = platform.architecture();
        for (about, known, libraries) in [
            ("pause", ["rustix", "syscalls"], &["libstd-rust-web-dev"][..]),
            (
                "sandbox-health",
                ["kube-runtime", "rustls"],
                &["libc6-dev", "libgcc-14-dev", "libstd-rust-web-dev"],
            ),
        ] {
            let bill = part(about, &format!("-{architecture}.cdx.json"));
            bill_names_crates(about, known, &parts[&bill]).with_context(|| bill.clone())?;
            let libraries = libraries.iter().map(|name| format!("{name}_{architecture}"));
            bill_names_libraries(&parts[&bill], &packages, libraries.collect()).with_context(|| bill)?;
        }
    }
    Ok(())
}

/// The checksums of the toolchain's packages, by name and architecture.
fn packages(list: &[u8]) -> Result<BTreeMap<String, String>> {
    let list = String::from_utf8(list.to_vec())?;
    let mut lines = list.lines();
    for program in ["# cargo 1.", "# rustc 1."] {
        let line = lines.next().unwrap_or_default();
        ensure!(line.starts_with(program), "{line:?} is not the version of {program}");
    }
    let package = |line: &str| {
        let (sum, file) = line.split_once("  ")?;
        let parts: Vec<_> = file.strip_suffix(".deb")?.split('_').collect();
        let [name, _, architecture] = parts[..] else { return None };
        Some((format!("{name}_{architecture}"), sum.to_owned()))
    };
    lines.map(|line| package(line).with_context(|| format!("no package: {line}"))).collect()
}

/// The bill has exactly these libraries, with the checksums of the packages that they come from.
fn bill_names_libraries(
    bill: &[u8],
    packages: &BTreeMap<String, String>,
    expected: BTreeSet<String>,
) -> Result<()> {
    let bill: Value = serde_json::from_slice(bill)?;
    let components = bill["components"].as_array().context("no components")?;
    let mut named = BTreeSet::new();
    for component in components {
        let purl = component["purl"].as_str().unwrap_or_default();
        let Some((_, architecture)) = purl.strip_prefix("pkg:deb/").and_then(|it| it.split_once("?arch="))
        else {
            continue;
        };
        let name = format!("{}_{architecture}", component["name"].as_str().unwrap_or_default());
        let sum = packages.get(&name).with_context(|| format!("{name} is no package of the toolchain"))?;
        ensure!(component["hashes"][0]["content"] == *sum, "another checksum: {component}");
        named.insert(name);
    }
    ensure!(named == expected, "the bill has {named:?}");
    Ok(())
}

/// Pushes with the commands of docs/install/README.md.
fn release_is_pushed_by_documented_commands() -> Result<()> {
    let (with_release, directory) = (with_release()?, tempfile::tempdir()?);
    let registry = Registry::start(&directory.path().join("registry"))?;
    let page = Path::new("docs/install/README.md");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page))?;
    let blocks = doc_blocks::commands(page, &text)?;
    let push = blocks
        .iter()
        .find(|block| block.text.contains("skopeo"))
        .context("docs/install/README.md has no command that pushes")?;
    // The test's registry has no TLS: skopeo reads that from a file, helm needs an option.
    let commands =
        push.text.replace("REGISTRY", registry.address()).replace("helm push", "helm push --plain-http");
    let ran = registry.command("sh")?.args(["-ec", &commands]).current_dir(&with_release).output()?;
    ensure!(ran.status.success(), "{}: {}", push.place, String::from_utf8_lossy(&ran.stderr));
    for name in ["sandbox-health", "pause"] {
        let archive = with_release.join(format!("release/{name}-{VERSION}.oci.tar"));
        let files = untar(fs::File::open(archive)?)?;
        let (_, index) = files.get(Path::new("index.json")).context("no index.json")?;
        let index: Value = serde_json::from_slice(index)?;
        let digest = registry.digest(&format!("{name}:{VERSION}"))?;
        ensure!(
            index["manifests"][0]["digest"] == *digest,
            "{name} is {digest} in the registry, and {index} in the release"
        );
    }
    // The pulled chart is the package of the release.
    let chart = format!("oci://{}/charts/sandbox-health", registry.address());
    let pull = ["pull", "--plain-http", &chart, "--version", VERSION];
    let pulled = registry.command("helm")?.args(pull).current_dir(&directory).output()?;
    ensure!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let package = format!("sandbox-health-{VERSION}.tgz");
    let [there, here] =
        [directory.path(), &with_release.join("release")].map(|it| fs::read(it.join(&package)));
    ensure!(there? == here?, "the pulled chart differs from the release");
    Ok(())
}

fn release_into_used_directory_is_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("precious"), "")?;
    let command = env!("CARGO_BIN_EXE_e2e");
    let ran = Command::new(command).args(["release-artifacts", "--output"]).arg(directory.path()).output()?;
    let output = String::from_utf8_lossy(&ran.stderr);
    ensure!(!ran.status.success() && output.contains("has files in it"), "{output}");
    ensure!(fs::read_dir(directory.path())?.count() == 1, "it wrote something");
    Ok(())
}

fn files(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
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

/// The package has all files of the chart's directory. Only the name of the image differs, and all have the same time.
fn chart_is_complete(archive: &[u8]) -> Result<()> {
    let packed = untar(GzDecoder::new(archive))?;
    let times: BTreeSet<_> = packed.values().map(|(time, _)| time).collect();
    ensure!(times.len() == 1, "the files of the package have the times {times:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts");
    for file in ["values.schema.json", "README.md", "generated/crd.yaml", "templates/agent.yaml"] {
        let path = Path::new("sandbox-health").join(file);
        let (_, content) = packed.get(&path).with_context(|| format!("the package has no {file}"))?;
        ensure!(*content == fs::read(root.join(&path))?, "{file} differs in the package");
    }
    let (_, chart) = packed.get(Path::new("sandbox-health/Chart.yaml")).context("no Chart.yaml")?;
    let chart: Value = serde_saphyr::from_str(&String::from_utf8(chart.clone())?)?;
    let directory = tempfile::tempdir()?;
    let package = directory.path().join("chart.tgz");
    fs::write(&package, archive)?;
    let rendered = Command::new(go::helm()?).args(["template", "x"]).arg(&package).output()?;
    let output = String::from_utf8_lossy(&rendered.stdout);
    let image = format!("image: \"registry.example/x/sandbox-health:{VERSION}\"");
    // The images of agent, controller and `helm test`.
    ensure!(output.matches(&image).count() == 3, "{output}{}", String::from_utf8_lossy(&rendered.stderr));
    ensure!(chart["version"] == VERSION && chart["appVersion"] == VERSION, "{chart}");
    Ok(())
}

/// The nodes of the tests have the image that buildah builds from the Containerfile, with a binary of the user's compiler.
fn operator_image_is_of_containerfile_and_both_platforms(archive: &[u8]) -> Result<()> {
    let node_image = Archive::read(&fs::read(images::ensure(Image::SandboxHealth)?)?)?;
    let (built, _) = node_image.image(&node_image.top()?)?;
    let release = Archive::read(archive)?;
    let index: Value = release.json(&release.top()?)?;
    let manifests = index["manifests"].as_array().context("no index of platforms")?;
    ensure!(manifests.len() == Platform::ALL.len(), "{index}");
    for (manifest, platform) in manifests.iter().zip(Platform::ALL) {
        let expected = json!({"architecture": platform.architecture(), "os": "linux"});
        ensure!(manifest["platform"] == expected, "{index}");
        let (released, program) = release.image(manifest)?;
        let binary = operator::build_released(&project(), platform, &[])?;
        ensure!(program == fs::read(binary)?, "the image for {platform} has another binary");
        for key in ["User", "Entrypoint"] {
            ensure!(
                released[key] == built[key],
                "{key} is {} in the release and {} on the node",
                released[key],
                built[key]
            );
        }
        let labels = |config: &Value| config["Labels"].as_object().cloned().unwrap_or_default();
        let (released, mut built) = (labels(&released), labels(&built));
        // Without buildah's own label, and those without a value.
        built.retain(|label, value| label != "io.buildah.version" && *value != "unknown");
        let has_all = built.iter().all(|(label, value)| released.get(label) == Some(value));
        ensure!(built.len() == 5 && has_all, "labels {built:?} on the node, {released:?} in the release");
    }
    Ok(())
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// An archive of one image.
struct Archive(BTreeMap<PathBuf, (u64, Vec<u8>)>);

impl Archive {
    fn read(archive: &[u8]) -> Result<Self> {
        untar(archive).map(Self)
    }

    /// The index, or the manifest of an image for one platform.
    fn top(&self) -> Result<Value> {
        let (_, index) = self.0.get(Path::new("index.json")).context("no index.json")?;
        let index: Value = serde_json::from_slice(index)?;
        Ok(index["manifests"][0].clone())
    }

    fn blob(&self, descriptor: &Value) -> Result<&[u8]> {
        let digest = descriptor["digest"].as_str().context("a descriptor without a digest")?;
        let path = format!("blobs/{}", digest.replace(':', "/"));
        Ok(&self.0.get(Path::new(&path)).with_context(|| format!("no {path}"))?.1)
    }

    fn json(&self, descriptor: &Value) -> Result<Value> {
        Ok(serde_json::from_slice(self.blob(descriptor)?)?)
    }

    /// The configuration of an image, and its only binary.
    fn image(&self, descriptor: &Value) -> Result<(Value, Vec<u8>)> {
        let manifest = self.json(descriptor)?;
        let config = self.json(&manifest["config"])?;
        let layer = untar(GzDecoder::new(self.blob(&manifest["layers"][0])?))?;
        let (_, program) = layer.get(Path::new("sandbox-health")).context("no program")?;
        ensure!(
            layer.len() == 1 && manifest["layers"][1].is_null(),
            "the image has further files: {manifest}"
        );
        Ok((config["config"].clone(), program.clone()))
    }
}

fn bill_names_crates(about: &str, known: [&str; 2], bill: &[u8]) -> Result<()> {
    let text = String::from_utf8(bill.to_vec())?;
    ensure!(
        !text.contains(env!("CARGO_MANIFEST_DIR").trim_end_matches("e2e")),
        "the bill has the path of the checkout"
    );
    let bill: Value = serde_json::from_str(&text)?;
    ensure!(bill["bomFormat"] == "CycloneDX" && bill["metadata"]["component"]["name"] == about, "{bill}");
    let components = bill["components"].as_array().context("no components")?;
    let names: BTreeSet<_> = components.iter().filter_map(|component| component["name"].as_str()).collect();
    ensure!(known.iter().all(|name| names.contains(name)), "the bill has {names:?}");
    // Dependencies of tests are in no binary.
    ensure!(!names.contains("proptest"), "the bill has a dependency of tests only");
    for component in components.iter().filter(|component| component["name"] != "pause") {
        ensure!(component["hashes"][0]["alg"] == json!("SHA-256"), "{component} has no hash");
    }
    Ok(())
}
