//! A file's bytes to an upright [`Rgb`], as Pillow's `exif_transpose` and `convert("RGB")` give it.
//!
//! The content decides the format, not the name. Palettes are looked up, greys repeated, alpha dropped (or laid
//! over white, see [`Alpha`]); of 16 bits per colour the high byte is kept, but 16-bit grey is clipped at 255,
//! which is what Pillow does. Of an animation the first frame counts. A file's claims are checked against
//! [`Decoder`]'s limits before anything is allocated.

use super::{Rgb, jpeg, orientation};
use crate::{Error, Result};
use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageError, ImageReader};
use std::io::{Cursor, Read};
use std::path::Path;

/// What becomes of transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alpha {
    /// The colour under it shows: Pillow's `convert("RGB")`, and transformers' `load_image`.
    #[default]
    Drop,
    /// White shows through: what transformers' processors do from version 5 on when they are handed a Pillow
    /// image that still has its alpha.
    White,
}

/// Decodes images within limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoder {
    /// Images that claim more pixels are refused unread. The default is where Pillow begins to warn.
    pub max_pixels: u64,
    /// Longer files are refused.
    pub max_bytes: u64,
    /// What becomes of transparency.
    pub alpha: Alpha,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { max_pixels: 89_478_485, max_bytes: 256 << 20, alpha: Alpha::default() }
    }
}

impl Decoder {
    /// Decodes the plain file at `path` (a pipe or a device would block or never end).
    pub fn file(&self, path: impl AsRef<Path>) -> Result<Rgb> {
        let path = path.as_ref();
        let unreadable = |error| Error::file_because(path, "the image cannot be read", error);
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(Error::file(path, "expected an image, got something that is no plain file"));
        }
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(self.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
        self.bytes(&bytes, path)
    }

    fn too_long(&self, name: &Path) -> Error {
        let what = format!("the image is longer than the limit of {} bytes; shrink it", self.max_bytes);
        Error::file(name, what)
    }

    /// Decodes `bytes`; `name` stands for them in errors.
    pub fn bytes(&self, bytes: &[u8], name: impl AsRef<Path>) -> Result<Rgb> {
        let name = name.as_ref();
        if bytes.len() as u64 > self.max_bytes {
            return Err(self.too_long(name));
        }
        if jpeg::recognised(bytes) {
            let found = jpeg::decode(bytes, |width, height| self.check(width, height))
                .map_err(|what| Error::file(name, what))?;
            let wanted = orientation::wanted(found.exif.as_deref(), found.xmp.as_deref());
            return Ok(orientation::upright(found.image, wanted));
        }
        // Without the error as a source: it repeats its own cause.
        let damaged = |error: ImageError| Error::file(name, format!("the image cannot be decoded: {error}"));
        let mut reader = ImageReader::new(Cursor::new(bytes));
        let mut limits = image::Limits::default();
        limits.max_alloc = Some(self.max_pixels.saturating_mul(8).saturating_add(1 << 20));
        reader.limits(limits);
        let reader = reader.with_guessed_format().map_err(|error| damaged(error.into()))?;
        if reader.format().is_none() {
            return Err(Error::file(
                name,
                "not an image in a known format: expected png, jpeg, webp, bmp or gif",
            ));
        }
        let mut decoder = reader.into_decoder().map_err(damaged)?;
        let (width, height) = decoder.dimensions();
        self.check(width, height).map_err(|what| Error::file(name, what))?;
        let exif = decoder.exif_metadata().unwrap_or_default();
        let xmp = decoder.xmp_metadata().unwrap_or_default();
        let colours = decoder.original_color_type();
        let image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        let pixels = self.rgb(image, colours);
        let image = Rgb { width: width as usize, height: height as usize, pixels };
        Ok(orientation::upright(image, orientation::wanted(exif.as_deref(), xmp.as_deref())))
    }

    fn check(&self, width: u32, height: u32) -> Result<(), String> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 {
            return Err(format!("the image is empty: {width} x {height} pixels"));
        }
        if pixels > self.max_pixels {
            let limit = self.max_pixels;
            return Err(format!(
                "{width} x {height} pixels are more than the limit of {limit}; shrink the image"
            ));
        }
        Ok(())
    }

    fn rgb(&self, image: DynamicImage, colours: ExtendedColorType) -> Vec<u8> {
        let high = |value: u16| (value >> 8) as u8;
        match image {
            DynamicImage::ImageRgb8(image) => image.into_raw(),
            DynamicImage::ImageLuma8(image) => image.iter().flat_map(|&grey| [grey; 3]).collect(),
            DynamicImage::ImageRgb16(image) => image.iter().map(|&value| high(value)).collect(),
            DynamicImage::ImageLuma16(image) => image.iter().flat_map(|&grey| [clip(grey); 3]).collect(),
            // A grey that is transparent only by a colour key is still plain grey to Pillow.
            DynamicImage::ImageLumaA16(image) if colours == ExtendedColorType::L16 => {
                image.pixels().flat_map(|pixel| [clip(pixel.0[0]); 3]).collect()
            }
            DynamicImage::ImageLumaA8(image) => {
                image.pixels().flat_map(|&image::LumaA([grey, alpha])| self.lay([grey; 3], alpha)).collect()
            }
            DynamicImage::ImageLumaA16(image) => image
                .pixels()
                .flat_map(|&image::LumaA([grey, alpha])| self.lay([high(grey); 3], high(alpha)))
                .collect(),
            DynamicImage::ImageRgba16(image) => image
                .pixels()
                .flat_map(|&image::Rgba([r, g, b, alpha])| self.lay([r, g, b].map(high), high(alpha)))
                .collect(),
            image => image
                .into_rgba8()
                .pixels()
                .flat_map(|&image::Rgba([r, g, b, alpha])| self.lay([r, g, b], alpha))
                .collect(),
        }
    }

    /// A colour of some opacity as an opaque colour, by Pillow's integer arithmetic.
    fn lay(&self, colour: [u8; 3], alpha: u8) -> [u8; 3] {
        match self.alpha {
            Alpha::Drop => colour,
            Alpha::White => colour.map(|value| {
                let alpha = u32::from(alpha);
                let sum = (u32::from(value) * alpha + 255 * (255 - alpha) + 128) << 7;
                ((((sum >> 8) + sum) >> 8) >> 7) as u8
            }),
        }
    }
}

/// 16-bit grey to 8: Pillow's `I;16` is a plain number to it, not a fraction of white.
fn clip(grey: u16) -> u8 {
    grey.min(255) as u8
}
