//! Backward ops against the f64 oracle, and against themselves: same arguments, same bits.

use crate::{
    WEIGHTS,
    attention_backward::Attended,
    harness::{Random, backends, compare, indices, packed, poisoned, rows, same_bits, wide},
};
use pellucid::{
    backend::{
        Activation, AdamwParameter, AdamwSettings, AttentionGrads, Backend, Linear, LinearGrads, LoraGrads,
        LoraRows, Segments, cpu::Cpu,
    },
    tensor::{Dtype, Tensor},
};

/// Runs an op on all CPUs, twice and with other numbers of threads: the bits are an instruction set's own.
fn steady(what: &str, op: impl Fn(&dyn Backend) -> Vec<Tensor>) {
    for set in Cpu::instruction_sets() {
        let run = |threads| op(&Cpu::with_instructions(Some(threads), Some(set)).unwrap());
        let first = run(1);
        for threads in [1, 2, 3, 4] {
            for (index, (first, other)) in first.iter().zip(run(threads)).enumerate() {
                same_bits(&format!("{what}, output {index}, {set} on {threads} threads"), first, &other);
            }
        }
    }
}

/// A linear with everything, and what its backward adds to.
struct Case {
    x: Tensor,
    dy: Tensor,
    weight: Tensor,
    bias: Tensor,
    lora: [(std::ops::Range<usize>, Tensor, Tensor, f32); 2],
    /// dx, dW, db, dA, dB, dA, dB.
    before: [Tensor; 7],
}

impl Case {
    fn new(random: &mut Random, dtype: Dtype, [t, k, n]: [usize; 3], ranks: [usize; 2]) -> Self {
        let other = if dtype == Dtype::F32 { Dtype::BF16 } else { Dtype::F32 };
        let mut pair = |rank, dtype| (random.tensor(dtype, &[rank, k]), random.tensor(dtype, &[n, rank]));
        let ((a0, b0), (a1, b1)) = (pair(ranks[0], dtype), pair(ranks[1], other));
        let shapes: [&[usize]; 7] =
            [&[t, k], &[n, k], &[n], &[ranks[0], k], &[n, ranks[0]], &[ranks[1], k], &[n, ranks[1]]];
        Case {
            x: random.tensor(Dtype::F32, &[t, k]),
            dy: random.tensor(Dtype::F32, &[t, n]),
            weight: random.tensor(dtype, &[n, k]),
            bias: random.tensor(dtype, &[n]),
            lora: [(0..t / 3, a0, b0, 0.7), (t / 2..t, a1, b1, -0.1)],
            before: shapes.map(|shape| random.tensor(Dtype::F32, shape)),
        }
    }

    /// All gradients, added to what is there; and dx alone, stored.
    fn run(&self, backend: &dyn Backend, activation: Dtype) -> Vec<Tensor> {
        let lora = self.lora.each_ref().map(|(rows, a, b, scale)| LoraRows {
            rows: rows.clone(),
            a,
            b,
            scale: *scale,
        });
        let linear = Linear { weight: &self.weight, bias: Some(&self.bias), lora: &lora };
        let (x, dy) = (wide(&self.x, activation), wide(&self.dy, activation));
        let mut after = self.before.each_ref().map(|before| wide(before, activation));
        let [dx, weight, bias, a0, b0, a1, b1] = &mut after;
        let lora = vec![LoraGrads { a: a0, b: b0 }, LoraGrads { a: a1, b: b1 }];
        let grads = LinearGrads { weight: Some(weight), bias: Some(bias), lora };
        backend.linear_backward(Some(dx), true, grads, &dy, &x, &linear).unwrap();
        let mut stored = poisoned(activation, x.shape());
        backend.linear_backward(Some(&mut stored), false, LinearGrads::default(), &dy, &x, &linear).unwrap();
        let mut all = after.to_vec();
        all.push(stored);
        all
    }
}

