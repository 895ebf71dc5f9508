//! What the image processors make of images, for comparison with another implementation
//! (`tests/golden/image_parity.py`).
//!
//! Each line on standard input is a JSON object: `path`, `layout` ("qwen", or "rgb" for the decoded bytes), and
//! where they matter `pil` (true for Pillow's arithmetic), `min_pixels` and `max_pixels`. Each is answered on
//! standard output with a JSON line, `{"shape": [...], "grid": [...], "tokens": n}` or `{"error": "..."}`, and then
//! the values: f32 little-endian, or bytes for "rgb".

use pellucid::prompt::image::{Arithmetic, CLIP, Decoder, ImageProcessor, Layout, Normalise};
use serde_json::{Value, json};
use std::error::Error;
use std::io::{BufRead, Write};

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
    let image = Decoder::default().file(path)?;
    let (layout, moments) = match request["layout"].as_str() {
        Some("rgb") => {
            let head = json!({"shape": [image.height(), image.width(), 3]});
            return Ok((head, image.pixels().to_vec()));
        }
        Some("qwen") => {
            let Layout::Qwen(mut qwen) = Layout::qwen();
            for (key, limit) in [("min_pixels", &mut qwen.min_pixels), ("max_pixels", &mut qwen.max_pixels)] {
                if let Some(pixels) = request[key].as_u64() {
                    *limit = pixels as usize;
                }
            }
            (Layout::Qwen(qwen), CLIP)
        }
        other => return Err(format!("unknown layout {other:?}").into()),
    };
    let pil = request["pil"].as_bool() == Some(true);
    let processor = ImageProcessor {
        layout,
        normalise: Normalise { rescale: Some(1.0 / 255.0), standardise: Some(moments) },
        arithmetic: if pil { Arithmetic::Pil } else { Arithmetic::Torch },
    };
    let processed = processor.process(&image)?;
    let head = json!({"shape": processed.shape, "grid": processed.grid, "tokens": processed.tokens});
    Ok((head, processed.pixels.iter().flat_map(|value| value.to_le_bytes()).collect()))
}
