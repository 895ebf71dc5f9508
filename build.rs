//! Compiles the CUDA kernels: with nvcc for devices (feature `cuda`), with the host's C++ compiler for the emulator
//! (feature `emu`). Without a feature that asks for kernels there is nothing to do.

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "emu")]
#[path = "build/emu.rs"]
mod emu;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    #[cfg(any(feature = "cuda", feature = "emu"))]
    println!("cargo:rerun-if-changed=kernels");
    #[cfg(feature = "emu")]
    emu::compile();
    #[cfg(feature = "cuda")]
    cuda::compile();
}

/// Ends the build with one message.
#[cfg(feature = "cuda")]
fn stop(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(1);
}

/// The files of a folder with this extension, by name.
#[cfg(any(feature = "cuda", feature = "emu"))]
fn files(folder: &str, extension: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut found: Vec<std::path::PathBuf> = entries
        .map(|entry| entry.unwrap_or_else(|e| panic!("{folder}: {e}")).path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}
