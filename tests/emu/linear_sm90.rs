//! `kernels/linear_sm90.cu` and `kernels/linear_few_sm90.cu` against the oracle, and against each other.

use super::{
    linear::{Case, End, same_bits},
    on_device,
};
use half::bf16;
use pellucid::{
    backend::{
        Activation::{Gelu, GeluTanh, QuickGelu, Silu},
        Backend, Epilogue, Linear, LoraRows,
        gpu::{Emulator, Gpu, Order, Settings},
    },
    tensor::Dtype,
};
use std::ops::Range;

fn hopper(order: Order, multiprocessors: usize) -> Gpu<Emulator> {
    Gpu::new(Emulator::new(Settings { order, multiprocessors, ..Settings::default() }).unwrap())
        .on_hopper(true)
}

/// Devices that cut products differently: one block for all large tiles, a few blocks that take turns at them, and small
/// tiles split by chunks of K.
fn cuts() -> [Gpu<Emulator>; 3] {
    [hopper(Order::Ascending, 1), hopper(Order::Descending, 4), hopper(Order::Random(1), 132)]
}

fn holds(case: &Case) {
    let all = cuts().map(|gpu| case.on(&gpu));
    case.check(&all[0]);
    for other in &all[1..] {
        same_bits(&format!("{:?} {:?}, cut differently", case.sizes, case.end), &all[0], other);
    }
}

#[test]
fn ragged_products_agree_with_the_oracle_however_cut() {
    for sizes in [[1, 8, 8], [63, 72, 40], [130, 520, 72], [300, 64, 392], [5, 1104, 200], [66, 1032, 208]] {
        holds(&Case::new(sizes, End::Store, sizes[0] % 2 == 1, &[]));
        holds(&Case::new(sizes, End::Add, sizes[0] % 2 == 0, &[]));
        holds(&Case::new(sizes, End::Gate(Silu), sizes[0] % 2 == 0, &[]));
    }
}

#[test]
fn every_ending_agrees_with_the_oracle() {
    let endings =
        [Silu, Gelu, GeluTanh, QuickGelu].into_iter().flat_map(|f| [End::Activate(f), End::Gate(f)]);
    for end in endings.chain([End::Store, End::Add, End::AddScaled]) {
        holds(&Case::new([66, 72, 104], end, true, &[(1..40, 8)]));
    }
}

#[test]
fn adapters_of_all_ranks_serve_their_rows_alone() {
    let several: [(Range<usize>, usize); 4] = [(0..1, 8), (5..60, 16), (60..131, 40), (140..150, 72)];
    let many: Vec<(Range<usize>, usize)> = (0..20).map(|i| (i * 7 + 2..i * 7 + 8, 8)).collect();
    for lora in [&several[..], &many, &[(128..150, 64)]] {
        for end in [End::Add, End::Gate(Silu)] {
            holds(&Case::new([150, 136, 104], end, true, lora));
        }
    }
    holds(&Case::new([3, 24, 16], End::Store, false, &[(0..2, 512)]));
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    for end in [End::AddScaled, End::Gate(GeluTanh)] {
        let case = Case::new([140, 1040, 80], end, true, &[(3..70, 16), (100..140, 24)]);
        for gpu in cuts() {
            let together = case.on(&gpu);
            for rows in [0..1, 2..4, 60..130, 139..140] {
                let part = &together[rows.start * 80..rows.end * 80];
                same_bits(&format!("rows {rows:?}"), &case.run(&gpu, Dtype::BF16, rows.clone()), part);
            }
        }
    }
}

#[test]
fn a_spoiled_adapter_spoils_its_own_rows_alone() {
    for end in [End::Add, End::Gate(Silu)] {
        let case = || Case::new([70, 72, 40], end, true, &[(3..60, 8), (60..65, 16)]);
        for gpu in cuts() {
            let (sound, spoiled) = (case().on(&gpu), case().spoiled().on(&gpu));
            assert!(spoiled[3 * 40..60 * 40].iter().all(|v| !v.is_finite()));
            same_bits("rows before", &sound[..3 * 40], &spoiled[..3 * 40]);
            same_bits("rows behind", &sound[60 * 40..], &spoiled[60 * 40..]);
        }
    }
}

#[test]
fn threads_may_run_in_any_order() {
    let case = Case::new([70, 600, 208], End::Gate(Silu), true, &[(3..69, 8)]);
    let orders = [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2), Order::Random(3)];
    for multiprocessors in [2, 132] {
        let all = orders.map(|order| case.on(&hopper(order, multiprocessors)));
        all.iter().for_each(|other| same_bits("another order", &all[0], other));
    }
}

/// By the weight's shape alone, or for results in f32.
#[test]
fn what_tma_cannot_read_is_left_to_the_portable_kernels() {
    let portable = Gpu::new(Emulator::new(Settings::default()).unwrap());
    for (sizes, end) in [([3, 12, 8], End::Store), ([3, 16, 12], End::Add), ([3, 16, 8], End::StoreF32)] {
        let case = Case::new(sizes, end, true, &[(0..2, 3)]);
        same_bits("portable", &case.on(&hopper(Order::Ascending, 132)), &case.on(&portable));
    }
    let gpu = hopper(Order::Ascending, 132);
    let zeros = |shape: &[usize]| on_device(&gpu, shape, &vec![bf16::ZERO; shape.iter().product()]);
    let (x, weight, mut out) = (zeros(&[2, 16]), zeros(&[8, 16]), zeros(&[2, 8]));
    let (a, b) = (zeros(&[4, 16]), zeros(&[8, 4]));
    let lora = [LoraRows { rows: 0..2, a: &a, b: &b, scale: 1.0 }];
    let linear = Linear { weight: &weight, bias: None, lora: &lora };
    let error = gpu.linear(&mut out, &x, &linear, Epilogue::Store).unwrap_err().to_string();
    assert!(error.contains("rank 4") && error.contains("multiple of 8"), "{error}");
}
