//! Pictures: equality with Pillow and transformers on the fixtures of `tests/golden/images` (see its README), and
//! good manners towards files that are damaged or lie.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use image::{ExtendedColorType, ImageEncoder};
use pellucid::format::{ImageProcessorConfig, PatchLayout, Resample};
use pellucid::prompt::image::{Alpha, Arithmetic, Decoder, Geometry, ImageProcessor, Rgb, bicubic};
use proptest::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

const CLIP: ([f64; 3], [f64; 3]) =
    ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images")
}

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn tensors(file: &str) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(fixtures().join(file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, view)| (name.into(), view.shape().to_vec(), view.data().to_vec())).collect()
}

fn config(layout: PatchLayout, pil: bool) -> ImageProcessorConfig {
    let moments = if matches!(layout, PatchLayout::Flexible { .. }) { CLIP } else { IMAGENET };
    ImageProcessorConfig {
        layout,
        resize: true,
        resample: Resample::Bicubic,
        convert_rgb: true,
        rescale: Some(1.0 / 255.0),
        normalize: Some(moments),
        pil,
    }
}

fn flexible(patch: usize, min_pixels: usize, max_pixels: usize) -> PatchLayout {
    PatchLayout::Flexible { min_pixels, max_pixels, patch, temporal_patch: 2, merge: 2 }
}

fn processor(layout: PatchLayout) -> ImageProcessor {
    ImageProcessor::new(&config(layout, false), 256).unwrap()
}

fn layout_of(run: &Value) -> PatchLayout {
    let setting = |key: &str, default: u64| run["settings"][key].as_u64().unwrap_or(default) as usize;
    match run["family"].as_str() {
        Some("qwen") => {
            flexible(setting("patch_size", 14), setting("min_pixels", 3136), setting("max_pixels", 1_003_520))
        }
        _ => PatchLayout::Tiles {
            side: setting("tile", 448),
            min: setting("min_patches", 1),
            max: setting("max_patches", 12),
            thumbnail: true,
        },
    }
}

#[test]
fn files_decode_as_pillow_decodes_them() {
    let all = tensors("decoded.safetensors");
    assert!(all.len() > 40);
    for (name, shape, bytes) in all {
        let image = Decoder::default().file(fixtures().join("files").join(&name)).unwrap();
        assert_eq!([image.height(), image.width(), 3], shape[..], "{name}");
        assert!(image.pixels() == bytes, "{name}: pixels differ");
    }
}

#[test]
fn processors_give_the_reference_values() {
    let tensors = tensors("expected.safetensors");
    let find = |name: &str| tensors.iter().find(|tensor| tensor.0 == name);
    let mut floats = 0;
    for run in expected()["processed"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        let image =
            Decoder::default().file(fixtures().join("files").join(run["file"].as_str().unwrap())).unwrap();
        for (backend, pil) in [("fast", false), ("pil", true)] {
            let name = format!("{name}.{backend}");
            let settings = config(layout_of(run), pil);
            if let Some((_, shape, bytes)) = find(&format!("{name}.values")) {
                let processed = ImageProcessor::new(&settings, 256).unwrap().process(&image).unwrap();
                let ours: Vec<u8> = processed.pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
                assert_eq!(&processed.shape, shape, "{name}");
                assert!(ours == *bytes, "{name}: values differ");
                floats += 1;
            }
            // Left as they are, the resized bytes can be put back where they came from.
            let plain = ImageProcessorConfig { rescale: None, normalize: None, ..settings };
            let processed = ImageProcessor::new(&plain, 256).unwrap().process(&image).unwrap();
            let (_, _, bytes) = find(&name).unwrap();
            assert!(restored(&plain, &processed) == *bytes, "{name}: bytes differ");
        }
    }
    assert!(floats >= 4);
}

