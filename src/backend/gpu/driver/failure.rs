//! What a driver's refusals mean, and what to do about them. Pure: from codes and facts to errors.

use super::device::Properties;
use crate::error::Error;
use cudarc::driver::sys::CUresult;

const OP: &str = "cuda";

/// The CUDA version a driver says it has: `12040` is 12.4.
pub fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

pub(super) fn no_library() -> Error {
    Error::machine(
        OP,
        "no NVIDIA driver: libcuda.so.1 is not to be found; install the driver (in a container, run it with the GPUs, \
         as in `docker run --gpus all`), or use --device cpu",
    )
}

pub(super) fn old_driver(found: i32, nvcc: (u32, u32)) -> Error {
    Error::machine(
        OP,
        format!(
            "the driver is for CUDA {}, and the kernels in this build were compiled by nvcc {}.{}, which needs a \
             driver for CUDA {}.0 or later; update the driver, or use --device cpu",
            version(found),
            nvcc.0,
            nvcc.1,
            nvcc.0
        ),
    )
}

pub(super) fn no_such_device(index: u32, count: u32) -> Error {
    let what = match count {
        0 => "the driver lists no GPU; CUDA_VISIBLE_DEVICES may hide it, or the container was started without it; \
              use --device cpu"
            .to_owned(),
        1 => format!("there is no device {index}: this machine has one GPU, cuda:0"),
        _ => format!("there is no device {index}: this machine has {count} GPUs, cuda:0 to cuda:{}", count - 1),
    };
    Error::machine(OP, what)
}

/// No part of the binary was compiled for this GPU.
pub(super) fn no_image(device: &Properties, built: &[&str]) -> Error {
    let (major, minor) = device.capability;
    let built: Vec<String> = built.iter().map(|arch| format!("sm_{arch}")).collect();
    let remedy = match device.capability {
        (..=7, _) => "kernels need 8.0 or later; use --device cpu".to_owned(),
        (9, 0) => "build with PELLUCID_CUDA_ARCHS=80,90a".to_owned(),
        _ => format!("build with PELLUCID_CUDA_ARCHS={major}{minor}"),
    };
    let (name, built) = (&device.name, built.join(" and "));
    Error::machine(
        OP,
        format!(
            "{name} has compute capability {major}.{minor}, and this build has kernels for {built}; {remedy}"
        ),
    )
}

pub(super) fn no_room(asked: usize, free: usize, total: usize) -> Error {
    Error::machine(
        "alloc",
        format!(
            "no room for {asked} more bytes: {free} of the device's {total} bytes are free; use a smaller model, fewer \
             or shorter sequences, or a GPU that nobody else uses"
        ),
    )
}

/// A call that was refused and left the device as it was.
pub(super) fn refused(op: &'static str, code: CUresult) -> Error {
    use CUresult::*;
    let remedy = match code {
        CUDA_ERROR_NO_DEVICE => return no_such_device(0, 0),
        CUDA_ERROR_STUB_LIBRARY => {
            "the toolkit's stub was loaded in place of the driver; take its folder off LD_LIBRARY_PATH"
        }
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver's library and its kernel module differ in version; restart the machine after the update"
        }
        CUDA_ERROR_SYSTEM_NOT_READY => {
            "the fabric manager or another NVIDIA service is not running; start it"
        }
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "this GPU takes no newer libcuda than its driver's; take the compatibility library off LD_LIBRARY_PATH"
        }
        CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process holds the GPU alone; end it, or set the compute mode to default"
        }
        CUDA_ERROR_OUT_OF_MEMORY => "the GPU's memory is full; see who uses it with `nvidia-smi`",
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUDA_ERROR_INVALID_IMAGE => {
            "the driver cannot read what this build's nvcc wrote; update the driver"
        }
        _ => "see `nvidia-smi` and the system's log",
    };
    Error::machine(op, format!("{code:?}: {remedy}"))
}

/// Whether nothing more can be done with the device in this process.
pub(super) fn is_fatal(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_UNKNOWN
    )
}

/// What every call says from a fatal error on. `suspects` were launched since the device was last known to be well,
/// the newest last.
pub(super) fn lost(code: CUresult, device: &str, suspects: &[String]) -> String {
    let who = match suspects {
        [] => "no kernel was running".to_owned(),
        [one] => format!("kernel {one} failed"),
        all => {
            format!("one of the last kernels failed ({}; CUDA_LAUNCH_BLOCKING=1 tells which)", all.join(", "))
        }
    };
    format!("{device} is lost to this process: {code:?}, {who}; start again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use CUresult::*;

    fn gpu(name: &str, capability: (u32, u32)) -> Properties {
        let name = name.to_owned();
        Properties {
            index: 0,
            name,
            capability,
            multiprocessors: 100,
            memory: 80 << 30,
            shared_memory: 99 << 10,
        }
    }

    #[test]
    fn each_lack_has_its_own_message_with_the_remedy() {
        let cases = [
            (no_library(), &["libcuda.so.1", "install the driver", "--device cpu"][..]),
            (old_driver(12040, (13, 0)), &["CUDA 12.4", "nvcc 13.0", "CUDA 13.0 or later", "update"]),
            (no_such_device(0, 0), &["no GPU", "CUDA_VISIBLE_DEVICES"]),
            (no_such_device(3, 1), &["no device 3", "one GPU, cuda:0"]),
            (no_such_device(9, 8), &["no device 9", "8 GPUs", "cuda:7"]),
            (
                no_image(&gpu("Tesla V100", (7, 0)), &["80", "90a"]),
                &["7.0", "sm_80 and sm_90a", "--device cpu"],
            ),
            (no_image(&gpu("RTX 5090", (12, 0)), &["80"]), &["RTX 5090", "12.0", "PELLUCID_CUDA_ARCHS=120"]),
            (no_image(&gpu("H100", (9, 0)), &["80"]), &["9.0", "PELLUCID_CUDA_ARCHS=80,90a"]),
            (no_room(5, 3, 7), &["5 more bytes", "3 of the device's 7", "smaller model"]),
            (refused("cuda", CUDA_ERROR_NO_DEVICE), &["lists no GPU"]),
            (refused("cuda", CUDA_ERROR_STUB_LIBRARY), &["stub", "LD_LIBRARY_PATH"]),
            (refused("cuda", CUDA_ERROR_SYSTEM_DRIVER_MISMATCH), &["restart"]),
            (refused("launch", CUDA_ERROR_INVALID_VALUE), &["launch: CUDA_ERROR_INVALID_VALUE"]),
        ];
        for (error, parts) in cases {
            let text = error.to_string();
            assert!(matches!(error, Error::Machine { .. }), "{text}");
            assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in {text:?}");
            assert!(!text.contains("  ") && !text.ends_with('.'), "{text:?}");
        }
    }

    #[test]
    fn a_lost_device_names_who_may_have_done_it() {
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let lost = |suspects: &[&str]| lost(CUDA_ERROR_ILLEGAL_ADDRESS, "cuda:0", &names(suspects));
        assert!(lost(&["linear"]).contains("ILLEGAL_ADDRESS, kernel linear failed"));
        let several = lost(&["rms_norm", "linear"]);
        assert!(several.contains("rms_norm, linear; CUDA_LAUNCH_BLOCKING=1"), "{several}");
        assert!(is_fatal(CUDA_ERROR_LAUNCH_FAILED) && !is_fatal(CUDA_ERROR_OUT_OF_MEMORY));
        assert!(!is_fatal(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES) && !is_fatal(CUDA_ERROR_NOT_FOUND));
    }
}
