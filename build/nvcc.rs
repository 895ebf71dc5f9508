//! Finds nvcc and asks what it is.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The oldest release whose kernels and headers these are.
const OLDEST: (u32, u32) = (13, 0);

/// What `.ci/run` installs, too.
const WHEELS: &str = include_str!("../kernels/requirements.txt");

/// Ends the build with what is wrong, and the ways out.
fn stop(what: &str) -> ! {
    let wheels: Vec<&str> = WHEELS.lines().filter(|line| !line.starts_with('#')).collect();
    crate::stop(&format!(
        "{what}; feature cuda needs nvcc 13.0 or later, and there are three ways to have it:
  1. NVIDIA's CUDA toolkit: its nvcc is found on PATH, or by CUDA_HOME or CUDA_PATH
  2. wheels in an active Python environment: pip install {}
  3. an nvcc anywhere else: name it by NVCC
or build without the feature, and everything runs on the CPU",
        wheels.join(" ")
    ))
}

/// Variables that decide which compiler is found.
const VARIABLES: [&str; 5] = ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "VIRTUAL_ENV"];

pub(super) struct Nvcc {
    pub(super) path: PathBuf,
    /// Major and minor.
    pub(super) release: (u32, u32),
}

impl Nvcc {
    pub(super) fn find() -> Self {
        for variable in VARIABLES {
            println!("cargo:rerun-if-env-changed={variable}");
        }
        let path = match env::var_os("NVCC") {
            Some(named) if Path::new(&named).is_file() => named.into(),
            Some(named) => stop(&format!("NVCC names {}, which is not a file", Path::new(&named).display())),
            None => installed().or_else(in_wheels).unwrap_or_else(|| stop("nvcc is not to be found")),
        };
        let output = Command::new(&path).arg("--version").output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        let release =
            release(&text).unwrap_or_else(|| stop(&format!("{} does not tell its release", path.display())));
        if release < OLDEST {
            stop(&format!("{} is release {}.{}", path.display(), release.0, release.1));
        }
        Nvcc { path, release }
    }
}

/// A toolkit's compiler: by its home, then by `PATH`.
fn installed() -> Option<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let folders = homes.map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    folders.chain(env::split_paths(&path)).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

/// The compiler of the wheels, which lie in the site-packages of the active environment, or of `python3`.
fn in_wheels() -> Option<PathBuf> {
    let python = match env::var_os("VIRTUAL_ENV") {
        Some(environment) => Path::new(&environment).join("bin/python3"),
        None => "python3".into(),
    };
    let question = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let output = Command::new(python).args(["-c", question]).output().ok()?;
    let packages = String::from_utf8(output.stdout).ok()?;
    let nvcc = Path::new(packages.trim()).join("nvidia/cu13/bin/nvcc");
    nvcc.is_file().then_some(nvcc)
}

/// `Cuda compilation tools, release 13.0, V13.0.88`
fn release(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split("release ").nth(1)?.split(',').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
