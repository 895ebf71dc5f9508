//! The image towers of Qwen2-VL and Qwen2.5-VL: any grid of patches, rotary positions by row and column, and
//! four neighbouring patches merged into one token at the end. Qwen2.5-VL attends within windows in most
//! blocks; its patches are put in window order first and its tokens back in picture order last.

use super::block::{Mlp, Norm, Projector, Surroundings, TowerBlock};
use super::{PatchedImage, index, patches, prefix_of};
use crate::backend::{Activation, Backend, Epilogue, Rope};
use crate::error::{Error, Result};
use crate::format::config::{QwenTower as Sizes, VisionConfig};
use crate::model::positions::tower_rope;
use crate::model::weights::{Bias, LinearWeights, Loader};
use crate::tensor::Tensor;

const EPS: f32 = 1e-6;
const THETA: f64 = 10_000.0;

#[derive(Debug)]
pub(super) struct QwenTower {
    sizes: Sizes,
    pub(super) windows: Option<Windows>,
    /// What the names of its tensors begin with in the checkpoint.
    pub(super) prefix: &'static str,
    pub(super) patch_embedding: LinearWeights,
    pub(super) blocks: Vec<TowerBlock>,
    pub(super) merger: Projector,
    rope: Rope,
}

#[derive(Debug)]
pub(super) struct Windows {
    /// Side of a window in tokens (merged patches).
    side: usize,
    full_attention_blocks: Vec<usize>,
}

impl QwenTower {
    pub(super) fn load(loader: &Loader<'_>, config: &VisionConfig) -> Result<Self> {
        let (sizes, windows) = match config {
            VisionConfig::Qwen2Vl(sizes) => (sizes, None),
            VisionConfig::Qwen25Vl { tower, window, full_attention_blocks } => {
                let side = window / tower.merge / tower.patch;
                (tower, Some(Windows { side, full_attention_blocks: full_attention_blocks.clone() }))
            }
            VisionConfig::InternVit(_) => {
                return Err(Error::internal("load", "InternViT is not a Qwen tower"));
            }
        };
        let prefix = prefix_of(loader, &["model.visual.", "visual."], "patch_embed.proj.weight")?;
        let norm = |module: &str| match windows {
            None => Norm::layer(loader, module, sizes.hidden, EPS),
            Some(_) => Norm::rms(loader, module, sizes.hidden, EPS),
        };
        let block = |layer: usize| -> Result<TowerBlock> {
            let module = |name: &str| format!("{prefix}blocks.{layer}.{name}");
            let wide = |name: &str| loader.linear(&module(name), sizes.ffn, sizes.hidden, Bias::Yes);
            let narrow = |name: &str| loader.linear(&module(name), sizes.hidden, sizes.ffn, Bias::Yes);
            let mlp = match windows {
                None => Mlp::Plain {
                    up: wide("mlp.fc1")?,
                    down: narrow("mlp.fc2")?,
                    activation: Activation::QuickGelu,
                },
                Some(_) => Mlp::Gated {
                    gate: wide("mlp.gate_proj")?,
                    up: wide("mlp.up_proj")?,
                    down: narrow("mlp.down_proj")?,
                },
            };
            Ok(TowerBlock {
                attention_norm: norm(&module("norm1"))?,
                mlp_norm: norm(&module("norm2"))?,
                qkv: loader.fused(&module("attn.qkv"), sizes.hidden, sizes.hidden, Bias::Yes)?,
                qk_norms: None,
                projection: loader.linear(&module("attn.proj"), sizes.hidden, sizes.hidden, Bias::Yes)?,
                mlp,
                scales: None,
            })
        };
        let merged = sizes.hidden * sizes.merge * sizes.merge;
        let weight = loader.matrix(
            &format!("{prefix}patch_embed.proj.weight"),
            &[sizes.hidden, sizes.channels, sizes.temporal_patch, sizes.patch, sizes.patch],
        )?;
        Ok(QwenTower {
            patch_embedding: LinearWeights {
                weight: weight.reshaped(&[sizes.hidden, patch_width(sizes)])?,
                bias: None,
            },
            blocks: (0..sizes.layers).map(block).collect::<Result<_>>()?,
            merger: Projector::load(
                loader,
                norm(&format!("{prefix}merger.ln_q"))?,
                [&format!("{prefix}merger.mlp.0"), &format!("{prefix}merger.mlp.2")],
                [merged, merged, sizes.out_hidden],
            )?,
            rope: tower_rope(loader.backend, sizes.hidden / sizes.heads, THETA)?,
            sizes: sizes.clone(),
            windows,
            prefix,
        })
    }

