//! Cutting a matrix that is to be written into tiles that threads can own.

use std::ops::Range;

/// A rectangle of a matrix, with the only right to write it.
#[derive(Debug)]
pub(super) struct Tile<'a> {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    /// One piece per row.
    pub(super) out: Vec<&'a mut [f32]>,
}

/// All tiles of `[·, columns]`, at most `height` by `width` each.
pub(super) fn tiles(matrix: &mut [f32], columns: usize, height: usize, width: usize) -> Vec<Tile<'_>> {
    let mut all = Vec::new();
    if matrix.is_empty() {
        return all;
    }
    for (block, matrix) in matrix.chunks_mut(height * columns).enumerate() {
        let rows = block * height..block * height + matrix.len() / columns;
        let first = all.len();
        all.extend((0..columns).step_by(width).map(|column| Tile {
            rows: rows.clone(),
            columns: column..columns.min(column + width),
            out: Vec::with_capacity(rows.len()),
        }));
        for row in matrix.chunks_mut(columns) {
            for (tile, piece) in all[first..].iter_mut().zip(row.chunks_mut(width)) {
                tile.out.push(piece);
            }
        }
    }
    all
}
