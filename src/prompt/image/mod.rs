//! Pictures: a file's bytes to upright RGB ([`Rgb`]), and RGB to what an image tower reads ([`ProcessedImage`]).
//!
//! The pixels are those of the reference, transformers' image processors: its default ("fast", on torch)
//! arithmetic or, by choice, Pillow's.

mod decode;
mod normalise;
mod orientation;
mod qwen;
mod resize;

pub use decode::{Alpha, Decoder};
pub use normalise::{CLIP, IMAGENET, Normalise};
pub use qwen::Qwen;
pub use resize::{Arithmetic, bicubic};

use crate::{Error, Result};

/// An upright image, 8 bits per channel.
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb {
    width: usize,
    height: usize,
    pixels: Vec<u8>, // [height, width, 3]
}

impl Rgb {
    /// Wraps `pixels` ([height, width, 3]).
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Rgb> {
        let bytes = width.checked_mul(height).and_then(|area| area.checked_mul(3));
        match bytes {
            Some(bytes) if bytes > 0 && bytes == pixels.len() => Ok(Rgb { width, height, pixels }),
            _ => {
                let what = format!("{} bytes cannot be {width} x {height} pixels of RGB", pixels.len());
                Err(Error::caller("wrap image", what))
            }
        }
    }

    /// Pixels across.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels down.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Bytes, row by row. [height, width, 3]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

impl std::fmt::Debug for Rgb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rgb({} x {})", self.width, self.height)
    }
}

/// How a model family lays out an image.
#[derive(Debug, Clone, PartialEq)]
pub enum Layout {
    /// Patches of one resized image.
    Qwen(Qwen),
}

impl Layout {
    /// The published Qwen2-VL and Qwen2.5-VL geometry, with transformers' default limits.
    pub fn qwen() -> Layout {
        Layout::Qwen(Qwen {
            patch: 14,
            merge: 2,
            temporal: 2,
            min_pixels: 56 * 56,
            max_pixels: 28 * 28 * 1280,
        })
    }
}

/// Turns images into tower inputs: a layout, a normalisation, and whose arithmetic to follow.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    /// Resizing and cutting.
    pub layout: Layout,
    /// Bytes to floats.
    pub normalise: Normalise,
    /// The reference to equal, bit for bit.
    pub arithmetic: Arithmetic,
}

/// An image as its tower reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessedImage {
    /// The values.
    pub pixels: Vec<f32>, // `shape`
    /// Qwen: [patches, values of a patch].
    pub shape: Vec<usize>,
    /// Patches in time, down and across (Qwen).
    pub grid: [usize; 3],
    /// Tokens the image takes in the prompt.
    pub tokens: usize,
}

impl ImageProcessor {
    /// Resizes, cuts and normalises.
    pub fn process(&self, image: &Rgb) -> Result<ProcessedImage> {
        let table = self.normalise.table(self.arithmetic);
        match &self.layout {
            Layout::Qwen(qwen) => {
                let canvas = qwen.resize(image, self.arithmetic)?;
                let grid = qwen.grid(canvas.width, canvas.height);
                let patches = grid.iter().product::<usize>();
                Ok(ProcessedImage {
                    pixels: qwen.patches(&canvas, &table),
                    shape: vec![patches, qwen.patch_values()],
                    grid,
                    tokens: patches / (qwen.merge * qwen.merge),
                })
            }
        }
    }
}
