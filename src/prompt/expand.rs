//! From a request to the tokens a model reads: rendering, image placeholders, and where the images stand.
//!
//! A template writes one placeholder per image; the model reads as many tokens as the image has features. Which
//! placeholders are images is known by where they come from, never by looking for their ids afterwards: what
//! people type (in any text of the messages, the tools or the arguments) is marked before rendering, and a
//! typed placeholder becomes plain text, never an image. A raw prompt has no other way to place an image than
//! its text, so there every placeholder counts. Either way their number must be that of the images.

use std::ops::Range;

use serde_json::Value as Json;

use super::message::{Content, Message, Part, map_texts};
use super::template::{ChatTemplate, RenderOptions};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::format::config::Family;

/// The tokens of one image within a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which image, in the order of the request.
    pub image: usize,
    /// The tokens that take its features.
    pub tokens: Range<usize>,
}

/// What a model reads: tokens, and where its images stand among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, placeholders repeated.
    pub tokens: Vec<u32>,
    /// One span per image, in order.
    pub spans: Vec<Span>,
}

/// How a family writes an image: in text as a placeholder, in tokens as a repeated one between two marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMarkup {
    /// What stands for one image in rendered text; the first is what we write ourselves.
    placeholders: &'static [&'static str],
    open: Option<u32>,
    token: u32,
    close: Option<u32>,
}

impl ImageMarkup {
    /// The markup of a family, or none if it reads text only.
    pub fn of(family: Family, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        match family {
            Family::Qwen2 | Family::Qwen3 | Family::Llama => Ok(None),
            // The template itself writes the marks around an image.
            Family::Qwen2Vl | Family::Qwen25Vl => Ok(Some(ImageMarkup {
                placeholders: &["<|image_pad|>"],
                open: None,
                token: tokenizer.require("<|image_pad|>")?,
                close: None,
            })),
            // `<image>` is how the original InternVL prompts and conversions by early scripts spell it.
            Family::InternVl => Ok(Some(ImageMarkup {
                placeholders: &["<IMG_CONTEXT>", "<image>"],
                open: Some(tokenizer.require("<img>")?),
                token: tokenizer.require("<IMG_CONTEXT>")?,
                close: Some(tokenizer.require("</img>")?),
            })),
        }
    }

    /// `text` cut at its placeholders.
    fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        let mut rest = text;
        let first = |text: &str| {
            self.placeholders.iter().filter_map(|name| Some((text.find(name)?, name.len()))).min()
        };
        while let Some((start, length)) = first(rest) {
            pieces.push(&rest[..start]);
            rest = &rest[start + length..];
        }
        pieces.push(rest);
        pieces
    }

    /// `text` with `mark` inside every placeholder, so that none is left.
    fn marked(&self, text: &str, mark: char) -> String {
        let mut text = text.to_owned();
        for name in self.placeholders {
            if text.contains(name) {
                text = text.replace(name, &format!("{}{mark}{}", &name[..1], &name[1..]));
            }
        }
        text
    }
}

/// Makes prompts for one model.
#[derive(Debug)]
pub struct Prompter {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    markup: Option<ImageMarkup>,
    /// Whether the template reads content as a list of parts.
    reads_parts: bool,
}

impl Prompter {
    /// Puts together what a checkpoint brings.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>, markup: Option<ImageMarkup>) -> Self {
        let reads_parts = template.as_ref().is_some_and(reads_parts);
        Prompter { tokenizer, template, markup, reads_parts }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The prompt of a conversation. `image_tokens` says how many tokens each of its images takes, in order.
    pub fn chat(
        &self,
        messages: &[Message],
        options: &RenderOptions,
        image_tokens: &[usize],
    ) -> Result<Prompt> {
        let places: usize = messages.iter().map(Message::image_count).sum();
        let mark = unused_character(messages, options)?;
        let rendered = self.rendered(messages, options, mark)?;
        let pieces = match &self.markup {
            None if places > 0 || !image_tokens.is_empty() => {
                let images = places.max(image_tokens.len());
                return Err(Error::caller(
                    "prompt",
                    format!("{images} image(s) for a model that reads text only"),
                ));
            }
            None => vec![rendered.as_str()],
            Some(markup) => markup.split(&rendered),
        };
        if pieces.len() != places + 1 {
            return Err(Error::caller(
                "prompt",
                format!(
                    "the messages hold {places} image(s), but the chat template writes {} placeholder(s)",
                    pieces.len() - 1
                ),
            ));
        }
        self.joined(&pieces, image_tokens, |piece| {
            // Where a placeholder was typed, its two halves are encoded apart and so stay text.
            let mut ids = Vec::new();
            for part in piece.split(mark).filter(|part| !part.is_empty()) {
                ids.extend(self.tokenizer.encode(part)?);
            }
            Ok(ids)
        })
    }

