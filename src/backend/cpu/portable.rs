//! Vectors as arrays: what any processor does, at the speed the compiler finds.

use super::isa::{COLUMNS, Isa, LANES};
use super::math::wide;
use half::bf16;
use std::array::from_fn;

/// Every processor has these.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portable;

impl Isa for Portable {
    type Lanes = [f32; LANES];
    type Pairs = [bf16; 2 * LANES];
    const TALL: bool = false;

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }

    #[inline(always)]
    fn zero(self) -> Self::Lanes {
        [0.0; LANES]
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        *from
    }

    #[inline(always)]
    fn widen(self, from: &[bf16; LANES]) -> Self::Lanes {
        from.map(wide)
    }

    #[inline(always)]
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]) {
        *to = lanes;
    }

    #[inline(always)]
    fn multiply_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    fn pairs(self, from: &[bf16; 2 * LANES]) -> Self::Pairs {
        *from
    }

    #[inline(always)]
    fn repeat(self, pair: &[bf16; 2]) -> Self::Pairs {
        from_fn(|at| pair[at % 2])
    }

    #[inline(always)]
    fn add_products(self, sums: Self::Lanes, a: Self::Pairs, b: Self::Pairs) -> Self::Lanes {
        from_fn(|lane| {
            let even = wide(a[2 * lane]) * wide(b[2 * lane]);
            let odd = wide(a[2 * lane + 1]) * wide(b[2 * lane + 1]);
            sums[lane] + even + odd
        })
    }

    #[inline(always)]
    fn sums(self, vectors: [Self::Lanes; COLUMNS]) -> [f32; COLUMNS] {
        vectors.map(super::math::sum_lanes)
    }
}
