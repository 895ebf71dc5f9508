//! Which devices there are, and whether this build can use them.

use super::{failure, kernels};
use crate::error::Result;
use cudarc::driver::{
    DriverError, result,
    sys::{self, CUdevice_attribute},
};
use std::fmt;

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// N of `cuda:N`.
    pub index: u32,
    /// As in "NVIDIA H200".
    pub name: String,
    /// Major and minor; (9, 0) is Hopper.
    pub capability: (u32, u32),
    /// How many blocks run at the least at a time.
    pub multiprocessors: usize,
    /// Bytes in all.
    pub memory: usize,
    /// Bytes of shared memory that a block can have.
    pub shared_memory: usize,
}

/// The devices of this machine, whether this build has kernels for them or not.
pub fn devices() -> Result<Vec<Properties>> {
    (0..count()?).map(|index| Ok(properties(index)?.1)).collect()
}

/// The device of this number, which kernels in this build are for.
pub(super) fn find(index: u32) -> Result<(sys::CUdevice, Properties)> {
    let count = count()?;
    if index >= count {
        return Err(failure::no_such_device(index, count));
    }
    let (device, properties) = properties(index)?;
    properties.supported()?;
    Ok((device, properties))
}

impl Properties {
    /// Whether this build has kernels for the device.
    pub fn supported(&self) -> Result<()> {
        match kernels::ARCHITECTURES.iter().any(|built| runs_on(built, self.capability)) {
            true => Ok(()),
            false => Err(failure::no_image(self, kernels::ARCHITECTURES)),
        }
    }
}

impl fmt::Display for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Properties { index, name, capability: (major, minor), multiprocessors, memory, .. } = self;
        let memory = memory >> 30;
        write!(
            f,
            "cuda:{index}, {name}, compute capability {major}.{minor}, {multiprocessors} SMs, {memory} GiB"
        )
    }
}

/// The CUDA version of the driver, `13000` for 13.0, if there is a driver.
pub fn driver_version() -> Option<i32> {
    // SAFETY: loads the driver's library, whose initialisers every CUDA program runs.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let mut version = 0;
    // SAFETY: writes one integer; of all calls this one needs no initialisation before it.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().ok()?;
    Some(version)
}

/// Devices that the driver lists. The first to be called: it makes sure that there is a driver, that it is one these
/// bindings know (a symbol it lacks would be a panic), and that it is initialised.
fn count() -> Result<u32> {
    let version = driver_version().ok_or_else(failure::no_library)?;
    if version / 1000 < kernels::NVCC.0 as i32 {
        return Err(failure::old_driver(version, kernels::NVCC));
    }
    let count = result::init().and_then(|()| result::device::get_count());
    count.map(|count| count as u32).map_err(refused)
}

fn properties(index: u32) -> Result<(sys::CUdevice, Properties)> {
    use CUdevice_attribute::*;
    let read = || {
        let device = result::device::get(index as i32)?;
        // SAFETY: the device is one the driver just named.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        let properties = Properties {
            index,
            name: result::device::get_name(device)?,
            capability: (
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
            ),
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            // SAFETY: the device is one the driver just named.
            memory: unsafe { result::device::total_mem(device)? },
            shared_memory: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        };
        Ok((device, properties))
    };
    read().map_err(refused)
}

fn refused(error: DriverError) -> crate::Error {
    failure::refused("cuda", error.0)
}

/// Whether code for an architecture runs on a device: `80` on 8.0 and later minors, `90a` on 9.0 alone.
pub(super) fn runs_on(built: &str, (major, minor): (u32, u32)) -> bool {
    let exact = built.ends_with('a');
    let Ok(number) = built.trim_end_matches(['a', 'f']).parse::<u32>() else { return false };
    number / 10 == major && if exact { number % 10 == minor } else { number % 10 <= minor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_its_major_version_from_its_minor_on() {
        for (built, capability, runs) in [
            ("80", (8, 0), true),
            ("80", (8, 6), true),
            ("86", (8, 0), false),
            ("80", (9, 0), false),
            ("90a", (9, 0), true),
            ("100a", (10, 3), false),
            ("100f", (10, 3), true),
            ("120", (12, 0), true),
        ] {
            assert_eq!(runs_on(built, capability), runs, "{built} on {capability:?}");
        }
    }
}