    /// What the template makes of a conversation, placeholders not yet repeated.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let mark = unused_character(messages, options)?;
        Ok(self.rendered(messages, options, mark)?.replace(mark, ""))
    }

    /// The prompt of a text as it is, with what the tokenizer puts around every text.
    pub fn text(&self, text: &str, image_tokens: &[usize]) -> Result<Prompt> {
        let pieces = self.markup.as_ref().map_or_else(|| vec![text], |markup| markup.split(text));
        if let [whole] = pieces[..] {
            check_count(0, image_tokens.len())?;
            return Ok(Prompt { tokens: self.tokenizer.encode_raw(whole)?, spans: Vec::new() });
        }
        self.joined(&pieces, image_tokens, |piece| self.tokenizer.encode(piece))
    }

    /// The prompt of given tokens, in which images are already as long as they should be. Here ids are all
    /// there is to find the images by.
    pub fn ids(&self, tokens: Vec<u32>, image_tokens: &[usize]) -> Result<Prompt> {
        let Some(markup) = self.markup.as_ref().filter(|_| !image_tokens.is_empty()) else {
            check_count(0, image_tokens.len())?;
            return Ok(Prompt { tokens, spans: Vec::new() });
        };
        let mut spans = Vec::new();
        let mut at = 0;
        while let Some(offset) = tokens[at..].iter().position(|&id| id == markup.token) {
            let start = at + offset;
            let run = tokens[start..].iter().take_while(|&&id| id == markup.token).count();
            let wanted = image_tokens.get(spans.len()).copied().unwrap_or(run);
            if wanted == 0 || wanted > run {
                return Err(Error::caller(
                    "prompt_token_ids",
                    format!(
                        "{run} image token(s) at position {start}, but image {} takes {wanted}",
                        spans.len()
                    ),
                ));
            }
            spans.push(Span { image: spans.len(), tokens: start..start + wanted });
            at = start + wanted;
        }
        check_count(spans.len(), image_tokens.len())?;
        Ok(Prompt { tokens, spans })
    }

    fn rendered(&self, messages: &[Message], options: &RenderOptions, mark: char) -> Result<String> {
        let Some(template) = &self.template else {
            return Err(Error::caller("prompt", "this model has no chat template, give a raw prompt"));
        };
        let Some(markup) = &self.markup else {
            let messages: Vec<Json> =
                messages.iter().map(|message| self.seen(message, &str::to_owned)).collect();
            return template.render(&messages, options);
        };
        let escape = |text: &str| markup.marked(text, mark);
        let messages: Vec<Json> = messages.iter().map(|message| self.seen(message, &escape)).collect();
        let options = RenderOptions {
            tools: map_texts(&options.tools, &escape),
            documents: map_texts(&options.documents, &escape),
            arguments: options.arguments.iter().map(|(k, v)| (k.clone(), map_texts(v, &escape))).collect(),
            ..options.clone()
        };
        template.render(&messages, &options)
    }

    /// The message as the template wants it. One that knows only text gets the parts in a row, each image as its
    /// placeholder on a line of its own, which is what InternVL's own prompts look like.
    fn seen(&self, message: &Message, escape: &dyn Fn(&str) -> String) -> Json {
        let mut seen = message.to_template(escape);
        if let (Content::Parts(parts), false) = (&message.content, self.reads_parts) {
            let placeholder = self.markup.as_ref().map_or("<image>", |markup| markup.placeholders[0]);
            let text = parts.iter().map(|part| match part {
                Part::Text(text) => escape(text),
                Part::Image(_) => format!("{placeholder}\n"),
            });
            seen["content"] = Json::String(text.collect());
        }
        seen
    }

    /// Pieces of text with an image between each two.
    fn joined(
        &self,
        pieces: &[&str],
        image_tokens: &[usize],
        encode: impl Fn(&str) -> Result<Vec<u32>>,
    ) -> Result<Prompt> {
        check_count(pieces.len() - 1, image_tokens.len())?;
        let mut prompt = Prompt { tokens: Vec::new(), spans: Vec::new() };
        for (image, piece) in pieces.iter().enumerate() {
            prompt.tokens.extend(encode(piece)?);
            if let (Some(markup), Some(&length)) = (&self.markup, image_tokens.get(image)) {
                prompt.tokens.extend(markup.open);
                let start = prompt.tokens.len();
                prompt.tokens.extend(std::iter::repeat_n(markup.token, length));
                prompt.spans.push(Span { image, tokens: start..start + length });
                prompt.tokens.extend(markup.close);
            }
        }
        Ok(prompt)
    }
}

fn check_count(placeholders: usize, images: usize) -> Result<()> {
    if placeholders == images {
        return Ok(());
    }
    Err(Error::caller(
        "prompt",
        format!("{placeholders} image placeholder(s) in the prompt, but {images} image(s) are given"),
    ))
}

/// Whether a template takes content apart by itself: tried out, since templates say it in many ways.
fn reads_parts(template: &ChatTemplate) -> bool {
    let probe = serde_json::json!([{"role": "user", "content": [{"type": "text", "text": "probe"}]}]);
    let rendered = template.render(probe.as_array().map_or(&[], Vec::as_slice), &RenderOptions::default());
    // A template for text either fails on a list or prints it as Python would.
    rendered
        .is_ok_and(|text| text.contains("probe") && !text.contains("'type'") && !text.contains("\"type\""))
}

/// A private character that no text of the request holds.
fn unused_character(messages: &[Message], options: &RenderOptions) -> Result<char> {
    let mut request: String =
        messages.iter().map(|message| message.to_template(&str::to_owned).to_string()).collect();
    for value in [&options.tools, &options.documents].into_iter().chain(options.arguments.values()) {
        request += &value.to_string();
    }
    let mut private = ('\u{e000}'..='\u{f8ff}').chain('\u{f0000}'..='\u{ffffd}');
    private
        .find(|&character| !request.contains(character))
        .ok_or_else(|| Error::caller("prompt", "the messages use every private character of Unicode"))
}
