//! Keys that sequences have in common: read once for all of them or by each from pages of its own, the same bits.

use crate::all_backends;
use crate::harness::{Random, backends, indices, poisoned, same_bits};
use pellucid::{
    backend::{Backend, Groups, Pages},
    tensor::{Dtype, Tensor},
};

/// Sequences whose first `shared` pages are those of their group, and whose others are their own.
struct Group {
    shared: usize,
    /// Keys and queries of each sequence.
    members: Vec<(usize, usize)>,
}

fn group(shared: usize, members: &[(usize, usize)]) -> Group {
    Group { shared, members: members.to_vec() }
}

struct Batch {
    query_starts: Vec<i32>,
    lengths: Vec<i32>,
    /// As the groups have them, and with pages of each sequence's own that hold the same.
    shared: Vec<i32>,
    apart: Vec<i32>,
    width: usize,
    group_starts: Vec<i32>,
    common: Vec<i32>,
    pages: usize,
}

impl Batch {
    fn new(groups: &[Group], page: usize, random: &mut Random) -> Self {
        let members = || groups.iter().flat_map(|group| &group.members);
        let width = members().map(|&(keys, _)| keys.div_ceil(page)).max().unwrap();
        let most = 2 * width * members().count();
        let mut numbers = random.permutation(most).into_iter();
        let mut batch = Batch {
            query_starts: vec![0],
            lengths: Vec::new(),
            shared: Vec::new(),
            apart: Vec::new(),
            width,
            group_starts: vec![0],
            common: Vec::new(),
            pages: most,
        };
        for group in groups {
            let prefix: Vec<i32> = numbers.by_ref().take(group.shared).collect();
            for &(keys, queries) in &group.members {
                assert!(group.shared * page <= keys - queries);
                batch.query_starts.push(batch.query_starts.last().unwrap() + queries as i32);
                batch.lengths.push(keys as i32);
                batch.common.push((group.shared * page) as i32);
                let own: Vec<i32> = numbers.by_ref().take(keys.div_ceil(page) - group.shared).collect();
                let copies: Vec<i32> = numbers.by_ref().take(group.shared).collect();
                for (table, prefix) in [(&mut batch.shared, &prefix), (&mut batch.apart, &copies)] {
                    table.extend(prefix.iter().chain(&own));
                    table.resize(batch.lengths.len() * width, -1);
                }
            }
            batch.group_starts.push(batch.lengths.len() as i32);
        }
        batch
    }

    /// A pool of random keys in which pages that stand for the same hold the same.
    fn pool(&self, random: &mut Random, dtype: Dtype, row: &[usize]) -> Tensor {
        let shape = [&[self.pages], row].concat();
        let mut pool = random.tensor(dtype, &shape);
        let bytes = pool.byte_len() / self.pages;
        for (&from, &to) in self.shared.iter().zip(&self.apart).filter(|(from, to)| from != to) {
            let from = from as usize * bytes;
            pool.bytes_mut().unwrap().copy_within(from..from + bytes, to as usize * bytes);
        }
        pool
    }

    fn attend(
        &self,
        backend: &dyn Backend,
        q: &Tensor,
        [k, v]: [&Tensor; 2],
        tables: &[i32],
        grouped: bool,
    ) -> [Tensor; 2] {
        let mut out = poisoned(Dtype::F32, q.shape());
        let mut lse = poisoned(Dtype::F32, &q.shape()[..2]);
        let (starts, shared) = (indices(&self.group_starts), indices(&self.common));
        let pages = Pages {
            query_starts: &indices(&self.query_starts),
            lengths: &indices(&self.lengths),
            tables: &Tensor::from_slice(&[self.lengths.len(), self.width], tables).unwrap(),
            groups: grouped.then_some(Groups { starts: &starts, shared: &shared }),
        };
        backend.paged_attention(&mut out, Some(&mut lse), q, k, v, &pages, 0.2).unwrap();
        [out, lse]
    }
}

