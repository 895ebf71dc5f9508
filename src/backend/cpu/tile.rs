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

/// All tiles of `[·, columns]`, of at most `height` rows; `width` says how many of the columns that are left the next
/// tile takes.
pub(super) fn tiles(
    matrix: &mut [f32],
    columns: usize,
    height: usize,
    width: impl Fn(usize) -> usize,
) -> Vec<Tile<'_>> {
    let mut all = Vec::new();
    if matrix.is_empty() {
        return all;
    }
    for (block, matrix) in matrix.chunks_mut(height * columns).enumerate() {
        let rows = block * height..block * height + matrix.len() / columns;
        let first = all.len();
        let mut start = 0;
        while start < columns {
            let end = columns.min(start + width(columns - start));
            all.push(Tile { rows: rows.clone(), columns: start..end, out: Vec::with_capacity(rows.len()) });
            start = end;
        }
        for mut row in matrix.chunks_mut(columns) {
            for tile in &mut all[first..] {
                let (piece, rest) = row.split_at_mut(tile.columns.len());
                tile.out.push(piece);
                row = rest;
            }
        }
    }
    all
}
