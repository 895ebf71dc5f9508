//! What one forward pass works on: runs of tokens from any number of sequences, back to back.
//!
//! No batch axis and no padding. A run may be a whole prompt, a chunk of one, or a single decoded token;
//! the model does not know the difference.

use super::cache::{PAGE, pages_for, slot};
use super::positions::Positions;
use crate::backend::{Backend, Groups, Pages};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::ops::Range;

/// Some consecutive tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    /// The tokens to compute.
    pub tokens: &'a [u32],
    /// If the host has not seen its only token: the seat where the device has it (see [`super::Workspace::reserve_seats`]). What
    /// then stands in `tokens` does not matter.
    pub seat: Option<u32>,
    /// How many tokens of the sequence are in the cache already.
    pub start: usize,
    /// Rotary positions of the whole sequence.
    pub positions: &'a Positions,
    /// The sequence's pages, enough for `start + tokens.len()` positions.
    pub pages: &'a [u32],
    /// Image features that replace token embeddings in this sequence.
    pub images: &'a [PlacedImage<'a>],
}

/// An image's features, and the sequence positions they stand at.
#[derive(Debug, Clone)]
pub struct PlacedImage<'a> {
    /// Positions in the sequence, as many as there are features.
    pub tokens: Range<usize>,
    /// `[tokens, C]`.
    pub features: &'a Tensor,
}

/// The runs of one forward pass as the ops want them; all index tensors are i32.
#[derive(Debug)]
pub struct Packed {
    /// Token ids `[T]`.
    pub(crate) tokens: Tensor,
    /// Rotary positions `[axes, T]`.
    pub(crate) positions: Tensor,
    /// Cache slot of each token `[T]`.
    pub(crate) slots: Tensor,
    /// Where each run starts `[B+1]`.
    pub(crate) query_starts: Tensor,
    /// Cached tokens per sequence, this run's included `[B]`.
    pub(crate) lengths: Tensor,
    /// Pages per sequence `[B, max pages]`.
    pub(crate) tables: Tensor,
    /// Which runs' pages begin alike, if any do: where each group starts, and the keys its runs have in common `[B]`.
    pub(crate) groups: Option<[Tensor; 2]>,
    /// `T`.
    pub(crate) rows: usize,
}

/// The same on the host, groups last if there are any.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) tensors: Vec<Tensor>,
    rows: usize,
}

/// Elements at multiples of which a tensor begins among joined ones: what kernels may ask of an address.
const GRAIN: usize = 64;

