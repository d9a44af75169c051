//! A release: both images for both platforms, the packaged chart, a bill of materials for each binary, the toolchain's packages, and the
//! checksums of all of it, in one directory. The same commit, Debian packages, Cargo and Helm give the same bytes, regardless of the path
//! of the checkout.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::build::cargo_tools::CYCLONEDX;
use crate::build::debian_toolchain::{self, Package, Toolchain};
use crate::build::oci::{Platform, revision};
use crate::build::pause_image::{Compiler, Recipe};
use crate::build::{cargo, go, operator};
use crate::host::command::output;

/// The version of all parts.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
const CHART: &str = "charts/sandbox-health";
/// The checksums, for sha256sum(1).
const CHECKSUMS: &str = "SHA256SUMS";

/// A binary of a release, and the inputs of its bill of materials.
struct Binary {
    name: &'static str,
    /// Its package in the workspace.
    member: &'static str,
    features: &'static str,
    /// Debian packages whose libraries are linked into it.
    libraries: &'static [&'static str],
}

const BINARIES: [Binary; 2] = [
    Binary {
        name: "pause",
        member: "pause",
        features: "program",
        libraries: &[debian_toolchain::STANDARD_LIBRARY],
    },
    Binary {
        name: "sandbox-health",
        member: "controller",
        features: "",
        libraries: &debian_toolchain::PLATFORM_PACKAGES,
    },
];

/// Why no release can be built here; `None` if one can.
///
/// # Errors
///
/// When that cannot be determined.
pub fn missing() -> Result<Option<String>> {
    debian_toolchain::missing()
}

/// Builds a release into a directory that is empty or does not exist. The images are named for this registry, from which the chart takes
/// its image. Returns the file with the checksums, which lists all others.
///
/// # Errors
///
/// When a part cannot be built, or has another version than the others.
pub fn build(directory: &Path, registry: &str) -> Result<PathBuf> {
    let project = cargo::project().canonicalize()?;
    ensure!(
        !directory.exists() || fs::read_dir(directory)?.next().is_none(),
        "{} has files in it, perhaps of a failed run; remove them, or name another directory",
        directory.display()
    );
    check_chart_version(&fs::read_to_string(project.join(CHART).join("Chart.yaml"))?)?;
    fs::create_dir_all(directory)?;
    let revision = revision(&project);

    eprintln!("the pause image");
    let name = format!("{registry}/pause:{VERSION}");
    let compiler = Compiler::Debian;
    let pause =
        Recipe { revision: revision.clone(), name, compiler, ..Recipe::of_this_project(&Platform::ALL) };
    fs::write(directory.join(format!("pause-{VERSION}.oci.tar")), pause.build()?.bytes)?;

    eprintln!("the operator's image");
    let name = format!("{registry}/sandbox-health:{VERSION}");
    let image = operator::image(&project, &name, revision.as_deref())?;
    fs::write(directory.join(format!("sandbox-health-{VERSION}.oci.tar")), image.bytes)?;

    eprintln!("the chart");
    let time = time_of_commit(&project);
    package_chart(&project, registry, time, directory)?;

    eprintln!("the bills of materials");
    let toolchain = Toolchain::ensure()?;
    let packages = toolchain.packages()?;
    for binary in &BINARIES {
        for platform in Platform::ALL {
            let bill = bill_of_materials(&project, binary, platform, &packages, time)?;
            let name = format!("{}-{VERSION}-{}.cdx.json", binary.name, platform.architecture());
            fs::write(directory.join(name), bill)?;
        }
    }
    fs::write(
        directory.join(format!("toolchain-{VERSION}.sha256")),
        toolchain_list(&project, &toolchain, &packages)?,
    )?;

    let (checksums, path) = (checksums(directory)?, directory.join(CHECKSUMS));
    fs::write(&path, checksums)?;
    Ok(path)
}

/// Checks that the chart's version and the default tag of its image are the version of the binaries.
fn check_chart_version(chart: &str) -> Result<()> {
    for key in ["version", "appVersion"] {
        let has = chart.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        ensure!(has == Some(VERSION), "Chart.yaml has {key} {has:?}, and Cargo.toml has {VERSION}");
    }
    Ok(())
}

/// The time of the commit in seconds since the epoch; 0 if there is no repository.
fn time_of_commit(project: &Path) -> u64 {
    let time = output(Command::new("git").arg("-C").arg(project).args(["log", "-1", "--format=%ct"]));
    time.ok().and_then(|time| time.trim().parse().ok()).unwrap_or(0)
}

