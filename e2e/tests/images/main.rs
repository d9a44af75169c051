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
        let needs = Needs { platforms: vec![platform], repository: true, ..Needs::default() };
        tests.push(trial(
            &format!("two_clean_clones_give_the_same_digest_{}", platform.architecture()),
            move || needs.missing(),
            move || made::two_clean_clones_give_the_same_digest(platform),
        ));
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
        "one_name_stands_for_both_platforms",
        || Needs { debian: true, ..Needs::default() }.missing(),
        layout::one_name_stands_for_both,
    ));
    tests.push(trial(
        "the_command_writes_what_it_says",
        move || both().missing(),
        made::the_command_writes_what_it_says,
    ));
    let host = || Platform::host().into_iter().collect();
    tests.push(trial(
        "a_node_gets_the_program_of_the_command",
        move || Needs { platforms: host(), ..Needs::default() }.missing(),
        made::a_node_gets_the_program_of_the_command,
    ));
    tests.push(trial(
        "the_containerfile_makes_the_same_image",
        move || Needs { root: true, programs: vec!["buildah"], debian: true, ..Needs::default() }.missing(),
        made::the_containerfile_makes_the_same_image,
    ));
    let emulated =
        || Needs { debian: true, root: true, programs: vec![emulated::QEMU, "unshare"], ..Needs::default() };
    tests.extend(emulated::TESTS.map(|(name, test)| trial(name, move || emulated().missing(), test)));
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

type ImageTest = fn(&Image) -> Result<()>;

/// What holds for the image of each platform.
const EACH: [(&str, ImageTest); 9] = [
    ("every_blob_is_what_its_name_says", layout::every_blob_is_what_its_name_says),
    ("the_image_is_pause_and_nothing_else", layout::the_image_is_pause_and_nothing_else),
    ("the_image_tells_what_it_is", layout::the_image_tells_what_it_is),
    ("the_image_is_small", layout::the_image_is_small),
    ("the_program_is_static", elf::the_program_is_static),
    ("no_memory_is_writable_and_executable", elf::no_memory_is_writable_and_executable),
    ("what_is_written_before_the_start_is_read_only_after", elf::relocated_memory_is_read_only),
    ("segments_are_aligned_for_the_largest_pages", elf::segments_are_aligned_for_the_largest_pages),
    ("nobody_sees_where_it_was_built", elf::nobody_sees_where_it_was_built),
];

/// What a test needs on this machine.
#[derive(Default)]
struct Needs {
    /// Programs for these can be built.
    platforms: Vec<Platform>,
    root: bool,
    programs: Vec<&'static str>,
    /// Debian's toolchain, as a release is built by it.
    debian: bool,
    /// The project is a git repository that we may read.
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
            && let Some(lack) = release::lacking()?
        {
            return Ok(Some(lack));
        }
        for &platform in &self.platforms {
            if let Some(lack) = pause_image::lacking(platform)? {
                return Ok(Some(lack));
            }
        }
        Ok(None)
    }
}
