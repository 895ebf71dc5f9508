//! `kernels/attention.cu` and `kernels/attention_split.cu` against the oracle, and against each other: a query has the
//! same bits alone, in company, in any chunking, over packed keys or pages in any order.

use super::{distance, gpu, gpus, normal, on_device, poisoned, read};
use half::bf16;
use pellucid::{
    backend::{Backend, Pages, Segments, cpu::Cpu, plain::Plain},
    tensor::{Dtype, Tensor},
};
use std::ops::Range;

const SCALE: f32 = 0.3;

/// Packed sequences with their heads.
struct Case {
    lengths: Vec<usize>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Case {
    fn new(lengths: &[usize], heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Case { lengths: lengths.to_vec(), heads, kv_heads, head_dim }
    }

    fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn starts(&self) -> Vec<i32> {
        let mut starts = vec![0];
        starts.extend(self.lengths.iter().scan(0, |at, &length| {
            *at += length as i32;
            Some(*at)
        }));
        starts
    }

    /// q, k and v.
    fn inputs(&self) -> [Vec<bf16>; 3] {
        let kv = self.rows() * self.kv_heads * self.head_dim;
        [normal(self.rows() * self.heads * self.head_dim, 1), normal(kv, 2), normal(kv, 3)]
    }

    fn shapes(&self) -> [[usize; 3]; 3] {
        let of = |heads| [self.rows(), heads, self.head_dim];
        [of(self.heads), of(self.kv_heads), of(self.kv_heads)]
    }

    fn emulated(&self, gpu: &dyn Backend, inputs: &[Vec<bf16>; 3], causal: bool) -> Attended {
        let [q, k, v] = [0, 1, 2].map(|i| on_device(gpu, &self.shapes()[i], &inputs[i]));
        let (mut out, mut lse) = Attended::blank(gpu, self.shapes()[0]);
        let starts = on_device(gpu, &[self.lengths.len() + 1], &self.starts());
        let segments = Segments { starts: &starts, parents: None };
        gpu.attention(&mut out, Some(&mut lse), &q, &k, &v, &segments, causal, SCALE).unwrap();
        Attended { out: read(gpu, &out), lse: read(gpu, &lse) }
    }

    /// The same on the host in this dtype: outputs, log-sums.
    fn reference(
        &self,
        host: &dyn Backend,
        dtype: Dtype,
        inputs: &[Vec<bf16>; 3],
        causal: bool,
    ) -> [Vec<f64>; 2] {
        let tensor = |i: usize| Tensor::from_slice(&self.shapes()[i], &inputs[i]).unwrap();
        let q = tensor(0).converted(dtype).unwrap();
        let mut out = Tensor::zeros(dtype, q.shape()).unwrap();
        let mut lse = Tensor::zeros(dtype, &q.shape()[..2]).unwrap();
        let starts = Tensor::from_slice(&[self.lengths.len() + 1], &self.starts()).unwrap();
        let (k, v, segments) = (tensor(1), tensor(2), Segments { starts: &starts, parents: None });
        host.attention(&mut out, Some(&mut lse), &q, &k, &v, &segments, causal, SCALE).unwrap();
        [out.to_f64(), lse.to_f64()]
    }
}

/// What came back from a device.
#[derive(Debug, Clone, PartialEq)]
struct Attended {
    out: Vec<bf16>,
    lse: Vec<f32>,
}

impl Attended {
    fn blank(gpu: &dyn Backend, shape: [usize; 3]) -> (Tensor, Tensor) {
        (poisoned(gpu, &shape), gpu.alloc(Dtype::F32, &shape[..2]).unwrap())
    }

