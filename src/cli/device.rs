//! Where to compute: the devices this build has, by the names `--device` takes.

use anyhow::Result;
use pellucid::backend::{Backend, cpu::Cpu};
use std::{fmt, sync::Arc};

/// A device this build can compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// The CPU backend.
    Cpu,
    /// Our CUDA kernels on the emulated device.
    #[cfg(feature = "emu")]
    Emu,
}

impl Device {
    /// What there is to choose from, for messages.
    const CHOICES: &'static str = if cfg!(feature = "emu") { "cpu or emu" } else { "cpu" };

    /// Reads a name that `--device` was given.
    pub(crate) fn parse(name: &str) -> Result<Device, String> {
        let here = Device::CHOICES;
        match name.split(':').next() {
            Some("cpu") if name == "cpu" => Ok(Device::Cpu),
            #[cfg(feature = "emu")]
            Some("emu") if name == "emu" => Ok(Device::Emu),
            Some("cuda") => Err(format!("this build has no CUDA backend; use {here}")),
            Some("emu") if name == "emu" => {
                Err(format!("this build has no kernel emulator (feature `emu`); use {here}"))
            }
            _ => Err(format!("no such device; this build has {here}")),
        }
    }

    /// The backend; `threads` are for the CPU.
    pub(crate) fn open(self, threads: Option<usize>) -> Result<Arc<dyn Backend>> {
        Ok(match self {
            Device::Cpu => Arc::new(Cpu::new(threads)?),
            #[cfg(feature = "emu")]
            Device::Emu => {
                use pellucid::backend::gpu::{Emulator, Gpu, Settings};
                Arc::new(Gpu::new(Emulator::new(Settings::default())?))
            }
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Cpu => "cpu",
            #[cfg(feature = "emu")]
            Device::Emu => "emu",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_this_build_lacks_are_refused_by_name() {
        assert_eq!(Device::parse("cpu"), Ok(Device::Cpu));
        assert!(Device::parse("cuda:1").unwrap_err().contains("CUDA"));
        assert_eq!(Device::parse("emu").is_ok(), cfg!(feature = "emu"));
        assert!(Device::parse("cpu:0").is_err());
        assert!(Device::parse("tpu").unwrap_err().contains("cpu"));
    }
}
