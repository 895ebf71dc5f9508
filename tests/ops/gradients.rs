//! The oracle's backward ops against central differences of its forward ops, in f64.
//!
//! Each case takes the loss Σ out∘direction, perturbs every element of every input, and compares the slope with the
//! gradient. Small and ragged: what is wrong in a formula is wrong at any size.

use crate::harness::{Random, indices};
use pellucid::{
    backend::{
        Activation, AdamwParameter, AdamwSettings, AttentionGrads, Backend, Epilogue, Linear, LinearGrads,
        LogProbs, LoraGrads, LoraRows, Rope, Segments, cpu::Cpu,
    },
    tensor::{Dtype, Tensor},
};

const ACTIVATIONS: [Activation; 4] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu];

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(Dtype::F64, shape).unwrap()
}

fn sum_of_products(a: &Tensor, b: &Tensor) -> f64 {
    a.to_f64().iter().zip(b.to_f64()).map(|(a, b)| a * b).sum()
}

/// b − a
fn difference(a: &Tensor, b: &Tensor) -> Tensor {
    let values: Vec<f64> = a.to_f64().iter().zip(b.to_f64()).map(|(a, b)| b - a).collect();
    Tensor::from_slice(a.shape(), &values).unwrap()
}

/// The same numbers, which bf16 holds exactly.
fn exact_in_bf16(tensor: &Tensor) -> Tensor {
    tensor.converted(Dtype::BF16).unwrap().converted(Dtype::F64).unwrap()
}

/// Holds each gradient to the slope of the loss along each element of its input.
#[track_caller]
fn slopes(what: &str, inputs: &[Tensor], gradients: &[&Tensor], loss: impl Fn(&[Tensor]) -> f64) {
    const STEP: f64 = 1e-5;
    assert_eq!(inputs.len(), gradients.len());
    let mut inputs = inputs.to_vec();
    for at in 0..inputs.len() {
        let expected = gradients[at].to_f64();
        assert_eq!(expected.len(), inputs[at].len());
        let greatest = expected.iter().fold(1.0, |most: f64, value| most.max(value.abs()));
        for (element, &gradient) in expected.iter().enumerate() {
            let value = inputs[at].as_slice::<f64>().unwrap()[element];
            let mut moved = |by: f64| {
                inputs[at].as_mut_slice::<f64>().unwrap()[element] = value + by;
                loss(&inputs)
            };
            let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            moved(0.0);
            let error = (slope - gradient).abs();
            assert!(
                error <= 1e-8 * greatest,
                "{what}: input {at}[{element}]: slope {slope}, gradient {gradient}"
            );
        }
    }
}

