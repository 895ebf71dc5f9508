//! Image towers: pixels in patches to features the decoder reads as token embeddings.

mod block;
mod internvit;
mod qwen;
mod train;

use super::weights::Loader;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::format::config::VisionConfig;
use crate::tensor::Tensor;
use internvit::InternVitTower;
use qwen::QwenTower;
pub use train::TowerGradients;

/// One picture, or one tiled picture, ready for a tower.
#[derive(Debug, Clone, Copy)]
pub struct PatchedImage<'a> {
    /// Patches as rows, `[patches, pixels of a patch]`.
    pub pixels: &'a [f32],
    /// Qwen: frames, rows and columns of patches. InternVL: tiles, and rows and columns of patches per tile.
    pub grid: [usize; 3],
}

/// The image tower of a vision-language model.
#[derive(Debug)]
pub struct Tower(Kind);

#[derive(Debug)]
enum Kind {
    Qwen(QwenTower),
    InternVit(InternVitTower),
}

impl Tower {
    pub(crate) fn load(loader: &Loader<'_>, config: &VisionConfig, hidden: usize) -> Result<Self> {
        Ok(Tower(match config {
            VisionConfig::Qwen2Vl(_) | VisionConfig::Qwen25Vl { .. } => {
                Kind::Qwen(QwenTower::load(loader, config)?)
            }
            VisionConfig::InternVit(vit) => Kind::InternVit(InternVitTower::load(loader, vit, hidden)?),
        }))
    }

    /// Features of one image, `[tokens, C]` with the decoder's C.
    pub fn encode(&self, backend: &dyn Backend, image: PatchedImage<'_>) -> Result<Tensor> {
        match &self.0 {
            Kind::Qwen(tower) => tower.encode(backend, image),
            Kind::InternVit(tower) => tower.encode(backend, image),
        }
    }
}

/// The first prefix under which the checkpoint holds `probe`.
fn prefix_of<'a>(loader: &Loader<'_>, prefixes: &[&'a str], probe: &str) -> Result<&'a str> {
    let found = prefixes.iter().find(|prefix| loader.contains(&format!("{prefix}{probe}")));
    found.copied().ok_or_else(|| {
        Error::file(
            loader.listing(),
            format!("no image tower: {probe} is missing under each of {}", prefixes.join(", ")),
        )
    })
}

/// i32 indices on the backend.
fn index(backend: &dyn Backend, values: &[i32]) -> Result<Tensor> {
    backend.upload(Tensor::from_slice(&[values.len()], values)?)
}

/// The patches of an image on the backend, `[patches, width]`, if there are as many as its grid says.
fn patches(backend: &dyn Backend, image: PatchedImage<'_>, width: usize) -> Result<Tensor> {
    let [a, b, c] = image.grid;
    let count = a * b * c;
    if count == 0 || image.pixels.len() != count * width {
        return Err(Error::internal(
            "tower",
            format!("{} pixel values for a grid {:?} of patches of {width}", image.pixels.len(), image.grid),
        ));
    }
    let pixels = Tensor::from_slice(&[count, width], image.pixels)?.converted(backend.activation())?;
    backend.upload(pixels)
}