/// Packages a copy of the chart: Helm writes the times of the files into the archive, so they are set first, and the copy names the
/// registry of its image.
fn package_chart(project: &Path, registry: &str, time: u64, directory: &Path) -> Result<()> {
    let helm = go::helm()?;
    let copies = directory.join("chart.partial");
    let copy = copies.join("sandbox-health");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time);
    let chart = project.join(CHART);
    for file in files_of(&chart)? {
        let (from, to) = (chart.join(&file), copy.join(&file));
        let mut content = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        if file == Path::new("values.yaml") {
            content = values_with_registry(&String::from_utf8(content)?, registry)?.into_bytes();
        }
        fs::create_dir_all(to.parent().context("a file without a directory")?)?;
        fs::write(&to, content)?;
        fs::File::options().write(true).open(&to)?.set_modified(time)?;
    }
    output(Command::new(helm).arg("package").arg(&copy).arg("--destination").arg(directory))?;
    Ok(fs::remove_dir_all(copies)?)
}

/// The files of a directory that git tracks, so that no other file is shipped; all files if git tracks none, as in an archive of the
/// sources.
fn files_of(directory: &Path) -> Result<Vec<PathBuf>> {
    let tracked =
        output(Command::new("git").arg("-C").arg(directory).args(["ls-files", "-z"])).unwrap_or_default();
    let tracked: Vec<_> = tracked.split('\0').filter(|file| !file.is_empty()).map(PathBuf::from).collect();
    if tracked.is_empty() { files_below(directory, Path::new("")) } else { Ok(tracked) }
}

