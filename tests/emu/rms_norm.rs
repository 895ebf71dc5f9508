//! `kernels/rms_norm.cu` against the oracle, and each row alone against the same row in company.

use super::{blank, device, devices, download, launch, upload};
use half::bf16;
use pellucid::{
    backend::{
        Backend,
        cpu::Cpu,
        gpu::{
            Address,
            Argument::{Address as At, F32, I32},
            Emulator,
        },
        plain::Plain,
    },
    tensor::{Dtype, Tensor},
};

const EPS: f32 = 1e-6;

/// Roughly normal, rounded to bf16.
fn normal(count: usize, seed: u64) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| bf16::from_f32((0..6).map(|_| uniform()).sum::<f32>() * 1.4)).collect()
}

/// y and h of rows of `columns`, with or without a residual.
fn run(device: &Emulator, x: &[bf16], r: Option<&[bf16]>, w: &[bf16]) -> [Vec<bf16>; 2] {
    let columns = w.len();
    let (at_x, at_w) = (upload(device, x), upload(device, w));
    let (y, h) = (blank::<bf16>(device, x.len()), blank::<bf16>(device, x.len()));
    let at_r = r.map_or(Address(0), |r| upload(device, r));
    let arguments = [At(y), At(h), At(at_x), At(at_r), At(at_w), I32(columns as i32), F32(EPS)];
    launch(device, "rms_norm", [(x.len() / columns) as u32, 256], 32, &arguments).unwrap();
    [download(device, y, x.len()), download(device, h, x.len())]
}

/// The same op on a backend whose activations have this dtype, rounded to bf16 unless that is the oracle's.
fn reference(backend: &dyn Backend, dtype: Dtype, x: &[bf16], w: &[bf16]) -> Vec<f64> {
    let shape = [x.len() / w.len(), w.len()];
    let x = Tensor::from_slice(&shape, x).unwrap().converted(dtype).unwrap();
    let w = Tensor::from_slice(&[w.len()], w).unwrap();
    let mut out = backend.alloc(dtype, &shape).unwrap();
    backend.rms_norm(&mut out, &x, &w, EPS).unwrap();
    out.to_f64()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

#[test]
fn agrees_with_the_oracle_over_ragged_sizes() {
    for device in devices() {
        for (rows, columns) in
            [(1, 1), (3, 7), (2, 8), (5, 64), (1, 333), (4, 2048), (2, 2056), (3, 3584), (2, 4101)]
        {
            let (x, r, w) = (normal(rows * columns, 1), normal(rows * columns, 2), normal(columns, 3));
            for r in [None, Some(&r[..])] {
                let [y, h] = run(&device, &x, r, &w);
                let sum = |(x, r): (&bf16, &bf16)| bf16::from_f32(x.to_f32() + r.to_f32());
                let stream: Vec<bf16> = r.map_or(x.clone(), |r| x.iter().zip(r).map(sum).collect());
                if r.is_some() {
                    assert_eq!(h, stream, "{rows} x {columns}");
                }
                let exact = reference(&Cpu::oracle(), Dtype::F64, &stream, &w);
                let plain = reference(&Plain::<f32>::default(), Dtype::F32, &stream, &w);
                let rounded: Vec<f64> = plain.iter().map(|&v| bf16::from_f64(v).to_f64()).collect();
                let got: Vec<f64> = y.iter().map(|v| v.to_f64()).collect();
                let (error, allowed) =
                    (distance(&got, &exact), 2.0 * distance(&rounded, &exact) + f64::from(f32::EPSILON));
                assert!(error <= allowed, "{rows} x {columns}: error {error:.3e}, allowed {allowed:.3e}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    let device = device();
    for columns in [100, 896, 3584] {
        let (x, r, w) = (normal(6 * columns, 4), normal(6 * columns, 5), normal(columns, 6));
        let [together, _] = run(&device, &x, Some(&r), &w);
        for row in 0..6 {
            let part = row * columns..(row + 1) * columns;
            let [alone, _] = run(&device, &x[part.clone()], Some(&r[part.clone()]), &w);
            assert_eq!(alone, together[part], "row {row} of {columns} columns");
        }
    }
}
