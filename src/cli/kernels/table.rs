//! The table: every op at the shapes that these models give it.

use super::case::{Case, Then};

/// What a decoder's shapes follow from.
struct Decoder {
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
}

const QWEN2_5_VL_3B: Decoder =
    Decoder { hidden: 2048, ffn: 11008, heads: 16, kv_heads: 2, head_dim: 128, vocabulary: 151_936 };

/// Qwen2-VL-2B, and but for a few tokens InternVL3-2B.
const QWEN2_VL_2B: Decoder =
    Decoder { hidden: 1536, ffn: 8960, heads: 12, kv_heads: 2, head_dim: 128, vocabulary: 151_936 };

/// The adapter's rank where there is one.
const RANK: usize = 16;

/// Axes of multimodal rope: time, height, width.
const AXES: usize = 3;

/// Keys a sequence has while it is decoded: a picture, a question and half an answer.
const CONTEXT: usize = 800;

/// All cases, each once, grouped by op.
pub(crate) fn table() -> Vec<Case> {
    let mut cases = Vec::new();
    for rows in [1, 32, 128, 512, 4096] {
        decoder_linears(&mut cases, &QWEN2_5_VL_3B, rows, RANK);
        decoder_rest(&mut cases, &QWEN2_5_VL_3B, rows);
    }
    for rows in [1, 512] {
        decoder_linears(&mut cases, &QWEN2_5_VL_3B, rows, 0);
    }
    for rows in [1, 128, 512] {
        decoder_linears(&mut cases, &QWEN2_VL_2B, rows, RANK);
        decoder_rest(&mut cases, &QWEN2_VL_2B, rows);
    }
    for decoder in [&QWEN2_5_VL_3B, &QWEN2_VL_2B] {
        decoder_attention(&mut cases, decoder);
    }
    for rows in [512, 4096] {
        decoder_backward(&mut cases, &QWEN2_5_VL_3B, rows);
    }
    towers(&mut cases);
    let mut distinct: Vec<Case> = Vec::with_capacity(cases.len());
    for case in cases {
        if !distinct.contains(&case) {
            distinct.push(case);
        }
    }
    distinct.sort_by_key(Case::op);
    distinct
}

fn decoder_linears(cases: &mut Vec<Case>, decoder: &Decoder, t: usize, r: usize) {
    let Decoder { hidden, ffn, heads, kv_heads, head_dim, .. } = *decoder;
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    cases.extend([
        Case::Linear { t, k: hidden, n: queries, r, bias: true, then: Then::Store },
        Case::Linear { t, k: hidden, n: keys, r, bias: true, then: Then::Store },
        Case::Linear { t, k: queries, n: hidden, r, bias: false, then: Then::Add },
        Case::GatedLinear { t, k: hidden, n: ffn, r, bias: false },
        Case::Linear { t, k: ffn, n: hidden, r, bias: false, then: Then::Add },
    ]);
}

fn decoder_rest(cases: &mut Vec<Case>, decoder: &Decoder, t: usize) {
    let Decoder { hidden, heads, kv_heads, head_dim, vocabulary, .. } = *decoder;
    cases.extend([
        Case::RmsNorm { t, c: hidden, d: hidden },
        Case::RmsNorm { t, c: heads * head_dim, d: head_dim },
        Case::Rope { t, h: heads, d: head_dim, axes: AXES },
        Case::KvAppend { t, g: kv_heads, d: head_dim },
        Case::GatherRows { t, c: hidden, v: vocabulary },
    ]);
    if [1, 128, 512].contains(&t) {
        cases.push(Case::Logprobs { t, c: hidden, v: vocabulary });
    }
    if [1, 128].contains(&t) {
        cases.extend([false, true].map(|top_p| Case::Sample { t, c: hidden, v: vocabulary, top_p }));
    }
}

