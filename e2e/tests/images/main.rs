//! The images as they ship: the contents of the pause image's archive, reproducible builds, and the binaries on each platform. Tests that
//! need a program, a compiler or root are reported as ignored without it.

mod elf;
mod emulated;
mod layout;
mod made;
mod operator;
mod tls_api;

use std::process::{Command, ExitCode};

use anyhow::Result;
use e2e::build::oci::{Platform, revision};
use e2e::build::pause_image::{self, Recipe};
use e2e::build::release;
use e2e::runner::arguments::is_long;
use e2e::trial::trial;
use layout::Image;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut tests = vec![];
    for platform in Platform::ALL {
        for (name, test) in EACH {
            let needs = Needs { debian: true, ..Needs::default() };
            tests.push(trial(
                &format!("{name}_{}", platform.architecture()),
                move || needs.missing(),
                move || test(Image::shipped(platform)?),
            ));
        }
        for (name, test) in CLONES {
            let needs = Needs { platforms: vec![platform], repository: true, ..Needs::default() };
            tests.push(trial(
                &format!("{name}_{}", platform.architecture()),
                move || needs.missing(),
                move || test(platform),
            ));
        }
    }
    for platform in Platform::ALL {
        let needs = move || Needs {
            debian: true,
            programs: operator::emulator(platform).map(|emulator| vec![emulator]).unwrap_or_default(),
            ..Needs::default()
        };
        let named = |name: &str| format!("{name}_{}", platform.architecture());
        tests.extend(
            operator::EACH
                .map(|(name, test)| trial(&named(name), move || needs().missing(), move || test(platform))),
        );
        if is_long() {
            tests.push(trial(
                &named("operator_of_clone_is_identical"),
                move || Needs { repository: true, ..needs() }.missing(),
                move || operator::operator_of_clone_is_identical(platform),
            ));
        }
    }
    let both = || Needs { platforms: Platform::ALL.into(), ..Needs::default() };
    tests.push(trial(
        "one_name_has_both_platforms",
        || Needs { debian: true, ..Needs::default() }.missing(),
        layout::one_name_has_both_platforms,
    ));
    tests.push(trial(
        "command_prints_what_it_writes",
        move || both().missing(),
        made::command_prints_what_it_writes,
    ));
    let host = || Platform::host().into_iter().collect();
    tests.push(trial(
        "node_image_has_binary_of_command",
        move || Needs { platforms: host(), ..Needs::default() }.missing(),
        made::node_image_has_binary_of_command,
    ));
    tests.push(trial(
        "containerfile_builds_same_image",
        move || Needs { root: true, programs: vec!["buildah"], debian: true, ..Needs::default() }.missing(),
        made::containerfile_builds_same_image,
    ));
    let emulated =
        || Needs { debian: true, root: true, programs: vec![emulated::QEMU, "unshare"], ..Needs::default() };
    tests.extend(emulated::TESTS.map(|(name, test)| trial(name, move || emulated().missing(), test)));
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

const CLONES: [(&str, PlatformTest); 2] = [
    ("two_clean_clones_give_the_same_digest", made::two_clones_give_same_digest),
    ("clones_share_a_target_directory", made::clones_share_a_target_directory),
];

type PlatformTest = fn(Platform) -> Result<()>;
type ImageTest = fn(&Image) -> Result<()>;

/// Tests of the image of each platform.
const EACH: [(&str, ImageTest); 9] = [
    ("every_blob_matches_its_digest", layout::every_blob_matches_its_digest),
    ("image_contains_only_pause", layout::image_contains_only_pause),
    ("image_has_labels_and_name", layout::image_has_labels_and_name),
    ("image_is_small", layout::image_is_small),
    ("binary_is_static", elf::binary_is_static),
    ("no_memory_is_writable_and_executable", elf::no_memory_is_writable_and_executable),
    ("relocated_memory_is_read_only", elf::relocated_memory_is_read_only),
    ("segments_are_aligned_for_largest_pages", elf::segments_are_aligned_for_largest_pages),
    ("binary_has_no_build_path", elf::binary_has_no_build_path),
];

/// Requirements of a test on this machine.
#[derive(Default)]
struct Needs {
    /// Platforms for which binaries can be built.
    platforms: Vec<Platform>,
    root: bool,
    programs: Vec<&'static str>,
    /// Debian's toolchain, which builds releases.
    debian: bool,
    /// A git repository of the project that we may read.
    repository: bool,
}

impl Needs {
    fn missing(&self) -> Option<String> {
        self.check().unwrap_or_else(|error| Some(format!("{error:#}")))
    }

    fn check(&self) -> Result<Option<String>> {
        if self.root && !nix::unistd::geteuid().is_root() {
            return Ok(Some("root is needed".into()));
        }
        if self.repository && revision(&Recipe::of_this_project(&[]).project).is_none() {
            return Ok(Some("git has no repository here".into()));
        }
        for program in &self.programs {
            if Command::new(program).arg("--version").output().is_err() {
                return Ok(Some(format!("there is no {program}")));
            }
        }
        if self.debian
            && let Some(reason) = release::missing()?
        {
            return Ok(Some(reason));
        }
        for &platform in &self.platforms {
            if let Some(reason) = pause_image::missing(platform)? {
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }
}