impl Layout {
    /// Lays `runs` out with tables of at least `width` pages. If `filled`, there are as many groups as runs, the last of
    /// them empty, wherever there are any.
    pub(super) fn of(runs: &[Run<'_>], axes: usize, width: usize, filled: bool) -> Result<Self> {
        let rows: usize = runs.iter().map(|run| run.tokens.len()).sum();
        let width = runs.iter().map(|run| pages_for(run.start + run.tokens.len())).fold(width, usize::max);
        let mut tokens = Vec::with_capacity(rows);
        let mut positions = vec![0i32; axes * rows];
        let mut slots = Vec::with_capacity(rows);
        let mut query_starts = vec![0i32];
        let mut lengths = Vec::with_capacity(runs.len());
        let mut tables = vec![0i32; runs.len() * width];
        for (run, table) in runs.iter().zip(tables.chunks_mut(width.max(1))) {
            let end = run.start + run.tokens.len();
            if run.tokens.is_empty()
                || end > run.pages.len() * PAGE
                || (run.seat.is_some() && run.tokens.len() > 1)
            {
                return Err(Error::internal(
                    "pack",
                    format!("a run of tokens {}..{end} with {} pages", run.start, run.pages.len()),
                ));
            }
            for (index, &token) in (run.start..).zip(run.tokens) {
                for (axis, position) in run.positions.at(index).into_iter().take(axes).enumerate() {
                    positions[axis * rows + tokens.len()] = position;
                }
                slots.push(slot(run.pages, index)?);
                tokens.push(run.seat.map_or(token as i32, |seat| !(seat as i32)));
            }
            query_starts.push(tokens.len() as i32);
            lengths.push(end as i32);
            for (entry, &page) in table.iter_mut().zip(run.pages) {
                *entry = page as i32;
            }
        }
        let common: Vec<usize> = runs.windows(2).map(|pair| common_pages(&pair[0], &pair[1])).collect();
        let (mut group_starts, mut shared) = (vec![0], Vec::with_capacity(runs.len()));
        for Group { runs, pages } in groups(&common) {
            group_starts.push(runs.end as i32);
            shared.extend(runs.map(|_| (pages * PAGE) as i32));
        }
        let mut tensors = vec![
            Tensor::from_slice(&[rows], &tokens)?,
            Tensor::from_slice(&[axes, rows], &positions)?,
            Tensor::from_slice(&[rows], &slots)?,
            Tensor::from_slice(&[runs.len() + 1], &query_starts)?,
            Tensor::from_slice(&[runs.len()], &lengths)?,
            Tensor::from_slice(&[runs.len(), width], &tables)?,
        ];
        if group_starts.len() <= runs.len() {
            if filled {
                group_starts.resize(runs.len() + 1, runs.len() as i32);
            }
            tensors.push(Tensor::from_slice(&[group_starts.len()], &group_starts)?);
            tensors.push(Tensor::from_slice(&[runs.len()], &shared)?);
        }
        Ok(Layout { tensors, rows })
    }

    /// Whether some runs begin alike.
    pub(super) fn has_groups(&self) -> bool {
        self.tensors.len() > 6
    }

    /// Brings all of it to a backend.
    pub(super) fn upload(self, backend: &dyn Backend) -> Result<Packed> {
        let tensors = self.tensors.into_iter().map(|tensor| backend.upload(tensor));
        Packed::of(tensors.collect::<Result<_>>()?, self.rows)
    }
}

/// Host tensors of i32 as one, each behind the other.
pub(super) fn joined(tensors: &[Tensor]) -> Result<Tensor> {
    let mut all: Vec<i32> = Vec::new();
    for tensor in tensors {
        all.extend_from_slice(tensor.as_slice()?);
        all.resize(all.len().next_multiple_of(GRAIN), 0);
    }
    Tensor::from_slice(&[all.len()], &all)
}

/// What [`joined`] gave, on a backend, as windows into it.
pub(super) fn windows(tensors: &[Tensor], joined: &Tensor) -> Result<Vec<Tensor>> {
    let mut start = 0;
    let window = |tensor: &Tensor| {
        let window = joined.rows_of(start..start + tensor.len())?.reshaped(tensor.shape());
        start += tensor.len().next_multiple_of(GRAIN);
        window
    };
    tensors.iter().map(window).collect()
}

impl Packed {
    /// Lays `runs` out for a decoder whose positions have `axes` axes.
    pub fn build(backend: &dyn Backend, runs: &[Run<'_>], axes: usize) -> Result<Self> {
        Layout::of(runs, axes, 0, false)?.upload(backend)
    }

    pub(super) fn of(tensors: Vec<Tensor>, rows: usize) -> Result<Self> {
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().ok_or_else(|| Error::internal("pack", "a tensor is missing"));
        Ok(Packed {
            tokens: next()?,
            positions: next()?,
            slots: next()?,
            query_starts: next()?,
            lengths: next()?,
            tables: next()?,
            groups: tensors.next().zip(tensors.next()).map(|(starts, shared)| [starts, shared]),
            rows,
        })
    }

    /// What the runs see.
    pub(crate) fn pages(&self) -> Pages<'_> {
        let groups = self.groups.as_ref().map(|[starts, shared]| Groups { starts, shared });
        Pages { query_starts: &self.query_starts, lengths: &self.lengths, tables: &self.tables, groups }
    }
}

/// Neighbouring runs whose first pages are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    runs: Range<usize>,
    pages: usize,
}

/// Pages that two runs begin with alike and that were full before either.
fn common_pages(a: &Run<'_>, b: &Run<'_>) -> usize {
    let full = a.start.min(b.start) / PAGE;
    a.pages.iter().zip(b.pages).take(full).take_while(|(a, b)| a == b).count()
}