/// The resized bytes in reading order, from values that are bytes still.
fn restored(config: &ImageProcessorConfig, processed: &pellucid::prompt::image::ProcessedImage) -> Vec<u8> {
    let mut bytes = vec![0; processed.pixels.len()];
    match (config.layout, processed.geometry) {
        (
            PatchLayout::Flexible { patch, merge, temporal_patch, .. },
            Geometry::Patches { grid: [_, down, across] },
        ) => {
            bytes.truncate(processed.pixels.len() / temporal_patch);
            for (index, &value) in processed.pixels.iter().enumerate() {
                let (px, py) = (index % patch, index / patch % patch);
                let channel = index / (patch * patch * temporal_patch) % 3;
                let at = index / (patch * patch * temporal_patch * 3);
                let (mx, my) = (at % merge, at / merge % merge);
                let block = at / (merge * merge);
                let (bx, by) = (block % (across / merge), block / (across / merge));
                let x = (bx * merge + mx) * patch + px;
                let y = (by * merge + my) * patch + py;
                assert!(y < down * patch);
                bytes[(y * across * patch + x) * 3 + channel] = value as u8;
            }
        }
        (PatchLayout::Tiles { side, .. }, Geometry::Tiles { .. }) => {
            for (index, &value) in processed.pixels.iter().enumerate() {
                let (place, channel, tile) =
                    (index % (side * side), index / (side * side) % 3, index / (side * side * 3));
                bytes[(tile * side * side + place) * 3 + channel] = value as u8;
            }
        }
        _ => panic!("the geometry is of another layout"),
    }
    bytes
}

#[test]
fn sizes_follow_the_reference_rules() {
    let expected = expected();
    let rows =
        |key: &str| -> Vec<Vec<usize>> { serde_json::from_value(expected[key]["rows"].clone()).unwrap() };
    for row in rows("smart_resize") {
        let [height, width, factor, min, max, to_height, to_width] = row[..] else { panic!("seven columns") };
        let (geometry, tokens) = processor(flexible(factor / 2, min, max)).measure(width, height).unwrap();
        let grid = [1, to_height / (factor / 2), to_width / (factor / 2)];
        assert_eq!(geometry, Geometry::Patches { grid }, "{row:?}");
        assert_eq!(tokens, to_height * to_width / (factor * factor));
    }
    for row in rows("tiled_canvas") {
        let [height, width, side, min, max, columns, rows] = row[..] else { panic!("seven columns") };
        let layout = PatchLayout::Tiles { side, min, max, thumbnail: true };
        let (geometry, _) = processor(layout).measure(width, height).unwrap();
        let thumbnail = columns * rows > 1;
        assert_eq!(geometry, Geometry::Tiles { columns, rows, thumbnail }, "{row:?}");
    }
}

#[test]
fn sizes_without_sense_are_refused() {
    let qwen = processor(flexible(14, 3136, 1_003_520));
    assert!(qwen.measure(200, 1).is_ok());
    let complaint = qwen.measure(201, 1).unwrap_err().to_string();
    assert!(complaint.contains("201 x 1") && complaint.contains("200 times"), "{complaint}");
    assert!(qwen.measure(0, 5).unwrap_err().to_string().contains("0 x 5"));
    for layout in [
        flexible(14, 1 << 40, 1 << 40),
        flexible(1 << 20, 3136, 1_003_520),
        PatchLayout::Tiles { side: 448, min: 1, max: 1 << 20, thumbnail: true },
    ] {
        let complaint = ImageProcessor::new(&config(layout, false), 256).unwrap_err().to_string();
        assert!(complaint.contains("beyond"), "{complaint}");
    }
}

#[test]
fn tile_patches_are_what_a_convolution_sees() {
    let layout = PatchLayout::Tiles { side: 8, min: 2, max: 2, thumbnail: true };
    let plain = ImageProcessorConfig { rescale: None, normalize: None, ..config(layout, false) };
    let image = noise(16, 8, 3);
    let processed = ImageProcessor::new(&plain, 4).unwrap().process(&image).unwrap();
    assert_eq!((processed.shape.as_slice(), processed.tokens), ([3, 3, 8, 8].as_slice(), 12));
    let rows = processed.tile_patches(4).unwrap();
    for (index, &value) in rows.iter().enumerate().take(2 * 4 * 48) {
        let (row, channel, y, x) = (index / 48, index / 16 % 3, index / 4 % 4, index % 4);
        let (x, y) = (row / 4 * 8 + row % 2 * 4 + x, row / 2 % 2 * 4 + y);
        assert_eq!(value, f32::from(image.pixels()[(y * 16 + x) * 3 + channel]), "{index}");
    }
    assert!(processed.tile_patches(3).is_err());
}

#[test]
fn hashes_tell_images_and_treatments_apart() {
    let hash = |layout, image: &Rgb| processor(layout).process(image).unwrap().hash;
    let layout = flexible(14, 784, 1_003_520);
    let image = noise(56, 56, 1);
    let mut other = image.pixels().to_vec();
    other[0] ^= 1;
    let other = Rgb::new(56, 56, other).unwrap();
    let tiles = PatchLayout::Tiles { side: 28, min: 1, max: 1, thumbnail: true };
    let pil = ImageProcessor::new(&config(layout, true), 256).unwrap();
    let all = [
        hash(layout, &image),
        hash(layout, &other),
        hash(flexible(14, 784, 1600), &image),
        hash(flexible(7, 784, 1_003_520), &image),
        hash(tiles, &image),
        pil.process(&image).unwrap().hash,
    ];
    for (index, hash) in all.iter().enumerate() {
        assert!(!all[..index].contains(hash), "{index}");
    }
    assert_eq!(all[0], hash(layout, &image.clone()));
}

