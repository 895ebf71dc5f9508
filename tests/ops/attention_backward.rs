//! Attention's backward against the f64 oracle, and sequences that continue others.

use crate::{
    WEIGHTS,
    harness::{Random, backends, compare, indices, packed, poisoned, rows, same_bits, wide},
};
use pellucid::{
    backend::{AttentionGrads, Backend, Pages, Segments, cpu::Cpu},
    tensor::{Dtype, Tensor},
};

/// Attention with what its forward gave: in f32, the same for everybody.
pub(super) struct Attended {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    starts: Tensor,
    parents: Option<Tensor>,
    causal: bool,
}

const SCALE: f32 = 0.3;

impl Attended {
    pub(super) fn new(
        random: &mut Random,
        dtype: Dtype,
        starts: &[i32],
        parents: Option<&[i32]>,
        [heads, kv_heads, d]: [usize; 3],
    ) -> Self {
        let t = starts[starts.len() - 1] as usize;
        let mut case = Attended {
            q: random.tensor(Dtype::F32, &[t, heads, d]),
            k: random.tensor(dtype, &[t, kv_heads, d]),
            v: random.tensor(dtype, &[t, kv_heads, d]),
            dout: random.tensor(Dtype::F32, &[t, heads, d]),
            out: poisoned(Dtype::F32, &[t, heads, d]),
            lse: poisoned(Dtype::F32, &[t, heads]),
            starts: indices(starts),
            parents: parents.map(indices),
            causal: true,
        };
        case.attend();
        case
    }

    fn attend(&mut self) {
        let (mut out, mut lse) = (self.out.clone(), self.lse.clone());
        let cpu = Cpu::new(Some(1)).unwrap();
        let Attended { q, k, v, causal, .. } = &*self;
        cpu.attention(&mut out, Some(&mut lse), q, k, v, &self.segments(), *causal, SCALE).unwrap();
        (self.out, self.lse) = (out, lse);
    }

    fn segments(&self) -> Segments<'_> {
        Segments { starts: &self.starts, parents: self.parents.as_ref() }
    }

    pub(super) fn run(&self, backend: &dyn Backend, activation: Dtype) -> Vec<Tensor> {
        let like = |tensor: &Tensor| poisoned(activation, tensor.shape());
        let mut grads = AttentionGrads { dq: like(&self.q), dk: like(&self.k), dv: like(&self.v) };
        let [q, k, v, dout, out, lse] = [&self.q, &self.k, &self.v, &self.dout, &self.out, &self.lse]
            .map(|tensor| wide(tensor, activation));
        let segments = self.segments();
        backend
            .attention_backward(&mut grads, &dout, &out, &lse, &q, &k, &v, &segments, self.causal, SCALE)
            .unwrap();
        vec![grads.dq, grads.dk, grads.dv]
    }
}

#[test]
fn attention_backward_equals_the_oracle() {
    let mut random = Random(25);
    for (starts, parents, sizes) in [
        (vec![0, 1], None, [1, 1, 8]),
        (vec![0, 0, 5, 5, 22], None, [4, 2, 16]),
        (vec![0, 140], None, [7, 1, 64]),
        (vec![0, 256, 300, 301], None, [2, 2, 72]),
        (vec![0, 270, 300, 300, 310, 350], Some([0, 0, 2, 0, 2]), [6, 3, 20]),
    ] {
        for dtype in WEIGHTS {
            let parents = parents.as_ref().map(|parents| &parents[..]);
            let mut case = Attended::new(&mut random, dtype, &starts, parents, sizes);
            for causal in [true, false] {
                if !causal && parents.is_some() {
                    continue;
                }
                case.causal = causal;
                case.attend();
                for backend in backends() {
                    let what = format!("attention_backward {dtype} {starts:?} {sizes:?}, causal {causal}");
                    compare(&what, &backend, |backend, activation| case.run(backend, activation));
                }
            }
        }
    }
}

/// A child behind its parent, the two as one sequence, and the child's queries over a cache of both: same bits.
#[test]
fn a_child_is_the_end_of_one_long_sequence() {
    let mut random = Random(26);
    let ([heads, kv_heads, d], page) = ([6, 2, 40], 64);
    for dtype in WEIGHTS {
        // The parent has 270 rows, a sequence of its own stands between, children have 250 and 3.
        let starts = [0, 270, 277, 527, 530];
        let q = random.tensor(Dtype::F32, &[530, heads, d]);
        let (k, v) = (random.tensor(dtype, &[530, kv_heads, d]), random.tensor(dtype, &[530, kv_heads, d]));
        let (starts, parents) = (indices(&starts), indices(&[0, 1, 0, 0]));
        for backend in backends() {
            let attend = |q: &Tensor, k: &Tensor, v: &Tensor, segments: &Segments<'_>| {
                let mut out = poisoned(Dtype::F32, q.shape());
                let mut lse = poisoned(Dtype::F32, &q.shape()[..2]);
                backend.attention(&mut out, Some(&mut lse), q, k, v, segments, true, SCALE).unwrap();
                [out, lse]
            };
            let all = attend(&q, &k, &v, &Segments { starts: &starts, parents: Some(&parents) });
            for child in [277..527, 527..530] {
                let family = |tensor: &Tensor| {
                    let ids: Vec<i32> = (0..270).chain(child.clone().map(|row| row as i32)).collect();
                    let mut shape = tensor.shape().to_vec();
                    shape[0] = ids.len();
                    let mut out = poisoned(tensor.dtype(), &shape);
                    backend.gather_rows(&mut out, tensor, &indices(&ids)).unwrap();
                    out
                };
                let (long_q, long_k, long_v) = (family(&q), family(&k), family(&v));
                let (length, own) = (270 + child.len(), 270..270 + child.len());
                let long = attend(&long_q, &long_k, &long_v, &packed(&indices(&[0, length as i32])));

                let pages = length.div_ceil(page);
                let pool = || poisoned(dtype, &[pages, kv_heads, page, d]);
                let (mut k_pool, mut v_pool) = (pool(), pool());
                let slots: Vec<i32> = (0..length as i32).collect();
                backend.kv_append(&mut k_pool, &mut v_pool, &long_k, &long_v, &indices(&slots)).unwrap();
                let table: Vec<i32> = (0..pages as i32).collect();
                let q = rows(&q, child.clone());
                let (mut out, mut lse) =
                    (poisoned(Dtype::F32, q.shape()), poisoned(Dtype::F32, &q.shape()[..2]));
                let pages = Pages {
                    query_starts: &indices(&[0, child.len() as i32]),
                    lengths: &indices(&[length as i32]),
                    tables: &Tensor::from_slice(&[1, pages], &table).unwrap(),
                    groups: None,
                };
                backend
                    .paged_attention(&mut out, Some(&mut lse), &q, &k_pool, &v_pool, &pages, SCALE)
                    .unwrap();
                for ((all, long), paged) in all.iter().zip(&long).zip([out, lse]) {
                    same_bits("one sequence", &rows(all, child.clone()), &rows(long, own.clone()));
                    same_bits("paged", &rows(all, child.clone()), &paged);
                }
            }
        }
    }
}
