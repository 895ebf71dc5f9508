//! What one training pass works on: passages back to back, some of which go on where another ends.
//!
//! A group's prompt is one passage and each of its completions another, whose parent is the prompt: what they share is
//! computed once, forward and backward.

use super::packed::{PlacedImage, Run, place_images};
use super::positions::Positions;
use crate::backend::{Backend, Segments};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Some consecutive tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Passage<'a> {
    /// The tokens to compute; at least one.
    pub tokens: &'a [u32],
    /// The passage before this one in the same sequence: an earlier one of the pass, without a parent of its own.
    pub parent: Option<usize>,
    /// Rotary positions of the whole sequence.
    pub positions: &'a Positions,
    /// Image features that replace token embeddings in this sequence.
    pub images: &'a [PlacedImage<'a>],
}

/// The passages of one pass as the ops want them; all index tensors are i32.
#[derive(Debug)]
pub struct Passages {
    /// Token ids `[T]`.
    pub(super) tokens: Tensor,
    /// Rotary positions `[axes, T]`.
    pub(super) positions: Tensor,
    /// Rows that hold image features in place of embeddings `[·]`, passage by passage, image by image.
    pub(super) image_rows: Tensor,
    /// 0, 1, … `[T]`.
    pub(super) identity: Tensor,
    /// Where each passage starts `[B+1]`.
    starts: Tensor,
    /// Each passage's parent, or itself `[B]`.
    parents: Tensor,
    /// `T`.
    pub(super) rows: usize,
}

impl Passages {
    /// Lays `passages` out for a decoder whose positions have `axes` axes.
    pub(super) fn build(backend: &dyn Backend, passages: &[Passage<'_>], axes: usize) -> Result<Self> {
        let first = first_positions(passages)?;
        let rows: usize = passages.iter().map(|passage| passage.tokens.len()).sum();
        let mut tokens = Vec::with_capacity(rows);
        let mut positions = vec![0i32; axes * rows];
        let mut image_rows = Vec::new();
        let mut starts = vec![0i32];
        for (passage, &first) in passages.iter().zip(&first) {
            for (index, &token) in (first..).zip(passage.tokens) {
                for (axis, position) in passage.positions.at(index).into_iter().take(axes).enumerate() {
                    positions[axis * rows + tokens.len()] = position;
                }
                tokens.push(token as i32);
            }
            let row = |position: usize| starts[starts.len() - 1] + (position - first) as i32;
            let here = first..first + passage.tokens.len();
            for image in passage.images {
                image_rows.extend(image.tokens.clone().filter(|position| here.contains(position)).map(row));
            }
            starts.push(tokens.len() as i32);
        }
        let parents: Vec<i32> =
            passages.iter().enumerate().map(|(own, passage)| passage.parent.unwrap_or(own) as i32).collect();
        let identity: Vec<i32> = (0..rows as i32).collect();
        let upload = |shape: &[usize], values: &[i32]| backend.upload(Tensor::from_slice(shape, values)?);
        Ok(Passages {
            tokens: upload(&[rows], &tokens)?,
            positions: upload(&[axes, rows], &positions)?,
            image_rows: upload(&[image_rows.len()], &image_rows)?,
            identity: upload(&[rows], &identity)?,
            starts: upload(&[starts.len()], &starts)?,
            parents: upload(&[parents.len()], &parents)?,
            rows,
        })
    }

    /// Which rows attend to which.
    pub(super) fn segments(&self) -> Segments<'_> {
        Segments { starts: &self.starts, parents: Some(&self.parents) }
    }
}

/// Where each passage begins in its sequence.
fn first_positions(passages: &[Passage<'_>]) -> Result<Vec<usize>> {
    let first = |(own, passage): (usize, &Passage<'_>)| match passage.parent {
        _ if passage.tokens.is_empty() => {
            Err(Error::internal("pack", format!("passage {own} has no tokens")))
        }
        None => Ok(0),
        Some(parent) if parent < own && passages[parent].parent.is_none() => {
            Ok(passages[parent].tokens.len())
        }
        Some(parent) => Err(Error::internal("pack", format!("passage {parent} cannot come before {own}"))),
    };
    passages.iter().enumerate().map(first).collect()
}

/// Writes the image features that fall into the passages over their token embeddings `hidden` `[T, C]`.
pub(super) fn place(backend: &dyn Backend, hidden: &mut Tensor, passages: &[Passage<'_>]) -> Result<()> {
    let first = first_positions(passages)?;
    let runs: Vec<Run<'_>> = passages
        .iter()
        .zip(&first)
        .map(|(passage, &start)| Run {
            tokens: passage.tokens,
            seat: None,
            start,
            positions: passage.positions,
            pages: &[],
            images: passage.images,
        })
        .collect();
    place_images(backend, hidden, &runs)
}
