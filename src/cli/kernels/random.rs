//! Numbers without structure, the same everywhere: zeros would flatter a multiplier.

use half::bf16;
use pellucid::{
    error::Result,
    tensor::{Dtype, Tensor},
};
use rayon::prelude::*;

/// The `at`-th 64 random bits of a stream (splitmix).
pub(super) fn bits(seed: u64, at: u64) -> u64 {
    let mut z =
        seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add((at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Roughly normal, of variance 1: the sum of four uniform numbers.
fn normal(seed: u64, at: usize) -> f32 {
    let bits = bits(seed, at as u64);
    let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
}

/// A bf16 tensor of roughly normal numbers with this deviation.
pub(crate) fn tensor(seed: u64, shape: &[usize], deviation: f32) -> Result<Tensor> {
    let mut out = Tensor::zeros(Dtype::BF16, shape)?;
    let number = |(at, value): (usize, &mut bf16)| *value = bf16::from_f32(normal(seed, at) * deviation);
    out.as_mut_slice::<bf16>()?.par_iter_mut().enumerate().with_min_len(1 << 14).for_each(number);
    Ok(out)
}

/// Indices below `limit`.
pub(super) fn indices(seed: u64, count: usize, limit: usize) -> Vec<i32> {
    (0..count).map(|at| (bits(seed, at as u64) % limit.max(1) as u64) as i32).collect()
}

/// All indices below `count`, scrambled.
pub(super) fn permutation(seed: u64, count: usize) -> Vec<i32> {
    let mut all: Vec<i32> = (0..count as i32).collect();
    all.sort_by_cached_key(|&index| bits(seed, index as u64));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_roughly_normal_and_indices_in_range() {
        let values = tensor(3, &[20_000], 2.0).unwrap().to_f64();
        let mean = values.iter().sum::<f64>() / 20_000.0;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.05 && (variance - 4.0).abs() < 0.15, "{mean}, {variance}");
        assert!(indices(1, 1000, 7).iter().all(|index| (0..7).contains(index)));
        let mut all = permutation(1, 100);
        assert_ne!(all, (0..100).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }
}
