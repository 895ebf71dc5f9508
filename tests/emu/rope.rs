//! `kernels/rope.cu`: sines and cosines of the f32 angle at any position, heads and axes, ragged sizes, there and back.

use super::{gpu, gpus, normal, on_device, read};
use half::bf16;
use pellucid::{
    backend::{Backend, Rope, cpu::Cpu},
    tensor::{Dtype, Tensor},
};

fn rope_of(backend: &dyn Backend, inv_freq: &[f32], axis: &[i32]) -> Rope {
    Rope {
        inv_freq: on_device(backend, &[inv_freq.len()], inv_freq),
        axis: on_device(backend, &[axis.len()], axis),
    }
}

struct Case {
    heads: usize,
    inv_freq: Vec<f32>,
    axis: Vec<i32>,
    /// `[axes, T]`
    positions: Vec<i32>,
    rows: usize,
}

impl Case {
    fn turned(&self, backend: &dyn Backend, x: &[bf16], inverse: bool) -> Vec<bf16> {
        let mut x = on_device(backend, &[self.rows, self.heads * 2 * self.inv_freq.len()], x);
        let positions = on_device(backend, &[self.positions.len() / self.rows, self.rows], &self.positions);
        backend.rope(&mut x, &positions, &rope_of(backend, &self.inv_freq, &self.axis), inverse).unwrap();
        read(backend, &x)
    }

    /// The CPU backend in f32, which rounds the same angle.
    fn expected(&self, x: &[bf16], inverse: bool) -> Vec<f64> {
        let cpu = Cpu::new(Some(1)).unwrap();
        let shape = [self.rows, self.heads * 2 * self.inv_freq.len()];
        let mut x = Tensor::from_slice(&shape, x).unwrap().converted(Dtype::F32).unwrap();
        let positions =
            Tensor::from_slice(&[self.positions.len() / self.rows, self.rows], &self.positions).unwrap();
        cpu.rope(&mut x, &positions, &rope_of(&cpu, &self.inv_freq, &self.axis), inverse).unwrap();
        x.to_f64()
    }
}

/// Half a unit in the last place of bf16 at this size, and what f32 may err besides for sums of so large terms.
fn allowed(value: f64, terms: f64) -> f64 {
    let exponent = value.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (exponent - 8.0).exp2() + terms * 4e-7
}

fn same(got: &[bf16], expected: &[f64], terms: f64, what: &str) {
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got.to_f64() - expected).abs();
        let allowed = allowed(*expected, terms);
        assert!(
            error <= allowed,
            "{what}, element {at}: {got} for {expected}, {error:.2e} over {allowed:.2e}"
        );
    }
    assert_eq!(got.len(), expected.len());
}

#[test]
fn sines_are_those_of_the_f32_angle_at_any_position() {
    let positions: Vec<i32> =
        (0..21).map(|bit| 1 << bit).chain([0, 3, 999_983, 32_749, (1 << 24) - 1]).collect();
    let inv_freq: Vec<f32> = (0..32).map(|i| 10_000f64.powf(-f64::from(i) / 32.0) as f32).collect();
    let case = Case { heads: 1, axis: vec![0; 32], rows: positions.len(), inv_freq, positions };
    // a = 1 and b = 0 turn into cosine and sine.
    let unit: Vec<bf16> = (0..64).map(|i| bf16::from_f32(if i < 32 { 1.0 } else { 0.0 })).collect();
    let got = case.turned(&gpu(), &unit.repeat(case.rows), false);
    for (row, (got, &position)) in got.chunks_exact(64).zip(&case.positions).enumerate() {
        let angles = case.inv_freq.iter().map(|&frequency| f64::from(position as f32 * frequency));
        let expected: Vec<f64> = angles.clone().map(f64::cos).chain(angles.map(f64::sin)).collect();
        same(got, &expected, 1.0, &format!("row {row}, position {position}"));
    }
}

#[test]
fn agrees_with_the_cpu_over_heads_axes_and_ragged_sizes_and_turns_back() {
    let gpus = gpus();
    for [rows, heads, half, axes] in [
        [1, 1, 1, 1],
        [3, 1, 3, 2],
        [70, 1, 8, 1],
        [5, 3, 20, 2],
        [9, 2, 40, 1],
        [33, 2, 32, 3],
        [3, 28, 64, 3],
        [2, 3, 515, 1],
        [1, 130, 64, 1],
    ] {
        let (x, seeds) = (normal(rows * heads * 2 * half, 1), normal(axes * rows, 2));
        let case = Case {
            heads,
            inv_freq: (0..half).map(|i| 1e4f64.powf(-(i as f64) / half as f64) as f32).collect(),
            axis: (0..half).map(|i| (i % axes) as i32).collect(),
            positions: seeds.iter().map(|s| (s.to_f32().abs() * 1000.0) as i32).collect(),
            rows,
        };
        let forward = case.expected(&x, false);
        let backward = case.expected(&x, true);
        for gpu in if heads < 28 { &gpus[..] } else { &gpus[2..3] } {
            let what = format!("{rows} rows of {heads} heads of {}, {axes} axes", 2 * half);
            same(&case.turned(gpu, &x, false), &forward, 4.0, &what);
            same(&case.turned(gpu, &x, true), &backward, 4.0, &format!("{what}, back"));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    let gpu = gpu();
    let (heads, half, rows) = (2, 12, 40);
    let x = normal(rows * heads * 2 * half, 3);
    let all = Case {
        heads,
        inv_freq: (0..half).map(|i| 1.0 / (i + 1) as f32).collect(),
        axis: (0..half).map(|i| (i % 2) as i32).collect(),
        positions: (0..2 * rows).map(|at| (at * 37 % 101) as i32).collect(),
        rows,
    };
    let together = all.turned(&gpu, &x, false);
    for row in [0, 1, 17, 39] {
        let part = row * heads * 2 * half..(row + 1) * heads * 2 * half;
        let positions = vec![all.positions[row], all.positions[rows + row]];
        let alone =
            Case { rows: 1, positions, inv_freq: all.inv_freq.clone(), axis: all.axis.clone(), heads };
        assert_eq!(alone.turned(&gpu, &x[part.clone()], false), together[part], "row {row}");
    }
}

#[test]
fn heads_too_long_are_refused() {
    let gpu = gpu();
    let half = 4097;
    let rope = rope_of(&gpu, &vec![1.0; half], &vec![0; half]);
    let mut x = gpu.alloc(Dtype::BF16, &[1, 2 * half]).unwrap();
    let error = gpu.rope(&mut x, &on_device(&gpu, &[1, 1], &[0]), &rope, false).unwrap_err().to_string();
    assert!(error.contains("8194") && error.contains("8192"), "{error}");
}
