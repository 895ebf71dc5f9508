//! What the image processors make of images, for comparison with another implementation
//! (`tests/golden/image_parity.py`).
//!
//! Each line on standard input is a JSON object: `path`, `layout` ("qwen", "internvl", or "rgb" for the decoded
//! bytes), and where they matter `pil` (true for Pillow's arithmetic), `white` (true to lay alpha over white),
//! `min` and `max` (pixels or tiles). Each is answered on standard output with a JSON line,
//! `{"shape": [...], "geometry": "...", "tokens": n, "ms": [decoding, processing]}` or `{"error": "..."}`, and then
//! the values: f32 little-endian, or bytes for "rgb".

use pellucid::format::{ImageProcessorConfig, PatchLayout, Resample};
use pellucid::prompt::image::{Alpha, Decoder, ImageProcessor};
use serde_json::{Value, json};
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

const CLIP: ([f64; 3], [f64; 3]) =
    ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let (head, values) = answer(&serde_json::from_str(&line?)?)
            .unwrap_or_else(|error| (json!({"error": error.to_string()}), Vec::new()));
        writeln!(out, "{head}")?;
        out.write_all(&values)?;
        out.flush()?;
    }
    Ok(())
}

fn answer(request: &Value) -> Result<(Value, Vec<u8>), Box<dyn Error>> {
    let path = request["path"].as_str().ok_or("path is missing")?;
    let flag = |key: &str| request[key].as_bool() == Some(true);
    let number = |key: &str, default: u64| request[key].as_u64().unwrap_or(default) as usize;
    let start = Instant::now();
    let alpha = if flag("white") { Alpha::White } else { Alpha::Drop };
    let image = Decoder { alpha, ..Decoder::default() }.file(path)?;
    let decoding = start.elapsed().as_secs_f64() * 1e3;
    let (layout, moments) = match request["layout"].as_str() {
        Some("rgb") => {
            let head = json!({"shape": [image.height(), image.width(), 3], "ms": [decoding, 0.0]});
            return Ok((head, image.pixels().to_vec()));
        }
        Some("qwen") => {
            let (min_pixels, max_pixels) = (number("min", 56 * 56), number("max", 28 * 28 * 1280));
            (PatchLayout::Flexible { min_pixels, max_pixels, patch: 14, temporal_patch: 2, merge: 2 }, CLIP)
        }
        Some("internvl") => {
            let (min, max) = (number("min", 1), number("max", 12));
            (PatchLayout::Tiles { side: 448, min, max, thumbnail: true }, IMAGENET)
        }
        other => return Err(format!("unknown layout {other:?}").into()),
    };
    let config = ImageProcessorConfig {
        layout,
        resize: true,
        resample: Resample::Bicubic,
        convert_rgb: true,
        rescale: Some(1.0 / 255.0),
        normalize: Some(moments),
        pil: flag("pil"),
    };
    let processor = ImageProcessor::new(&config, 256)?;
    let start = Instant::now();
    let processed = processor.process(&image)?;
    let processing = start.elapsed().as_secs_f64() * 1e3;
    let head = json!({
        "shape": processed.shape, "geometry": format!("{:?}", processed.geometry),
        "tokens": processed.tokens, "ms": [decoding, processing],
    });
    Ok((head, processed.pixels.iter().flat_map(|value| value.to_le_bytes()).collect()))
}