#[test]
fn alpha_is_laid_over_white_where_asked() {
    let colours: Vec<u8> =
        (0..=255).flat_map(|alpha| [[0, 200, 255, alpha], [90, 91, 92, alpha]].concat()).collect();
    let mut png = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    encoder.write_image(&colours, 512, 1, ExtendedColorType::Rgba8).unwrap();
    let dropped = Decoder::default().bytes(&png, "made").unwrap();
    let white = Decoder { alpha: Alpha::White, ..Decoder::default() }.bytes(&png, "made").unwrap();
    for (index, pixel) in colours.chunks_exact(4).enumerate() {
        for channel in 0..3 {
            assert_eq!(dropped.pixels()[index * 3 + channel], pixel[channel]);
            let (value, alpha) = (f64::from(pixel[channel]), f64::from(pixel[3]) / 255.0);
            let exact = value * alpha + 255.0 * (1.0 - alpha);
            assert!((f64::from(white.pixels()[index * 3 + channel]) - exact).abs() <= 0.51, "{pixel:?}");
        }
    }
}

#[test]
fn both_arithmetics_resize_like_the_plain_definition() {
    for (width, height, to_width, to_height) in
        [(7, 5, 13, 11), (60, 41, 20, 9), (33, 64, 40, 31), (50, 1, 3, 4)]
    {
        let image = noise(width, height, 7);
        for arithmetic in [Arithmetic::Torch, Arithmetic::Pil] {
            let fast = bicubic(&image, to_width, to_height, arithmetic);
            for (index, (fast, plain)) in
                fast.pixels().iter().zip(plain_bicubic(&image, to_width, to_height)).enumerate()
            {
                // Half a level lost by each pass, the first half enlarged by the weights' overshoot.
                assert!((f64::from(*fast) - plain).abs() < 1.3, "{arithmetic:?} at {index}: {fast} {plain}");
            }
        }
    }
}

/// Bicubic resampling in f64, straight from its definition: clamped, but not rounded, between the passes.
fn plain_bicubic(image: &Rgb, width: usize, height: usize) -> Vec<f64> {
    let bytes: Vec<f64> = image.pixels().iter().map(|&byte| f64::from(byte)).collect();
    let (old_width, old_height) = (image.width(), image.height());
    let wide = plain_pass(&bytes, old_width, width, (0..old_height).map(|y| y * old_width), 1);
    plain_pass(&wide, old_height, height, 0..width, width)
}

/// Resamples the lines of pixels that start at `starts` and go on every `stride` pixels from `from` to `to` long.
fn plain_pass(
    pixels: &[f64],
    from: usize,
    to: usize,
    starts: impl Iterator<Item = usize>,
    stride: usize,
) -> Vec<f64> {
    let kernel = |x: f64| match x.abs() {
        x if x < 1.0 => 1.5 * x.powi(3) - 2.5 * x.powi(2) + 1.0,
        x if x < 2.0 => -0.5 * x.powi(3) + 2.5 * x.powi(2) - 4.0 * x + 2.0,
        _ => 0.0,
    };
    let scale = from as f64 / to as f64;
    let mut out = vec![0.0; pixels.len() / from * to];
    for (line, start) in starts.enumerate() {
        for at in 0..to {
            let centre = (at as f64 + 0.5) * scale - 0.5;
            let weights: Vec<f64> = (0..from).map(|i| kernel((i as f64 - centre) / scale.max(1.0))).collect();
            let total: f64 = weights.iter().sum();
            let target = if stride == 1 { line * to + at } else { line + at * stride };
            for channel in 0..3 {
                let value = |i: usize| pixels[(start + i * stride) * 3 + channel];
                let sum: f64 = weights.iter().enumerate().map(|(i, weight)| weight * value(i)).sum();
                out[target * 3 + channel] = (sum / total).clamp(0.0, 255.0);
            }
        }
    }
    out
}

/// A repeatable image without pattern.
fn noise(width: usize, height: usize, seed: u64) -> Rgb {
    let mut state = seed;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    Rgb::new(width, height, (0..width * height * 3).map(|_| byte()).collect()).unwrap()
}

