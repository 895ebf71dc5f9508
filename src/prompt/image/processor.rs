//! The one entry: a model's processor settings, and an image, to what its tower reads.

use super::internvl::Tiling;
use super::normalise::{self, Table};
use super::qwen::Qwen;
use super::{Arithmetic, Rgb, bicubic};
use crate::format::{ImageProcessorConfig, PatchLayout, Resample};
use crate::{Error, Result};

/// No settings may ask for a canvas of more pixels (half a gigabyte of bytes, a few of floats).
const LARGEST_CANVAS: usize = 1 << 27;

/// Turns images into what a model's image tower reads.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    layout: Layout,
    arithmetic: Arithmetic,
    table: Table,
}

#[derive(Debug, Clone, Copy)]
enum Layout {
    Qwen(Qwen),
    InternVl { tiling: Tiling, tokens_per_tile: usize },
}

/// An image as its tower reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessedImage {
    /// The values, row-major. `shape`
    pub pixels: Vec<f32>,
    /// Qwen: [patches, 3 * frames * side * side]. InternVL: [tiles, 3, side, side].
    pub shape: Vec<usize>,
    /// How the rows lie in the image.
    pub geometry: Geometry,
    /// Tokens the image takes in the prompt, markers around it not counted.
    pub tokens: usize,
    /// A cryptographic digest of everything the values depend on: equal images, processed alike, and only they,
    /// share it. A prefix cache can use it as key even where strangers choose the images.
    pub hash: [u8; 32],
}

/// How the rows of a [`ProcessedImage`] lie in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Geometry {
    /// Qwen: patches in time, down and across, listed merge block by merge block.
    Patches {
        /// Time (1), height, width.
        grid: [usize; 3],
    },
    /// InternVL: tiles row by row, then the thumbnail.
    Tiles {
        /// Tiles across.
        columns: usize,
        /// Tiles down.
        rows: usize,
        /// Whether one more shows the whole.
        thumbnail: bool,
    },
}

impl ImageProcessor {
    /// Builds the processor that `config` describes. A tile of a tiling model takes `tokens_per_tile` tokens; other
    /// layouts know their own number.
    pub fn new(config: &ImageProcessorConfig, tokens_per_tile: usize) -> Result<Self> {
        let refuse = |what: String| Err(Error::caller("image processor", what));
        if !config.resize {
            return refuse("do_resize: false is not supported: towers need whole patches".into());
        }
        if config.resample != Resample::Bicubic {
            return refuse(format!("resampling must be bicubic (3), got {:?}", config.resample));
        }
        let (layout, canvas) = match config.layout {
            PatchLayout::Flexible { min_pixels, max_pixels, patch, temporal_patch: temporal, merge } => {
                let qwen = Qwen { patch, merge, temporal, min_pixels, max_pixels };
                let block = patch.saturating_mul(merge).saturating_pow(2).saturating_mul(temporal);
                (Layout::Qwen(qwen), min_pixels.max(block))
            }
            PatchLayout::Tiles { side, min, max, thumbnail } => {
                let tiling = Tiling { side, min, max, thumbnail };
                (Layout::InternVl { tiling, tokens_per_tile }, side.saturating_pow(2).saturating_mul(max))
            }
        };
        if canvas > LARGEST_CANVAS {
            return refuse(format!(
                "images of {canvas} pixels are beyond {LARGEST_CANVAS}; lower the limits"
            ));
        }
        let arithmetic = if config.pil { Arithmetic::Pil } else { Arithmetic::Torch };
        Ok(Self { layout, arithmetic, table: normalise::table(config.rescale, config.normalize, arithmetic) })
    }

