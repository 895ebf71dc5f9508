//! What a picture costs: a photograph of 20 million pixels through each processor, and the fixtures' decoding.
//!
//!     cargo bench --bench image
//!
//! `benches/peers/images.py` sets the same beside the Python processors.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pellucid::format::{ImageProcessorConfig, PatchLayout, Resample};
use pellucid::prompt::image::{Decoder, ImageProcessor, Rgb};
use std::hint::black_box;
use std::path::Path;

const WIDTH: usize = 5472;
const HEIGHT: usize = 3648;

fn photograph() -> Rgb {
    let byte = |index: usize| (index % (WIDTH * 3) / 7 + index / (WIDTH * 3) / 5 + index * index % 11) as u8;
    Rgb::new(WIDTH, HEIGHT, (0..WIDTH * HEIGHT * 3).map(byte).collect()).expect("the size is right")
}

fn process(criterion: &mut Criterion) {
    let image = photograph();
    let qwen = |max_pixels| PatchLayout::Flexible {
        min_pixels: 3136,
        max_pixels,
        patch: 14,
        temporal_patch: 2,
        merge: 2,
    };
    let tiles = PatchLayout::Tiles { side: 448, min: 1, max: 12, thumbnail: true };
    let mut group = criterion.benchmark_group("process 20 Mpx");
    group.sample_size(10).throughput(Throughput::Elements((WIDTH * HEIGHT) as u64));
    for (name, layout, pil) in [
        ("qwen to 1 Mpx", qwen(28 * 28 * 1280), false),
        ("qwen to 1 Mpx, pil", qwen(28 * 28 * 1280), true),
        ("qwen to 12.8 Mpx", qwen(12_845_056), false),
        ("internvl", tiles, false),
    ] {
        let config = ImageProcessorConfig {
            layout,
            resize: true,
            resample: Resample::Bicubic,
            convert_rgb: true,
            rescale: Some(1.0 / 255.0),
            normalize: Some(([0.5; 3], [0.25; 3])),
            pil,
        };
        let processor = ImageProcessor::new(&config, 256).expect("the settings are sound");
        group.bench_function(name, |bencher| bencher.iter(|| black_box(processor.process(&image))));
    }
}

fn decode(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images/files");
    let mut group = criterion.benchmark_group("decode 75 x 53");
    for name in ["jpeg_420.jpg", "jpeg_progressive.jpg", "webp_lossy.webp"] {
        let bytes = std::fs::read(folder.join(name)).expect("the fixture is there");
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(Decoder::default().bytes(&bytes, name)));
        });
    }
}

criterion_group!(benches, process, decode);
criterion_main!(benches);