/// Cuts runs into groups such that the fewest pages are read, given what each has in common with the next: n runs that
/// begin with k common pages spare (n - 1) k.
fn groups(common: &[usize]) -> Vec<Group> {
    let runs = common.len() + 1;
    // For the first runs: what is spared at best, and the last group then.
    let mut best = vec![(0, Group { runs: 0..0, pages: 0 })];
    for end in 1..=runs {
        let mut pages = usize::MAX;
        let mut choice = (best[end - 1].0, Group { runs: end - 1..end, pages: 0 });
        for start in (0..end - 1).rev() {
            pages = pages.min(common[start]);
            let spared = best[start].0 + (end - start - 1) * pages;
            if spared > choice.0 {
                choice = (spared, Group { runs: start..end, pages });
            }
            if pages == 0 {
                break;
            }
        }
        best.push(choice);
    }
    let mut all = Vec::new();
    let mut end = runs;
    while end > 0 {
        let group = best[end].1.clone();
        end = group.runs.start;
        all.push(group);
    }
    all.reverse();
    all
}

/// Writes the image features that fall into the runs over their token embeddings `hidden` `[T, C]`.
pub(crate) fn place_images(backend: &dyn Backend, hidden: &mut Tensor, runs: &[Run<'_>]) -> Result<()> {
    let mut first_row = 0;
    for run in runs {
        let end = run.start + run.tokens.len();
        for image in run.images {
            let (from, to) = (image.tokens.start.max(run.start), image.tokens.end.min(end));
            if from >= to {
                continue;
            }
            let index = |range: Range<usize>| -> Result<Tensor> {
                let values: Vec<i32> = range.map(|i| i as i32).collect();
                backend.upload(Tensor::from_slice(&[values.len()], &values)?)
            };
            let width = hidden.row_len();
            let mut piece = backend.alloc(hidden.dtype(), &[to - from, width])?;
            let wanted = index(from - image.tokens.start..to - image.tokens.start)?;
            backend.gather_rows(&mut piece, image.features, &wanted)?;
            let rows = index(first_row + from - run.start..first_row + to - run.start)?;
            backend.scatter_rows(hidden, &piece, &rows)?;
        }
        first_row += run.tokens.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every way to cut spares.
    fn most(common: &[usize]) -> usize {
        let runs = common.len() + 1;
        let cuts = 0..1u32 << common.len();
        let spared = cuts.map(|cuts| {
            let (mut all, mut start) = (0, 0);
            for end in (1..=runs).filter(|&end| end == runs || cuts >> (end - 1) & 1 == 1) {
                all += (end - start - 1) * common[start..end - 1].iter().min().unwrap_or(&0);
                start = end;
            }
            all
        });
        spared.max().unwrap_or(0)
    }

    #[test]
    fn groups_spare_the_most_pages_that_cuts_can() {
        let mut seed = 1u64;
        for length in 0..10 {
            for _ in 0..200 {
                let next = |_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    [0, 0, 1, 1, 2, 9][(seed >> 33) as usize % 6]
                };
                let common: Vec<usize> = (0..length).map(next).collect();
                let groups = groups(&common);
                assert!(groups.windows(2).all(|pair| pair[0].runs.end == pair[1].runs.start), "{groups:?}");
                assert_eq!((groups[0].runs.start, groups[groups.len() - 1].runs.end), (0, length + 1));
                for Group { runs, pages } in &groups {
                    let least = common[runs.start..runs.end - 1].iter().min().copied().unwrap_or(0);
                    assert_eq!(*pages, least, "{groups:?} of {common:?}");
                }
                let spared: usize = groups.iter().map(|group| (group.runs.len() - 1) * group.pages).sum();
                assert_eq!(spared, most(&common), "{groups:?} of {common:?}");
            }
        }
    }

    #[test]
    fn siblings_stay_together_beside_a_stranger_with_the_same_first_page() {
        let group = |runs, pages| Group { runs, pages };
        assert_eq!(groups(&[1, 9, 9, 1, 4]), [group(0..1, 0), group(1..4, 9), group(4..6, 4)]);
    }

    #[test]
    fn a_page_counts_once_all_of_it_lies_before_both_runs() {
        let positions = Positions::plain(200);
        let run = |start: usize, pages: &'static [u32]| Run {
            tokens: &[1],
            seat: None,
            start,
            positions: &positions,
            pages,
            images: &[],
        };
        assert_eq!(common_pages(&run(128, &[5, 6, 7]), &run(150, &[5, 6, 8])), 2);
        assert_eq!(common_pages(&run(127, &[5, 6]), &run(150, &[5, 6, 8])), 1);
        assert_eq!(common_pages(&run(130, &[5, 6, 7]), &run(130, &[4, 6, 7])), 0);
    }
}
