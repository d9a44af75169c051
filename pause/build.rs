//! Link flags of the pause program: freestanding and static, without libc, start files or an interpreter.
//! They are given here and not as RUSTFLAGS so that a plain `cargo build` makes the program that ships.

fn main() {
    for flag in ["-nostdlib", "-nostartfiles", "-static", "-no-pie", "-Wl,--build-id=none"] {
        link_with(flag);
    }
    // Relative to the workspace, where Cargo runs rustc: clones that share a target directory share this output,
    // so an absolute path could be that of another clone.
    link_with("-Wl,-T,pause/link.ld");
    // Kernels of arm64 have pages of up to 64 kB, and some distributions' linkers assume 4 kB.
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "aarch64") {
        link_with("-Wl,-z,max-page-size=65536");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
}

/// `flag` as a C compiler takes it, which is what links unless the user configured another linker. Where that is a bare
/// linker, it gets the flag that the compiler would pass on, and none that is for the compiler alone.
fn link_with(flag: &str) {
    let linker = std::env::var("RUSTC_LINKER").unwrap_or_default();
    let bare = matches!(linker.rsplit('/').next(), Some("ld" | "ld.lld" | "rust-lld"));
    let handed_on = flag.strip_prefix("-Wl,").filter(|_| bare);
    for flag in handed_on.map_or(vec![flag], |flags| flags.split(',').collect()) {
        if !(bare && flag == "-nostartfiles") {
            println!("cargo::rustc-link-arg-bins={flag}");
        }
    }
}
