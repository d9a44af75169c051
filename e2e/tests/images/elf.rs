//! The program headers of the released binary (elf(5)).

use anyhow::{Result, ensure};
use e2e::build::oci::Platform;
use object::LittleEndian;
use object::elf;
use object::read::elf::{ElfFile64, ProgramHeader as _};

use crate::layout::Image;

/// A program header, independent of byte order and word size.
#[derive(Debug)]
struct Segment {
    kind: u32,
    flags: u32,
    start: u64,
    end: u64,
    offset: u64,
    align: u64,
}

impl Segment {
    fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }
}

fn segments(image: &Image) -> Result<Vec<Segment>> {
    let program = ElfFile64::<LittleEndian>::parse(&*image.pause()?.content)?;
    let segment = |header: &elf::ProgramHeader64<LittleEndian>| {
        let start = header.p_vaddr(LittleEndian);
        Segment {
            kind: header.p_type(LittleEndian),
            flags: header.p_flags(LittleEndian),
            start,
            end: start + header.p_memsz(LittleEndian),
            offset: header.p_offset(LittleEndian),
            align: header.p_align(LittleEndian),
        }
    };
    Ok(program.elf_program_headers().iter().map(segment).collect())
}

pub(crate) fn binary_is_static(image: &Image) -> Result<()> {
    let program = ElfFile64::<LittleEndian>::parse(&*image.pause()?.content)?;
    let header = program.elf_header();
    let machine = match image.platform {
        Platform::Amd64 => elf::EM_X86_64,
        Platform::Arm64 => elf::EM_AARCH64,
    };
    ensure!(header.e_machine.get(LittleEndian) == machine, "the binary is for another machine");
    ensure!(header.e_type.get(LittleEndian) == elf::ET_EXEC, "the binary has no fixed address");
    for segment in segments(image)? {
        ensure!(
            ![elf::PT_INTERP, elf::PT_DYNAMIC].contains(&segment.kind),
            "the binary is dynamically linked: {segment:x?}"
        );
    }
    Ok(())
}

pub(crate) fn no_memory_is_writable_and_executable(image: &Image) -> Result<()> {
    let segments = segments(image)?;
    for segment in &segments {
        ensure!(!segment.has(elf::PF_W | elf::PF_X), "both writable and executable: {segment:x?}");
    }
    // Without this header the kernel may make the stack executable.
    let stack = segments.iter().filter(|segment| segment.kind == elf::PT_GNU_STACK).count();
    ensure!(stack == 1, "{stack} headers for the stack");
    let code =
        segments.iter().filter(|segment| segment.kind == elf::PT_LOAD && segment.has(elf::PF_X)).count();
    ensure!(code == 1, "{code} segments with code");
    Ok(())
}

/// A kernel with larger pages refuses the binary, and then no pod of the node starts: arm64 kernels have up to 64 kB.
pub(crate) fn segments_are_aligned_for_largest_pages(image: &Image) -> Result<()> {
    let page = match image.platform {
        Platform::Amd64 => 0x1000,
        Platform::Arm64 => 0x1_0000,
    };
    for segment in segments(image)?.iter().filter(|segment| segment.kind == elf::PT_LOAD) {
        ensure!(segment.align >= page && segment.align.is_power_of_two(), "{segment:x?}");
        ensure!(segment.start % segment.align == segment.offset % segment.align, "{segment:x?}");
    }
    Ok(())
}

/// Writable memory is allowed only if it becomes read-only after loading (RELRO).
pub(crate) fn relocated_memory_is_read_only(image: &Image) -> Result<()> {
    let segments = segments(image)?;
    let protected = |segment: &Segment| {
        let mut relro = segments.iter().filter(|other| other.kind == elf::PT_GNU_RELRO);
        relro.any(|relro| relro.start <= segment.start && segment.end <= relro.end)
    };
    for segment in segments.iter().filter(|segment| segment.kind == elf::PT_LOAD && segment.has(elf::PF_W)) {
        ensure!(protected(segment), "writable, and not protected: {segment:x?}");
    }
    Ok(())
}

pub(crate) fn binary_has_no_build_path(image: &Image) -> Result<()> {
    let program = &image.pause()?.content;
    let project = std::path::absolute(env!("CARGO_MANIFEST_DIR"))?;
    let project = project.parent().unwrap_or(&project).display().to_string();
    for path in [&*project, ".cargo/registry", "/rustc/", ".rs"] {
        let found = program.windows(path.len()).any(|part| part == path.as_bytes());
        ensure!(!found, "the binary has the path {path}");
    }
    Ok(())
}