#[test]
fn linears() {
    let mut random = Random(1);
    let oracle = Cpu::oracle();
    let (t, k, n) = (5, 7, 6);
    for held in [Dtype::F64, Dtype::BF16] {
        let shapes: [&[usize]; 7] = [&[t, k], &[n, k], &[n], &[3, k], &[n, 3], &[1, k], &[n, 1]];
        let inputs = shapes.map(|shape| exact_in_bf16(&random.tensor(Dtype::F64, shape)));
        let dy = random.tensor(Dtype::F64, &[t, n]);
        fn parts<'a>(inputs: &'a [Tensor], lora: &'a mut Vec<LoraRows<'a>>) -> Linear<'a> {
            *lora = vec![
                LoraRows { rows: 0..2, a: &inputs[3], b: &inputs[4], scale: 0.75 },
                LoraRows { rows: 3..5, a: &inputs[5], b: &inputs[6], scale: -1.5 },
            ];
            Linear { weight: &inputs[1], bias: Some(&inputs[2]), lora }
        }
        let held: Vec<Tensor> = inputs.iter().map(|input| input.converted(held).unwrap()).collect();
        // Gradients are added to what is there.
        let before = shapes.map(|shape| random.tensor(Dtype::F64, shape));
        let mut after = before.clone();
        let [dx, weight, bias, a0, b0, a1, b1] = &mut after;
        let lora = vec![LoraGrads { a: a0, b: b0 }, LoraGrads { a: a1, b: b1 }];
        let grads = LinearGrads { weight: Some(weight), bias: Some(bias), lora };
        oracle
            .linear_backward(Some(dx), true, grads, &dy, &inputs[0], &parts(&held, &mut Vec::new()))
            .unwrap();
        let added: Vec<Tensor> =
            before.iter().zip(&after).map(|(before, after)| difference(before, after)).collect();
        slopes("linear", &inputs, &added.iter().collect::<Vec<_>>(), |inputs| {
            let mut y = zeros(&[t, n]);
            oracle.linear(&mut y, &inputs[0], &parts(inputs, &mut Vec::new()), Epilogue::Store).unwrap();
            sum_of_products(&y, &dy)
        });
        // Or stored, and only what is asked for.
        let mut stored = before[0].clone();
        let bare = Linear { weight: &held[1], bias: None, lora: &[] };
        oracle
            .linear_backward(Some(&mut stored), false, LinearGrads::default(), &dy, &inputs[0], &bare)
            .unwrap();
        slopes("bare linear", &inputs[..1], &[&stored], |x| {
            let mut y = zeros(&[t, n]);
            oracle.linear(&mut y, &x[0], &bare, Epilogue::Store).unwrap();
            sum_of_products(&y, &dy)
        });
    }
}

#[test]
fn pointwise_functions() {
    let mut random = Random(2);
    let oracle = Cpu::oracle();
    // A product with the identity gives the functions alone.
    let shape = [3, 4];
    let identity = Tensor::from_slice(
        &[4, 4],
        &[0, 1, 2, 3].map(|row| [0, 1, 2, 3].map(|at| f64::from(row == at))).concat(),
    );
    let identity = Linear { weight: &identity.unwrap(), bias: None, lora: &[] };
    for activation in ACTIVATIONS {
        let [gate, up, dout] = [(); 3].map(|()| random.tensor(Dtype::F64, &shape));
        let mut dx = gate.clone();
        oracle.activate_backward(&mut dx, &dout, activation).unwrap();
        let applied = |x: &Tensor| {
            let mut out = zeros(&shape);
            oracle.linear(&mut out, x, &identity, Epilogue::Activate(activation)).unwrap();
            out
        };
        slopes("activate", std::slice::from_ref(&gate), &[&dx], |x| sum_of_products(&applied(&x[0]), &dout));

        let (mut dgate, mut dup, mut out) = (gate.clone(), up.clone(), dout.clone());
        oracle.gated_backward(&mut dgate, &mut dup, &mut out, activation).unwrap();
        let product: Vec<f64> =
            applied(&gate).to_f64().iter().zip(up.to_f64()).map(|(f, up)| f * up).collect();
        assert_eq!(out.to_f64(), product);
        slopes("gated", &[gate, up], &[&dgate, &dup], |inputs| {
            let (f, up, dout) = (applied(&inputs[0]).to_f64(), inputs[1].to_f64(), dout.to_f64());
            f.iter().zip(up).zip(dout).map(|((f, up), dout)| f * up * dout).sum()
        });
    }
}

#[test]
fn norms() {
    let mut random = Random(3);
    let oracle = Cpu::oracle();
    for (t, c, group) in [(1, 1, 1), (4, 7, 7), (3, 12, 4)] {
        let (x, weight) = (random.tensor(Dtype::F64, &[t, c]), random.tensor(Dtype::F64, &[group]));
        let dy = random.tensor(Dtype::F64, &[t, c]);
        let before = [random.tensor(Dtype::F64, &[t, c]), random.tensor(Dtype::F64, &[group])];
        let [mut dx, mut dweight] = before.clone();
        oracle.rms_norm_backward(&mut dx, true, Some(&mut dweight), &dy, &x, &weight, 0.01).unwrap();
        let mut stored = before[0].clone();
        oracle.rms_norm_backward(&mut stored, false, None, &dy, &x, &weight, 0.01).unwrap();
        let loss = |inputs: &[Tensor]| {
            let mut y = zeros(&[t, c]);
            oracle.rms_norm(&mut y, &inputs[0], inputs.get(1).unwrap_or(&weight), 0.01).unwrap();
            sum_of_products(&y, &dy)
        };
        let added = [difference(&before[0], &dx), difference(&before[1], &dweight)];
        slopes("norm", &[x.clone(), weight.clone()], &[&added[0], &added[1]], loss);
        slopes("norm, stored", &[x], &[&stored], loss);
    }
}

