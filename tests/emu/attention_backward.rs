//! Sequences with parents, and `kernels/attention_backward.cu`: gradients against the oracle over ragged lengths, heads and
//! groups; a child is the end of one long sequence, forward bit for bit.

use super::{distance, gpu, gpus, normal, on_device, poisoned, read};
use half::bf16;
use pellucid::{
    backend::{AttentionGrads, Backend, Segments, cpu::Cpu, plain::Plain},
    tensor::{Dtype, Tensor},
};
use std::ops::Range;

const SCALE: f32 = 0.3;

/// Packed sequences, each with its parent or itself, and heads.
struct Case {
    lengths: Vec<usize>,
    parents: Vec<i32>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Case {
    fn new(lengths: &[usize], parents: &[i32], [heads, kv_heads, head_dim]: [usize; 3]) -> Self {
        let own = 0..lengths.len() as i32;
        let parents = if parents.is_empty() { own.collect() } else { parents.to_vec() };
        Case { lengths: lengths.to_vec(), parents, heads, kv_heads, head_dim }
    }

    fn rows(&self, sequence: usize) -> Range<usize> {
        let first = self.lengths[..sequence].iter().sum();
        first..first + self.lengths[sequence]
    }

    fn total(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn shapes(&self) -> [[usize; 3]; 4] {
        [self.heads, self.kv_heads, self.kv_heads, self.heads]
            .map(|heads| [self.total(), heads, self.head_dim])
    }

    /// q, k, v and dout.
    fn inputs(&self) -> [Vec<bf16>; 4] {
        let mut seed = 0;
        self.shapes().map(|shape| {
            seed += 1;
            normal(shape.iter().product(), seed)
        })
    }

    /// out and lse, and from these, if asked for, dq, dk and dv. Without any parent none are named, either.
    fn run(
        &self,
        backend: &dyn Backend,
        activation: Dtype,
        inputs: &[Vec<bf16>; 4],
        causal: bool,
        backward: bool,
    ) -> Vec<Tensor> {
        let shapes = self.shapes();
        let put = |i: usize, dtype| {
            let host = Tensor::from_slice(&shapes[i], &inputs[i]).unwrap().converted(dtype).unwrap();
            backend.upload(host).unwrap()
        };
        let (q, k, v) = (put(0, activation), put(1, Dtype::BF16), put(2, Dtype::BF16));
        let starts: Vec<i32> =
            (0..=self.lengths.len()).map(|i| self.lengths[..i].iter().sum::<usize>() as i32).collect();
        let starts = on_device(backend, &[starts.len()], &starts);
        let parents = on_device(backend, &[self.parents.len()], &self.parents);
        let alone = self.parents.iter().enumerate().all(|(i, &parent)| i as i32 == parent);
        let segments = Segments { starts: &starts, parents: (!alone).then_some(&parents) };
        let blank = |shape: &[usize]| backend.alloc(activation, shape).unwrap();
        let (mut out, mut lse) =
            (blank(&shapes[0]), backend.alloc(backend.statistic(), &shapes[0][..2]).unwrap());
        backend.attention(&mut out, Some(&mut lse), &q, &k, &v, &segments, causal, SCALE).unwrap();
        if !backward {
            return vec![out, lse];
        }
        let [dq, dk, dv] = [0, 1, 2].map(|i| blank(&shapes[i]));
        let mut grads = AttentionGrads { dq, dk, dv };
        let dout = put(3, activation);
        // What a device keeps of out is rounded.
        let kept = match activation {
            Dtype::F32 => out.converted(Dtype::BF16).unwrap().converted(Dtype::F32).unwrap(),
            _ => out.clone(),
        };
        backend
            .attention_backward(&mut grads, &dout, &kept, &lse, &q, &k, &v, &segments, causal, SCALE)
            .unwrap();
        vec![out, lse, grads.dq, grads.dk, grads.dv]
    }

    fn named(&self, causal: bool) -> String {
        let Case { lengths, parents, heads, kv_heads, head_dim } = self;
        format!("{lengths:?} of {parents:?}, {heads}/{kv_heads} heads of {head_dim}, causal {causal}")
    }

    /// At most twice as far from the oracle as the plain computation in the same dtypes, plus a unit.
    fn check(&self, causal: bool) {
        let inputs = self.inputs();
        let gpu = gpu();
        let got = self.run(&gpu, Dtype::BF16, &inputs, causal, true);
        let exact = self.run(&Cpu::oracle(), Dtype::F64, &inputs, causal, true);
        let plain = self.run(&Plain::<f32>::default(), Dtype::F32, &inputs, causal, true);
        for (index, name) in ["out", "lse", "dq", "dk", "dv"].into_iter().enumerate() {
            let got = gpu.download(&got[index]).unwrap();
            let (plain, exact) =
                (plain[index].converted(got.dtype()).unwrap().to_f64(), exact[index].to_f64());
            let (error, allowed) =
                (distance(&got.to_f64(), &exact), 2.0 * distance(&plain, &exact) + f64::from(f32::EPSILON));
            let what = self.named(causal);
            assert!(error <= allowed, "{what}: {name}: error {error:.3e}, allowed {allowed:.3e}");
        }
    }
}

#[test]
fn gradients_agree_with_the_oracle_over_ragged_lengths_heads_and_groups() {
    for case in [
        Case::new(&[1], &[], [1, 1, 128]),
        Case::new(&[63, 0, 64, 65, 1], &[], [4, 1, 128]),
        Case::new(&[90, 3], &[], [7, 1, 128]),
        Case::new(&[130, 70], &[], [4, 2, 80]),
        Case::new(&[150], &[], [2, 2, 64]),
        Case::new(&[64, 40, 16, 64], &[], [2, 2, 80]),
        Case::new(&[40, 100], &[], [3, 1, 16]),
        Case::new(&[66], &[], [2, 1, 7]),
        Case::new(&[30], &[], [2, 1, 40]),
        Case::new(&[40, 70], &[], [2, 1, 256]),
        Case::new(&[17], &[], [2, 1, 136]),
    ] {
        case.check(true);
        case.check(false);
    }
}

/// Prompts with several completions, one with none, a stranger between, an empty prompt and an empty completion.
fn families() -> Vec<Case> {
    vec![
        Case::new(&[70, 20, 66, 1], &[0, 0, 0, 0], [6, 2, 64]),
        Case::new(&[130, 40, 64, 3, 0, 9], &[0, 1, 0, 1, 0, 0], [2, 1, 128]),
        Case::new(&[0, 5, 64, 64, 30], &[0, 0, 2, 2, 4], [3, 1, 20]),
        Case::new(&[65, 12, 90], &[0, 0, 0], [2, 1, 256]),
        Case::new(&[1, 80, 2], &[0, 0, 0], [4, 4, 80]),
    ]
}

#[test]
fn gradients_of_families_agree_with_the_oracle() {
    families().iter().for_each(|case| case.check(true));
}

/// The packed rows of a parent and its child, one behind the other.
#[test]
fn a_child_has_the_bits_of_the_end_of_one_long_sequence() {
    let gpu = gpu();
    let long = Case::new(&[270, 20, 1], &[0, 0, 0], [2, 1, 64]);
    for case in families().into_iter().chain([long]) {
        let inputs = case.inputs();
        let whole = case.run(&gpu, Dtype::BF16, &inputs, true, false);
        let (out, lse): (Vec<bf16>, Vec<f32>) = (read(&gpu, &whole[0]), read(&gpu, &whole[1]));
        for sequence in 0..case.lengths.len() {
            let parent = case.parents[sequence] as usize;
            let prefix = if parent == sequence { 0..0 } else { case.rows(parent) };
            let own = case.rows(sequence);
            let of = |i: usize| {
                let width = case.shapes()[i][1] * case.head_dim;
                let part = |rows: &Range<usize>| inputs[i][rows.start * width..rows.end * width].to_vec();
                [part(&prefix), part(&own)].concat()
            };
            let length = prefix.len() + own.len();
            if own.is_empty() {
                continue;
            }
            let joined = Case::new(&[length], &[], [case.heads, case.kv_heads, case.head_dim]);
            let alone = joined.run(&gpu, Dtype::BF16, &[0, 1, 2, 3].map(of), true, false);
            let width = case.heads * case.head_dim;
            let what = format!("{}, sequence {sequence}", case.named(true));
            let tail: Vec<bf16> = read(&gpu, &alone[0])[prefix.len() * width..].to_vec();
            assert!(tail == out[own.start * width..own.end * width], "{what}: out");
            let tail: Vec<f32> = read(&gpu, &alone[1])[prefix.len() * case.heads..].to_vec();
            assert!(tail == lse[own.start * case.heads..own.end * case.heads], "{what}: lse");
        }
    }
}

#[test]
fn all_orders_of_threads_give_the_same_bits() {
    for case in &families()[..2] {
        let inputs = case.inputs();
        let run = |gpu: &dyn Backend| -> Vec<Vec<u8>> {
            let all = case.run(gpu, Dtype::BF16, &inputs, true, true);
            all.iter().map(|tensor| gpu.download(tensor).unwrap().bytes().to_vec()).collect()
        };
        let all: Vec<_> = gpus().iter().map(|gpu| run(gpu)).collect();
        assert!(all.iter().all(|one| *one == all[0]));
    }
}

#[test]
fn what_kernels_cannot_do_is_refused_by_name() {
    let gpu = gpu();
    let case = Case::new(&[4, 3], &[0, 0], [2, 1, 64]);
    let [q, k, v] = [0, 1, 2].map(|i| on_device(&gpu, &case.shapes()[i], &case.inputs()[i]));
    let (starts, two) = (on_device(&gpu, &[3], &[0, 4, 7]), on_device(&gpu, &[2], &[0, 0]));
    let three = on_device(&gpu, &[3], &[0, 0, 0]);
    let refused = |parents: &Tensor, causal, expected: &str| {
        let segments = Segments { starts: &starts, parents: Some(parents) };
        let mut out = poisoned(&gpu, q.shape());
        let error =
            gpu.attention(&mut out, None, &q, &k, &v, &segments, causal, 1.0).unwrap_err().to_string();
        assert!(error.starts_with("attention: ") && error.contains(expected), "{error}");
        let blank = |like: &Tensor| poisoned(&gpu, like.shape());
        let mut grads = AttentionGrads { dq: blank(&q), dk: blank(&k), dv: blank(&v) };
        let lse = gpu.alloc(Dtype::F32, &[7, 2]).unwrap();
        let error = gpu
            .attention_backward(&mut grads, &q, &q, &lse, &q, &k, &v, &segments, causal, 1.0)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("attention_backward: ") && error.contains(expected), "{error}");
    };
    refused(&two, false, "causal");
    refused(&three, true, "one for each of 2 sequences");
}
