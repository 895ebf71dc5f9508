//! AVX2 with FMA: one vector is two registers, and bf16 is widened by shifts.
#![allow(unsafe_code)]

use super::isa::{COLUMNS, Isa, LANES};
use half::bf16;
use std::arch::x86_64::*;

/// Proof that the processor has AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
}

#[target_feature(enable = "avx2,fma")]
fn run<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Of each 32 bits the upper half is the odd element as an f32, the lower half the even one.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_products(sums: __m256, a: __m256i, b: __m256i) -> __m256 {
    let upper = _mm256_set1_epi32(-0x1_0000);
    let (a_even, b_even) = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
    let (a_odd, b_odd) = (_mm256_and_si256(a, upper), _mm256_and_si256(b, upper));
    let sums = _mm256_fmadd_ps(_mm256_castsi256_ps(a_even), _mm256_castsi256_ps(b_even), sums);
    _mm256_fmadd_ps(_mm256_castsi256_ps(a_odd), _mm256_castsi256_ps(b_odd), sums)
}

/// The sum over each of four vectors' eight lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sums(a: __m256, b: __m256, c: __m256, d: __m256) -> __m128 {
    let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let low = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
    let high = _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd);
    let halves = _mm256_add_ps(low, high);
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}

impl Isa for Avx2 {
    type Lanes = [__m256; 2];
    type Pairs = [__m256i; 2];
    const TALL: bool = false;

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves the features.
        unsafe { run(work) }
    }

    #[inline(always)]
    fn zero(self) -> Self::Lanes {
        // SAFETY: `self` proves the features.
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        // SAFETY: `self` proves the features.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        // SAFETY: `self` proves the features; the reference covers the 64 bytes read.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())] }
    }

    #[inline(always)]
    fn widen(self, from: &[bf16; LANES]) -> Self::Lanes {
        // SAFETY: `self` proves the features; the reference covers the 32 bytes read.
        unsafe {
            let narrow = [_mm_loadu_si128(from.as_ptr().cast()), _mm_loadu_si128(from[8..].as_ptr().cast())];
            narrow.map(|half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half))))
        }
    }

    #[inline(always)]
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves the features; the reference covers the 64 bytes written.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), lanes[0]);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), lanes[1]);
        }
    }

    #[inline(always)]
    fn multiply_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` proves the features.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: *const T) {
        // SAFETY: a prefetch reads nothing, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    fn pairs(self, from: &[bf16; 2 * LANES]) -> Self::Pairs {
        // SAFETY: `self` proves the features; the reference covers the 64 bytes read.
        unsafe { [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from[16..].as_ptr().cast())] }
    }

    #[inline(always)]
    fn repeat(self, pair: &[bf16; 2]) -> Self::Pairs {
        // SAFETY: `self` proves the features.
        unsafe { [_mm256_set1_epi32(bytemuck::cast(*pair)); 2] }
    }

    #[inline(always)]
    fn add_products(self, sums: Self::Lanes, a: Self::Pairs, b: Self::Pairs) -> Self::Lanes {
        // SAFETY: `self` proves the features.
        unsafe { [add_products(sums[0], a[0], b[0]), add_products(sums[1], a[1], b[1])] }
    }

    #[inline(always)]
    fn sums(self, [a, b, c, d]: [Self::Lanes; COLUMNS]) -> [f32; COLUMNS] {
        // SAFETY: `self` proves the features; the array covers the 16 bytes written.
        unsafe {
            let (a, b) = (_mm256_add_ps(a[0], a[1]), _mm256_add_ps(b[0], b[1]));
            let (c, d) = (_mm256_add_ps(c[0], c[1]), _mm256_add_ps(d[0], d[1]));
            let mut out = [0.0; COLUMNS];
            _mm_storeu_ps(out.as_mut_ptr(), sums(a, b, c, d));
            out
        }
    }
}
