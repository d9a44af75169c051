//! What a release is: both images for both platforms, the packaged chart, a bill of materials for each binary, the toolchain's packages,
//! and the checksums of all of it, in one directory. The same commit, Debian packages, Cargo and Helm give the same bytes, wherever the
//! checkout is.

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

/// Of all parts.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
const CHART: &str = "charts/sandbox-health";
/// What sha256sum(1) checks.
const CHECKSUMS: &str = "SHA256SUMS";

/// A binary of a release, and what its bill of materials is made from.
struct Binary {
    name: &'static str,
    /// Of the workspace.
    member: &'static str,
    features: &'static str,
    /// Debian packages with what is linked into it besides crates.
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

/// Why no release can be built here; `None` when one can.
///
/// # Errors
///
/// When that cannot be determined.
pub fn lacking() -> Result<Option<String>> {
    debian_toolchain::lacking()
}

/// Builds a release into a folder that must not be there yet, or be empty. The images are named as in this registry, and the chart
/// takes its own from there. The file with the checksums, which names all others.
///
/// # Errors
///
/// When a part cannot be built, or calls itself by another version than the others.
pub fn build(folder: &Path, registry: &str) -> Result<PathBuf> {
    let project = cargo::project().canonicalize()?;
    ensure!(
        !folder.exists() || fs::read_dir(folder)?.next().is_none(),
        "{} has files in it, perhaps of a failed run; remove them, or name another directory",
        folder.display()
    );
    check_chart_version(&fs::read_to_string(project.join(CHART).join("Chart.yaml"))?)?;
    fs::create_dir_all(folder)?;
    let revision = revision(&project);

    eprintln!("the pause image");
    let name = format!("{registry}/pause:{VERSION}");
    let compiler = Compiler::Debian;
    let pause =
        Recipe { revision: revision.clone(), name, compiler, ..Recipe::of_this_project(&Platform::ALL) };
    fs::write(folder.join(format!("pause-{VERSION}.oci.tar")), pause.build()?.bytes)?;

    eprintln!("the operator's image");
    let name = format!("{registry}/sandbox-health:{VERSION}");
    let image = operator::image(&project, &name, revision.as_deref())?;
    fs::write(folder.join(format!("sandbox-health-{VERSION}.oci.tar")), image.bytes)?;

    eprintln!("the chart");
    let time = time_of_commit(&project);
    package_chart(&project, registry, time, folder)?;

    eprintln!("the bills of materials");
    let toolchain = Toolchain::ensure()?;
    let packages = toolchain.packages()?;
    for binary in &BINARIES {
        for platform in Platform::ALL {
            let bill = bill_of_materials(&project, binary, platform, &packages, time)?;
            let name = format!("{}-{VERSION}-{}.cdx.json", binary.name, platform.architecture());
            fs::write(folder.join(name), bill)?;
        }
    }
    fs::write(
        folder.join(format!("toolchain-{VERSION}.sha256")),
        toolchain_list(&project, &toolchain, &packages)?,
    )?;

    let (checksums, path) = (checksums(folder)?, folder.join(CHECKSUMS));
    fs::write(&path, checksums)?;
    Ok(path)
}

/// The chart's version and the default tag of its image are the version of the programs.
fn check_chart_version(chart: &str) -> Result<()> {
    for key in ["version", "appVersion"] {
        let has = chart.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        ensure!(has == Some(VERSION), "Chart.yaml has the {key} {has:?}, and Cargo.toml {VERSION}");
    }
    Ok(())
}

/// In seconds since the epoch; the epoch itself where there is no repository.
fn time_of_commit(project: &Path) -> u64 {
    let time = output(Command::new("git").arg("-C").arg(project).args(["log", "-1", "--format=%ct"]));
    time.ok().and_then(|time| time.trim().parse().ok()).unwrap_or(0)
}

/// Of a copy: Helm writes the times of the files into the archive, which we set, and the copy knows where its image is.
fn package_chart(project: &Path, registry: &str, time: u64, folder: &Path) -> Result<()> {
    let helm = go::helm()?;
    let copies = folder.join("chart.partial");
    let copy = copies.join("sandbox-health");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time);
    let chart = project.join(CHART);
    for file in files_of(&chart)? {
        let (from, to) = (chart.join(&file), copy.join(&file));
        let mut content = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        if file == Path::new("values.yaml") {
            content = values_with_registry(&String::from_utf8(content)?, registry)?.into_bytes();
        }
        fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        fs::write(&to, content)?;
        fs::File::options().write(true).open(&to)?.set_modified(time)?;
    }
    output(Command::new(helm).arg("package").arg(&copy).arg("--destination").arg(folder))?;
    Ok(fs::remove_dir_all(copies)?)
}

