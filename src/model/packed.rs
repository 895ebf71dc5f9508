//! What one forward pass works on: runs of tokens from any number of sequences, back to back.
//!
//! No batch axis and no padding. A run may be a whole prompt, a chunk of one, or a single decoded token;
//! the model does not know the difference.

use super::cache::{PAGE, pages_for, slot};
use super::positions::Positions;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::ops::Range;

/// Some consecutive tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    /// The tokens to compute.
    pub tokens: &'a [u32],
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
    /// `T`.
    pub(crate) rows: usize,
}

impl Packed {
    /// Lays `runs` out for a decoder whose positions have `axes` axes.
    pub fn build(backend: &dyn Backend, runs: &[Run<'_>], axes: usize) -> Result<Self> {
        let rows: usize = runs.iter().map(|run| run.tokens.len()).sum();
        let table_width = runs.iter().map(|run| pages_for(run.start + run.tokens.len())).max().unwrap_or(0);
        let mut tokens = Vec::with_capacity(rows);
        let mut positions = vec![0i32; axes * rows];
        let mut slots = Vec::with_capacity(rows);
        let mut query_starts = vec![0i32];
        let mut lengths = Vec::with_capacity(runs.len());
        let mut tables = vec![0i32; runs.len() * table_width];
        for (run, table) in runs.iter().zip(tables.chunks_mut(table_width.max(1))) {
            let end = run.start + run.tokens.len();
            if run.tokens.is_empty() || end > run.pages.len() * PAGE {
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
                tokens.push(token as i32);
            }
            query_starts.push(tokens.len() as i32);
            lengths.push(end as i32);
            for (entry, &page) in table.iter_mut().zip(run.pages) {
                *entry = page as i32;
            }
        }
        let upload = |shape: &[usize], values: &[i32]| backend.upload(Tensor::from_slice(shape, values)?);
        Ok(Packed {
            tokens: upload(&[rows], &tokens)?,
            positions: upload(&[axes, rows], &positions)?,
            slots: upload(&[rows], &slots)?,
            query_starts: upload(&[runs.len() + 1], &query_starts)?,
            lengths: upload(&[runs.len()], &lengths)?,
            tables: upload(&[runs.len(), table_width], &tables)?,
            rows,
        })
    }
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