/// Several groups and lone sequences in one batch, ragged, decoding and in chunks, for many ratios of heads.
#[test]
fn a_shared_prefix_changes_no_bit() {
    let mut random = Random(31);
    for (dtype, page) in [(Dtype::F32, 16), (Dtype::BF16, 16), (Dtype::BF16, 64)] {
        let keys = |pages: usize, more: usize| pages * 64 + more;
        let decoding = [
            group(9 * 64 / page, &[(keys(9, 1), 1), (keys(9, 70), 1), (keys(12, 64), 1), (keys(9, 7), 1)]),
            group(0, &[(3, 1)]),
            group(4 * 64 / page, &[(keys(4, 90), 1), (keys(4, 2), 1), (keys(9, 3), 1)]),
            group(0, &[(keys(5, 1), 1)]),
            group(64 / page, &[(keys(1, 9), 1), (keys(1, 1), 1)]),
        ];
        let chunks = [
            group(5 * 64 / page, &[(keys(5, 5), 5), (keys(5, 1), 1), (keys(6, 30), 40), (keys(7, 9), 2)]),
            group(4 * 64 / page, &[(keys(5, 1), 33)]),
            group(0, &[(20, 20)]),
        ];
        for (at, (groups, heads, kv_heads, d)) in [
            (&decoding[..], 1, 1, 16),
            (&decoding, 2, 1, 16),
            (&decoding, 6, 2, 72),
            (&decoding, 4, 1, 24),
            (&decoding, 5, 1, 40),
            (&decoding, 12, 2, 16),
            (&decoding, 7, 1, 20),
            (&decoding, 3, 1, 128),
            (&chunks, 3, 1, 16),
            (&chunks, 14, 2, 64),
        ]
        .into_iter()
        .enumerate()
        {
            let batch = Batch::new(groups, page, &mut random);
            let rows = *batch.query_starts.last().unwrap() as usize;
            let q = random.tensor(Dtype::F32, &[rows, heads, d]);
            let [k, v] = [(); 2].map(|()| batch.pool(&mut random, dtype, &[kv_heads, page, d]));
            // Devices have pages of 64.
            for backend in backends().into_iter().filter(|backend| page == 64 || !backend.narrow) {
                let apart = batch.attend(&*backend, &q, [&k, &v], &batch.apart, false);
                for (tables, grouped) in [(&batch.shared, false), (&batch.shared, true)] {
                    let together = batch.attend(&*backend, &q, [&k, &v], tables, grouped);
                    let what = format!("{dtype}, pages of {page}, case {at}, {}", backend.describe());
                    for (together, apart) in together.iter().zip(&apart) {
                        same_bits(&what, together, apart);
                    }
                }
            }
        }
    }
}

/// Groups that share what they say they share, or an error; a device trusts the host.
#[test]
fn groups_that_share_nothing_are_refused_in_host_memory() {
    let mut random = Random(32);
    let sound = || Batch::new(&[group(2, &[(40, 1), (50, 8)]), group(0, &[(5, 1)])], 16, &mut Random(33));
    let q = random.tensor(Dtype::F32, &[10, 2, 8]);
    let pool = random.tensor(Dtype::F32, &[sound().pages, 1, 16, 8]);
    let attend = |backend: &dyn Backend, batch: &Batch| {
        let (starts, shared) = (indices(&batch.group_starts), indices(&batch.common));
        let pages = Pages {
            query_starts: &indices(&batch.query_starts),
            lengths: &indices(&batch.lengths),
            tables: &Tensor::from_slice(&[3, batch.width], &batch.shared).unwrap(),
            groups: Some(Groups { starts: &starts, shared: &shared }),
        };
        backend.paged_attention(&mut q.clone(), None, &q, &pool, &pool, &pages, 1.0)
    };
    type Spoil = fn(&mut Batch);
    let breaks: [(&str, Spoil); 6] = [
        ("shared[1] is 16", |batch| batch.common[1] = 16),
        ("shared[0] is 8", |batch| batch.common[..2].fill(8)),
        ("shared[0] is 48", |batch| batch.common[..2].fill(48)),
        ("shared[0] is -16", |batch| batch.common[..2].fill(-16)),
        ("shared[1] is 32", |batch| batch.shared.swap(batch.width, batch.width + 3)),
        ("from 0 to 3", |batch| batch.group_starts[2] = 2),
    ];
    for backend in all_backends().into_iter().filter(|backend| !backend.narrow) {
        attend(&*backend, &sound()).unwrap();
        for (words, spoil) in breaks {
            let mut batch = sound();
            spoil(&mut batch);
            let error = attend(&*backend, &batch).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