#[test]
fn linear_backward_equals_the_oracle() {
    let mut random = Random(21);
    let ragged = [3, 33];
    for (sizes, ranks) in [
        ([1, 1, 1], ragged),
        ([1, 31, 5], ragged),
        ([7, 33, 18], ragged),
        ([2, 64, 4], ragged),
        ([13, 100, 33], ragged),
        ([150, 48, 131], ragged),
        ([3, 70, 2600], ragged),
        ([600, 17, 50], ragged),
        // Whole blocks and vectors, and more rows than one chunk of their sum.
        ([1300, 96, 80], [16, 24]),
    ] {
        for dtype in WEIGHTS {
            let case = Case::new(&mut random, dtype, sizes, ranks);
            for backend in backends() {
                let what = format!("linear_backward {dtype} {sizes:?}");
                compare(&what, &backend, |backend, activation| case.run(backend, activation));
            }
        }
    }
}

#[test]
fn backward_ops_do_not_depend_on_threads() {
    let mut random = Random(22);
    for dtype in WEIGHTS {
        let case = Case::new(&mut random, dtype, [1100, 96, 208], [16, 33]);
        steady("linear_backward", |backend| case.run(backend, Dtype::F32));
        let attention =
            Attended::new(&mut random, dtype, &[0, 70, 300, 301, 340], Some(&[0, 0, 2, 0]), [4, 2, 24]);
        steady("attention_backward", |backend| attention.run(backend, Dtype::F32));
        let head = Head::new(&mut random, dtype, [300, 24, 1300]);
        steady("logprobs_backward", |backend| head.run(backend, Dtype::F32, 0.7));
        let norm = Norm::new(&mut random, dtype, [700, 96, 48]);
        steady("rms_norm_backward", |backend| norm.run(backend, Dtype::F32));
    }
    let (dout, gradient) = (random.tensor(Dtype::F32, &[400, 33]), random.tensor(Dtype::F32, &[70_000]));
    let ids: Vec<i32> = (0..400).map(|_| random.below(30) as i32).collect();
    steady("gather_rows_backward, sq_norm", |backend| {
        let mut dtable = Tensor::zeros(Dtype::F32, &[30, 33]).unwrap();
        backend.gather_rows_backward(&mut dtable, &dout, &indices(&ids)).unwrap();
        let mut sums = poisoned(Dtype::F32, &[2]);
        backend.sq_norm(&mut sums, &[&gradient, &dout]).unwrap();
        vec![dtable, sums]
    });
}

#[test]
fn pointwise_backward_equals_the_oracle() {
    let mut random = Random(23);
    for shape in [[1, 1], [3, 37], [70, 1000]] {
        // Beyond what exp can take, too.
        let mut input =
            || random.tensor(Dtype::F32, &shape).to_f64().iter().map(|v| v * 8.0).collect::<Vec<_>>();
        let inputs =
            [(); 3].map(|()| Tensor::from_slice(&shape, &input()).unwrap().converted(Dtype::F32).unwrap());
        for backend in backends() {
            for activation in
                [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu]
            {
                compare(&format!("{activation:?} backward {shape:?}"), &backend, |backend, dtype| {
                    let [mut x, mut up, dout] = inputs.each_ref().map(|input| wide(input, dtype));
                    let (mut gate, mut out) = (x.clone(), dout.clone());
                    backend.activate_backward(&mut x, &dout, activation).unwrap();
                    backend.gated_backward(&mut gate, &mut up, &mut out, activation).unwrap();
                    vec![x, gate, up, out]
                });
            }
        }
    }
}

struct Norm {
    x: Tensor,
    dy: Tensor,
    weight: Tensor,
    before: [Tensor; 2],
}

impl Norm {
    fn new(random: &mut Random, dtype: Dtype, [t, c, group]: [usize; 3]) -> Self {
        Norm {
            x: random.tensor(Dtype::F32, &[t, c]),
            dy: random.tensor(Dtype::F32, &[t, c]),
            weight: random.tensor(dtype, &[group]),
            before: [random.tensor(Dtype::F32, &[t, c]), random.tensor(Dtype::F32, &[group])],
        }
    }

    fn run(&self, backend: &dyn Backend, activation: Dtype) -> Vec<Tensor> {
        let [x, dy] = [&self.x, &self.dy].map(|tensor| wide(tensor, activation));
        let [mut dx, mut dweight] = self.before.each_ref().map(|tensor| wide(tensor, activation));
        backend.rms_norm_backward(&mut dx, true, Some(&mut dweight), &dy, &x, &self.weight, 1e-6).unwrap();
        let mut stored = poisoned(activation, x.shape());
        backend.rms_norm_backward(&mut stored, false, None, &dy, &x, &self.weight, 1e-6).unwrap();
        vec![dx, dweight, stored]
    }
}

