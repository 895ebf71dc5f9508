//! AVX-512 with bf16 dot products: one vector is one register.
#![allow(unsafe_code)]

use super::isa::{COLUMNS, Isa, LANES};
use super::panel::{self, Panels};
use half::bf16;
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, DQ, VL and BF16, and AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma"))
        .then_some(Avx512(()))
    }

    /// Word j of row i becomes word i of row j: words change places within two rows, then within four, then quarters
    /// within eight and sixteen.
    #[inline(always)]
    fn transpose(self, r: [__m512i; LANES]) -> [__m512i; LANES] {
        // SAFETY: `self` proves the features.
        unsafe {
            let mut two = r;
            for i in (0..LANES).step_by(2) {
                two[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
                two[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
            }
            let mut four = two;
            for i in (0..LANES).step_by(4) {
                four[i] = _mm512_unpacklo_epi64(two[i], two[i + 2]);
                four[i + 1] = _mm512_unpackhi_epi64(two[i], two[i + 2]);
                four[i + 2] = _mm512_unpacklo_epi64(two[i + 1], two[i + 3]);
                four[i + 3] = _mm512_unpackhi_epi64(two[i + 1], two[i + 3]);
            }
            // four[4g + c] holds, in quarter q, column 4q + c of rows 4g..4g+4.
            let mut eight = four;
            for c in 0..4 {
                for half in 0..2 {
                    let (a, b) = (four[8 * half + c], four[8 * half + 4 + c]);
                    eight[8 * half + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
                    eight[8 * half + 4 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
                }
            }
            // eight[8h + c] holds columns c and 8 + c, eight[8h + 4 + c] columns 4 + c and 12 + c, of rows 8h..8h+8.
            let mut all = eight;
            for c in 0..8 {
                all[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(eight[c], eight[8 + c]);
                all[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(eight[c], eight[8 + c]);
            }
            all
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn run<R>(work: impl FnOnce() -> R) -> R {
    work()
}

// In each block below, SAFETY stands for this: the instructions exist because `self` does, which only
// `detect` makes; and memory is reached through references to arrays of the full vector length.
impl Isa for Avx512 {
    type Lanes = __m512;
    type Pairs = __m512bh;
    const TALL: bool = true;

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves the features.
        unsafe { run(work) }
    }

    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` proves the features; the reference covers the 64 bytes read.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn widen(self, from: &[bf16; LANES]) -> __m512 {
        // SAFETY: `self` proves the features; the reference covers the 32 bytes read.
        unsafe {
            let narrow = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
        }
    }

    #[inline(always)]
    fn store(self, lanes: __m512, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves the features; the reference covers the 64 bytes written.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), lanes) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: *const T) {
        // SAFETY: a prefetch reads nothing, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    fn pairs(self, from: &[bf16; 2 * LANES]) -> __m512bh {
        // SAFETY: `self` proves the features; the reference covers the 64 bytes read, which are plain bits.
        unsafe { from.as_ptr().cast::<__m512bh>().read_unaligned() }
    }

    #[inline(always)]
    fn repeat(self, pair: &[bf16; 2]) -> __m512bh {
        // SAFETY: `self` proves the features; both vector types are 512 plain bits.
        unsafe { std::mem::transmute(_mm512_set1_epi32(bytemuck::cast(*pair))) }
    }

    #[inline(always)]
    fn add_products(self, sums: __m512, a: __m512bh, b: __m512bh) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_dpbf16_ps(sums, a, b) }
    }

    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m512; COLUMNS]) -> [f32; COLUMNS] {
        // Two transposing additions leave a, b, c, d in each quarter; the quarters are then added.
        // SAFETY: `self` proves the features; the array covers the 16 bytes written.
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let low = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
            let high = _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd);
            let quarters = _mm512_add_ps(low, high);
            let halves =
                _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
            let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            let mut out = [0.0; COLUMNS];
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
    }

    #[inline(always)]
    fn own_products(self, out: &mut [f32], x: &[&[bf16]], w: &[&[bf16]]) -> bool {
        panel::products(self, out, x, w);
        true
    }

    #[inline(always)]
    fn own_float_products(self, out: &mut [f32], x: &[&[f32]], w: &[&[f32]]) -> bool {
        panel::products(self, out, x, w);
        true
    }
}

impl Panels for Avx512 {
    #[inline(always)]
    fn store_pairs(self, pairs: __m512bh, to: &mut [[bf16; 2]; LANES]) {
        // SAFETY: `self` proves the features; the reference covers the 64 bytes written; both vector types
        // are 512 plain bits.
        unsafe {
            _mm512_storeu_si512(to.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(pairs))
        }
    }

    #[inline(always)]
    fn transpose_pairs(self, rows: [__m512bh; LANES]) -> [__m512bh; LANES] {
        // SAFETY: `self` proves the features; all arrays are 16 times 512 plain bits.
        unsafe {
            let words = std::mem::transmute::<[__m512bh; LANES], [__m512i; LANES]>(rows);
            std::mem::transmute::<[__m512i; LANES], [__m512bh; LANES]>(self.transpose(words))
        }
    }

    #[inline(always)]
    fn transpose_lanes(self, rows: [__m512; LANES]) -> [__m512; LANES] {
        // SAFETY: `self` proves the features; all arrays are 16 times 512 plain bits.
        unsafe {
            let words = std::mem::transmute::<[__m512; LANES], [__m512i; LANES]>(rows);
            std::mem::transmute::<[__m512i; LANES], [__m512; LANES]>(self.transpose(words))
        }
    }
}
