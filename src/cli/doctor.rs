//! `pellucid doctor`: what this machine has, and what each lack means. Nothing that is absent is a failure.

use super::{
    Global,
    machine::{Gpu, Memory, Processor, c_library},
    text::{bytes, row},
};
use anyhow::Result;
use pellucid::{
    backend::{Backend, cpu::Cpu},
    format::hub_cache,
};
use serde::Serialize;
use std::{
    fmt, fs,
    io::{IsTerminal, stdout},
    path::{Path, PathBuf},
};

/// What this machine has, and what each lack means
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  pellucid doctor --json")]
pub(crate) struct Arguments {}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    system: System,
    processor: Processor,
    /// The CPU backend in its own words.
    cpu_backend: String,
    memory: Option<Memory>,
    speed: Option<Speed>,
    gpu: Gpu,
    cache: Option<Cache>,
}

#[derive(Debug, Serialize)]
struct System {
    os: &'static str,
    architecture: &'static str,
    c_library: Option<String>,
    terminal: bool,
}

/// What the CPU backend can do at most, measured just now.
#[derive(Debug, Serialize)]
struct Speed {
    read_bytes_per_second: u64,
    bf16_operations_per_second: u64,
    f32_operations_per_second: u64,
}

/// Available memory below which nothing is measured: the probe needs half a gibibyte.
const PROBE_NEEDS: u64 = 1 << 30;

/// The offline hub cache.
#[derive(Debug, Serialize)]
struct Cache {
    folder: PathBuf,
    exists: bool,
    models: Vec<String>,
}

pub(crate) fn run(_: &Arguments, global: &Global) -> Result<()> {
    let cpu = Cpu::new(global.threads)?;
    let memory = Memory::read();
    let roomy = memory.as_ref().is_some_and(|memory| memory.available_bytes >= PROBE_NEEDS);
    let ceilings = roomy.then(|| cpu.ceilings(2)).transpose()?;
    global.print(&Report {
        version: env!("CARGO_PKG_VERSION"),
        system: System {
            os: std::env::consts::OS,
            architecture: std::env::consts::ARCH,
            c_library: c_library(),
            terminal: stdout().is_terminal(),
        },
        processor: Processor::read(),
        cpu_backend: cpu.describe(),
        memory,
        speed: ceilings.map(|ceilings| Speed {
            read_bytes_per_second: ceilings.read as u64,
            bf16_operations_per_second: ceilings.bf16 as u64,
            f32_operations_per_second: ceilings.f32 as u64,
        }),
        gpu: Gpu::read(),
        cache: hub_cache().map(Cache::read),
    })
}

impl Cache {
    fn read(folder: PathBuf) -> Self {
        Cache { exists: folder.is_dir(), models: cached_models(&folder), folder }
    }
}

/// Ids of the models in a hub cache: `models--org--name` holds `org/name`.
fn cached_models(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut models: Vec<String> =
        names.filter_map(|name| Some(name.strip_prefix("models--")?.replace("--", "/"))).collect();
    models.sort();
    models
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = || "unknown".to_owned();
        let System { os, architecture, c_library, terminal } = &self.system;
        row(f, "pellucid", &[self.version])?;
        let c_library = c_library.clone().unwrap_or_else(|| "C library unknown".into());
        row(f, "system", &[format!("{os}, {architecture}, {c_library}")])?;

        let Processor { model, cores, vector_units } = &self.processor;
        let units = if vector_units.is_empty() { "none known".into() } else { vector_units.join(", ") };
        let model = model.clone().unwrap_or_else(unknown);
        row(f, "cpu", &[format!("{model}, {cores} cores"), format!("vector units: {units}")])?;
        row(f, "backend", &[&self.cpu_backend])?;
        let memory = |m: &Memory| format!("{}, {} available", bytes(m.total_bytes), bytes(m.available_bytes));
        row(f, "memory", &[self.memory.as_ref().map_or_else(unknown, memory)])?;
        row(f, "speed", &speed_lines(self.speed.as_ref()))?;
        row(f, "gpu", &gpu_lines(&self.gpu))?;
        row(f, "nvcc", &nvcc_lines(&self.gpu))?;
        row(f, "hub cache", &cache_lines(self.cache.as_ref()))?;
        let terminal =
            if *terminal { "yes" } else { "no, stdout is a file or a pipe: progress is not drawn" };
        row(f, "terminal", &[terminal])
    }
}

fn speed_lines(speed: Option<&Speed>) -> Vec<String> {
    let Some(speed) = speed else {
        return vec!["not measured: that needs 1 GiB of available memory".into()];
    };
    let giga = |rate: u64| rate as f64 / 1e9;
    let read = giga(speed.read_bytes_per_second);
    let (bf16, f32) = (giga(speed.bf16_operations_per_second), giga(speed.f32_operations_per_second));
    vec![
        format!(
            "reads {read:.0} GB/s: weights of 1 GB give at most {read:.0} tokens a second to one sequence"
        ),
        format!("multiplies at {bf16:.0} GFLOP/s in bf16 and {f32:.0} in f32"),
    ]
}