#[test]
fn rms_norm_backward_equals_the_oracle() {
    let mut random = Random(24);
    for sizes in [[1, 2, 2], [3, 24, 8], [5, 896, 896], [40, 1280, 80], [170, 100, 100]] {
        for dtype in WEIGHTS {
            let case = Norm::new(&mut random, dtype, sizes);
            for backend in backends() {
                compare(&format!("rms_norm_backward {sizes:?}"), &backend, |backend, activation| {
                    case.run(backend, activation)
                });
            }
        }
    }
}

struct Head {
    hidden: Tensor,
    weight: Tensor,
    dlogp: Tensor,
    targets: Tensor,
    before: Tensor,
}

impl Head {
    fn new(random: &mut Random, dtype: Dtype, [t, c, vocabulary]: [usize; 3]) -> Self {
        let targets: Vec<i32> = (0..t).map(|_| random.below(vocabulary) as i32).collect();
        Head {
            hidden: random.tensor(Dtype::F32, &[t, c]),
            weight: random.tensor(dtype, &[vocabulary, c]),
            dlogp: random.tensor(Dtype::F32, &[t]),
            targets: indices(&targets),
            before: random.tensor(Dtype::F32, &[vocabulary, c]),
        }
    }

    fn run(&self, backend: &dyn Backend, activation: Dtype, temperature: f32) -> Vec<Tensor> {
        let (hidden, dlogp) = (wide(&self.hidden, activation), wide(&self.dlogp, activation));
        let cpu = Cpu::new(Some(1)).unwrap();
        let scored = crate::score(&cpu, &self.hidden, &self.weight, &self.targets, temperature, Dtype::F32);
        let lse = wide(&scored[1], activation); // the same for everybody
        let (mut dhidden, mut dweight) =
            (poisoned(activation, hidden.shape()), wide(&self.before, activation));
        let mut alone = dhidden.clone();
        for (dhidden, dweight) in [(&mut dhidden, Some(&mut dweight)), (&mut alone, None)] {
            backend
                .logprobs_backward(
                    dhidden,
                    dweight,
                    &dlogp,
                    &lse,
                    &hidden,
                    &self.weight,
                    &self.targets,
                    temperature,
                )
                .unwrap();
        }
        same_bits("dhidden with and without dweight", &dhidden, &alone);
        vec![dhidden, dweight]
    }
}

#[test]
fn logprobs_backward_equals_the_oracle() {
    let mut random = Random(27);
    for sizes in [[2, 8, 3], [40, 33, 511], [101, 32, 1300], [150, 20, 105]] {
        for dtype in WEIGHTS {
            let head = Head::new(&mut random, dtype, sizes);
            for backend in backends() {
                for temperature in [1.0, 0.6] {
                    let what = format!("logprobs_backward {dtype} {sizes:?} at {temperature}");
                    compare(&what, &backend, |backend, activation| {
                        head.run(backend, activation, temperature)
                    });
                }
            }
        }
    }
}

#[test]
fn rows_gathered_twice_get_both_gradients() {
    let mut random = Random(28);
    let (dout, before) = (random.tensor(Dtype::F32, &[90, 37]), random.tensor(Dtype::F32, &[11, 37]));
    let ids: Vec<i32> = (0..90).map(|_| random.below(10) as i32).collect();
    for backend in backends() {
        compare("gather_rows_backward", &backend, |backend, activation| {
            let mut dtable = wide(&before, activation);
            backend.gather_rows_backward(&mut dtable, &wide(&dout, activation), &indices(&ids)).unwrap();
            vec![rows(&dtable, 10..11), dtable]
        });
    }
}

