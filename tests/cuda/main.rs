//! The CUDA backend on a machine without a GPU: what `Cuda` asks of a driver is answered by `driver.cpp`, a library of
//! the driver's name that runs our kernels on the emulated device and fails when it is told to.
//!
//! A library is looked for where the loader's path points when a process starts, so each test runs in another one:
//! the program itself, or this file's ignored tests, which `inside` starts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod inside;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// The folder of the stand-in, compiled once.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let kernels = Path::new(env!("OUT_DIR"));
    let output = Command::new(env::var("CXX").unwrap_or("c++".into()))
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .arg(folder.join("libcuda.so.1"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/driver.cpp"))
        .args(["-Wl,--whole-archive".as_ref(), kernels.join("libpellucid_kernels.a").as_os_str()])
        .args(["-Wl,--no-whole-archive".as_ref(), kernels.join("libpellucid_emulator.a").as_os_str()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
});

/// Exit code, stdout and stderr of a program on a machine of this kind.
fn run(program: &str, arguments: &[&str], machine: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(program);
    command.args(arguments).env("LD_LIBRARY_PATH", &*LIBRARY).env("STAND_IN", machine);
    let output =
        command.env_remove("CUDA_LAUNCH_BLOCKING").env_remove("CUDA_VISIBLE_DEVICES").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn pellucid(arguments: &[&str], machine: &str) -> (Option<i32>, String, String) {
    run(env!("CARGO_BIN_EXE_pellucid"), arguments, machine)
}

/// Runs one of the ignored tests on a machine of this kind.
fn inside(test: &str, machine: &str) {
    let this = env::current_exe().unwrap();
    let arguments = ["--exact", &format!("inside::{test}"), "--ignored", "--nocapture"];
    let (code, stdout, stderr) = run(this.to_str().unwrap(), &arguments, machine);
    assert!(code == Some(0) && stdout.contains("1 passed"), "{stdout}\n{stderr}");
    assert!(!stderr.contains("stand-in driver:"), "{stderr}");
}

const MODEL: &str = "tests/golden/qwen2_5/model";

#[test]
fn a_model_says_the_same_through_the_driver_as_on_the_emulated_device() {
    let generate = |device| {
        let arguments =
            ["generate", MODEL, "--prompt", "a b c", "--max-tokens", "8", "--quiet", "--device", device];
        let (code, stdout, stderr) = pellucid(&arguments, "");
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{device}");
        stdout
    };
    assert_eq!(generate("cuda:0"), generate("emu"));
    assert_eq!(generate("auto"), generate("emu"), "a machine with a GPU uses it");
}

#[test]
fn each_lack_of_a_machine_is_one_error_with_its_remedy() {
    for (device, machine, parts) in [
        (
            "cuda:0",
            "version=12040",
            &["driver is for CUDA 12.4", "CUDA 13.0 or later", "update the driver"][..],
        ),
        ("cuda:0", "devices=0", &["no GPU", "CUDA_VISIBLE_DEVICES"]),
        ("cuda:1", "", &["no device 1", "one GPU, cuda:0"]),
        ("cuda:4", "devices=4", &["no device 4", "4 GPUs, cuda:0 to cuda:3"]),
        (
            "cuda:0",
            "capability=75",
            &["Stand-in has compute capability 7.5", "sm_80 and sm_90a", "--device cpu"],
        ),
        ("cuda:0", "capability=120", &["12.0", "PELLUCID_CUDA_ARCHS=120"]),
        ("cuda:0", "memory=100000", &["bytes are needed", "100000 are free", "smaller model"]),
        ("cuda:0", "fail=cuInit:1:803", &["kernel module differ", "restart"]),
        ("cuda:0", "fail=cuDevicePrimaryCtxRetain:1:46", &["another process holds the GPU"]),
        (
            "cuda:0",
            "fail=cuLaunchKernel:3:700",
            &["cuda:0 (Stand-in) is lost", "ILLEGAL_ADDRESS", "start again"],
        ),
        (
            "cuda:0",
            "fail=cuModuleLoadData:1:222",
            &["launch: CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "update the driver"],
        ),
    ] {
        let arguments =
            ["generate", MODEL, "--prompt", "a", "--max-tokens", "2", "--quiet", "--device", device];
        let (code, stdout, stderr) = pellucid(&arguments, machine);
        assert_eq!(
            (code, stdout.as_str(), stderr.lines().count()),
            (Some(1), "", 1),
            "{machine}: {stdout}{stderr}"
        );
        assert!(parts.iter().all(|part| stderr.contains(part)), "{machine}: {parts:?} in {stderr}");
        assert!(!stderr.contains("bug in pellucid"), "{machine}: {stderr}");
    }
}

#[test]
fn doctor_tells_what_the_driver_shows_and_what_each_lack_means() {
    for (machine, usable, part) in [
        ("", true, "cuda:0, Stand-in, compute capability 9.0, 4 SMs, 1 GiB"),
        (
            "devices=2 capability=75",
            false,
            "compute capability 7.5, and this build has kernels for sm_80 and sm_90a",
        ),
        ("version=12040", false, "the driver is for CUDA 12.4"),
        ("devices=0", false, "the driver lists no GPU"),
    ] {
        let (code, stdout, stderr) = pellucid(&["doctor"], machine);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{machine}");
        assert!(stdout.contains(part) && stdout.contains("by nvcc 1"), "{machine}: {stdout}");
        let (_, stdout, _) = pellucid(&["doctor", "--json"], machine);
        let json: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
        assert_eq!(json["gpu"]["usable_by_this_build"], usable, "{machine}");
    }
}

#[test]
fn bytes_arrive_whatever_their_number() {
    inside("bytes_arrive_whatever_their_number", "");
}

#[test]
fn what_is_fetched_lands_as_it_was() {
    inside("what_is_fetched_lands_as_it_was", "");
}

#[test]
fn a_graph_runs_again_in_memory_that_nobody_else_uses() {
    inside("a_graph_runs_again_in_memory_that_nobody_else_uses", "");
}

#[test]
fn a_failed_kernel_is_named_by_every_later_call() {
    inside("a_failed_kernel_is_named_by_every_later_call", "fail=cuStreamSynchronize:2:700");
}

#[test]
fn memory_nobody_uses_goes_back_before_room_is_refused() {
    inside("memory_nobody_uses_goes_back_before_room_is_refused", "memory=209715200");
}

#[test]
fn what_a_kernel_does_not_take_is_refused_before_it_runs() {
    inside("what_a_kernel_does_not_take_is_refused_before_it_runs", "");
}

#[test]
fn a_capture_that_fails_leaves_the_device_as_it_was() {
    inside("a_capture_that_fails_leaves_the_device_as_it_was", "");
}

#[test]
fn twins_are_found_where_their_architecture_is() {
    inside("twins_are_found_on_hopper", "capability=90");
    inside("twins_are_missing_elsewhere", "capability=86");
}
