//! Bugs planted on purpose. Each must be reported under its rule, in every order of threads, and leave the device in
//! working order.

use super::{blank, device, devices, launch, upload, whole};
use pellucid::backend::gpu::{
    Argument::{self, Address as At, F32, I32},
    Emulator, Settings,
};

/// Runs the broken kernel in every order; the report must name one of the rules, the kernel, and a block.
#[track_caller]
fn reported(rules: &[&str], kernel: &str, run: impl Fn(&Emulator) -> Result<(), String>) {
    for (index, device) in devices().iter().enumerate() {
        let Err(report) = run(device) else { panic!("order {index}: is not reported") };
        let named = rules.iter().any(|rule| report.starts_with(&format!("launch: {rule}: ")));
        assert!(named, "order {index}: expected {rules:?}, got {report}");
        assert!(report.contains(&format!("; kernel {kernel}, block (")), "{report}");
        let n = upload(device, &[1.0f32]);
        launch(device, "test_axpy", [1, 32], 0, &[At(n), At(n), F32(1.0), I32(1), I32(0)]).unwrap();
    }
}

fn reduce(bug: i32) -> impl Fn(&Emulator) -> Result<(), String> {
    let blocks = if bug == 9 { 1 } else { 2 };
    move |device| {
        let (x, out) = (upload(device, &whole(256, 1)), blank::<f32>(device, 2));
        let shared = if bug == 2 { 5 * 4 } else { 4 * 4 };
        launch(device, "test_reduce", [blocks, 128], shared, &[At(out), At(x), I32(256), I32(bug)])
    }
}

fn axpy(bug: i32) -> impl Fn(&Emulator) -> Result<(), String> {
    move |device| {
        let (x, y) = (upload(device, &whole(64, 1)), upload(device, &whole(64, 2)));
        launch(device, "test_axpy", [2, 64], 0, &[At(y), At(x), F32(1.0), I32(64), I32(bug)])
    }
}

#[test]
fn a_read_past_a_global_allocation() {
    reported(&["out-of-bounds"], "test_axpy", axpy(1));
}

#[test]
fn a_report_with_its_source_line() {
    if std::process::Command::new("addr2line").arg("--version").output().is_err() {
        return; // the line is left out then
    }
    let device = Emulator::new(Settings { lines: true, ..Settings::default() }).unwrap();
    let report = axpy(1)(&device).unwrap_err();
    assert!(report.contains("thread (0, 0, 0), at kernels/emu/tests/basics.cu:11"), "{report}");
}

#[test]
fn a_misaligned_vector_load() {
    reported(&["misaligned"], "test_axpy", axpy(2));
}

#[test]
fn a_missing_barrier_after_shared_writes() {
    reported(&["race", "uninitialised"], "test_reduce", reduce(1));
}

#[test]
fn a_read_of_shared_memory_nobody_wrote() {
    reported(&["uninitialised"], "test_reduce", reduce(2));
}

#[test]
fn a_shuffle_that_names_lanes_that_do_not_come() {
    reported(&["deadlock", "divergence"], "test_reduce", reduce(3));
}

#[test]
fn a_read_past_shared_memory() {
    reported(&["out-of-bounds"], "test_reduce", reduce(4));
}

#[test]
fn a_write_past_shared_memory() {
    reported(&["out-of-bounds"], "test_reduce", reduce(5));
}

#[test]
fn a_missing_barrier_before_shared_memory_is_used_again() {
    reported(&["race"], "test_reduce", reduce(6));
}

#[test]
fn a_lane_that_left_before_a_shuffle_names_it() {
    reported(&["divergence"], "test_reduce", reduce(7));
}

#[test]
fn lanes_that_shuffle_in_different_ways() {
    reported(&["divergence"], "test_reduce", reduce(8));
}

#[test]
fn a_division_by_zero() {
    reported(&["arithmetic"], "test_reduce", reduce(9));
}

#[test]
fn a_missing_syncwarp() {
    reported(&["race", "uninitialised"], "test_transpose", |device| {
        let (x, out) = (upload(device, &[7i32; 1024]), blank::<i32>(device, 1024));
        launch(device, "test_transpose", [1, 32], 32 * 33 * 4, &[At(out), At(x), I32(1)])
    });
}

