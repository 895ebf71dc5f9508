//! Philox4x32-10, a counter-based random generator: noise is a function of (seed, position, token) and so
//! never of the batch it was drawn in. Salmon et al., SC 2011.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words for a counter under a key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let [low, high] = [0, 1].map(|i| u64::from(MULTIPLIERS[i]) * u64::from(counter[2 * i]));
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
    }
    counter
}

/// The random words of the four tokens from `4 * quad` on, at `position` of a sequence seeded with `seed`.
pub fn words(seed: u64, position: u32, quad: u32) -> [u32; 4] {
    philox([quad, position, 0, 0], [seed as u32, (seed >> 32) as u32])
}

/// Standard Gumbel noise for one token.
pub fn gumbel(seed: u64, position: u32, token: u32) -> f32 {
    gumbel_of(words(seed, position, token / 4)[(token % 4) as usize])
}

/// Noise is never above this.
pub const MOST: f32 = 16.64;

/// What the noise of these words is at most, without its logarithms: a uniform u whose word begins with n ones has
/// 1 − u > 2⁻ⁿ⁻¹, and −ln(−ln u) <= −ln(1 − u). A little more, for what the logarithms round.
pub fn most(words: [u32; 4]) -> f32 {
    let ones = words.into_iter().fold(0, |ones, word| word.leading_ones().max(ones));
    (ones + 1) as f32 * std::f32::consts::LN_2 + 1e-3
}

/// Standard Gumbel noise of a word: 24 of its bits, centred; the sum would round up to 2²⁴ for the greatest, whose noise
/// would be infinite.
pub fn gumbel_of(word: u32) -> f32 {
    let uniform = ((word >> 8) as f32 + 0.5).min(16_777_215.0) / (1 << 24) as f32;
    -(-uniform.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the reference implementation.
    #[test]
    fn known_answers() {
        let zero = philox([0; 4], [0; 2]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn noise_is_finite_for_every_word() {
        for word in [0, 1 << 8, 0x8000_0000, 0xffff_fe00, 0xffff_ff00, u32::MAX] {
            assert!(gumbel_of(word).abs() < MOST, "{word:#x}: {}", gumbel_of(word));
        }
    }

    #[test]
    fn noise_is_never_above_what_its_word_says() {
        for ones in 0..=32u32 {
            let least = u32::MAX.checked_shl(32 - ones).unwrap_or(0); // the first word that begins so
            for word in [least, least | (u32::MAX.checked_shr(ones + 1).unwrap_or(0))] {
                let (noise, most) = (gumbel_of(word), most([0, word, 0, 0]));
                assert!(noise <= most, "{word:#x}: {noise} above {most}");
            }
        }
        for token in 0..100_000 {
            let words = words(11, 5, token);
            let greatest = words.map(gumbel_of).into_iter().fold(f32::NEG_INFINITY, f32::max);
            assert!(greatest <= most(words), "{words:?}");
        }
    }

    #[test]
    fn gumbel_noise_has_the_right_mean_and_variance() {
        let values: Vec<f64> = (0..40_000).map(|token| f64::from(gumbel(7, 3, token))).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((mean - 0.5772).abs() < 0.03, "mean {mean}");
        assert!((variance - 1.6449).abs() < 0.06, "variance {variance}");
    }
}