fn files() -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(fixtures().join("files")).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn truncated_files_are_refused_or_whole() {
    for (name, bytes) in files() {
        let whole = Decoder::default().bytes(&bytes, &name).unwrap();
        for end in (0..bytes.len()).step_by(bytes.len() / 40 + 1) {
            match Decoder::default().bytes(&bytes[..end], &name) {
                Ok(image) => {
                    assert_eq!(image.width() * image.height(), whole.width() * whole.height(), "{name}")
                }
                Err(error) => assert!(error.to_string().contains(&name), "{error}"),
            }
        }
    }
}

#[test]
fn a_jpeg_without_its_second_half_is_an_error() {
    for (name, bytes) in files().into_iter().filter(|(name, _)| name.starts_with("jpeg_4")) {
        let complaint =
            Decoder::default().bytes(&bytes[..bytes.len() * 3 / 4], &name).unwrap_err().to_string();
        assert!(complaint.contains(&name) && complaint.contains("truncated"), "{complaint}");
    }
}

#[test]
fn claims_are_checked_before_memory_is_spent() {
    let bytes = |name: &str| std::fs::read(fixtures().join("files").join(name)).unwrap();
    let decoder = Decoder { max_pixels: 1000, max_bytes: 5000, ..Decoder::default() };
    for name in ["mode_rgb_transparent.png", "jpeg_420.jpg", "webp_lossy.webp", "mode_1.bmp", "mode_p.gif"] {
        let complaint = decoder.bytes(&bytes(name), name).unwrap_err().to_string();
        assert!(complaint.contains(name) && complaint.contains("limit of 1000"), "{complaint}");
    }
    let complaint = decoder.file(fixtures().join("files/even.png")).unwrap_err().to_string();
    assert!(complaint.contains("even.png") && complaint.contains("limit of 5000 bytes"), "{complaint}");

    // A JPEG that claims the largest size there is, or none.
    let mut liar = bytes("jpeg_420.jpg");
    let frame = liar.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap() + 5;
    for (size, words) in [([0xff; 4], "65535 x 65535"), ([0, 0, 0, 9], "empty: 9 x 0")] {
        liar[frame..frame + 4].copy_from_slice(&size);
        let complaint = Decoder::default().bytes(&liar, "liar").unwrap_err().to_string();
        assert!(complaint.contains("liar") && complaint.contains(words), "{complaint}");
    }
}

#[cfg(unix)]
#[test]
fn files_that_are_no_images_are_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path(), "/dev/zero".as_ref()] {
        let complaint = Decoder::default().file(path).unwrap_err().to_string();
        assert!(
            complaint.contains("no plain file") && complaint.contains(path.to_str().unwrap()),
            "{complaint}"
        );
    }
    let complaint = Decoder::default().file(folder.path().join("missing.png")).unwrap_err().to_string();
    assert!(complaint.contains("missing.png: the image cannot be read"), "{complaint}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn bytes_of_any_kind_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), head in 0..6usize) {
        let heads: [&[u8]; 6] =
            [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 ", b"BM"];
        drop(Decoder::default().bytes(&[heads[head], &bytes].concat(), "any"));
    }

    #[test]
    fn damaged_files_never_panic(
        file in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let files = files();
        let (name, mut bytes) = files[file.index(files.len())].clone();
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        drop(Decoder { max_pixels: 1 << 20, ..Decoder::default() }.bytes(&bytes, name));
    }

    #[test]
    fn every_size_gives_a_grid_that_fits(width in 1..4000usize, height in 1..4000usize) {
        let qwen = processor(flexible(14, 56 * 56, 28 * 28 * 1280));
        match qwen.measure(width, height) {
            Ok((Geometry::Patches { grid: [time, down, across] }, tokens)) => {
                prop_assert!(time == 1 && down % 2 == 0 && across % 2 == 0 && tokens * 4 == down * across);
                // A sliver at least one block wide may pass the limit by that block.
                prop_assert!(tokens >= 4 && (tokens <= 1280 || down.min(across) == 2));
            }
            Ok(other) => prop_assert!(false, "{other:?}"),
            Err(_) => prop_assert!(width.max(height) > 200 * width.min(height)),
        }
        let layout = PatchLayout::Tiles { side: 448, min: 1, max: 12, thumbnail: true };
        match processor(layout).measure(width, height).unwrap() {
            (Geometry::Tiles { columns, rows, thumbnail }, tokens) => {
                prop_assert!((1..=12).contains(&(columns * rows)));
                prop_assert_eq!(tokens, (columns * rows + usize::from(thumbnail)) * 256);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
