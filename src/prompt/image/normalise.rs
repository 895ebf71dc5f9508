//! Bytes to floats: 256 possible bytes and three channels make one small table, filled with the reference's
//! own sequence of f32 and f64 operations, so that looking up is both the exact and the fast way.

use super::Arithmetic;

/// What becomes of a byte on its way to the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalise {
    /// Multiplies bytes (1/255); `None` leaves them as they are.
    pub rescale: Option<f64>,
    /// Mean and standard deviation per channel; `None` leaves the rescaled value as it is.
    pub standardise: Option<([f64; 3], [f64; 3])>,
}

/// Mean and standard deviation of the images CLIP was trained on: Qwen's.
pub const CLIP: ([f64; 3], [f64; 3]) =
    ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
/// Mean and standard deviation of ImageNet: InternVL's.
pub const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// `table[channel][byte]`.
pub(super) type Table = [[f32; 256]; 3];

impl Normalise {
    /// The value of each byte in each channel.
    pub(super) fn table(&self, arithmetic: Arithmetic) -> Table {
        std::array::from_fn(|channel| {
            let moments = self.standardise.map(|(mean, std)| (mean[channel] as f32, std[channel] as f32));
            std::array::from_fn(|byte| self.value(byte as u8, moments, arithmetic))
        })
    }

    /// Torch folds the rescaling into mean and deviation; Pillow's processors rescale first, in f64.
    fn value(&self, byte: u8, moments: Option<(f32, f32)>, arithmetic: Arithmetic) -> f32 {
        let plain = f32::from(byte);
        match (arithmetic, self.rescale, moments) {
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
}