    pub(super) fn encode(&self, backend: &dyn Backend, image: PatchedImage<'_>) -> Result<Tensor> {
        let arranged = self.arrange(backend, image)?;
        let mut hidden = self.embed(backend, &arranged)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            block.forward(backend, &mut hidden, &self.around(&arranged, layer))?;
        }
        let merged = self.merger.apply(backend, &hidden)?;
        let mut restored = backend.alloc(merged.dtype(), merged.shape())?;
        backend.scatter_rows(&mut restored, &merged, &arranged.order)?;
        Ok(restored)
    }

    /// Puts the patches of an image in the order in which the blocks see them.
    pub(super) fn arrange(&self, backend: &dyn Backend, image: PatchedImage<'_>) -> Result<Arranged> {
        let width = patch_width(&self.sizes);
        let pixels = patches(backend, image, width)?;
        let [frames, rows, columns] = image.grid;
        let merge = self.sizes.merge;
        if rows % merge != 0 || columns % merge != 0 {
            return Err(Error::internal("tower", format!("grid {:?} does not merge by {merge}", image.grid)));
        }
        let (unit, cells) = (merge * merge, [frames, rows / merge, columns / merge]);
        // Without windows a frame is one.
        let side = self.windows.as_ref().map_or(rows.max(columns), |windows| windows.side);
        let (order, windows) = window_order(cells, side, unit);
        let places = patch_places(image.grid, merge);
        let places: Vec<[i32; 2]> =
            order.iter().flat_map(|&token| &places[token as usize * unit..][..unit]).copied().collect();
        let positions: Vec<i32> =
            (0..2).flat_map(|axis| places.iter().map(move |place| place[axis])).collect();
        let whole = [order.len(), unit * width];
        let shape = pixels.shape().to_vec();
        let mut ordered = backend.alloc(pixels.dtype(), &whole)?;
        let positions = backend.upload(Tensor::from_slice(&[2, shape[0]], &positions)?)?;
        let frames: Vec<i32> = (0..=frames).map(|frame| (frame * rows * columns) as i32).collect();
        let order = index(backend, &order)?;
        backend.gather_rows(&mut ordered, &pixels.reshaped(&whole)?, &order)?;
        Ok(Arranged {
            pixels: ordered.reshaped(&shape)?,
            positions,
            order,
            frames: index(backend, &frames)?,
            windows: index(backend, &windows)?,
        })
    }

    /// What the first block begins with `[T, C]`.
    pub(super) fn embed(&self, backend: &dyn Backend, arranged: &Arranged) -> Result<Tensor> {
        let pixels = &arranged.pixels;
        let mut hidden = backend.alloc(backend.activation(), &[pixels.rows(), self.sizes.hidden])?;
        backend.linear(&mut hidden, pixels, &self.patch_embedding.plain(), Epilogue::Store)?;
        Ok(hidden)
    }

    /// What a block sees beside the stream.
    pub(super) fn around<'a>(&'a self, arranged: &'a Arranged, layer: usize) -> Surroundings<'a> {
        let all = self.windows.as_ref().is_none_or(|w| w.full_attention_blocks.contains(&layer));
        let starts = if all { &arranged.frames } else { &arranged.windows };
        Surroundings { heads: self.sizes.heads, starts, rope: Some((&self.rope, &arranged.positions)) }
    }
}

/// An image's patches in window order, T of them.
pub(super) struct Arranged {
    pub(super) pixels: Tensor, // [T, pixels of a patch]
    positions: Tensor,         // i32 [2, T]
    /// Which tokens of the picture these are, in turn.
    pub(super) order: Tensor, // i32 [tokens]
    /// Where each frame starts, and each window.
    frames: Tensor,
    windows: Tensor,
}

fn patch_width(sizes: &Sizes) -> usize {
    sizes.channels * sizes.temporal_patch * sizes.patch * sizes.patch
}

/// Row and column of every patch, in the order patches come: token by token, within a token row by row.
fn patch_places([frames, rows, columns]: [usize; 3], merge: usize) -> Vec<[i32; 2]> {
    let mut places = Vec::with_capacity(frames * rows * columns);
    for _ in 0..frames {
        for (top, left) in (0..rows / merge).flat_map(|y| (0..columns / merge).map(move |x| (y, x))) {
            for (y, x) in (0..merge).flat_map(|y| (0..merge).map(move |x| (y, x))) {
                places.push([(top * merge + y) as i32, (left * merge + x) as i32]);
            }
        }
    }
    places
}

/// Tokens of a grid in window order, and where each window's patches start. Windows at the right and lower
/// edge are as large as what is left.
fn window_order([frames, rows, columns]: [usize; 3], side: usize, unit: usize) -> (Vec<i32>, Vec<i32>) {
    let mut order = Vec::with_capacity(frames * rows * columns);
    let mut starts = vec![0];
    for frame in 0..frames {
        for top in (0..rows).step_by(side) {
            for left in (0..columns).step_by(side) {
                for row in top..rows.min(top + side) {
                    let first = (frame * rows + row) * columns;
                    order.extend((left..columns.min(left + side)).map(|column| (first + column) as i32));
                }
                starts.push((order.len() * unit) as i32);
            }
        }
    }
    (order, starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_every_token_once_and_shrink_at_the_edges() {
        let (order, starts) = window_order([1, 3, 5], 2, 4);
        assert_eq!(order[..6], [0, 1, 5, 6, 2, 3]);
        assert_eq!(starts, [0, 16, 32, 40, 48, 56, 60]);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..15).collect::<Vec<_>>());
    }

    #[test]
    fn patches_come_token_by_token() {
        let places = patch_places([1, 2, 4], 2);
        let expected = [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]];
        assert_eq!(places, expected);
    }
}
