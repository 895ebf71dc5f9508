//! Rotary positions: plain counting for text, (time, height, width) for images where the model has them.

use crate::backend::{Backend, Rope};
use crate::error::{Error, Result};
use crate::format::config::{DecoderConfig, RopeScaling};
use crate::tensor::Tensor;
use std::ops::Range;

/// An image in a prompt: the tokens it takes, and its grid after merging, (frames, rows, columns).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlace {
    /// Token positions of the placeholders.
    pub tokens: Range<usize>,
    /// Merged grid; its product is the number of tokens.
    pub grid: [usize; 3],
}

/// The position of every token of a prompt on three axes, and the one the next token gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Positions {
    /// Time, height, width per token; text has the same number on all three.
    pub of: Vec<[i32; 3]>,
    /// Where the text goes on.
    pub next: i32,
}

impl Positions {
    /// Counting from zero: text, and images of models that see them as text.
    pub fn plain(tokens: usize) -> Self {
        Positions { of: (0..tokens as i32).map(|p| [p; 3]).collect(), next: tokens as i32 }
    }

    /// Multimodal counting: an image's tokens stand at (t, y, x) counted from the position where it
    /// begins, and the text after it goes on behind the image's longer side.
    pub fn multimodal(tokens: usize, images: &[ImagePlace]) -> Result<Self> {
        let mut of = Vec::with_capacity(tokens);
        let mut next = 0i32;
        for ImagePlace { tokens: place, grid: [frames, rows, columns] } in images {
            if place.start < of.len() || place.end > tokens || frames * rows * columns != place.len() {
                return Err(Error::internal(
                    "positions",
                    format!(
                        "an image of {frames}x{rows}x{columns} tokens does not fill {place:?} of {tokens}"
                    ),
                ));
            }
            count_text(&mut of, &mut next, place.start);
            for frame in 0..*frames as i32 {
                for row in 0..*rows as i32 {
                    of.extend((0..*columns as i32).map(|column| [next + frame, next + row, next + column]));
                }
            }
            next += *rows.max(columns) as i32;
        }
        count_text(&mut of, &mut next, tokens);
        Ok(Positions { of, next })
    }

    /// The position of token `index`, which may lie behind the prompt: generated tokens count on.
    pub fn at(&self, index: usize) -> [i32; 3] {
        self.of.get(index).copied().unwrap_or_else(|| [self.next + (index - self.of.len()) as i32; 3])
    }
}

fn count_text(of: &mut Vec<[i32; 3]>, next: &mut i32, until: usize) {
    while of.len() < until {
        of.push([*next; 3]);
        *next += 1;
    }
}

/// How many axes the decoder's positions have: one, or three for multimodal rope.
pub(crate) fn axes(config: &DecoderConfig) -> usize {
    if config.rope.mrope_sections.is_some() { 3 } else { 1 }
}

/// The decoder's rotary embedding.
pub(crate) fn decoder_rope(backend: &dyn Backend, config: &DecoderConfig) -> Result<Rope> {
    let pairs = config.head_dim / 2;
    let plain = frequencies(config.rope.theta, config.head_dim);
    let inv_freq: Vec<f32> = plain.iter().map(|&f| scaled(f, &config.rope.scaling)).collect();
    let axis: Vec<i32> = match config.rope.mrope_sections {
        None => vec![0; pairs],
        Some(sections) => {
            let axis = (0..).zip(sections).flat_map(|(axis, count)| std::iter::repeat_n(axis, count));
            axis.collect()
        }
    };
    rope(backend, &inv_freq, &axis)
}

/// An image tower's rotary embedding: the first half of the pairs turns by row, the second by column.
pub(crate) fn tower_rope(backend: &dyn Backend, head_dim: usize, theta: f64) -> Result<Rope> {
    let one = frequencies(theta, head_dim / 2);
    let inv_freq = [one.clone(), one.clone()].concat();
    let axis = [vec![0; one.len()], vec![1; one.len()]].concat();
    rope(backend, &inv_freq, &axis)
}

fn rope(backend: &dyn Backend, inv_freq: &[f32], axis: &[i32]) -> Result<Rope> {
    Ok(Rope {
        inv_freq: backend.upload(Tensor::from_slice(&[inv_freq.len()], inv_freq)?)?,
        axis: backend.upload(Tensor::from_slice(&[axis.len()], axis)?)?,
    })
}

/// theta^(-2i/d) in f32, as the reference computes it: the exponent and the power are each rounded.
fn frequencies(theta: f64, dim: usize) -> Vec<f32> {
    let exponent = |pair: usize| (2 * pair) as f32 / dim as f32;
    (0..dim / 2).map(|pair| 1.0 / (theta as f32).powf(exponent(pair))).collect()
}

fn scaled(frequency: f32, scaling: &RopeScaling) -> f32 {
    match *scaling {
        // Dynamic scaling changes nothing within the context, and beyond it we do not go.
        RopeScaling::None | RopeScaling::Dynamic { .. } => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let wavelength = 2.0 * std::f32::consts::PI / frequency;
            let original = original_max_positions as f32;
            let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
            if wavelength < original / high {
                frequency
            } else if wavelength > original / low {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_counts_on_behind_the_longer_side_of_an_image() {
        let images = [ImagePlace { tokens: 2..8, grid: [1, 2, 3] }];
        let positions = Positions::multimodal(10, &images).unwrap();
        let expected =
            [[0, 0, 0], [1, 1, 1], [2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4]];
        assert_eq!(positions.of[..8], expected);
        assert_eq!(positions.of[8..], [[5; 3], [6; 3]]);
        assert_eq!((positions.next, positions.at(11)), (7, [8; 3]));
    }

    #[test]
    fn an_image_that_does_not_fill_its_place_is_refused() {
        for tokens in [2..7, 8..14, 0..6] {
            let place = ImagePlace { tokens: tokens.clone(), grid: [1, 2, 3] };
            assert_eq!(Positions::multimodal(10, &[place]).is_ok(), tokens == (0..6));
        }
    }

    #[test]
    fn frequencies_fall_from_one() {
        let frequencies = frequencies(10_000.0, 8);
        for (frequency, expected) in frequencies.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((frequency / expected - 1.0).abs() < 1e-6, "{frequency} against {expected}");
        }
    }
}