    /// Some rows, as bits.
    fn rows(&self, rows: Range<usize>, heads: usize) -> (Vec<u16>, Vec<u32>) {
        let columns = self.out.len() / self.lse.len();
        let out = &self.out[rows.start * heads * columns..rows.end * heads * columns];
        let lse = &self.lse[rows.start * heads..rows.end * heads];
        assert!(out.iter().all(|v| !v.is_nan()) && lse.iter().all(|v| !v.is_nan()), "NaN in {rows:?}");
        (out.iter().map(|v| v.to_bits()).collect(), lse.iter().map(|v| v.to_bits()).collect())
    }
}

#[test]
fn agrees_with_the_oracle_over_ragged_lengths_heads_and_groups() {
    let gpu = gpu();
    for case in [
        Case::new(&[1], 1, 1, 128),
        Case::new(&[63, 0, 64, 65, 1], 8, 1, 128),
        Case::new(&[258, 3], 7, 1, 128),
        Case::new(&[255, 0, 0, 256], 6, 1, 64),
        Case::new(&[257, 70], 4, 2, 80),
        Case::new(&[513], 2, 2, 64),
        Case::new(&[64, 64, 40, 16, 64], 2, 2, 80),
        Case::new(&[40, 300], 3, 1, 16),
        Case::new(&[90, 1], 4, 2, 20),
        Case::new(&[66], 2, 1, 7),
        Case::new(&[30], 2, 1, 40),
        Case::new(&[70], 2, 1, 72),
        Case::new(&[70], 2, 1, 96),
        Case::new(&[40, 270, 1], 6, 3, 256),
        Case::new(&[17], 2, 1, 136),
    ] {
        let inputs = case.inputs();
        for causal in [true, false] {
            let Case { lengths, heads, kv_heads, head_dim } = &case;
            let what = format!("{lengths:?}, {heads}/{kv_heads} heads of {head_dim}, causal {causal}");
            let got = case.emulated(&gpu, &inputs, causal);
            let exact = case.reference(&Cpu::oracle(), Dtype::F64, &inputs, causal);
            let [out, lse] = case.reference(&Plain::<f32>::default(), Dtype::F32, &inputs, causal);
            let rounded: Vec<f64> = out.iter().map(|&v| bf16::from_f64(v).to_f64()).collect();
            let results: [(Vec<f64>, Vec<f64>); 2] = [
                (got.out.iter().map(|v| v.to_f64()).collect(), rounded),
                (got.lse.iter().map(|&v| v.into()).collect(), lse),
            ];
            for (((got, plain), exact), name) in results.iter().zip(&exact).zip(["out", "lse"]) {
                let (error, allowed) =
                    (distance(got, exact), 2.0 * distance(plain, exact) + f64::from(f32::EPSILON));
                assert!(error <= allowed, "{what}: {name}: error {error:.3e}, allowed {allowed:.3e}");
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_company() {
    let gpu = gpu();
    for (heads, kv_heads, head_dim) in [(7, 1, 64), (4, 2, 24), (2, 2, 144)] {
        let case = Case::new(&[65, 1, 0, 300, 64, 12], heads, kv_heads, head_dim);
        let inputs = case.inputs();
        for causal in [true, false] {
            let together = case.emulated(&gpu, &inputs, causal);
            for (bounds, &length) in case.starts().windows(2).zip(&case.lengths) {
                let rows = bounds[0] as usize..bounds[1] as usize;
                let part = [0, 1, 2].map(|i| {
                    let width = case.shapes()[i][1] * head_dim;
                    inputs[i][rows.start * width..rows.end * width].to_vec()
                });
                let alone = Case::new(&[length], heads, kv_heads, head_dim).emulated(&gpu, &part, causal);
                if length > 0 {
                    assert_eq!(alone.rows(0..length, heads), together.rows(rows, heads));
                }
            }
        }
    }
}

#[test]
fn all_orders_of_threads_give_the_same_bits() {
    for case in [Case::new(&[70, 90], 3, 1, 128), Case::new(&[70, 9], 3, 1, 256)] {
        let inputs = case.inputs();
        let all: Vec<_> = gpus()
            .iter()
            .map(|gpu| case.emulated(gpu, &inputs, true).rows(0..case.rows(), case.heads))
            .collect();
        assert!(all.iter().all(|one| *one == all[0]));
    }
}

/// A paged cache that holds a case's keys in scrambled pages, NaN elsewhere.
struct Paged {
    tables: Vec<Vec<i32>>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    shape: [usize; 4],
}

impl Paged {
    fn new(case: &Case, inputs: &[Vec<bf16>; 3]) -> Self {
        let counts: Vec<usize> = case.lengths.iter().map(|length| length.div_ceil(64)).collect();
        let (used, width) = (counts.iter().sum::<usize>(), *counts.iter().max().unwrap());
        let pages = (used + 2) | 1; // odd, so that even steps reach them all
        let mut next = 0;
        let tables: Vec<Vec<i32>> = counts
            .iter()
            .map(|&count| {
                let mut table: Vec<i32> = (0..count).map(|page| ((next + page) * 2 % pages) as i32).collect();
                next += count;
                table.resize(width, i32::MAX); // read by nobody
                table
            })
            .collect();
        let shape = [pages, case.kv_heads, 64, case.head_dim];
        let row = case.head_dim;
        let fill = |from: &[bf16]| {
            let mut pool = vec![bf16::NAN; shape.iter().product()];
            for (sequence, &start) in case.starts()[..case.lengths.len()].iter().enumerate() {
                for position in 0..case.lengths[sequence] {
                    let page = tables[sequence][position / 64] as usize;
                    for head in 0..case.kv_heads {
                        let to = ((page * case.kv_heads + head) * 64 + position % 64) * row;
                        let at = ((start as usize + position) * case.kv_heads + head) * row;
                        pool[to..to + row].copy_from_slice(&from[at..at + row]);
                    }
                }
            }
            pool
        };
        Paged { k: fill(&inputs[1]), v: fill(&inputs[2]), tables, shape }
    }

    /// The queries at these positions of each sequence, which has no keys after them.
    fn attend(&self, gpu: &dyn Backend, case: &Case, q: &[bf16], positions: &[Range<usize>]) -> Attended {
        let row = case.heads * case.head_dim;
        let (mut packed, mut bounds) = (Vec::new(), vec![0]);
        for (start, positions) in case.starts().iter().zip(positions) {
            let start = *start as usize;
            packed.extend_from_slice(&q[(start + positions.start) * row..(start + positions.end) * row]);
            bounds.push((packed.len() / row) as i32);
        }
        let lengths: Vec<i32> = positions.iter().map(|positions| positions.end as i32).collect();
        let shape = [packed.len() / row, case.heads, case.head_dim];
        let (mut out, mut lse) = Attended::blank(gpu, shape);
        let pages = Pages {
            query_starts: &on_device(gpu, &[bounds.len()], &bounds),
            lengths: &on_device(gpu, &[lengths.len()], &lengths),
            tables: &on_device(gpu, &[self.tables.len(), self.tables[0].len()], &self.tables.concat()),
            groups: None,
        };
        let (q, k, v) = (
            on_device(gpu, &shape, &packed),
            on_device(gpu, &self.shape, &self.k),
            on_device(gpu, &self.shape, &self.v),
        );
        gpu.paged_attention(&mut out, Some(&mut lse), &q, &k, &v, &pages, SCALE).unwrap();
        Attended { out: read(gpu, &out), lse: read(gpu, &lse) }
    }
}

/// Keys after the queries' own are there in the pool, as a longer cache would have them; they must not be seen. Many
/// sequences without queries make blocks enough for the kernel of many queries.
#[test]
fn chunks_and_pages_change_no_bit() {
    let gpu = gpu();
    let mut plans = [false; 3];
    for (lengths, empty, heads, kv_heads, head_dim) in [
        (vec![3, 530, 257], 0, 7, 1, 128),
        (vec![3, 270, 120], 120, 7, 1, 128),
        (vec![600, 64], 60, 16, 2, 80),
        (vec![65, 258], 0, 6, 1, 64),
        (vec![300, 1, 90], 60, 4, 2, 20),
        (vec![280, 20], 0, 2, 1, 256),
    ] {
        let mut case = Case::new(&lengths, heads, kv_heads, head_dim);
        case.lengths.resize(lengths.len() + empty, 0);
        let inputs = case.inputs();
        let whole = case.emulated(&gpu, &inputs, true);
        let paged = Paged::new(&case, &inputs);
        let check = |positions: &[Range<usize>]| {
            let got = paged.attend(&gpu, &case, &inputs[0], positions);
            let mut at = 0;
            for (s, positions) in positions.iter().enumerate().filter(|(_, positions)| !positions.is_empty())
            {
                let start = case.starts()[s] as usize;
                let expected = whole.rows(start + positions.start..start + positions.end, heads);
                let rows = at..at + positions.len();
                at = rows.end;
                let what = format!("sequence {s}, {positions:?} of {lengths:?}, D {head_dim}");
                assert_eq!(got.rows(rows, heads), expected, "{what}");
            }
        };
        let mut done = vec![0; case.lengths.len()];
        for step in 0.. {
            if done == case.lengths {
                break;
            }
            // Ragged steps: single tokens, odd chunks, most of a prompt, nothing.
            let next = |(s, &from): (usize, &usize)| {
                from..case.lengths[s].min(from + [1, 7, 248, 0, 1, 66][(step + s) % 6])
            };
            let positions: Vec<Range<usize>> = done.iter().enumerate().map(next).collect();
            done = positions.iter().map(|positions| positions.end).collect();
            let lines = positions.iter().map(Range::len).sum::<usize>() * heads / kv_heads;
            if lines > 0 {
                let (one_tile, idle) = (lines <= 16 * done.len(), (lines / 64 + done.len()) * kv_heads < 128);
                plans[if one_tile { 0 } else { 1 + usize::from(!idle && head_dim <= 128) }] = true;
                check(&positions);
            }
        }
        // Every sequence decodes its last token.
        check(&case.lengths.iter().map(|&length| length.saturating_sub(1)..length).collect::<Vec<_>>());
    }
    assert_eq!(plans, [true; 3], "one tile of few lines, several of them, tiles of many lines");
}

#[test]
fn what_kernels_cannot_do_is_refused_by_name() {
    let gpu = gpu();
    let refused = |head_dim: usize, dtype: Dtype, scale: f32, expected: &str| {
        let tensor = |shape: &[usize]| gpu.upload(Tensor::zeros(dtype, shape).unwrap()).unwrap();
        let q = tensor(&[2, 2, head_dim]);
        let starts = on_device(&gpu, &[2], &[0, 2]);
        let mut out = tensor(&[2, 2, head_dim]);
        let segments = Segments { starts: &starts, parents: None };
        let result = gpu.attention(&mut out, None, &q, &q, &q, &segments, true, scale);
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("attention: ") && error.contains(expected), "{error}");
    };
    refused(36, Dtype::BF16, 1.0, "heads of 36 elements");
    refused(64, Dtype::F32, 1.0, "has to be bf16");
    refused(64, Dtype::BF16, f32::NAN, "scale is NaN");
    refused(64, Dtype::BF16, 0.0, "scale is 0");
    let tensor = |shape: &[usize]| gpu.upload(Tensor::zeros(Dtype::BF16, shape).unwrap()).unwrap();
    let (q, pool) = (tensor(&[1, 2, 64]), tensor(&[3, 2, 16, 64]));
    let one = on_device(&gpu, &[1], &[1]);
    let pages = Pages {
        query_starts: &on_device(&gpu, &[2], &[0, 1]),
        lengths: &one,
        tables: &on_device(&gpu, &[1, 1], &[0]),
        groups: None,
    };
    let mut out = tensor(&[1, 2, 64]);
    let error = gpu.paged_attention(&mut out, None, &q, &pool, &pool, &pages, 1.0).unwrap_err().to_string();
    assert!(error.contains("pages of 16 positions"), "{error}");
}
