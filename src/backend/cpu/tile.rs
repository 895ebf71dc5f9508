//! Cutting a matrix that is to be written into tiles that threads can own.
#![allow(unsafe_code)]

use std::{marker::PhantomData, ops::Range};

/// A rectangle of a matrix, with the only right to write it.
#[derive(Debug)]
pub(super) struct Tile<'a> {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    /// The element at its first row and column.
    first: *mut f32,
    /// Columns of the matrix.
    stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is a mutable borrow of its elements, which are plain numbers and no other tile's.
unsafe impl Send for Tile<'_> {}

impl<'a> Tile<'a> {
    /// Its part of each of its rows, in order.
    pub(super) fn into_rows(self) -> impl Iterator<Item = &'a mut [f32]> {
        let (first, stride, width) = (self.first, self.stride, self.columns.len());
        (0..self.rows.len()).map(move |row| {
            // SAFETY: `tiles` made this tile from a matrix it had borrowed mutably for 'a, within its bounds and apart
            // from all other tiles; the tile is consumed, and each row given away once.
            unsafe { std::slice::from_raw_parts_mut(first.add(row * stride), width) }
        })
    }
}

/// All tiles of `[·, columns]`, of at most `height` rows; `width` says how many of the columns that are left the next
/// tile takes.
pub(super) fn tiles<'a>(
    matrix: &'a mut [f32],
    columns: usize,
    height: usize,
    width: impl Fn(usize) -> usize,
) -> Vec<Tile<'a>> {
    let mut all = Vec::new();
    if matrix.is_empty() {
        return all;
    }
    let (height, total) = (height.max(1), matrix.len() / columns);
    let base = matrix.as_mut_ptr();
    for top in (0..total).step_by(height) {
        let rows = top..total.min(top + height);
        let mut start = 0;
        while start < columns {
            let end = columns.min(start + width(columns - start).max(1));
            // SAFETY: top < total and start < columns, so that the element is in the matrix.
            let first = unsafe { base.add(top * columns + start) };
            all.push(Tile {
                rows: rows.clone(),
                columns: start..end,
                first,
                stride: columns,
                of: PhantomData,
            });
            start = end;
        }
    }
    all
}
