//! What this machine has, read from where the system tells it. Whatever cannot be told is absent, never a
//! failure: the parsers are functions from text, the readers pass them files that may not exist.

use serde::Serialize;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The processor.
#[derive(Debug, Serialize)]
pub(crate) struct Processor {
    pub(crate) model: Option<String>,
    /// Cores this process may use.
    pub(crate) cores: usize,
    /// Vector units, of those that matter here.
    pub(crate) vector_units: Vec<&'static str>,
}

impl Processor {
    pub(crate) fn read() -> Self {
        Processor {
            model: fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| field(&text, "model name")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            vector_units: vector_units(),
        }
    }
}

fn vector_units() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let units = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512-bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let units: [(&str, bool); 0] = [];
    units.into_iter().filter(|unit| unit.1).map(|unit| unit.0).collect()
}

/// Main memory, within the limits of the container if there is one.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
}

impl Memory {
    pub(crate) fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let group = |name: &str| fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok();
        let number = |text: String| text.trim().parse::<u64>().ok();
        let limit = group("memory.max").and_then(number).zip(group("memory.current").and_then(number));
        Self::parse(&text, limit)
    }

    /// From `/proc/meminfo`, and the container's limit and use.
    fn parse(meminfo: &str, limit: Option<(u64, u64)>) -> Option<Self> {
        let kibibytes =
            |name| Some(1024 * field(meminfo, name)?.trim_end_matches(" kB").parse::<u64>().ok()?);
        let (total, available) = (kibibytes("MemTotal")?, kibibytes("MemAvailable")?);
        let (limit, used) = limit.unwrap_or((total, 0));
        Some(Memory {
            total_bytes: total.min(limit),
            available_bytes: available.min(limit.saturating_sub(used)),
        })
    }
}

/// NVIDIA's part of the machine.
#[derive(Debug, Serialize)]
pub(crate) struct Gpu {
    pub(crate) devices: Vec<String>,
    pub(crate) driver: Option<String>,
    pub(crate) libcuda: Option<PathBuf>,
    pub(crate) nvcc: Option<PathBuf>,
    /// What this build's kernels were compiled by and for; nothing without feature `cuda`.
    pub(crate) kernels: Option<Kernels>,
    /// The driver's devices as this build sees them, or why there are none.
    pub(crate) seen: Vec<String>,
    pub(crate) usable_by_this_build: bool,
}

/// The kernels in this build.
#[derive(Debug, Serialize)]
pub(crate) struct Kernels {
    pub(crate) nvcc: String,
    pub(crate) architectures: Vec<String>,
}

impl Gpu {
    pub(crate) fn read() -> Self {
        let variable = |name| std::env::var_os(name).unwrap_or_default();
        let mut libraries = vec![variable("LD_LIBRARY_PATH")];
        libraries.extend(LIBRARY_FOLDERS.map(OsString::from));
        let bin = |home| Path::new(&variable(home)).join("bin").into();
        let programs = [bin("CUDA_HOME"), bin("CUDA_PATH"), variable("PATH"), CUDA_BIN.into()];
        let named = Some(PathBuf::from(variable("NVCC"))).filter(|nvcc| nvcc.is_file());
        let (kernels, seen, usable_by_this_build) = seen_by_this_build();
        Gpu {
            devices: gpu_names(Path::new("/proc/driver/nvidia/gpus")),
            driver: fs::read_to_string("/proc/driver/nvidia/version").ok().and_then(|t| driver_version(&t)),
            libcuda: find_in(&libraries, "libcuda.so.1"),
            nvcc: named.or_else(|| find_in(&programs, "nvcc")),
            kernels,
            seen,
            usable_by_this_build,
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn seen_by_this_build() -> (Option<Kernels>, Vec<String>, bool) {
    (None, Vec::new(), false)
}

/// What kernels this build has, what devices it sees or why none, and whether it can use one.
#[cfg(feature = "cuda")]
fn seen_by_this_build() -> (Option<Kernels>, Vec<String>, bool) {
    use pellucid::backend::gpu::driver::{ARCHITECTURES, NVCC, devices};
    let kernels = Kernels {
        nvcc: format!("{}.{}", NVCC.0, NVCC.1),
        architectures: ARCHITECTURES.iter().map(|architecture| format!("sm_{architecture}")).collect(),
    };
    let devices = match devices() {
        Ok(devices) => devices,
        Err(error) => return (Some(kernels), vec![error.to_string()], false),
    };
    let seen = devices.iter().map(|device| match device.supported() {
        Ok(()) => device.to_string(),
        Err(error) => format!("{device}; {error}"),
    });
    let usable = devices.iter().any(|device| device.supported().is_ok());
    (Some(kernels), seen.collect(), usable)
}

const CUDA_BIN: &str = "/usr/local/cuda/bin";
const LIBRARY_FOLDERS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
];

/// The first file of this name in lists of folders written as `$PATH` is.
fn find_in(lists: &[OsString], name: &str) -> Option<PathBuf> {
    let folders = lists.iter().flat_map(std::env::split_paths);
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The models listed by the driver, one folder each.
fn gpu_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path().join("information")).ok());
    texts.filter_map(|text| field(&text, "Model")).collect()
}

/// The version in the driver's own line: `NVRM version: … Kernel Module  550.54.15  Tue …`.
fn driver_version(text: &str) -> Option<String> {
    let number = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(number).map(str::to_owned)
}

/// The C library's name and version, as its own tool gives it.
pub(crate) fn c_library() -> Option<String> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The value of the first `name: value` line.
fn field(text: &str, name: &str) -> Option<String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(key, value)| (key.trim(), value.trim()))
        .find(|pair| pair.0 == name)
        .map(|pair| pair.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_container_allows() {
        let text = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n";
        let memory = |limit| Memory::parse(text, limit).map(|m| (m.total_bytes, m.available_bytes));
        assert_eq!(memory(None), Some((16_384_000_000, 8_192_000_000)));
        assert_eq!(memory(Some((4_000_000_000, 1_000_000_000))), Some((4_000_000_000, 3_000_000_000)));
        assert_eq!(Memory::parse("MemTotal: lots", None).map(|m| m.total_bytes), None);
    }

    #[test]
    fn the_driver_tells_its_version_and_devices() {
        let line =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC\n";
        assert_eq!(driver_version(line).as_deref(), Some("550.54.15"));
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("0000:01:00.0");
        fs::create_dir(&device).unwrap();
        fs::write(device.join("information"), "Model: \t\t NVIDIA H100\nIRQ: 1\n").unwrap();
        assert_eq!(gpu_names(folder.path()), ["NVIDIA H100"]);
        assert_eq!(gpu_names(&folder.path().join("absent")), Vec::<String>::new());
    }
}
