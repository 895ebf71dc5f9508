//! The oracle needs an oracle: each op once, on numbers small enough to work out by hand.

use super::*;
use crate::backend::LoraRows;

const ORACLE: Plain<f64> = Plain { real: PhantomData };

fn tensor(shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::from_slice(shape, values).unwrap()
}

fn indices(values: &[i32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values).unwrap()
}

fn close(tensor: &Tensor, expected: &[f64]) {
    let got = tensor.to_f64();
    let near = got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(near && got.len() == expected.len(), "{got:?} is not {expected:?}");
}

#[test]
fn linear_adds_bias_and_adapter_before_the_epilogue() {
    let (w, b) = (tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), tensor(&[2], &[10.0, 20.0]));
    let (lora_a, lora_b) = (tensor(&[1, 2], &[1.0, 1.0]), tensor(&[2, 1], &[1.0, -1.0]));
    let lora = [LoraRows { rows: 1..2, a: &lora_a, b: &lora_b, scale: 0.5 }];
    let linear = Linear { weight: &w, bias: Some(&b), lora: &lora };
    let x = tensor(&[2, 2], &[1.0, 1.0, 2.0, 4.0]);
    let mut out = tensor(&[2, 2], &[100.0; 4]);
    ORACLE.linear(&mut out, &x, &linear, Epilogue::Add).unwrap();
    close(&out, &[113.0, 127.0, 100.0 + 20.0 + 3.0, 100.0 + 42.0 - 3.0]);
}

#[test]
fn norms_have_unit_scale() {
    let (x, one, zero) = (tensor(&[1, 2], &[3.0, 4.0]), tensor(&[2], &[1.0; 2]), tensor(&[2], &[0.0; 2]));
    let mut out = x.clone();
    ORACLE.rms_norm(&mut out, &x, &one, 0.0).unwrap();
    close(&out, &[3.0 / 12.5f64.sqrt(), 4.0 / 12.5f64.sqrt()]);
    ORACLE.layer_norm(&mut out, &x, &one, &zero, 0.0).unwrap();
    close(&out, &[-1.0, 1.0]);
}

#[test]
fn rope_turns_pairs_half_a_head_apart() {
    let quarter = std::f32::consts::FRAC_PI_2;
    let rope = Rope { inv_freq: Tensor::from_slice(&[2], &[quarter, 0.0]).unwrap(), axis: indices(&[0, 0]) };
    let mut x = tensor(&[1, 4], &[1.0, 5.0, 2.0, 6.0]);
    ORACLE.rope(&mut x, &Tensor::from_slice(&[1, 1], &[1]).unwrap(), &rope, false).unwrap();
    let got = x.to_f64();
    assert!((got[0] + 2.0).abs() < 1e-6 && (got[2] - 1.0).abs() < 1e-6 && got[1] == 5.0 && got[3] == 6.0);
}

#[test]
fn attention_weighs_values_by_the_softmax_of_scores() {
    let q = tensor(&[2, 1, 1], &[1.0, 1.0]);
    let (k, v) = (tensor(&[2, 1, 1], &[0.0, 3f64.ln()]), tensor(&[2, 1, 1], &[8.0, 4.0]));
    let (mut out, mut lse) = (q.clone(), tensor(&[2, 1], &[0.0; 2]));
    let segments = Segments { starts: &indices(&[0, 2]), parents: None };
    ORACLE.attention(&mut out, Some(&mut lse), &q, &k, &v, &segments, true, 1.0).unwrap();
    close(&out, &[8.0, 5.0]);
    close(&lse, &[0.0, 4f64.ln()]);
}

#[test]
fn logprobs_are_those_of_the_tempered_softmax() {
    let (hidden, w) = (tensor(&[1, 1], &[2.0]), tensor(&[4, 1], &[0.0, 3f64.ln(), 3f64.ln(), 0.0]));
    let zero = || tensor(&[1], &[0.0]);
    let mut out = LogProbs { logp: zero(), lse: zero(), entropy: zero(), greedy: indices(&[-1]) };
    ORACLE.logprobs(&mut out, &hidden, &w, &indices(&[3]), 2.0).unwrap();
    close(&out.logp, &[-(8f64.ln())]);
    close(&out.lse, &[8f64.ln()]);
    close(&out.entropy, &[2.0 * (1.0 / 8.0) * 8f64.ln() + 2.0 * (3.0 / 8.0) * (8.0f64 / 3.0).ln()]);
    close(&out.greedy, &[1.0]);
}

#[test]
fn activations_match_their_definitions() {
    // Φ(1) from tables; the others by definition.
    for (activation, expected) in [
        (Activation::Gelu, 0.841_344_746_068_542_9),
        (Activation::GeluTanh, 0.8411919906082768),
        (Activation::Silu, 0.7310585786300049),
        (Activation::QuickGelu, 0.8457957659328212),
    ] {
        assert!((activate(1f64, activation) - expected).abs() < 1e-12, "{activation:?}");
    }
}
