//! JPEG, to the last bit as libjpeg-turbo (and so Pillow, and every training pipeline on it) decodes it.
//!
//! The standard leaves the inverse transform's rounding and the enlarging of chroma to the decoder, and other
//! decoders choose otherwise: a quarter of all values then differ, by up to twenty levels. Here they do not.
//! Baseline, extended and progressive Huffman files of 8 bits are read; what is rarer is refused by name.
//!
//! A file passes through four steps: [`markers`] read the segments and hand each scan to [`scan`], which fills the
//! components' coefficients from [`bits`]; [`idct`] turns coefficients into planes, and [`upsample`] planes into
//! rows of RGB, the last two in parallel.

mod bits;
mod idct;
mod markers;
mod scan;
mod upsample;

use super::Rgb;

/// A decoded file, as stored: its orientation is yet to be applied.
pub(super) struct Jpeg {
    pub(super) image: Rgb,
    pub(super) exif: Option<Vec<u8>>,
    pub(super) xmp: Option<Vec<u8>>,
}

/// How the components stand for colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colours {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// One colour component: its sampling, and its coefficients as far as they are known.
struct Component {
    id: u8,
    /// Sampling factors, across and down.
    sampling: (usize, usize),
    quantiser_index: usize,
    /// The quantiser in force when the component's first scan began.
    quantiser: Option<[u16; 64]>,
    /// Samples across and down, without padding.
    size: (usize, usize),
    /// Blocks across and down, padded to whole MCUs.
    blocks: (usize, usize),
    coefficients: Vec<[i16; 64]>, // [blocks.1, blocks.0], each row by row
}

/// The picture as a whole.
struct Frame {
    width: usize,
    height: usize,
    progressive: bool,
    /// The largest sampling factors.
    sampling: (usize, usize),
    components: Vec<Component>,
}

/// Decodes `bytes`; `admit` may refuse the claimed width and height before anything is allocated for them.
pub(super) fn decode(bytes: &[u8], admit: impl Fn(u32, u32) -> Result<(), String>) -> Result<Jpeg, String> {
    let file = markers::read(bytes, admit)?;
    let planes = file.frame.components.iter().map(idct::plane).collect::<Result<Vec<_>, _>>()?;
    let image = upsample::rgb(&file.frame, &planes, file.colours);
    Ok(Jpeg { image, exif: file.exif, xmp: file.xmp })
}

/// Whether `bytes` begin like a JPEG.
pub(super) fn recognised(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}