#[test]
fn bad_arguments_are_refused() {
    let zeros = |shape: &[usize]| Tensor::zeros(Dtype::F32, shape).unwrap();
    // What indices say is read where they lie; a device is not asked.
    for backend in backends().into_iter().filter(|backend| !backend.narrow) {
        let q = zeros(&[4, 2, 8]);
        let (starts, parent) = (indices(&[0, 2, 4]), indices(&[0, 0]));
        for (parents, causal, words) in [
            (&parent, false, ["causal = true", ""]),
            (&indices(&[1, 1]), true, ["parents[0] is 1", "0 itself"]),
            (&indices(&[-1, 1]), true, ["parents[0] is -1", ""]),
            (&indices(&[0]), true, ["parents", "2 sequences"]),
        ] {
            let segments = Segments { starts: &starts, parents: Some(parents) };
            let result = backend.attention(&mut q.clone(), None, &q, &q, &q, &segments, causal, 1.0);
            crate::refused(result, &words);
        }
        // A grandchild.
        let segments = Segments { starts: &indices(&[0, 1, 2, 4]), parents: Some(&indices(&[0, 0, 1])) };
        let result = backend.attention(&mut q.clone(), None, &q, &q, &q, &segments, true, 1.0);
        crate::refused(result, &["parents[2] is 1", "without a parent"]);
        let mut grads = AttentionGrads { dq: q.clone(), dk: q.clone(), dv: zeros(&[4, 1, 8]) };
        let segments = packed(&starts);
        let result =
            backend.attention_backward(&mut grads, &q, &q, &zeros(&[4, 2]), &q, &q, &q, &segments, true, 1.0);
        crate::refused(result, &["attention_backward", "dv", "[4, 2, 8]"]);

        let (x, w, a, b) = (zeros(&[2, 8]), zeros(&[3, 8]), zeros(&[1, 8]), zeros(&[3, 1]));
        let lora = [LoraRows { rows: 0..1, a: &a, b: &b, scale: 1.0 }];
        let linear = Linear { weight: &w, bias: None, lora: &lora };
        let refused = |grads: LinearGrads<'_>, dy: &Tensor, words: &[&str]| {
            crate::refused(backend.linear_backward(None, false, grads, dy, &x, &linear), words);
        };
        let (dy, none) = (zeros(&[2, 3]), LinearGrads::default);
        refused(none(), &zeros(&[2, 4]), &["linear_backward", "dy", "2 rows of 3"]);
        refused(LinearGrads { weight: Some(&mut zeros(&[8, 3])), ..none() }, &dy, &["dweight", "[3, 8]"]);
        refused(LinearGrads { bias: Some(&mut zeros(&[3])), ..none() }, &dy, &["dbias", "no bias"]);
        let [mut da, mut db, mut da2, mut db2] = [a.clone(), b.clone(), a.clone(), b.clone()];
        let two = vec![LoraGrads { a: &mut da, b: &mut db }, LoraGrads { a: &mut da2, b: &mut db2 }];
        refused(LinearGrads { lora: two, ..none() }, &dy, &["2 adapters", "all 1"]);

        let result = backend.gather_rows_backward(&mut zeros(&[3, 8]), &x, &indices(&[0, 3]));
        crate::refused(result, &["gather_rows_backward", "rows[1] is 3"]);
        let result =
            backend.gated_backward(&mut x.clone(), &mut x.clone(), &mut zeros(&[2, 7]), Activation::Silu);
        crate::refused(result, &["gated_backward", "dout", "2 rows of 8"]);
        let result = backend.sq_norm(&mut zeros(&[1]), &[&x, &x]);
        crate::refused(result, &["sq_norm", "out", "[2]"]);

        let [mut master, mut first, mut second] = [(); 3].map(|()| zeros(&[3]));
        let mut step = |gradient: &Tensor, settings: &AdamwSettings, words: &[&str]| {
            let (master, first, second) = (&mut master, &mut first, &mut second);
            let parameter = AdamwParameter { master, first, second, gradient, weight: None, decay: 0.0 };
            crate::refused(backend.adamw(&mut [parameter], settings), words);
        };
        let good =
            AdamwSettings { learning_rate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, step: 1, scale: 1.0 };
        step(&zeros(&[4]), &good, &["adamw", "gradient", "[3]"]);
        step(&zeros(&[3]), &AdamwSettings { step: 0, ..good }, &["step is 0"]);
        step(&zeros(&[3]), &AdamwSettings { beta2: 1.0, ..good }, &["beta2 is 1"]);
        step(&zeros(&[3]), &AdamwSettings { scale: f32::NAN, ..good }, &["scale is NaN"]);
    }
}
