//! TMA, mbarriers, stmatrix and wgmma: right results, and the bugs that would cost days on a device.

use super::{blank, device, devices, download, launch, upload, whole};
use half::bf16;
use pellucid::backend::gpu::{
    Address,
    Argument::{self, Address as At, I32},
    Emulator, Runtime, TensorShape,
};

/// The map of a row-major matrix, seen through boxes of `tile` (columns, rows).
fn map(
    device: &Emulator,
    address: Address,
    element: u32,
    [rows, columns]: [usize; 2],
    tile: [u32; 2],
    swizzle: u32,
) -> Argument {
    let sizes = [columns as u64, rows as u64];
    let strides = [columns as u64 * u64::from(element)];
    let shape = TensorShape { address, element, sizes: &sizes, strides: &strides, tile: &tile, swizzle };
    Argument::TensorMap(device.tensor_map(&shape).unwrap())
}

fn halves(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&v| bf16::from_f32(v)).collect()
}

fn ring(device: &Emulator, bug: i32) -> (Result<(), String>, Vec<f32>) {
    let input: Vec<f32> = (0..10 * 40).map(|i| i as f32).collect();
    let (at, out) = (upload(device, &input), blank::<f32>(device, 6 * 32));
    let map = map(device, at, 4, [10, 40], [32, 4], 0);
    let outcome = launch(device, "test_ring", [1, 64], 1024 + 32, &[At(out), map, I32(6), I32(bug)]);
    (outcome, download(device, out, 6 * 32))
}

fn store(device: &Emulator, bug: i32) -> (Result<(), String>, Vec<bf16>) {
    let out = blank::<bf16>(device, 50 * 64);
    let map = map(device, out, 2, [50, 64], [64, 64], 128);
    (launch(device, "test_store", [1, 128], 8192, &[map, I32(bug)]), download(device, out, 50 * 64))
}

fn wgmma(device: &Emulator, [a_mn, b_mn, rs]: [bool; 3], bug: i32) -> (Result<(), String>, [Vec<f32>; 3]) {
    let (a, b) = (whole(4096, 1), whole(4096, 2));
    let d = blank::<f32>(device, 4096);
    let (at_a, at_b) = (upload(device, &halves(&a)), upload(device, &halves(&b)));
    let flag = |on| I32(i32::from(on));
    let arguments = [At(d), At(at_a), At(at_b), flag(a_mn), flag(b_mn), flag(rs), I32(bug)];
    let outcome = launch(device, "test_wgmma", [1, 128], 16384, &arguments);
    (outcome, [a, b, download(device, d, 4096)])
}

fn gemm(device: &Emulator, k: usize, bug: i32) -> (Result<(), String>, [Vec<f32>; 3]) {
    let (a, b) = (whole(64 * k, 1), whole(128 * k, 2));
    let (at_a, at_b) = (upload(device, &halves(&a)), upload(device, &halves(&b)));
    let d = blank::<f32>(device, 64 * 128);
    let map_a = map(device, at_a, 2, [64, k], [64, 64], 128);
    let map_b = map(device, at_b, 2, [128, k], [64, 128], 128);
    let shared = 2 * 3 * 8192 + 32;
    let outcome =
        launch(device, "test_gemm", [1, 256], shared, &[At(d), map_a, map_b, I32(k as i32), I32(bug)]);
    (outcome, [a, b, download(device, d, 64 * 128)])
}

#[test]
fn tensor_loads_fill_a_ring_with_zeros_outside() {
    for device in devices() {
        let (outcome, got) = ring(&device, 0);
        outcome.unwrap();
        let at = |row: usize, column: usize| {
            if row < 10 && column < 40 { (row * 40 + column) as f32 } else { 0.0 }
        };
        for (i, &got) in got.iter().enumerate() {
            let (round, column) = (i / 32, i / 32 % 2 * 32 + i % 32);
            let expected: f32 = (0..4).map(|row| at(round / 2 * 4 + row, column)).sum();
            assert_eq!(got, expected, "round {round}, column {column}");
        }
    }
}

#[test]
fn tensor_stores_are_clipped_to_the_tensor() {
    for device in devices() {
        let (outcome, got) = store(&device, 0);
        outcome.unwrap();
        let expected: Vec<f32> = (0..50 * 64).map(|i| (i % 251) as f32).collect();
        assert_eq!(got, halves(&expected));
    }
}

