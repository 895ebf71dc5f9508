//! What a case costs at least: the bytes that must move and the operations that must be done, as in the kernels'
//! contracts. Whatever is read is read once, whatever is written is written once.

use super::case::{Case, Then};
use serde::Serialize;

/// Bytes and floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Work {
    pub(crate) bytes: f64,
    pub(crate) flops: f64,
}

/// Bytes of an element of weights and of keys and values.
const HELD: usize = 2;

/// Bytes of an index and of a result of the head.
const WORD: usize = 4;

impl Case {
    /// The work of one call where an activation has so many bytes.
    pub(crate) fn work(&self, activation: usize) -> Work {
        let (bytes, flops) = match *self {
            Case::Linear { t, k, n, r, bias, then } => {
                let vectors = usize::from(bias) + usize::from(then == Then::AddScaled);
                let outs = 1 + usize::from(matches!(then, Then::Add | Then::AddScaled));
                let weights = n * k + r * (n + k) + vectors * n;
                (HELD * weights + activation * t * (k + outs * n), 2 * t * (n * k + r * (n + k)))
            }
            Case::GatedLinear { t, k, n, r, bias } => {
                let weights = 2 * (n * k + r * (n + k) + usize::from(bias) * n);
                (HELD * weights + activation * t * (k + n), 4 * t * (n * k + r * (n + k)))
            }
            Case::RmsNorm { t, c, d } => (activation * 2 * t * c + HELD * d, 4 * t * c),
            Case::LayerNorm { t, c } => (activation * 2 * t * c + HELD * 2 * c, 8 * t * c),
            Case::Rope { t, h, d, axes } => (activation * 2 * t * h * d + WORD * axes * t, 3 * t * h * d),
            Case::Attention { b, length, h, g, d, causal } => {
                let pairs = if causal { length * (length + 1) / 2 } else { length * length };
                let states = activation * 2 * h + HELD * 2 * g;
                (b * length * d * states, 4 * b * pairs * h * d)
            }
            Case::KvAppend { t, g, d } => (2 * t * g * d * (activation + HELD) + WORD * t, 0),
            Case::PagedAttention { b, queries, keys, h, g, d } => {
                let pairs = queries * (keys - queries) + queries * (queries + 1) / 2;
                let states = activation * 2 * queries * h + HELD * 2 * keys * g;
                (b * d * states, 4 * b * pairs * h * d)
            }
            Case::GroupAttention { b, members, shared, keys, h, g, d } => {
                let rows = b * members;
                let read = b * shared + rows * (keys - shared);
                (d * (activation * 2 * rows * h + HELD * 2 * read * g), 4 * rows * keys * h * d)
            }
            Case::GatherRows { t, c, .. } => (t * c * (HELD + activation) + WORD * t, 0),
            Case::ScatterRows { t, c } => (2 * activation * t * c + WORD * t, 0),
            Case::Logprobs { t, c, v } => (HELD * v * c + activation * t * c + 5 * WORD * t, 2 * t * c * v),
            Case::Sample { t, c, v, .. } => (HELD * v * c + activation * t * c + 2 * WORD * t, 2 * t * c * v),
            Case::LinearBackward { t, k, n, r } => {
                // Gradients of parameters are f32, and added to.
                let (weights, gradients) = (n * k + r * (n + k), if r == 0 { n * k } else { r * (n + k) });
                let flops = n * k + if r == 0 { n * k } else { r * (2 * n + 3 * k) };
                let bytes = HELD * weights + 2 * WORD * gradients + activation * t * (n + 2 * k);
                (bytes, 2 * t * flops)
            }
            Case::GatedBackward { t, f } => (6 * activation * t * f, 12 * t * f),
            Case::ActivateBackward { t, f } => (3 * activation * t * f, 6 * t * f),
            Case::RmsNormBackward { t, c, d } => {
                (3 * activation * t * c + HELD * d + 2 * WORD * d, 12 * t * c)
            }
            Case::AttentionBackward { prefix, b, length, h, g, d } => {
                let triangle = |rows: usize| rows * (rows + 1) / 2;
                let pairs = triangle(prefix) + b * (length * prefix + triangle(length));
                let states = d * (4 * activation * h + 2 * (HELD + activation) * g) + WORD * h;
                ((prefix + b * length) * states, 10 * pairs * h * d)
            }
            Case::LogprobsBackward { t, c, v } => {
                (HELD * v * c + 2 * activation * t * c + 3 * WORD * t, 4 * t * c * v)
            }
            Case::GatherRowsBackward { t, c, .. } => (t * c * (activation + 2 * WORD) + WORD * t, t * c),
            Case::Zero { n } => (WORD * n, 0),
            Case::SqNorm { tensors, n } => (tensors * (n + 1) * WORD, 2 * tensors * n),
            Case::Adamw { tensors, n } => (tensors * n * (7 * WORD + activation), 15 * tensors * n),
        };
        Work { bytes: bytes as f64, flops: flops as f64 }
    }
}

impl Work {
    /// Seconds it takes at least on a machine of these ceilings: bytes and operations per second.
    pub(crate) fn floor(&self, bytes: f64, flops: f64) -> f64 {
        (self.bytes / bytes).max(self.flops / flops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_what_the_contracts_say() {
        let case = Case::RmsNorm { t: 4096, c: 3584, d: 3584 };
        assert_eq!(case.work(2).bytes, (4 * 4096 * 3584 + 2 * 3584) as f64); // as kernels/rms_norm.cu has it
        let case = Case::Linear { t: 1, k: 2048, n: 256, r: 0, bias: true, then: Then::Add };
        assert_eq!(
            case.work(4),
            Work {
                bytes: (2 * (2048 * 256 + 256) + 4 * (2048 + 512)) as f64,
                flops: (2 * 2048 * 256) as f64
            }
        );
        let case = Case::Adamw { tensors: 2, n: 100 };
        assert_eq!(case.work(2).bytes, (30 * 200) as f64); // as kernels/optimiser.cu has it
        // One sequence, its queries being all its keys: attention of pages is attention.
        let (h, g, d) = (16, 2, 128);
        let whole = Case::Attention { b: 3, length: 40, h, g, d, causal: true };
        let paged = Case::PagedAttention { b: 3, queries: 40, keys: 40, h, g, d };
        assert_eq!(whole.work(2), paged.work(2));
        // A group that shares nothing is as many sequences.
        let apart = Case::PagedAttention { b: 24, queries: 1, keys: 800, h, g, d };
        let group = |shared| Case::GroupAttention { b: 3, members: 8, shared, keys: 800, h, g, d }.work(2);
        assert_eq!(group(0), apart.work(2));
        assert_eq!(group(0).bytes - group(640).bytes, (3 * 7 * 640 * 4 * g * d) as f64);
    }

    #[test]
    fn the_floor_is_the_slower_of_memory_and_arithmetic() {
        let work = Work { bytes: 8.0, flops: 30.0 };
        assert_eq!((work.floor(4.0, 30.0), work.floor(4.0, 10.0)), (2.0, 3.0));
    }
}