    /// How an image of `width` x `height` pixels will lie, and how many tokens it will take.
    pub fn measure(&self, width: usize, height: usize) -> Result<(Geometry, usize)> {
        if width == 0 || height == 0 {
            return Err(Error::caller("measure image", format!("{width} x {height} pixels are no image")));
        }
        Ok(match &self.layout {
            Layout::Qwen(qwen) => {
                let (width, height) = qwen.target(width, height)?;
                let grid = [1, height / qwen.patch, width / qwen.patch];
                (Geometry::Patches { grid }, grid[1] * grid[2] / (qwen.merge * qwen.merge))
            }
            Layout::InternVl { tiling, tokens_per_tile } => {
                let (columns, rows) = tiling.grid(width, height);
                let thumbnail = tiling.thumbnail && columns * rows > 1;
                let tiles = columns * rows + usize::from(thumbnail);
                (Geometry::Tiles { columns, rows, thumbnail }, tiles * tokens_per_tile)
            }
        })
    }

    /// Resizes, cuts and normalises `image`.
    pub fn process(&self, image: &Rgb) -> Result<ProcessedImage> {
        let (geometry, tokens) = self.measure(image.width, image.height)?;
        let resized = |width, height| bicubic(image, width, height, self.arithmetic);
        let (pixels, shape, hash) = match (&self.layout, geometry) {
            (Layout::Qwen(qwen), Geometry::Patches { grid: [time, down, across] }) => {
                let canvas = resized(across * qwen.patch, down * qwen.patch);
                let shape = vec![time * down * across, qwen.patch_values()];
                let pixels = qwen.patches(&canvas, &self.table);
                (pixels, shape, self.digest(&[qwen.patch, qwen.merge, qwen.temporal], &[canvas]))
            }
            (Layout::InternVl { tiling, .. }, Geometry::Tiles { columns, rows, thumbnail }) => {
                let side = tiling.side;
                let mut canvases = vec![resized(columns * side, rows * side)];
                if thumbnail {
                    canvases.push(resized(side, side));
                }
                let shape = vec![columns * rows + usize::from(thumbnail), 3, side, side];
                (tiling.tiles(&canvases, &self.table), shape, self.digest(&[side], &canvases))
            }
            _ => return Err(Error::internal("process image", "a layout was measured as another")),
        };
        Ok(ProcessedImage { pixels, shape, geometry, tokens, hash })
    }

    /// Digests what the output is a function of: the cutting, the table, and the resized bytes (a twelfth to a
    /// twenty-fourth of the floats).
    fn digest(&self, cutting: &[usize], canvases: &[Rgb]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("pellucid processed image 1");
        let mut numbers = vec![cutting.len(), canvases.len()];
        numbers.extend(cutting);
        numbers.extend(canvases.iter().flat_map(|canvas| [canvas.width, canvas.height]));
        for number in numbers {
            hasher.update(&(number as u64).to_le_bytes());
        }
        for value in self.table.as_flattened() {
            hasher.update(&value.to_le_bytes());
        }
        for canvas in canvases {
            hasher.update(&canvas.pixels);
        }
        hasher.finalize().into()
    }
}

impl ProcessedImage {
    /// InternVL's tiles as rows for a linear patch embedding: [tiles * patches, 3 * patch * patch], a tile's patches
    /// row by row. `patch` divides the tile's side.
    pub fn tile_patches(&self, patch: usize) -> Result<Vec<f32>> {
        let &[tiles, channels, side, _] = self.shape.as_slice() else {
            return Err(Error::caller("tile patches", "the image is not cut into tiles"));
        };
        if patch == 0 || side % patch != 0 {
            return Err(Error::caller(
                "tile patches",
                format!("patches of {patch} do not fill {side} pixels"),
            ));
        }
        let across = side / patch;
        let mut rows = Vec::with_capacity(self.pixels.len());
        for index in 0..tiles * across * across {
            let (tile, x, y) = (index / (across * across), index % across, index / across % across);
            for line in 0..channels * patch {
                let row = (tile * channels + line / patch) * side + y * patch + line % patch;
                rows.extend_from_slice(&self.pixels[row * side + x * patch..][..patch]);
            }
        }
        Ok(rows)
    }
}
