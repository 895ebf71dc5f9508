//! What ops are compared with, and by: the backends there are, draws for inputs, and the tolerance.

use crate::narrow::Narrow;
use half::bf16;
use pellucid::{
    backend::{Backend, Segments, cpu::Cpu, plain::Plain},
    tensor::{Dtype, Tensor},
};

/// A backend, and whether it computes in bf16, so that its inputs are rounded to it.
pub(crate) struct Candidate {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) narrow: bool,
}

impl std::ops::Deref for Candidate {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.backend
    }
}

/// All instruction sets, on different numbers of threads, and the emulated device.
pub(crate) fn backends() -> Vec<Candidate> {
    let sets = Cpu::instruction_sets();
    let cpus = sets.iter().zip([1, 2, 4].iter().cycle());
    let cpus = cpus.map(|(set, &threads)| Candidate {
        backend: Box::new(Cpu::with_instructions(Some(threads), Some(set)).unwrap()),
        narrow: false,
    });
    cpus.chain(emulated()).collect()
}

#[cfg(feature = "emu")]
fn emulated() -> Option<Candidate> {
    use pellucid::backend::gpu::{Emulator, Gpu, Settings};
    let inner = Gpu::new(Emulator::new(Settings::default()).unwrap());
    Some(Candidate { backend: Box::new(Narrow { inner, out: Dtype::BF16 }), narrow: true })
}

#[cfg(not(feature = "emu"))]
fn emulated() -> Option<Candidate> {
    None
}

/// A small generator of its own, so that a failure is the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Roughly normal.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..6).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64 - 0.5).sum::<f64>() * 2f64.sqrt()
    }

    pub(crate) fn tensor(&mut self, dtype: Dtype, shape: &[usize]) -> Tensor {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| self.normal()).collect();
        Tensor::from_slice(shape, &values).unwrap().converted(dtype).unwrap()
    }

    pub(crate) fn permutation(&mut self, length: usize) -> Vec<i32> {
        let mut all: Vec<i32> = (0..length as i32).collect();
        for at in (1..length).rev() {
            all.swap(at, self.below(at + 1));
        }
        all
    }
}

pub(crate) fn indices(values: &[i32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values).unwrap()
}

/// Sequences side by side, none with a parent.
pub(crate) fn packed(starts: &Tensor) -> Segments<'_> {
    Segments { starts, parents: None }
}

pub(crate) fn poisoned(dtype: Dtype, shape: &[usize]) -> Tensor {
    let values = vec![f64::NAN; shape.iter().product()];
    Tensor::from_slice(shape, &values).unwrap().converted(dtype).unwrap()
}

/// ‖a − b‖ / ‖b‖
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let (a, b) = (a.to_f64(), b.to_f64());
    assert_eq!(a.len(), b.len());
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

/// One perturbation: a unit in the last place of an f32 result.
const ONE_UNIT: f64 = f32::EPSILON as f64;

/// The same of a bf16 result.
const ONE_NARROW_UNIT: f64 = 1.0 / 256.0;

/// Runs an op on the backend, on the plain twin and on the oracle (outputs in their activation dtype) and
/// holds the first to the tolerance the others set.
pub(crate) fn compare(what: &str, backend: &Candidate, op: impl Fn(&dyn Backend, Dtype) -> Vec<Tensor>) {
    let got = op(&**backend, Dtype::F32);
    let (plain, exact, unit) = match backend.narrow {
        false => (op(&Plain::<f32>::default(), Dtype::F32), op(&Cpu::oracle(), Dtype::F64), ONE_UNIT),
        true => (
            op(&Narrow { inner: Plain::<f32>::default(), out: Dtype::BF16 }, Dtype::F32),
            op(&Narrow { inner: Cpu::oracle(), out: Dtype::F64 }, Dtype::F64),
            ONE_NARROW_UNIT,
        ),
    };
    for (index, ((got, plain), exact)) in got.iter().zip(&plain).zip(&exact).enumerate() {
        let (error, allowed) = (distance(got, exact), 2.0 * distance(plain, exact) + unit);
        assert!(
            error <= allowed,
            "{what}, output {index}: error {error:.3e}, allowed {allowed:.3e}, on {}",
            backend.describe()
        );
    }
}

/// Oracle weights are the same numbers in f64; activations come in f32 and are widened.
pub(crate) fn wide(tensor: &Tensor, dtype: Dtype) -> Tensor {
    if tensor.dtype() == Dtype::F32 { tensor.converted(dtype).unwrap() } else { tensor.clone() }
}

pub(crate) fn rows(tensor: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let len = tensor.row_len();
    shape[0] = range.len();
    let part = range.start * len..range.end * len;
    match tensor.dtype() {
        Dtype::F32 => Tensor::from_slice(&shape, &tensor.as_slice::<f32>().unwrap()[part]).unwrap(),
        Dtype::BF16 => Tensor::from_slice(&shape, &tensor.as_slice::<bf16>().unwrap()[part]).unwrap(),
        Dtype::I32 => Tensor::from_slice(&shape, &tensor.as_slice::<i32>().unwrap()[part]).unwrap(),
        Dtype::F64 => Tensor::from_slice(&shape, &tensor.as_slice::<f64>().unwrap()[part]).unwrap(),
    }
}

#[track_caller]
pub(crate) fn same_bits(what: &str, a: &Tensor, b: &Tensor) {
    assert!(a.bytes() == b.bytes(), "{what}: bits differ by {:.3e}", distance(a, b));
    assert!(a.dtype() == Dtype::I32 || a.to_f64().iter().all(|v| !v.is_nan()), "{what}: NaN");
}
