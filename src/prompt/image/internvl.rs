//! InternVL: a grid of square tiles shaped like the image, and a small copy of the whole.
//!
//! The image is stretched over the grid whose aspect ratio is nearest to its own and cut up; if that gave more
//! than one tile, the whole image, squeezed into one more tile, follows. transformers' processor and the authors'
//! own preprocessing agree on all of this; theirs resizes with Pillow, and divides bytes by 255 in f32 where
//! transformers multiplies by 1/255 in f64, which is a last-bit difference.

use super::Rgb;
use super::normalise::Table;
use rayon::prelude::*;

/// The geometry of an InternVL image tower's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Side of a tile.
    pub(super) side: usize,
    /// Fewest tiles.
    pub(super) min: usize,
    /// Most tiles.
    pub(super) max: usize,
    /// Whether a small copy follows several tiles.
    pub(super) thumbnail: bool,
}

impl Tiling {
    /// Columns and rows of tiles for an image of `width` x `height`.
    ///
    /// The smallest grid of the nearest ratio is taken; an equally near one of more tiles replaces it if the image
    /// covers more than half of those tiles' area.
    pub(super) fn grid(&self, width: usize, height: usize) -> (usize, usize) {
        let ratio = width as f64 / height as f64;
        let area = (width * height) as f64;
        let tile = (self.side * self.side) as f64;
        let mut best = ((1, 1), f64::INFINITY);
        for (columns, rows) in self.grids() {
            let distance = (ratio - columns as f64 / rows as f64).abs();
            let large_enough = area > 0.5 * tile * (columns * rows) as f64;
            if distance < best.1 || (distance == best.1 && large_enough) {
                best = ((columns, rows), distance);
            }
        }
        best.0
    }

    /// Every allowed grid, by tiles, then by columns.
    fn grids(&self) -> Vec<(usize, usize)> {
        let mut grids: Vec<_> = (1..=self.max)
            .flat_map(|columns| {
                (self.min.div_ceil(columns).max(1)..=self.max / columns).map(move |rows| (columns, rows))
            })
            .collect();
        grids.sort_by_key(|(columns, rows)| columns * rows);
        grids
    }

    /// `canvases` cut into tiles. [tiles, 3, side, side]
    pub(super) fn tiles(&self, canvases: &[Rgb], table: &Table) -> Vec<f32> {
        let tile_values = 3 * self.side * self.side;
        let corners: Vec<_> = canvases
            .iter()
            .flat_map(|canvas| {
                let (columns, rows) = (canvas.width / self.side, canvas.height / self.side);
                (0..columns * rows).map(move |tile| (canvas, tile % columns, tile / columns))
            })
            .collect();
        let mut out = vec![0.0; corners.len() * tile_values];
        out.par_chunks_exact_mut(tile_values).zip(&corners).for_each(|(out, &(canvas, column, row))| {
            for (channel, plane) in out.chunks_exact_mut(self.side * self.side).enumerate() {
                for (y, line) in plane.chunks_exact_mut(self.side).enumerate() {
                    let start = ((row * self.side + y) * canvas.width + column * self.side) * 3;
                    let pixels = canvas.pixels[start..][..self.side * 3].chunks_exact(3);
                    for (value, pixel) in line.iter_mut().zip(pixels) {
                        *value = table[channel][usize::from(pixel[channel])];
                    }
                }
            }
        });
        out
    }
}
