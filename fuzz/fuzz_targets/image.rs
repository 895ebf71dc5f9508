//! Any bytes are an image or an error, within the limits; real files are in `tests/golden/images/files`.
#![no_main]

use pellucid::prompt::image::Decoder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let decoder = Decoder { max_pixels: 1 << 20, ..Decoder::default() };
    if let Ok(image) = decoder.bytes(bytes, "fuzz") {
        assert_eq!(image.pixels().len(), image.width() * image.height() * 3);
        assert!(image.width() * image.height() <= 1 << 20);
    }
});