fn files_below(root: &Path, directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files.extend(files_below(root, &path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// Sets `image.registry`. Everything else stays, also comments.
fn values_with_registry(values: &str, registry: &str) -> Result<String> {
    let (before, rest) = values.split_once("\n  registry: ").context("values.yaml has no image.registry")?;
    let (_, after) = rest.split_once('\n').context("image.registry is the last line of values.yaml")?;
    Ok(format!("{before}\n  registry: {registry}\n{after}"))
}

/// The inputs of the binaries besides the commit, as a file for `sha256sum --check`.
fn toolchain_list(project: &Path, toolchain: &Toolchain, packages: &[Package]) -> Result<String> {
    let cargo = output(cargo::cargo(project).arg("--version"))?;
    let mut list = format!("# {}\n# {}\n", cargo.trim(), toolchain.version()?.trim());
    for package in packages {
        writeln!(list, "{}  {}", package.sha256, package.file)?;
    }
    Ok(list)
}

/// The bill of materials in CycloneDX: the crates that Cargo.lock has for a binary on a platform, and the Debian libraries that are linked
/// into it. It has the crates of macros, and not those of build scripts.
fn bill_of_materials(
    project: &Path,
    binary: &Binary,
    platform: Platform,
    packages: &[Package],
    time: u64,
) -> Result<String> {
    let member = binary.member;
    let mut cyclonedx = CYCLONEDX.command()?;
    cyclonedx
        .args(["cyclonedx", "--quiet", "--format", "json", "--spec-version", "1.5", "--no-build-deps"])
        .args(["--override-filename", "release.cdx", "--features", binary.features])
        .args(["--target", platform.triple(), "--manifest-path"])
        .arg(project.join(member).join("Cargo.toml"))
        .env("SOURCE_DATE_EPOCH", time.to_string());
    output(&mut cyclonedx)?;
    // cargo-cyclonedx writes a file beside the Cargo.toml of each package of the workspace.
    let mut bill = None;
    for entry in fs::read_dir(project)? {
        let entry = entry?;
        let path = entry.path().join("release.cdx.json");
        if path.is_file() {
            if entry.file_name() == member {
                bill = Some(fs::read_to_string(&path)?);
            }
            fs::remove_file(path)?;
        }
    }
    let bill = bill.with_context(|| format!("{member} has no bill of materials"))?;
    let linked = |package: &&Package| {
        binary.libraries.contains(&package.name.as_str()) && package.architecture == platform.architecture()
    };
    with_libraries(&without_place(&bill, member)?, packages.iter().filter(linked))
}

fn with_libraries<'a>(bill: &str, packages: impl Iterator<Item = &'a Package>) -> Result<String> {
    let mut bill: Value = serde_json::from_str(bill)?;
    let components = bill["components"].as_array_mut().context("the bill has no components")?;
    for package in packages {
        let Package { name, version, architecture, sha256, .. } = package;
        let encoded = version.replace('+', "%2B").replace(':', "%3A");
        let purl = format!("pkg:deb/debian/{name}@{encoded}?arch={architecture}");
        components.push(json!({
            "type": "library", "bom-ref": purl, "name": name, "version": version, "scope": "required",
            "hashes": [{"alg": "SHA-256", "content": sha256}], "purl": purl,
        }));
    }
    Ok(serde_json::to_string_pretty(&bill)? + "\n")
}

/// Cargo's IDs of workspace packages have the path of the checkout (`path+file:///home/me/project/pause#0.1.0`).
fn without_place(bill: &str, member: &str) -> Result<String> {
    let parsed: Value = serde_json::from_str(bill)?;
    let about = parsed["metadata"]["component"]["bom-ref"].as_str().context("the bill has no component")?;
    let place = about.strip_prefix("path+").and_then(|url| Some(url.split_once(&format!("/{member}#"))?.0));
    Ok(bill.replace(place.with_context(|| format!("no path in {about}"))?, "file:///sandbox-health"))
}

/// The output of `sha256sum` for the files, by name.
fn checksums(directory: &Path) -> Result<String> {
    let mut files = vec![];
    for entry in fs::read_dir(directory)? {
        files.push(entry?.file_name().into_string().ok().context("a file name that is not UTF-8")?);
    }
    files.sort();
    let mut checksums = String::new();
    for file in files {
        let sum = Sha256::digest(fs::read(directory.join(&file))?);
        writeln!(checksums, "{sum:x}  {file}")?;
    }
    Ok(checksums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_has_version_of_binaries() {
        let chart = include_str!("../../../charts/sandbox-health/Chart.yaml");
        check_chart_version(chart).unwrap();
        let error = check_chart_version(&chart.replace("appVersion: ", "appVersion: 9.")).unwrap_err();
        assert!(error.to_string().contains("appVersion"), "{error}");
    }

    #[test]
    fn images_and_changelog_have_version() {
        for image in [crate::names::PAUSE, crate::names::SANDBOX_HEALTH] {
            assert!(image.ends_with(&format!(":{VERSION}")), "{image}");
        }
        for containerfile in
            [include_str!("../../../pause/Containerfile"), include_str!("../../../controller/Containerfile")]
        {
            assert!(containerfile.contains(&format!("ARG VERSION={VERSION}\n")), "{containerfile}");
        }
        let changelog = include_str!("../../../CHANGELOG.md");
        assert!(changelog.contains(&format!("## [{VERSION}]")), "CHANGELOG.md has no section {VERSION}");
    }

    #[test]
    fn released_chart_differs_only_in_registry() {
        let values = include_str!("../../../charts/sandbox-health/values.yaml");
        let stamped = values_with_registry(values, "registry.example:5000/x").unwrap();
        let differ: Vec<_> =
            values.lines().zip(stamped.lines()).filter(|(before, after)| before != after).collect();
        let line = "  registry: registry.example:5000/x";
        assert_eq!(differ, [("  registry: registry.sandboxhealth.dev", line)]);
        assert_eq!(values.lines().count(), stamped.lines().count());
    }

    #[test]
    fn untracked_file_is_not_shipped() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("templates")).unwrap();
        for file in ["values.yaml", "templates/agent.yaml", "notes.txt"] {
            fs::write(directory.path().join(file), "").unwrap();
        }
        let files = || {
            let mut files = files_of(directory.path()).unwrap();
            files.sort();
            files
        };
        // Not a checkout: no file is known to be tracked.
        assert_eq!(files(), ["notes.txt", "templates/agent.yaml", "values.yaml"].map(PathBuf::from));
        let git = |arguments: &[&str]| {
            output(Command::new("git").arg("-C").arg(directory.path()).args(arguments)).unwrap()
        };
        git(&["init", "--quiet"]);
        git(&["add", "values.yaml", "templates"]);
        assert_eq!(files(), ["templates/agent.yaml", "values.yaml"].map(PathBuf::from));
    }

    #[test]
    fn bill_has_no_path_of_checkout() {
        let bill = r#"{"metadata": {"component": {"bom-ref": "path+file:///home/my%20me/x/pause#0.1.0"}},
            "components": [{"bom-ref": "path+file:///home/my%20me/x/pause#0.1.0 bin-target-0"}]}"#;
        let bill = without_place(bill, "pause").unwrap();
        assert_eq!(bill.matches("path+file:///sandbox-health/pause#0.1.0").count(), 2, "{bill}");
        assert!(!bill.contains("/home"), "{bill}");
        assert!(without_place("{}", "pause").is_err());
    }

    #[test]
    fn bill_lists_debian_libraries() {
        let package = Package::parse("0a1b  libc6-dev_1%3a2.41-12+deb13u5_arm64.deb").unwrap();
        let bill = with_libraries(r#"{"components": []}"#, [&package].into_iter()).unwrap();
        let bill: Value = serde_json::from_str(&bill).unwrap();
        let component = &bill["components"][0];
        assert_eq!(component["purl"], "pkg:deb/debian/libc6-dev@1%3A2.41-12%2Bdeb13u5?arch=arm64");
        assert_eq!(component["version"], "1:2.41-12+deb13u5");
        assert_eq!(component["hashes"][0]["content"], "0a1b");
    }

    #[test]
    fn sha256sum_accepts_checksums() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("b"), "b").unwrap();
        fs::write(directory.path().join("a"), "a").unwrap();
        let checksums = checksums(directory.path()).unwrap();
        assert!(checksums.ends_with("  b\n"), "{checksums}");
        fs::write(directory.path().join("SUMS"), checksums).unwrap();
        let check =
            || Command::new("sha256sum").args(["--check", "SUMS"]).current_dir(directory.path()).output();
        assert!(check().unwrap().status.success());
        fs::write(directory.path().join("b"), "c").unwrap();
        assert!(!check().unwrap().status.success());
    }
}
