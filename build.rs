//! Compiles the CUDA kernels. Feature `emu`: with the host's C++ compiler, against the emulator in `kernels/emu`.
//! Without a feature that asks for kernels there is nothing to do.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "emu")]
    emu::compile();
}

#[cfg(feature = "emu")]
mod emu {
    use std::{env, fs, path::PathBuf};

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
        println!("cargo:rerun-if-changed=kernels");
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

    fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{folder}: {e}"));
        let mut found: Vec<PathBuf> = entries
            .map(|entry| entry.unwrap_or_else(|e| panic!("{folder}: {e}")).path())
            .filter(|path| path.extension().is_some_and(|e| e == extension))
            .collect();
        found.sort();
        found
    }
}
