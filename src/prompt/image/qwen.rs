//! Qwen2-VL and Qwen2.5-VL: any size, rounded to whole merge blocks, cut into patches.
//!
//! The tower sees 14 x 14 patches and merges 2 x 2 of them into one token, so an image is resized to multiples
//! of 28 with about its own area (within limits) and its patches are listed block by block, the four of a
//! merge together.

use super::Rgb;
use super::normalise::Table;
use crate::{Error, Result};
use rayon::prelude::*;

/// The geometry of a Qwen-VL image tower's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Qwen {
    /// Side of a patch, 14.
    pub(super) patch: usize,
    /// Side of a merge block in patches, 2.
    pub(super) merge: usize,
    /// Frames in a patch, 2; a still image repeats itself.
    pub(super) temporal: usize,
    /// Smaller images are enlarged to about this area.
    pub(super) min_pixels: usize,
    /// Larger images are reduced to about this area.
    pub(super) max_pixels: usize,
}

impl Qwen {
    /// The size `(width, height)` that an image (not an empty one) is resized to: the reference's `smart_resize`.
    pub(super) fn target(&self, width: usize, height: usize) -> Result<(usize, usize)> {
        let factor = (self.patch * self.merge) as f64;
        let (w, h) = (width as f64, height as f64);
        if w.max(h) / w.min(h) > 200.0 {
            let what = format!("{width} x {height} pixels is more than 200 times as long as wide; crop it");
            return Err(Error::caller("measure image", what));
        }
        let round = |length: f64| (length / factor).round_ties_even() * factor;
        let (mut new_w, mut new_h) = (round(w), round(h));
        if new_w * new_h > self.max_pixels as f64 {
            let shrink = (h * w / self.max_pixels as f64).sqrt();
            let floor = |length: f64| ((length / shrink / factor).floor() * factor).max(factor);
            (new_w, new_h) = (floor(w), floor(h));
        } else if new_w * new_h < self.min_pixels as f64 {
            let grow = (self.min_pixels as f64 / (h * w)).sqrt();
            let ceil = |length: f64| (length * grow / factor).ceil() * factor;
            (new_w, new_h) = (ceil(w), ceil(h));
        }
        // Where min_pixels is set to nearly nothing, the reference rounds a sliver to nothing too, then fails.
        Ok((new_w.max(factor) as usize, new_h.max(factor) as usize))
    }

    /// Values in a patch.
    pub(super) fn patch_values(&self) -> usize {
        3 * self.temporal * self.patch * self.patch
    }

    /// `canvas` as rows of patches: [h/m, w/m, m, m] patches of [3, temporal, patch, patch] values.
    pub(super) fn patches(&self, canvas: &Rgb, table: &Table) -> Vec<f32> {
        let (patch, merge) = (self.patch, self.merge);
        let block_row = canvas.width / patch * merge * self.patch_values();
        let mut out = vec![0.0; canvas.height / (patch * merge) * block_row];
        out.par_chunks_exact_mut(block_row).enumerate().for_each(|(block_y, out)| {
            for (index, out) in out.chunks_exact_mut(self.patch_values()).enumerate() {
                let (block_x, within) = (index / (merge * merge), index % (merge * merge));
                let y = (block_y * merge + within / merge) * patch;
                let x = (block_x * merge + within % merge) * patch;
                self.patch(canvas, x, y, table, out);
            }
        });
        out
    }

    fn patch(&self, canvas: &Rgb, x: usize, y: usize, table: &Table, out: &mut [f32]) {
        let frame = self.patch * self.patch;
        for ((channel, values), out) in
            table.iter().enumerate().zip(out.chunks_exact_mut(self.temporal * frame))
        {
            let (first, repeats) = out.split_at_mut(frame);
            for (line, out) in first.chunks_exact_mut(self.patch).enumerate() {
                let row = &canvas.pixels[((y + line) * canvas.width + x) * 3..][..self.patch * 3];
                for (value, pixel) in out.iter_mut().zip(row.chunks_exact(3)) {
                    *value = values[usize::from(pixel[channel])];
                }
            }
            repeats.chunks_exact_mut(frame).for_each(|repeat| repeat.copy_from_slice(first));
        }
    }
}