/// What git knows of a folder, so that nothing is shipped that merely lies there; all of it where git knows nothing of it, as in an
/// archive of the sources.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let known =
        output(Command::new("git").arg("-C").arg(folder).args(["ls-files", "-z"])).unwrap_or_default();
    let known: Vec<_> = known.split('\0').filter(|file| !file.is_empty()).map(PathBuf::from).collect();
    if known.is_empty() { files_below(folder, Path::new("")) } else { Ok(known) }
}

fn files_below(root: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files.extend(files_below(root, &path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// In `image.registry`. All else stays, comments too.
fn values_with_registry(values: &str, registry: &str) -> Result<String> {
    let (before, rest) = values.split_once("\n  registry: ").context("values.yaml has no image.registry")?;
    let (_, after) = rest.split_once('\n').context("it is the last line")?;
    Ok(format!("{before}\n  registry: {registry}\n{after}"))
}

/// What the bytes of the binaries depend on besides the commit, as a file for `sha256sum --check`.
fn toolchain_list(project: &Path, toolchain: &Toolchain, packages: &[Package]) -> Result<String> {
    let cargo = output(cargo::cargo(project).arg("--version"))?;
    let mut list = format!("# {}\n# {}\n", cargo.trim(), toolchain.version()?.trim());
    for package in packages {
        writeln!(list, "{}  {}", package.sha256, package.file)?;
    }
    Ok(list)
}

/// The crates that Cargo.lock has for a binary on a platform, and the libraries of Debian that it is linked with, in CycloneDX.
/// Macros count, build scripts do not.
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
    // It writes one beside the Cargo.toml of each package of the workspace.
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

/// Cargo identifies packages of ours by where the checkout is (`path+file:///home/me/project/pause#0.1.0`).
fn without_place(bill: &str, member: &str) -> Result<String> {
    let parsed: Value = serde_json::from_str(bill)?;
    let about = parsed["metadata"]["component"]["bom-ref"].as_str().context("the bill is about nothing")?;
    let place = about.strip_prefix("path+").and_then(|url| Some(url.split_once(&format!("/{member}#"))?.0));
    Ok(bill.replace(place.with_context(|| format!("no path in {about}"))?, "file:///sandbox-health"))
}

/// What `sha256sum` says of the files, by name.
fn checksums(folder: &Path) -> Result<String> {
    let mut files = vec![];
    for entry in fs::read_dir(folder)? {
        files.push(entry?.file_name().into_string().ok().context("a file with a strange name")?);
    }
    files.sort();
    let mut checksums = String::new();
    for file in files {
        let sum = Sha256::digest(fs::read(folder.join(&file))?);
        writeln!(checksums, "{sum:x}  {file}")?;
    }
    Ok(checksums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_has_the_version_of_the_programs() {
        let chart = include_str!("../../../charts/sandbox-health/Chart.yaml");
        check_chart_version(chart).unwrap();
        let error = check_chart_version(&chart.replace("appVersion: ", "appVersion: 9.")).unwrap_err();
        assert!(error.to_string().contains("appVersion"), "{error}");
    }

    #[test]
    fn images_and_changelog_have_it_too() {
        for image in [crate::names::PAUSE, crate::names::SANDBOX_HEALTH] {
            assert!(image.ends_with(&format!(":{VERSION}")), "{image}");
        }
        for containerfile in
            [include_str!("../../../pause/Containerfile"), include_str!("../../../controller/Containerfile")]
        {
            assert!(containerfile.contains(&format!("ARG VERSION={VERSION}\n")), "{containerfile}");
        }
        let changelog = include_str!("../../../CHANGELOG.md");
        assert!(changelog.contains(&format!("## [{VERSION}]")), "CHANGELOG.md does not tell of {VERSION}");
    }

    #[test]
    fn the_chart_of_a_release_names_its_registry_and_is_else_the_same() {
        let values = include_str!("../../../charts/sandbox-health/values.yaml");
        let stamped = values_with_registry(values, "registry.example:5000/x").unwrap();
        let differ: Vec<_> =
            values.lines().zip(stamped.lines()).filter(|(before, after)| before != after).collect();
        let line = "  registry: registry.example:5000/x";
        assert_eq!(differ, [("  registry: registry.sandboxhealth.dev", line)]);
        assert_eq!(values.lines().count(), stamped.lines().count());
    }

    #[test]
    fn a_stray_file_is_not_shipped_from_a_checkout() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("templates")).unwrap();
        for file in ["values.yaml", "templates/agent.yaml", "notes.txt"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let files = || {
            let mut files = files_of(folder.path()).unwrap();
            files.sort();
            files
        };
        // Not a checkout: nobody knows which file is astray.
        assert_eq!(files(), ["notes.txt", "templates/agent.yaml", "values.yaml"].map(PathBuf::from));
        let git = |arguments: &[&str]| {
            output(Command::new("git").arg("-C").arg(folder.path()).args(arguments)).unwrap()
        };
        git(&["init", "--quiet"]);
        git(&["add", "values.yaml", "templates"]);
        assert_eq!(files(), ["templates/agent.yaml", "values.yaml"].map(PathBuf::from));
    }

    #[test]
    fn a_bill_does_not_tell_where_the_checkout_was() {
        let bill = r#"{"metadata": {"component": {"bom-ref": "path+file:///home/my%20me/x/pause#0.1.0"}},
            "components": [{"bom-ref": "path+file:///home/my%20me/x/pause#0.1.0 bin-target-0"}]}"#;
        let bill = without_place(bill, "pause").unwrap();
        assert_eq!(bill.matches("path+file:///sandbox-health/pause#0.1.0").count(), 2, "{bill}");
        assert!(!bill.contains("/home"), "{bill}");
        assert!(without_place("{}", "pause").is_err());
    }

    #[test]
    fn bill_names_libraries_of_debian() {
        let package = Package::parse("0a1b  libc6-dev_1%3a2.41-12+deb13u5_arm64.deb").unwrap();
        let bill = with_libraries(r#"{"components": []}"#, [&package].into_iter()).unwrap();
        let bill: Value = serde_json::from_str(&bill).unwrap();
        let component = &bill["components"][0];
        assert_eq!(component["purl"], "pkg:deb/debian/libc6-dev@1%3A2.41-12%2Bdeb13u5?arch=arm64");
        assert_eq!(component["version"], "1:2.41-12+deb13u5");
        assert_eq!(component["hashes"][0]["content"], "0a1b");
    }

    #[test]
    fn checksums_are_what_sha256sum_checks() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b"), "b").unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        let checksums = checksums(folder.path()).unwrap();
        assert!(checksums.ends_with("  b\n"), "{checksums}");
        fs::write(folder.path().join("SUMS"), checksums).unwrap();
        let check =
            || Command::new("sha256sum").args(["--check", "SUMS"]).current_dir(folder.path()).output();
        assert!(check().unwrap().status.success());
        fs::write(folder.path().join("b"), "c").unwrap();
        assert!(!check().unwrap().status.success());
    }
}
