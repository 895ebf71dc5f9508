//! InternViT, the tower of InternVL: square tiles of one size, learnt absolute positions, a class token, and
//! a pixel shuffle that lays 2x2 neighbouring features side by side before the projector. Weights come under
//! the names of the original release or of transformers.

use super::block::{Mlp, Norm, Projector, Surroundings, TowerBlock};
use super::{PatchedImage, index, patches, prefix_of};
use crate::backend::{Activation, Backend, Epilogue};
use crate::error::{Error, Result};
use crate::format::config::{InternVit, NormKind};
use crate::model::weights::{Bias, LinearWeights, Loader};
use crate::tensor::Tensor;

/// Epsilon of the projector's layer norm, which no config names.
const PROJECTOR_EPS: f32 = 1e-5;

#[derive(Debug)]
pub(super) struct InternVitTower {
    config: InternVit,
    patch_embedding: LinearWeights,
    /// Positions of the patches of a tile.
    positions: Tensor, // [patches, C]
    /// The class token with its position added.
    class: Tensor, // [1, C]
    blocks: Vec<TowerBlock>,
    projector: Projector,
}

/// The names of one release.
struct Names {
    class: &'static str,
    positions: &'static str,
    patch: &'static str,
    block: &'static str,
    attention: &'static str,
    projection: &'static str,
    norms: [&'static str; 2],
    scales: [&'static str; 2],
    /// Queries, keys and values in one matrix.
    fused: bool,
}

const ORIGINAL: Names = Names {
    class: "embeddings.class_embedding",
    positions: "embeddings.position_embedding",
    patch: "embeddings.patch_embedding",
    block: "encoder.layers",
    attention: "attn",
    projection: "attn.proj",
    norms: ["norm1", "norm2"],
    scales: ["ls1", "ls2"],
    fused: true,
};

const TRANSFORMERS: Names = Names {
    class: "embeddings.cls_token",
    positions: "embeddings.position_embeddings",
    patch: "embeddings.patch_embeddings.projection",
    block: "encoder.layer",
    attention: "attention",
    projection: "attention.projection_layer",
    norms: ["layernorm_before", "layernorm_after"],
    scales: ["lambda_1", "lambda_2"],
    fused: false,
};

impl InternVitTower {
    pub(super) fn load(loader: &Loader<'_>, config: &InternVit, out_hidden: usize) -> Result<Self> {
        let original = loader.contains("vision_model.embeddings.class_embedding");
        let (names, prefix) = match original {
            true => (&ORIGINAL, "vision_model."),
            false => {
                let prefixes = ["model.vision_tower.", "vision_tower."];
                (&TRANSFORMERS, prefix_of(loader, &prefixes, TRANSFORMERS.class)?)
            }
        };
        let (hidden, side) = (config.hidden, config.image / config.patch);
        let (table, class) = embeddings(loader, names, prefix, side * side, hidden)?;
        let patch = format!("{prefix}{}", names.patch);
        let patch_shape = [hidden, config.channels, config.patch, config.patch];
        let weight = loader.matrix(&format!("{patch}.weight"), &patch_shape)?;
        let block = |layer| load_block(loader, config, names, &format!("{prefix}{}.{layer}", names.block));
        let projector = match original {
            true => ["mlp1.0", "mlp1.1", "mlp1.3"].map(str::to_owned),
            false => {
                let prefixes = ["model.multi_modal_projector.", "multi_modal_projector."];
                let prefix = prefix_of(loader, &prefixes, "layer_norm.weight")?;
                ["layer_norm", "linear_1", "linear_2"].map(|module| format!("{prefix}{module}"))
            }
        };
        let shuffled = hidden * config.shuffle * config.shuffle;
        Ok(InternVitTower {
            patch_embedding: LinearWeights {
                weight: weight.reshaped(&[hidden, patch_width(config)])?,
                bias: Some(loader.vector(&format!("{patch}.bias"), hidden)?),
            },
            positions: table,
            class,
            blocks: (0..config.layers_used).map(block).collect::<Result<_>>()?,
            projector: Projector::load(
                loader,
                Norm::layer(loader, &projector[0], shuffled, PROJECTOR_EPS)?,
                [&projector[1], &projector[2]],
                [shuffled, out_hidden, out_hidden],
            )?,
            config: config.clone(),
        })
    }

    pub(super) fn encode(&self, backend: &dyn Backend, image: PatchedImage<'_>) -> Result<Tensor> {
        let hidden_size = self.config.hidden;
        let pixels = patches(backend, image, patch_width(&self.config))?;
        let [tiles, rows, columns] = image.grid;
        let per_tile = self.positions.rows();
        if rows != columns || rows * columns != per_tile {
            return Err(Error::internal(
                "tower",
                format!("tiles of {rows}x{columns} patches, expected {per_tile}"),
            ));
        }
        let patch_of = |tile: usize, patch: usize| (tile * (per_tile + 1) + 1 + patch) as i32;
        let every = |one: &dyn Fn(usize, usize) -> i32| -> Vec<i32> {
            (0..tiles)
                .flat_map(|tile| (0..per_tile).map(move |patch| (tile, patch)))
                .map(|(t, p)| one(t, p))
                .collect()
        };
        // Patches with their positions, then both kinds of token in their places.
        let dtype = backend.activation();
        let mut embedded = backend.alloc(dtype, &[tiles * per_tile, hidden_size])?;
        backend.gather_rows(
            &mut embedded,
            &self.positions,
            &index(backend, &every(&|_, patch| patch as i32))?,
        )?;
        backend.linear(&mut embedded, &pixels, &self.patch_embedding.plain(), Epilogue::Add)?;
        let mut classes = backend.alloc(dtype, &[tiles, hidden_size])?;
        backend.gather_rows(&mut classes, &self.class, &index(backend, &vec![0; tiles])?)?;
        let mut hidden = backend.alloc(dtype, &[tiles * (per_tile + 1), hidden_size])?;
        backend.scatter_rows(&mut hidden, &embedded, &index(backend, &every(&patch_of))?)?;
        let starts: Vec<i32> = (0..=tiles).map(|tile| (tile * (per_tile + 1)) as i32).collect();
        backend.scatter_rows(&mut hidden, &classes, &index(backend, &starts[..tiles])?)?;

        let starts = index(backend, &starts)?;
        let around = Surroundings { heads: self.config.heads, starts: &starts, rope: None };
        for block in &self.blocks {
            block.forward(backend, &mut hidden, &around)?;
        }
        let shuffled = shuffle_order(rows, self.config.shuffle);
        let order = every(&|tile, place| patch_of(tile, shuffled[place]));
        let mut gathered = backend.alloc(dtype, &[order.len(), hidden_size])?;
        backend.gather_rows(&mut gathered, &hidden, &index(backend, &order)?)?;
        let unit = self.config.shuffle * self.config.shuffle;
        self.projector.apply(backend, &gathered.reshaped(&[order.len() / unit, unit * hidden_size])?)
    }
}

fn patch_width(config: &InternVit) -> usize {
    config.channels * config.patch * config.patch
}

/// Patches of a square tile, block by block of `step` x `step`, row by row within a block.
fn shuffle_order(side: usize, step: usize) -> Vec<usize> {
    let mut order = Vec::with_capacity(side * side);
    for (top, left) in (0..side / step).flat_map(|y| (0..side / step).map(move |x| (y * step, x * step))) {
        for row in top..top + step {
            order.extend((left..left + step).map(|column| row * side + column));
        }
    }
    order
}

/// The position table of the patches, and the class token with its own position added.
fn embeddings(
    loader: &Loader<'_>,
    names: &Names,
    prefix: &str,
    patches: usize,
    hidden: usize,
) -> Result<(Tensor, Tensor)> {
    let table = loader.host(&format!("{prefix}{}", names.positions), &[1, patches + 1, hidden])?;
    let class = loader.host(&format!("{prefix}{}", names.class), &[1, 1, hidden])?;
    let table = table.reshaped(&[patches + 1, hidden])?;
    let sum: Vec<f64> =
        class.to_f64().iter().zip(table.rows_of(0..1)?.to_f64()).map(|(a, b)| a + b).collect();
    let class = Tensor::from_slice(&[1, hidden], &sum)?.converted(loader.backend.activation())?;
    Ok((loader.backend.upload(table.rows_of(1..patches + 1)?)?, loader.backend.upload(class)?))
}

fn load_block(loader: &Loader<'_>, config: &InternVit, names: &Names, prefix: &str) -> Result<TowerBlock> {
    let (hidden, eps) = (config.hidden, config.norm_eps as f32);
    let module = |name: &str| format!("{prefix}.{name}");
    let attention = |name: &str| format!("{prefix}.{}.{name}", names.attention);
    let norm = |name: &str| match config.norm {
        NormKind::Layer => Norm::layer(loader, &module(name), hidden, eps),
        NormKind::Rms => Norm::rms(loader, &module(name), hidden, eps),
    };
    let bias = Bias::from(config.qkv_bias);
    let qkv = match names.fused {
        true => loader.fused(&attention("qkv"), hidden, hidden, bias)?,
        false => {
            let part = |name| loader.linear(&attention(name), hidden, hidden, bias);
            [part("q_proj")?, part("k_proj")?, part("v_proj")?]
        }
    };
    let qk_norm = |name| Norm::rms(loader, &attention(name), hidden, 1e-6);
    Ok(TowerBlock {
        attention_norm: norm(names.norms[0])?,
        mlp_norm: norm(names.norms[1])?,
        qkv,
        qk_norms: if config.qk_norm { Some([qk_norm("q_norm")?, qk_norm("k_norm")?]) } else { None },
        projection: loader.linear(&module(names.projection), hidden, hidden, Bias::Yes)?,
        mlp: Mlp::Plain {
            up: loader.linear(&module("mlp.fc1"), config.ffn, hidden, Bias::Yes)?,
            down: loader.linear(&module("mlp.fc2"), hidden, config.ffn, Bias::Yes)?,
            activation: Activation::Gelu,
        },
        scales: Some([
            loader.vector(&module(names.scales[0]), hidden)?,
            loader.vector(&module(names.scales[1]), hidden)?,
        ]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_shuffle_gathers_blocks_row_by_row() {
        assert_eq!(shuffle_order(4, 2), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
        assert_eq!(shuffle_order(2, 1), [0, 1, 2, 3]);
    }
}
