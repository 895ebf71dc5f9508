//! Where to compute: the devices this build has, by the names `--device` takes.

use anyhow::Result;
use pellucid::{
    backend::{Backend, cpu::Cpu},
    tensor::Dtype,
};
use std::{fmt, sync::Arc};

/// A device this build can compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// The CPU backend.
    Cpu,
    /// Our CUDA kernels on the emulated device.
    #[cfg(feature = "emu")]
    Emu { hopper: bool },
    /// An NVIDIA device, by the driver's numbers.
    #[cfg(feature = "cuda")]
    Cuda { index: u32, hopper: bool },
}

impl Device {
    /// What there is to choose from, for messages.
    pub(crate) const CHOICES: &'static str = match (cfg!(feature = "cuda"), cfg!(feature = "emu")) {
        (false, false) => "cpu or auto",
        (false, true) => "cpu, emu or auto",
        (true, false) => "cpu, cuda:N or auto",
        (true, true) => "cpu, cuda:N, emu or auto",
    };

    /// Reads a name that `--device` was given. With `+hopper` behind it, kernels written for Hopper are used where there
    /// are such; that is for `selftest` and `bench`, until a chip has shown them right.
    pub(crate) fn parse(name: &str) -> Result<Device, String> {
        let here = Device::CHOICES;
        let plain = name.strip_suffix("+hopper");
        let (name, hopper) = (plain.unwrap_or(name), plain.is_some());
        match name.split_once(':').unwrap_or((name, "")) {
            ("cpu" | "auto", "") if hopper => {
                Err(format!("{name} has no kernels for Hopper; name the device"))
            }
            ("cpu", "") => Ok(Device::Cpu),
            ("auto", "") => Ok(Device::best()),
            #[cfg(feature = "emu")]
            ("emu", "") => Ok(Device::Emu { hopper }),
            #[cfg(feature = "cuda")]
            ("cuda", "") => Ok(Device::Cuda { index: 0, hopper }),
            #[cfg(feature = "cuda")]
            ("cuda", index) => match index.parse() {
                Ok(index) => Ok(Device::Cuda { index, hopper }),
                Err(_) => Err(format!("{index:?} is no device number; cuda:0 is the first")),
            },
            #[cfg(not(feature = "cuda"))]
            ("cuda", _) => Err(format!("this build has no CUDA backend (feature `cuda`); use {here}")),
            #[cfg(not(feature = "emu"))]
            ("emu", "") => Err(format!("this build has no kernel emulator (feature `emu`); use {here}")),
            _ => Err(format!("no such device; this build has {here}")),
        }
    }

    /// The dtype activations have there.
    pub(crate) fn activation(self) -> Dtype {
        match self {
            Device::Cpu => Dtype::F32,
            #[cfg(any(feature = "emu", feature = "cuda"))]
            _ => Dtype::BF16,
        }
    }

    /// Whether what it takes to compute says nothing about a device.
    pub(crate) fn is_emulated(self) -> bool {
        self.to_string().starts_with("emu")
    }

    /// The backend; `threads` are for the CPU.
    pub(crate) fn open(self, threads: Option<usize>) -> Result<Arc<dyn Backend>> {
        Ok(match self {
            Device::Cpu => Arc::new(Cpu::new(threads)?),
            #[cfg(feature = "emu")]
            Device::Emu { hopper } => {
                use pellucid::backend::gpu::{Emulator, Gpu, Settings};
                Arc::new(Gpu::new(Emulator::new(Settings::default())?).on_hopper(hopper))
            }
            #[cfg(feature = "cuda")]
            Device::Cuda { index, hopper } => {
                use pellucid::backend::gpu::{Cuda, Gpu};
                Arc::new(Gpu::new(Cuda::open(index)?).on_hopper(hopper))
            }
        })
    }

    /// The best device there is. A machine without NVIDIA's driver has no GPU for us; one whose driver cannot be used
    /// is told why when the device is opened, rather than left to wonder at the CPU's speed.
    fn best() -> Device {
        #[cfg(feature = "cuda")]
        if pellucid::backend::gpu::driver::driver_version().is_some() {
            return Device::Cuda { index: 0, hopper: false };
        }
        Device::Cpu
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            #[cfg(feature = "emu")]
            Device::Emu { hopper } => f.write_str(if *hopper { "emu+hopper" } else { "emu" }),
            #[cfg(feature = "cuda")]
            Device::Cuda { index, hopper } => {
                write!(f, "cuda:{index}{}", if *hopper { "+hopper" } else { "" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_this_build_lacks_are_refused_by_name() {
        assert_eq!(Device::parse("cpu"), Ok(Device::Cpu));
        assert_eq!(Device::parse("cuda:1").is_ok(), cfg!(feature = "cuda"));
        for odd in ["cuda:x", "cuda:-1", "cuda:0:1", "cuda1", "emu:0"] {
            assert!(Device::parse(odd).is_err(), "{odd}");
        }
        assert_eq!(Device::parse("emu").is_ok(), cfg!(feature = "emu"));
        assert_eq!(Device::parse("emu+hopper").is_ok(), cfg!(feature = "emu"));
        assert!(Device::parse("cpu:0").is_err());
        assert!(Device::parse("auto+hopper").unwrap_err().contains("name the device"));
        assert!(Device::parse("tpu").unwrap_err().contains("cpu"));
    }
}
