//! A run's folder, read for its report. What is missing or cannot be read is left out and said so.

use crate::error::Result;
use crate::prompt::image::{Arithmetic, Decoder, Rgb, bicubic};
use crate::prompt::message::ImageReference;
use crate::rl::evaluation::Evaluation;
use base64::Engine as _;
use image::ImageEncoder;
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

/// The longest side of a picture, in pixels: a report is to be mailed.
const LARGEST_SIDE: usize = 512;

/// What a run left behind.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// Its name.
    pub(super) name: String,
    /// Its configuration as it was written.
    pub(super) config: String,
    /// A line of metrics per step.
    pub(super) steps: Vec<Map<String, Value>>,
    /// Lines that cannot be read.
    pub(super) unreadable: usize,
    /// Its evaluations, in order.
    pub(super) evaluations: Vec<Evaluation>,
}

impl Folder {
    /// Reads it.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        // Neither has to be there: an evaluation by itself has no steps.
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let metrics = text("metrics.jsonl");
        let lines: Vec<Option<Map<String, Value>>> =
            metrics.lines().map(|line| serde_json::from_str(line).ok()).collect();
        let whole = folder.canonicalize().unwrap_or(folder.to_owned());
        Ok(Folder {
            name: whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            config: text("config.toml"),
            unreadable: lines.iter().filter(|line| line.is_none()).count(),
            steps: lines.into_iter().flatten().collect(),
            evaluations: Evaluation::all_in(folder)?,
        })
    }

    /// The steps and values of a metric, where it was logged as a number.
    pub(super) fn series(&self, key: &str) -> Vec<(f64, f64)> {
        let point = |line: &Map<String, Value>| Some((line.get("step")?.as_f64()?, line.get(key)?.as_f64()?));
        self.steps.iter().filter_map(point).collect()
    }
}

/// A picture to be shown.
#[derive(Debug)]
pub(super) struct Picture {
    /// The picture itself.
    pub(super) data_url: String,
    /// Whether it is so small that its pixels are to be seen.
    pub(super) coarse: bool,
}

impl Picture {
    /// Reads one, and shrinks it if it is large. None where there is no such picture.
    pub(super) fn read(picture: &ImageReference) -> Option<Self> {
        let decoder = Decoder::default();
        let decoded = match picture {
            ImageReference::Path(path) => decoder.file(path),
            ImageReference::Bytes(bytes) => decoder.bytes(bytes, "picture"),
        };
        let shrunk = shrunk(decoded.ok()?);
        let (width, height) = (shrunk.width() as u32, shrunk.height() as u32);
        let mut png = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        encoder.write_image(shrunk.pixels(), width, height, image::ExtendedColorType::Rgb8).ok()?;
        let coded = base64::engine::general_purpose::STANDARD.encode(png);
        Some(Picture { data_url: format!("data:image/png;base64,{coded}"), coarse: width.max(height) <= 128 })
    }
}

fn shrunk(picture: Rgb) -> Rgb {
    let longest = picture.width().max(picture.height());
    if longest <= LARGEST_SIDE {
        return picture;
    }
    let scaled = |side: usize| (side * LARGEST_SIDE).div_ceil(longest).max(1);
    bicubic(&picture, scaled(picture.width()), scaled(picture.height()), Arithmetic::Pil)
}