#[test]
fn wgmma_takes_operands_in_every_layout() {
    for device in devices() {
        for layout in
            [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]].map(|l| l.map(|v| v == 1))
        {
            let (outcome, [a, b, got]) = wgmma(&device, layout, 0);
            outcome.unwrap();
            let at = |matrix: &[f32], mn: usize, k: usize, turned: bool| {
                if turned { matrix[k * 64 + mn] } else { matrix[mn * 64 + k] }
            };
            for (i, &got) in got.iter().enumerate() {
                let product = |k| at(&a, i / 64, k, layout[0]) * at(&b, i % 64, k, layout[1]);
                assert_eq!(
                    got,
                    (0..64).map(product).sum::<f32>(),
                    "{layout:?}, row {}, column {}",
                    i / 64,
                    i % 64
                );
            }
        }
    }
}

#[test]
fn a_warp_specialised_product_agrees() {
    for device in devices() {
        for k in [64, 104, 400] {
            let (outcome, [a, b, got]) = gemm(&device, k, 0);
            outcome.unwrap();
            for (i, &got) in got.iter().enumerate() {
                let expected: f32 = (0..k).map(|j| a[i / 128 * k + j] * b[i % 128 * k + j]).sum();
                assert_eq!(got, expected, "k = {k}, row {}, column {}", i / 128, i % 128);
            }
        }
    }
}

#[track_caller]
fn reported(bug: i32, rules: &[&str], run: impl Fn(&Emulator) -> Result<(), String>) {
    for (index, device) in devices().iter().enumerate() {
        let Err(report) = run(device) else { panic!("bug {bug}, order {index}: is not reported") };
        let named = rules.iter().any(|rule| report.starts_with(&format!("launch: {rule}: ")));
        assert!(named, "bug {bug}, order {index}: expected {rules:?}, got {report}");
    }
}

#[test]
fn rings_that_are_driven_wrongly() {
    let cases: [(i32, &[&str]); 8] = [
        (1, &["not-waited", "uninitialised", "mbarrier", "deadlock", "race"]),
        (2, &["deadlock"]),
        (3, &["byte-count"]),
        (4, &["mbarrier", "not-waited", "race"]),
        (5, &["deadlock"]),
        (6, &["mbarrier"]),
        (7, &["missing-fence"]),
        (8, &["misaligned"]),
    ];
    for (bug, rules) in cases {
        reported(bug, rules, |device| ring(device, bug).0);
    }
}

#[test]
fn stores_that_are_issued_or_left_too_early() {
    let cases: [(i32, &[&str]); 4] = [
        (1, &["missing-fence"]),
        (2, &["race", "missing-fence", "uninitialised"]),
        (3, &["race"]),
        (4, &["not-waited"]),
    ];
    for (bug, rules) in cases {
        reported(bug, rules, |device| store(device, bug).0);
    }
}

#[test]
fn wgmmas_that_are_issued_or_read_too_early() {
    let cases: [(i32, &[&str]); 6] = [
        (1, &["wgmma"]),
        (2, &["accumulator"]),
        (3, &["missing-fence"]),
        (4, &["wgmma"]),
        (5, &["not-waited"]),
        (6, &["divergence"]),
    ];
    for (bug, rules) in cases {
        reported(bug, rules, |device| wgmma(device, [false; 3], bug).0);
    }
    reported(1, &["race"], |device| gemm(device, 400, 1).0);
}

#[test]
fn tensor_maps_a_driver_would_refuse() {
    let device = device();
    let address = upload(&device, &[0u8; 4096]);
    let good =
        TensorShape { address, element: 2, sizes: &[64, 32], strides: &[128], tile: &[64, 32], swizzle: 128 };
    device.tensor_map(&good).unwrap();
    let refuse = |shape: TensorShape<'_>, what: &str| {
        let error = device.tensor_map(&shape).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refuse(TensorShape { strides: &[120], ..good }, "stride");
    refuse(TensorShape { tile: &[128, 32], ..good }, "swizzle's span");
    refuse(TensorShape { tile: &[64, 300], ..good }, "box dimension");
    refuse(TensorShape { tile: &[60, 32], swizzle: 0, ..good }, "multiple of 16");
    refuse(TensorShape { address: address.plus(2), ..good }, "multiple of 16");
    refuse(TensorShape { sizes: &[64], ..good }, "strides are not one fewer than sizes");
}