#[test]
fn rope_is_undone_by_its_inverse() {
    let mut random = Random(4);
    let oracle = Cpu::oracle();
    let rope = Rope { inv_freq: Tensor::from_slice(&[2], &[0.7f32, 0.1]).unwrap(), axis: indices(&[0, 1]) };
    let positions = Tensor::from_slice(&[2, 3], &[0, 5, 9, 2, 2, 40]).unwrap();
    let (x, dy) = (random.tensor(Dtype::F64, &[3, 8]), random.tensor(Dtype::F64, &[3, 8]));
    let mut dx = dy.clone();
    oracle.rope(&mut dx, &positions, &rope, true).unwrap();
    slopes("rope", &[x], &[&dx], |x| {
        let mut y = x[0].clone();
        oracle.rope(&mut y, &positions, &rope, false).unwrap();
        sum_of_products(&y, &dy)
    });
}

#[test]
fn attention() {
    let mut random = Random(5);
    let oracle = Cpu::oracle();
    let starts = indices(&[0, 3, 3, 7, 9, 10]);
    let family = indices(&[0, 1, 0, 1, 0]); // two children of the first, one of an empty one
    let (t, scale) = (10, 0.4);
    for (heads, kv_heads, d) in [(4, 2, 3), (3, 1, 2), (2, 2, 5)] {
        for (causal, parents) in [(true, None), (false, None), (true, Some(&family))] {
            let segments = Segments { starts: &starts, parents };
            let (q, kv) = ([t, heads, d], [t, kv_heads, d]);
            let inputs = [&q, &kv, &kv].map(|shape| random.tensor(Dtype::F64, shape));
            let dout = random.tensor(Dtype::F64, &q);
            let forward = |inputs: &[Tensor]| {
                let (mut out, mut lse) = (zeros(&q), zeros(&q[..2]));
                let [q, k, v] = [0, 1, 2].map(|at| &inputs[at]);
                oracle.attention(&mut out, Some(&mut lse), q, k, v, &segments, causal, scale).unwrap();
                (out, lse)
            };
            let (out, lse) = forward(&inputs);
            let random = [&q, &kv, &kv].map(|shape| random.tensor(Dtype::F64, shape));
            let [dq, dk, dv] = random; // is replaced
            let mut grads = AttentionGrads { dq, dk, dv };
            let [q, k, v] = &inputs;
            oracle
                .attention_backward(&mut grads, &dout, &out, &lse, q, k, v, &segments, causal, scale)
                .unwrap();
            let what = format!("attention {heads}/{kv_heads} of {d}, causal {causal}, {parents:?}");
            slopes(&what, &inputs, &[&grads.dq, &grads.dk, &grads.dv], |inputs| {
                sum_of_products(&forward(inputs).0, &dout)
            });
        }
    }
}

