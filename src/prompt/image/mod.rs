//! Pictures: a file's bytes to upright RGB ([`Rgb`]), and RGB to what an image tower reads ([`ProcessedImage`]).
//!
//! The pixels are those of the reference, transformers' image processors: its default ("fast", on torch)
//! arithmetic or, by choice, Pillow's.

mod decode;
mod internvl;
mod jpeg;
mod normalise;
mod orientation;
mod processor;
mod qwen;
mod resize;
mod vectorised;

pub use decode::{Alpha, Decoder};
pub use processor::{Geometry, ImageProcessor, ProcessedImage};
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
