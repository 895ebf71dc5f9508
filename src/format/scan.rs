//! Looking for numbers that no weight should be.

use super::weights::{FileDtype, TensorView};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// How many elements of a tensor are not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NonFinite {
    /// Not a number.
    pub nan: u64,
    /// Infinite, of either sign.
    pub infinite: u64,
}

/// Bytes read at a time; a multiple of every element's width.
const CHUNK: usize = 1 << 20;

/// Counts the elements that are not finite. The tensor is read from its file in small pieces, so that a look at
/// a large checkpoint does not fill memory as touching its mapping would. Types without such values have none.
pub fn non_finite(view: &TensorView) -> Result<NonFinite> {
    // Of each type: its width, and the masks of its exponent and its fraction.
    let (width, exponent, fraction) = match view.dtype() {
        FileDtype::F64 => (8, 0x7ff0_0000_0000_0000, 0x000f_ffff_ffff_ffff),
        FileDtype::F32 => (4, 0x7f80_0000, 0x007f_ffff),
        FileDtype::BF16 => (2, 0x7f80, 0x007f),
        FileDtype::F16 => (2, 0x7c00, 0x03ff),
        _ => return Ok(NonFinite::default()),
    };
    let unreadable =
        |cause| Error::file_because(view.file(), format!("tensor {}: cannot be read", view.name()), cause);
    let mut file = File::open(view.file()).map_err(unreadable)?;
    let range = view.range();
    file.seek(SeekFrom::Start(range.start as u64)).map_err(unreadable)?;
    let mut buffer = vec![0; CHUNK.min(range.len())];
    let mut count = NonFinite::default();
    let mut left = range.len();
    while left > 0 {
        let chunk = &mut buffer[..CHUNK.min(left)];
        file.read_exact(chunk).map_err(unreadable)?;
        left -= chunk.len();
        for element in chunk.chunks_exact(width) {
            let mut bytes = [0; 8];
            bytes[..width].copy_from_slice(element);
            let bits = u64::from_le_bytes(bytes);
            if bits & exponent == exponent {
                if bits & fraction == 0 { count.infinite += 1 } else { count.nan += 1 }
            }
        }
    }
    Ok(count)
}