#[test]
fn an_increment_that_is_not_atomic() {
    reported(&["race"], "test_histogram", |device| {
        let (x, counts) = (upload(device, &[3i32; 128]), upload(device, &[0i32; 16]));
        launch(device, "test_histogram", [1, 128], 64, &[At(counts), At(x), I32(128), I32(1)])
    });
}

#[test]
fn blocks_that_meet_without_a_fence_or_in_one_slot() {
    for bug in [1, 2] {
        reported(&["race"], "test_last_block", |device| {
            let (out, parts) = (blank::<f32>(device, 1), blank::<f32>(device, 4));
            let done = upload(device, &[0i32]);
            launch(device, "test_last_block", [4, 32], 4, &[At(out), At(parts), At(done), I32(bug)])
        });
    }
}

#[test]
fn named_barriers_used_wrongly() {
    let cases: [(i32, &[&str]); 5] = [
        (1, &["barrier-count"]),
        (2, &["deadlock"]),
        (3, &["barrier-count", "uninitialised", "race"]), // whichever comes first in this order
        (4, &["race", "barrier-count", "deadlock"]),
        (5, &["barrier-count"]),
    ];
    for (bug, rules) in cases {
        reported(rules, "test_named", |device| {
            let out = blank::<i32>(device, 32);
            launch(device, "test_named", [1, 64], 128, &[At(out), I32(3), I32(bug)])
        });
    }
}

#[test]
fn asynchronous_copies_used_too_early_or_too_late() {
    let cases: [(i32, &[&str]); 4] = [
        (1, &["not-waited"]),
        (2, &["race", "not-waited", "uninitialised"]),
        (3, &["race", "not-waited"]),
        (4, &["misaligned"]),
    ];
    for (bug, rules) in cases {
        reported(rules, "test_copy", |device| {
            let (x, out) = (upload(device, &whole(1024, 1)), blank::<f32>(device, 1024));
            launch(device, "test_copy", [1, 64], 2 * 64 * 16, &[At(out), At(x), I32(1024), I32(bug)])
        });
    }
}

#[test]
fn a_misaligned_matrix_row() {
    reported(&["misaligned"], "test_mma", |device| {
        let (x, d) = (upload(device, &[0u16; 256]), blank::<f32>(device, 128));
        launch(device, "test_mma", [1, 32], 1024, &[At(d), At(x), At(x), I32(16), I32(0), I32(1)])
    });
}

#[test]
fn a_thread_that_polls_what_nobody_changes() {
    let device = device();
    let flag = upload(&device, &[0i32]);
    let report = launch(&device, "test_spin", [1, 1], 0, &[At(flag)]).unwrap_err();
    assert!(report.starts_with("launch: livelock: "), "{report}");
}

#[test]
fn launches_a_device_would_refuse() {
    let device = device();
    let out = blank::<f32>(&device, 1);
    let good = [At(out), At(out), F32(1.0), I32(0), I32(0)];
    let refuse = |kernel: &str, sizes: [u32; 2], shared: u32, arguments: &[Argument], what: &str| {
        let report = launch(&device, kernel, sizes, shared, arguments).unwrap_err();
        assert!(report.contains(what), "{report}");
    };
    refuse("test_axpy", [1, 1056], 0, &good, "1056 threads in a block");
    refuse("test_axpy", [1, 0], 0, &good, "0 threads in a block");
    refuse("test_axpy", [0, 32], 0, &good, "a grid of (0, 1, 1)");
    refuse("test_axpy", [1, 32], 232_464, &good, "232464 bytes of shared memory");
    refuse("test_axpy", [1, 32], 0, &good[..4], "4 arguments, expected 5");
    refuse("test_axpy", [1, 32], 0, &[&[I32(0)], &good[1..]].concat(), "argument 0 has 4 bytes");
    refuse("nonesuch", [1, 32], 0, &good, "no kernel is named nonesuch");
    launch(&device, "test_axpy", [1, 1024], 232_448, &good).unwrap();
}
