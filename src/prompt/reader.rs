//! Everything between a request and what a model runs on, for one checkpoint: its tokenizer, its chat template
//! and its image processor, found and put together once.

use super::expand::{ImageMarkup, Prompt, Prompter};
use super::image::{Arithmetic, Decoder, ImageProcessor, ProcessedImage};
use super::message::{ImageReference, Message, images};
use super::template::{ChatTemplate, RenderOptions};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::format::config::{ModelConfig, VisionConfig};
use crate::format::{ImageProcessorConfig, ModelFolder, PatchLayout};
use std::path::Path;

/// The words of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Words {
    /// A conversation, written out by the chat template.
    Messages(Vec<Message>),
    /// A text as it is, with the model's own placeholders where images stand.
    Text(String),
    /// Tokens, image placeholders already repeated.
    Ids(Vec<u32>),
}

/// A prompt and the pictures in it, one per span.
#[derive(Debug, Clone)]
pub struct ReadPrompt {
    /// Tokens and spans.
    pub prompt: Prompt,
    /// Pictures as the tower reads them.
    pub images: Vec<ProcessedImage>,
}

/// Changes to a checkpoint's image processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Smallest area of a picture after resizing, where the model takes any size.
    pub min_pixels: Option<usize>,
    /// Largest area of a picture after resizing, where the model takes any size.
    pub max_pixels: Option<usize>,
    /// Whose arithmetic to follow, instead of the checkpoint's own choice.
    pub arithmetic: Option<Arithmetic>,
}

/// Reads requests for one checkpoint.
#[derive(Debug)]
pub struct Reader {
    prompter: Prompter,
    processor: Option<ImageProcessor>,
    decoder: Decoder,
}

impl Reader {
    /// Opens what a checkpoint folder brings.
    pub fn open(folder: &ModelFolder, config: &ModelConfig, options: ImageOptions) -> Result<Self> {
        let tokenizer = Tokenizer::open(folder.path())?;
        let markup = ImageMarkup::of(config.family, &tokenizer)?;
        let processor = match &config.vision {
            None => None,
            Some(vision) => {
                let settings = with_options(folder.image_processor(config)?, options)?;
                let tokens_per_tile = match vision {
                    VisionConfig::InternVit(vit) => vit.tokens_per_tile(),
                    VisionConfig::Qwen2Vl(_) | VisionConfig::Qwen25Vl { .. } => 0,
                };
                Some(ImageProcessor::new(&settings, tokens_per_tile)?)
            }
        };
        let template = ChatTemplate::load(folder.path())?;
        Ok(Reader {
            prompter: Prompter::new(tokenizer, template, markup),
            processor,
            decoder: Decoder::default(),
        })
    }

    /// The checkpoint's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.prompter.tokenizer()
    }

    /// Reads a request. `given` are pictures beside the words; paths are relative to `base`.
    pub fn read(
        &self,
        words: &Words,
        given: &[ImageReference],
        base: &Path,
        options: &RenderOptions,
    ) -> Result<ReadPrompt> {
        let references = match words {
            Words::Messages(messages) => images(messages, given)?,
            Words::Text(_) | Words::Ids(_) => given.to_vec(),
        };
        let images =
            references.iter().map(|reference| self.picture(reference, base)).collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = images.iter().map(|image| image.tokens).collect();
        let prompt = match words {
            Words::Messages(messages) => self.prompter.chat(messages, options, &lengths)?,
            Words::Text(text) => self.prompter.text(text, &lengths)?,
            Words::Ids(ids) => self.prompter.ids(ids.clone(), &lengths)?,
        };
        Ok(ReadPrompt { prompt, images })
    }

    fn picture(&self, reference: &ImageReference, base: &Path) -> Result<ProcessedImage> {
        let Some(processor) = &self.processor else {
            return Err(Error::caller("images", "this model reads text only; leave the images out"));
        };
        let name = match reference {
            ImageReference::Bytes(_) => "inline image".into(),
            ImageReference::Path(path) => base.join(path),
        };
        let image = match reference {
            ImageReference::Bytes(bytes) => self.decoder.bytes(bytes, &name)?,
            ImageReference::Path(_) => self.decoder.file(&name)?,
        };
        processor.process(&image).map_err(|refused| Error::file(&name, refused.to_string()))
    }
}

fn with_options(mut settings: ImageProcessorConfig, options: ImageOptions) -> Result<ImageProcessorConfig> {
    if let Some(arithmetic) = options.arithmetic {
        settings.pil = arithmetic == Arithmetic::Pil;
    }
    match &mut settings.layout {
        PatchLayout::Flexible { min_pixels, max_pixels, .. } => {
            *min_pixels = options.min_pixels.unwrap_or(*min_pixels);
            *max_pixels = options.max_pixels.unwrap_or(*max_pixels);
            if min_pixels > max_pixels {
                let what = format!("min-pixels {min_pixels} is above max-pixels {max_pixels}");
                return Err(Error::caller("image processor", what));
            }
        }
        PatchLayout::Tiles { .. } if options.min_pixels.or(options.max_pixels).is_some() => {
            let what = "min-pixels and max-pixels mean nothing to a model that cuts pictures into tiles";
            return Err(Error::caller("image processor", what));
        }
        PatchLayout::Tiles { .. } => {}
    }
    Ok(settings)
}