fn gpu_lines(gpu: &Gpu) -> Vec<String> {
    let found = match (gpu.devices.as_slice(), &gpu.driver) {
        ([], None) => "no NVIDIA driver".to_owned(),
        ([], Some(version)) => format!("NVIDIA driver {version}, which lists no device"),
        (devices, version) => {
            format!("{}, driver {}", devices.join(", "), version.as_deref().unwrap_or("of unknown version"))
        }
    };
    let library = gpu.libcuda.as_ref().map_or("libcuda.so.1 not found".into(), |p| p.display().to_string());
    let mut lines = vec![format!("{found}; {library}")];
    lines.extend(gpu.seen.iter().cloned());
    lines.push(match (&gpu.kernels, gpu.usable_by_this_build) {
        (Some(_), true) => "--device cuda:N chooses one; the default is the first".into(),
        (Some(_), false) => {
            "this build could use a GPU and finds none it can: everything runs on the CPU".into()
        }
        (None, _) => "this build has no CUDA backend (feature `cuda`): everything runs on the CPU".into(),
    });
    lines
}

fn nvcc_lines(gpu: &Gpu) -> Vec<String> {
    let built = match &gpu.kernels {
        Some(kernels) => {
            format!(
                "kernels for {} in this build, by nvcc {}",
                kernels.architectures.join(", "),
                kernels.nvcc
            )
        }
        None => "no GPU kernels in this build".into(),
    };
    let now = match &gpu.nvcc {
        Some(path) => format!("{}: to build with feature `cuda`, not to run", path.display()),
        None => "not found: needed to build with feature `cuda`, not to run".into(),
    };
    vec![now, built]
}

fn cache_lines(cache: Option<&Cache>) -> Vec<String> {
    let by_folder = "models are named by folder";
    match cache {
        None => vec![format!("none: HF_HUB_CACHE, HF_HOME and HOME are unset; {by_folder}")],
        Some(Cache { folder, exists: false, .. }) => {
            vec![format!("{} does not exist; {by_folder}", folder.display())]
        }
        Some(Cache { folder, models, .. }) if models.is_empty() => {
            vec![format!("{} holds no model; {by_folder}", folder.display())]
        }
        Some(Cache { folder, models, .. }) => {
            let mut lines = vec![format!("{}, {} models", folder.display(), models.len())];
            lines.extend(models.iter().map(|model| format!("  {model}")));
            lines
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::machine::Kernels;

    #[test]
    fn cached_models_are_listed_by_id() {
        let cache = tempfile::tempdir().unwrap();
        assert!(cache_lines(Some(&Cache::read(cache.path().into())))[0].contains("holds no model"));
        for name in ["models--org--name", "models--gpt2", "datasets--org--data", "version.txt"] {
            fs::create_dir(cache.path().join(name)).unwrap();
        }
        assert_eq!(cached_models(cache.path()), ["gpt2", "org/name"]);
        assert!(cache_lines(Some(&Cache::read(cache.path().join("absent"))))[0].contains("does not exist"));
    }

    #[test]
    fn a_gpu_is_named_and_its_uselessness_too() {
        let gpu = |devices: &[&str], driver: Option<&str>| Gpu {
            devices: devices.iter().map(|&d| d.to_owned()).collect(),
            driver: driver.map(str::to_owned),
            libcuda: None,
            nvcc: None,
            kernels: None,
            seen: Vec::new(),
            usable_by_this_build: false,
        };
        assert!(gpu_lines(&gpu(&[], None))[0].starts_with("no NVIDIA driver"));
        let lines = gpu_lines(&gpu(&["NVIDIA H100"], Some("550.1")));
        assert!(lines[0].starts_with("NVIDIA H100, driver 550.1"));
        assert!(lines[1].contains("no CUDA backend"));
        let kernels = Kernels { nvcc: "13.0".into(), architectures: vec!["sm_80".into(), "sm_90a".into()] };
        let seen = vec!["cuda:0, NVIDIA H100".to_owned()];
        let gpu = Gpu { kernels: Some(kernels), seen, ..gpu(&["NVIDIA H100"], Some("580.1")) };
        assert!(nvcc_lines(&gpu)[1].contains("sm_80, sm_90a in this build, by nvcc 13.0"));
        assert!(gpu_lines(&gpu)[1].contains("cuda:0") && gpu_lines(&gpu)[2].contains("none it can"));
        assert!(gpu_lines(&Gpu { usable_by_this_build: true, ..gpu })[2].contains("cuda:N"));
    }
}
