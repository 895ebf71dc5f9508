//! Bytes to floats: 256 possible bytes and three channels make one small table, filled with the reference's
//! own sequence of f32 and f64 operations, so that looking up is both the exact and the fast way.

use super::Arithmetic;

/// `table[channel][byte]`.
pub(super) type Table = [[f32; 256]; 3];

/// The value of each byte in each channel, given what bytes are multiplied by and then standardised with.
pub(super) fn table(
    rescale: Option<f64>,
    moments: Option<([f64; 3], [f64; 3])>,
    arithmetic: Arithmetic,
) -> Table {
    std::array::from_fn(|channel| {
        let moments = moments.map(|(mean, std)| (mean[channel] as f32, std[channel] as f32));
        std::array::from_fn(|byte| value(byte as u8, rescale, moments, arithmetic))
    })
}

/// Torch folds the rescaling into mean and deviation; Pillow's processors rescale first, in f64.
fn value(byte: u8, rescale: Option<f64>, moments: Option<(f32, f32)>, arithmetic: Arithmetic) -> f32 {
    let plain = f32::from(byte);
    match (arithmetic, rescale, moments) {
        (Arithmetic::Torch, Some(scale), Some((mean, std))) => {
            let unscale = (1.0 / scale) as f32;
            (plain - mean * unscale) / (std * unscale)
        }
        (Arithmetic::Torch, Some(scale), None) => plain * scale as f32,
        (Arithmetic::Pil, Some(scale), moments) => {
            let scaled = (f64::from(byte) * scale) as f32;
            moments.map_or(scaled, |(mean, std)| (scaled - mean) / std)
        }
        (_, None, Some((mean, std))) => (plain - mean) / std,
        (_, None, None) => plain,
    }
}
