//! A prompt made ready for one model: its tokens, their rotary positions, its images as features.

use super::prefix::Seen;
use crate::error::{Error, Result};
use crate::format::config::VisionConfig;
use crate::model::{ImagePlace, Model, PatchedImage, PlacedImage, Positions};
use crate::prompt::expand::Span;
use crate::prompt::image::{Geometry, ProcessedImage};
use crate::prompt::reader::ReadPrompt;
use crate::tensor::Tensor;
use std::{
    borrow::Cow,
    collections::HashMap,
    ops::Range,
    sync::{Arc, Weak},
};

/// A prompt ready to run.
#[derive(Debug)]
pub struct Input {
    tokens: Vec<u32>,
    positions: Positions,
    pictures: Vec<Picture>,
}

/// Features of the pictures in prompts that are still held somewhere, so that the tower sees each picture once.
/// They are one model's.
#[derive(Debug, Default)]
pub struct Features {
    known: HashMap<[u8; 32], Weak<Tensor>>,
    /// Pictures encoded so far.
    pub encoded: u64,
}

impl Features {
    fn get(&mut self, content: [u8; 32], encode: impl FnOnce() -> Result<Tensor>) -> Result<Arc<Tensor>> {
        if let Some(features) = self.known.get(&content).and_then(Weak::upgrade) {
            return Ok(features);
        }
        // Keys of pictures that are gone are few bytes each, but they would add up.
        if self.known.len() >= 2 * self.known.values().filter(|weak| weak.strong_count() > 0).count() + 64 {
            self.known.retain(|_, weak| weak.strong_count() > 0);
        }
        let features = Arc::new(encode()?);
        self.encoded += 1;
        self.known.insert(content, Arc::downgrade(&features));
        Ok(features)
    }
}

/// A picture in a prompt.
#[derive(Debug)]
struct Picture {
    tokens: Range<usize>,
    /// A hash of what the tower read.
    content: [u8; 32],
    features: Arc<Tensor>,
}

impl Input {
    /// Encodes the images and lays out positions. Refuses what the model cannot hold: no tokens, ids outside
    /// the vocabulary, more than its context, images that do not fill their placeholders.
    pub fn prepare(model: &Model, read: &ReadPrompt) -> Result<Self> {
        Input::prepare_with(model, read, &mut Features::default())
    }

    /// As [`Input::prepare`], without encoding again what prompts at work have encoded.
    pub fn prepare_with(model: &Model, read: &ReadPrompt, known: &mut Features) -> Result<Self> {
        let tokens = read.prompt.tokens.clone();
        let config = &model.config.decoder;
        if tokens.is_empty() {
            return Err(Error::caller("prompt", "no tokens; a prompt needs at least one"));
        }
        if let Some((at, id)) = tokens.iter().enumerate().find(|(_, id)| **id as usize >= config.vocab) {
            let what = format!("token {at} is {id}, but the vocabulary has {} ids", config.vocab);
            return Err(Error::caller("prompt", what));
        }
        check_context(model, tokens.len())?;
        let mut places = Vec::with_capacity(read.images.len());
        let mut pictures = Vec::with_capacity(read.images.len());
        for Span { image, tokens: place } in &read.prompt.spans {
            let Some(processed) = read.images.get(*image) else {
                return Err(Error::internal(
                    "prompt",
                    format!("a span for image {image} of {}", read.images.len()),
                ));
            };
            let (pixels, grid) = patches(model, processed)?;
            let content = content(&pixels, grid);
            let encoded =
                known.get(content, || model.encode_image(PatchedImage { pixels: &pixels, grid }))?;
            if encoded.rows() != place.len() || place.end > tokens.len() {
                return Err(Error::caller(
                    "prompt",
                    format!("image {image} gives {} features for placeholders {place:?}", encoded.rows()),
                ));
            }
            let merge = model.merge();
            let [frames, rows, columns] = grid;
            places.push(ImagePlace { tokens: place.clone(), grid: [frames, rows / merge, columns / merge] });
            pictures.push(Picture { tokens: place.clone(), content, features: encoded });
        }
        let positions = model.positions(tokens.len(), &places)?;
        Ok(Input { tokens, positions, pictures })
    }

    /// The prompt's tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Rotary positions; generated tokens count on behind them.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// The tokens of the prompt with `more` behind it, if the model can hold them.
    pub(super) fn check_length(&self, model: &Model, more: usize) -> Result<usize> {
        let most = self.tokens.len().saturating_add(more);
        check_context(model, most).map(|()| most)
    }

    /// Image features where they stand.
    pub fn images(&self) -> Vec<PlacedImage<'_>> {
        let place = |picture: &Picture| picture.tokens.clone();
        self.pictures
            .iter()
            .map(|picture| PlacedImage { tokens: place(picture), features: &picture.features })
            .collect()
    }

    /// The pictures seen from a page of tokens.
    pub(super) fn seen(&self, page: &Range<usize>) -> Vec<Seen> {
        let within = |picture: &&Picture| picture.tokens.start < page.end && picture.tokens.end > page.start;
        let seen = |picture: &Picture| Seen {
            content: picture.content,
            start: picture.tokens.start as i64 - page.start as i64,
            tokens: picture.tokens.len() as u64,
        };
        self.pictures.iter().filter(within).map(seen).collect()
    }
}

/// A hash of what a tower reads.
fn content(pixels: &[f32], grid: [usize; 3]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    grid.iter().for_each(|side| {
        hasher.update(&side.to_le_bytes());
    });
    hasher.update(bytemuck::cast_slice(pixels));
    *hasher.finalize().as_bytes()
}

/// An image as rows of patches, and the grid they form.
pub(crate) fn patches<'i>(model: &Model, image: &'i ProcessedImage) -> Result<(Cow<'i, [f32]>, [usize; 3])> {
    match (image.geometry, &model.config.vision) {
        (Geometry::Patches { grid }, _) => Ok((Cow::Borrowed(&image.pixels), grid)),
        (Geometry::Tiles { .. }, Some(VisionConfig::InternVit(vit))) => {
            let side = vit.image / vit.patch;
            Ok((Cow::Owned(image.tile_patches(vit.patch)?), [image.shape[0], side, side]))
        }
        (Geometry::Tiles { .. }, _) => Err(Error::internal("prompt", "tiles for a tower that takes none")),
    }
}

/// Refuses sequences longer than the model was made for.
fn check_context(model: &Model, tokens: usize) -> Result<()> {
    let limit = model.config.decoder.max_positions;
    if tokens > limit {
        let what =
            format!("{tokens} tokens, but the model's context is {limit}; shorten the prompt or max-tokens");
        return Err(Error::caller("prompt", what));
    }
    Ok(())
}