fn decoder_attention(cases: &mut Vec<Case>, decoder: &Decoder) {
    let Decoder { heads: h, kv_heads: g, head_dim: d, .. } = *decoder;
    for (b, length) in [(1, 512), (8, 512), (1, 4096)] {
        cases.push(Case::Attention { b, length, h, g, d, causal: true });
    }
    for (b, queries, keys) in
        [(1, 1, CONTEXT), (32, 1, CONTEXT), (128, 1, CONTEXT), (1, 1, 16_384), (1, 512, 1024)]
    {
        cases.push(Case::PagedAttention { b, queries, keys, h, g, d });
    }
    // 16 prompts of 600 tokens with 8 answers each: whole pages of them are shared.
    cases.push(Case::GroupAttention { b: 16, members: 8, shared: 576, keys: CONTEXT, h, g, d });
}

/// A step of training: gradients of an adapter, and what is done with them; of full training what that has besides.
fn decoder_backward(cases: &mut Vec<Case>, decoder: &Decoder, t: usize) {
    let Decoder { hidden, ffn, heads: h, kv_heads: g, head_dim: d, vocabulary } = *decoder;
    let linear = |k, n, r| Case::LinearBackward { t, k, n, r };
    let widths = [(hidden, h * d), (hidden, g * d), (h * d, hidden), (hidden, ffn), (ffn, hidden)];
    cases.extend(widths.map(|(k, n)| linear(k, n, RANK)));
    cases.extend([
        linear(hidden, h * d, 0),
        Case::GatedBackward { t, f: ffn },
        Case::ActivateBackward { t, f: ffn },
        Case::RmsNormBackward { t, c: hidden, d: hidden },
        Case::RmsNormBackward { t, c: h * d, d },
        Case::LogprobsBackward { t, c: hidden, v: vocabulary },
        Case::GatherRowsBackward { t, c: hidden, v: 8192 },
    ]);
    // The oracle goes through all pairs of these, one after another.
    for (prefix, b, length) in [(0, 1, 512), (0, 8, 512), (256, 4, 64)] {
        cases.push(Case::AttentionBackward { prefix, b, length, h, g, d });
    }
    // An adapter of rank 16 on all linears: 36 layers of 7 pairs, of one size here.
    let (tensors, n) = (504, 59_392);
    cases.extend([Case::Zero { n: tensors * n }, Case::SqNorm { tensors, n }, Case::Adamw { tensors, n }]);
}

/// Pictures: Qwen's windows of 8 x 8 patches and whole pictures of 1036 x 1036 pixels, InternVL's tiles of 448 x 448.
fn towers(cases: &mut Vec<Case>) {
    let (patches, tile) = (74 * 74, 1025);
    let (r, bias) = (0, true);
    let linear = |t, k, n, then| Case::Linear { t, k, n, r, bias, then };
    // Qwen2.5-VL and Qwen2-VL: the same width, another MLP, another norm.
    let qwen = Case::Attention { b: 1, length: patches, h: 16, g: 16, d: 80, causal: false };
    let windows = Case::Attention { b: patches / 64, length: 64, h: 16, g: 16, d: 80, causal: false };
    for t in [512, patches] {
        cases.extend([
            Case::Linear { t, k: 1176, n: 1280, r, bias: false, then: Then::Store },
            linear(t, 1280, 1280, Then::Add),
            Case::GatedLinear { t, k: 1280, n: 3420, r, bias },
            linear(t, 3420, 1280, Then::Add),
            linear(t, 1280, 5120, Then::QuickGelu),
            linear(t, 5120, 1280, Then::Add),
            linear(t / 4, 5120, 5120, Then::Gelu),
            linear(t / 4, 5120, 2048, Then::Store),
            Case::RmsNorm { t, c: 1280, d: 1280 },
            Case::LayerNorm { t, c: 1280 },
            Case::Rope { t, h: 16, d: 80, axes: 2 },
            Case::ScatterRows { t: t / 4, c: 2048 },
        ]);
    }
    cases.extend([qwen, windows]);
    // InternViT, of 1 and of 12 tiles.
    for tiles in [1, 12] {
        let t = tiles * tile;
        cases.extend([
            linear(t, 588, 1024, Then::Store),
            linear(t, 1024, 1024, Then::AddScaled),
            linear(t, 1024, 4096, Then::Gelu),
            linear(t, 4096, 1024, Then::AddScaled),
            linear(tiles * 256, 4096, 1536, Then::Gelu),
            Case::LayerNorm { t, c: 1024 },
            Case::Attention { b: tiles, length: tile, h: 16, g: 16, d: 64, causal: false },
        ]);
    }
}
