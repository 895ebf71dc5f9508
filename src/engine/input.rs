//! A prompt made ready for one model: its tokens, their rotary positions, its images as features.

use crate::error::{Error, Result};
use crate::model::{ImagePlace, Model, PatchedImage, PlacedImage, Positions};
use crate::tensor::Tensor;
use std::ops::Range;

/// An image of a prompt, as the tower reads it, and the tokens it stands for.
#[derive(Debug, Clone)]
pub struct InputImage<'a> {
    /// The placeholders' positions in the prompt.
    pub tokens: Range<usize>,
    /// Patches and grid.
    pub image: PatchedImage<'a>,
}

/// A prompt ready to run.
#[derive(Debug)]
pub struct Input {
    tokens: Vec<u32>,
    positions: Positions,
    features: Vec<(Range<usize>, Tensor)>,
}

impl Input {
    /// Encodes the images and lays out positions. Refuses what the model cannot hold: no tokens, ids outside
    /// the vocabulary, more than its context, images that do not fill their placeholders.
    pub fn prepare(model: &Model, tokens: Vec<u32>, images: &[InputImage<'_>]) -> Result<Self> {
        let config = &model.config.decoder;
        if tokens.is_empty() {
            return Err(Error::caller("prompt", "no tokens; a prompt needs at least one"));
        }
        if let Some((at, id)) = tokens.iter().enumerate().find(|(_, id)| **id as usize >= config.vocab) {
            let what = format!("token {at} is {id}, but the vocabulary has {} ids", config.vocab);
            return Err(Error::caller("prompt", what));
        }
        check_context(model, tokens.len())?;
        let merge = model.merge();
        let places: Vec<ImagePlace> = images
            .iter()
            .map(|InputImage { tokens, image: PatchedImage { grid: [frames, rows, columns], .. } }| {
                ImagePlace { tokens: tokens.clone(), grid: [*frames, rows / merge, columns / merge] }
            })
            .collect();
        let mut features = Vec::with_capacity(images.len());
        for (number, InputImage { tokens: place, image }) in images.iter().enumerate() {
            let encoded = model.encode_image(*image)?;
            if encoded.rows() != place.len() || place.end > tokens.len() {
                return Err(Error::caller(
                    "prompt",
                    format!("image {number} gives {} features for placeholders {place:?}", encoded.rows()),
                ));
            }
            features.push((place.clone(), encoded));
        }
        let positions = model.positions(tokens.len(), &places)?;
        Ok(Input { tokens, positions, features })
    }

    /// The prompt's tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Rotary positions; generated tokens count on behind them.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Image features where they stand.
    pub fn images(&self) -> Vec<PlacedImage<'_>> {
        self.features
            .iter()
            .map(|(tokens, features)| PlacedImage { tokens: tokens.clone(), features })
            .collect()
    }
}

/// Refuses sequences longer than the model was made for.
pub(super) fn check_context(model: &Model, tokens: usize) -> Result<()> {
    let limit = model.config.decoder.max_positions;
    if tokens > limit {
        let what =
            format!("{tokens} tokens, but the model's context is {limit}; shorten the prompt or max-tokens");
        return Err(Error::caller("prompt", what));
    }
    Ok(())
}