#[test]
fn log_probs() {
    let mut random = Random(6);
    let oracle = Cpu::oracle();
    let (t, c, v) = (4, 5, 9);
    let targets = indices(&[8, 0, 3, 3]);
    for temperature in [1.0, 0.6] {
        let inputs = [random.tensor(Dtype::F64, &[t, c]), random.tensor(Dtype::F64, &[v, c])];
        let dlogp = random.tensor(Dtype::F64, &[t]);
        let forward = |inputs: &[Tensor]| {
            let [logp, lse, entropy] = [(); 3].map(|()| zeros(&[t]));
            let mut out = LogProbs { logp, lse, entropy, greedy: indices(&[0; 4]) };
            oracle.logprobs(&mut out, &inputs[0], &inputs[1], &targets, temperature).unwrap();
            out
        };
        let lse = forward(&inputs).lse;
        let before = random.tensor(Dtype::F64, &[v, c]);
        let (mut dhidden, mut dweight) = (random.tensor(Dtype::F64, &[t, c]), before.clone());
        let [hidden, weight] = &inputs;
        oracle
            .logprobs_backward(
                &mut dhidden,
                Some(&mut dweight),
                &dlogp,
                &lse,
                hidden,
                weight,
                &targets,
                temperature,
            )
            .unwrap();
        slopes("log-probs", &inputs, &[&dhidden, &difference(&before, &dweight)], |inputs| {
            sum_of_products(&forward(inputs).logp, &dlogp)
        });
    }
}

#[test]
fn gathered_rows() {
    let mut random = Random(7);
    let oracle = Cpu::oracle();
    let rows = indices(&[4, 0, 4, 4, 2]);
    let (table, dout) = (random.tensor(Dtype::F64, &[5, 3]), random.tensor(Dtype::F64, &[5, 3]));
    let before = random.tensor(Dtype::F64, &[5, 3]);
    let mut after = before.clone();
    oracle.gather_rows_backward(&mut after, &dout, &rows).unwrap();
    slopes("gather_rows", &[table], &[&difference(&before, &after)], |table| {
        let mut out = zeros(&[5, 3]);
        oracle.gather_rows(&mut out, &table[0], &rows).unwrap();
        sum_of_products(&out, &dout)
    });
}

/// Three steps of `torch.optim.AdamW` in f64: lr 0.01, betas 0.9 and 0.98, eps 1e-6, weight decay 0.1, gradients halved.
#[test]
fn adamw_is_that_of_torch() {
    let mut master = Tensor::from_slice(&[4], &[1.0, -2.0, 0.5, 3.0]).unwrap();
    let (mut first, mut second) = (zeros(&[4]), zeros(&[4]));
    let mut weight = Tensor::from_slice(&[4], &[f32::NAN; 4]).unwrap();
    for (step, gradient) in
        [[0.5, -1.0, 0.0, 2.0], [0.25, 3.0, -0.125, 2.0], [-0.5, 1.0, 1.0, -2.0]].iter().enumerate()
    {
        let gradient = Tensor::from_slice(&[4], gradient).unwrap();
        let parameter = AdamwParameter {
            master: &mut master,
            first: &mut first,
            second: &mut second,
            gradient: &gradient,
            weight: Some(&mut weight),
            decay: 0.1,
        };
        let settings = AdamwSettings {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-6,
            step: step as u64 + 1,
            scale: 0.5,
        };
        Cpu::oracle().adamw(&mut [parameter], &settings).unwrap();
    }
    // Settings are f32, so that they agree with torch's to as many digits.
    let torch = [0.9765758545716108, -1.99451358660106, 0.5003266940542954, 2.968419083390651];
    for (got, expected) in master.to_f64().iter().zip(torch) {
        assert!((got - expected).abs() < 1e-8, "{got} is not {expected}");
    }
    assert_eq!(weight.to_f64(), master.converted(Dtype::F32).unwrap().to_f64());
}

#[test]
fn squares_are_summed() {
    let mut out = Tensor::from_slice(&[2], &[f64::NAN; 2]).unwrap();
    let tensors = [Tensor::from_slice(&[3], &[1.0, -2.0, 0.5]).unwrap(), zeros(&[0])];
    Cpu::oracle().sq_norm(&mut out, &[&tensors[0], &tensors[1]]).unwrap();
    assert_eq!(out.to_f64(), [5.25, 0.0]);
}
