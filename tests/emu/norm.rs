//! `kernels/norm.cu` against the oracle, and each row alone against the same row in company.

use super::{distance, gpu, gpus, normal, on_device, poisoned, read};
use half::bf16;
use pellucid::{
    backend::{Backend, cpu::Cpu, plain::Plain},
    tensor::{Dtype, Tensor},
};

/// Tiny values need their epsilon: with 1e-6 the wrong place for it would not show.
const EPS: f32 = 1e-3;

#[derive(Debug, Clone, Copy)]
enum Norm {
    Rms,
    Layer,
}

/// One norm of `x` in groups of w's length.
fn run(backend: &dyn Backend, norm: Norm, out: &mut Tensor, x: &Tensor, w: &Tensor, b: &Tensor) {
    match norm {
        Norm::Rms => backend.rms_norm(out, x, w, EPS).unwrap(),
        Norm::Layer => backend.layer_norm(out, x, w, b, EPS).unwrap(),
    }
}

fn emulated(backend: &dyn Backend, norm: Norm, shape: [usize; 2], [x, w, b]: [&[bf16]; 3]) -> Vec<bf16> {
    let mut out = poisoned(backend, &shape);
    let [w, b] = [w, b].map(|values| on_device(backend, &[values.len()], values));
    run(backend, norm, &mut out, &on_device(backend, &shape, x), &w, &b);
    read(backend, &out)
}

/// The same on the host in this dtype.
fn reference(
    backend: &dyn Backend,
    dtype: Dtype,
    norm: Norm,
    shape: [usize; 2],
    [x, w, b]: [&[bf16]; 3],
) -> Vec<f64> {
    let mut out = Tensor::zeros(dtype, &shape).unwrap();
    let x = Tensor::from_slice(&shape, x).unwrap().converted(dtype).unwrap();
    let [w, b] = [w, b].map(|values| Tensor::from_slice(&[values.len()], values).unwrap());
    run(backend, norm, &mut out, &x, &w, &b);
    out.to_f64()
}

/// Rows, their length, and the length of w. Rows that share warps, fill a few, fill a block, go round it twice.
const SIZES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [3, 7, 7],
    [2, 8, 8],
    [300, 8, 8],
    [9, 80, 80],
    [5, 6 * 64, 64],
    [17, 3 * 36, 36],
    [2, 333, 333],
    [3, 896, 896],
    [2, 3584, 3584],
    [1, 8200, 8200],
    [2, 9001, 9001],
];

#[test]
fn agrees_with_the_oracle_over_ragged_sizes() {
    for (index, [rows, columns, group]) in SIZES.into_iter().enumerate() {
        let x: Vec<bf16> = normal(rows * columns, 1)
            .iter()
            .enumerate()
            .map(|(at, &x)| bf16::from_f32(x.to_f32() * if at / group % 2 == 0 { 1.0 } else { 0.03 } + 0.25))
            .collect();
        let (w, b) = (normal(group, 3), normal(group, 4));
        let (shape, inputs) = ([rows, columns], [&x[..], &w, &b]);
        for norm in [Norm::Rms, Norm::Layer] {
            let shape = if matches!(norm, Norm::Layer) { [rows * columns / group, group] } else { shape };
            let exact = reference(&Cpu::oracle(), Dtype::F64, norm, shape, inputs);
            let plain = reference(&Plain::<f32>::default(), Dtype::F32, norm, shape, inputs);
            let rounded: Vec<f64> = plain.iter().map(|&v| bf16::from_f64(v).to_f64()).collect();
            let allowed = 2.0 * distance(&rounded, &exact) + f64::from(f32::EPSILON);
            let gpus = gpus();
            let mut first = None;
            // Large rows in one order: what orders can change is the same for all lengths.
            for gpu in if index < 8 { &gpus[..] } else { &gpus[2..3] } {
                let got = emulated(gpu, norm, shape, inputs);
                let wide: Vec<f64> = got.iter().map(|v| v.to_f64()).collect();
                let error = distance(&wide, &exact);
                assert!(
                    error <= allowed,
                    "{norm:?} {shape:?} by {group}: {error:.3e}, allowed {allowed:.3e}"
                );
                assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{norm:?} {shape:?} by {group}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    let gpu = gpu();
    for (columns, group) in [(2 * 64, 64), (100, 100), (896, 896)] {
        let (x, w, b) = (normal(6 * columns, 5), normal(group, 6), normal(group, 7));
        for norm in [Norm::Rms, Norm::Layer] {
            let rows = |rows: usize| match norm {
                Norm::Rms => [rows, columns],
                Norm::Layer => [rows * columns / group, group],
            };
            let together = emulated(&gpu, norm, rows(6), [&x, &w, &b]);
            for row in 0..6 {
                let part = row * columns..(row + 1) * columns;
                let alone = emulated(&gpu, norm, rows(1), [&x[part.clone()], &w, &b]);
                assert_eq!(alone, together[part], "{norm:?}, row {row} of {columns} columns");
            }
        }
    }
}
