//! Feature `emu`: the kernels by the host's C++ compiler, against the emulator in `kernels/emu`.

use super::files;
use std::env;

/// Kernels call our own functions at every access: the race detector's instrumentation without its runtime.
const KERNEL_FLAGS: [&str; 6] = [
    "-xc++",
    "-fsanitize=thread",
    "-fsanitize=bounds,shift,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
];

pub(super) fn compile() {
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    let (arch, os) = (target("ARCH"), target("OS"));
    assert!(
        arch == "x86_64" && os == "linux",
        "feature emu: the emulator switches stacks on x86_64 linux only, not on {arch} {os}; build without it"
    );
    compiler().files(files("kernels/emu", "cpp")).compile("pellucid_emulator");
    let mut kernels = compiler();
    kernels.files(files("kernels", "cu")).files(files("kernels/emu/tests", "cu"));
    for flag in KERNEL_FLAGS {
        kernels.flag(flag);
    }
    // Kernels announce themselves in static constructors, which a linker drops unless it takes all.
    kernels.link_lib_modifier("+whole-archive").compile("pellucid_kernels");
}

/// Always optimised: nobody steps through kernels, everybody waits for them.
fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(true).warnings(true).flag("-ffp-contract=off");
    build
}
