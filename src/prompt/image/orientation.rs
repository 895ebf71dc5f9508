//! Which way up: the orientation tag of EXIF, or of XMP where EXIF is silent, applied as Pillow applies it.

use super::Rgb;

const ORIENTATION: u16 = 0x0112;

/// The orientation (1 to 8) that a file's metadata ask for; 1 where they say nothing sensible.
pub(super) fn wanted(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> u8 {
    let wanted = exif.and_then(from_exif).or_else(|| xmp.and_then(from_xmp)).unwrap_or(1);
    if (1..=8).contains(&wanted) { wanted as u8 } else { 1 }
}

/// Looks the tag up in the first directory of a TIFF structure.
fn from_exif(exif: &[u8]) -> Option<u32> {
    let mut tiff = exif;
    while let Some(rest) = tiff.strip_prefix(b"Exif\0\0") {
        tiff = rest;
    }
    let little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let number = |at: usize, bytes: usize| -> Option<u32> {
        let field = tiff.get(at..at.checked_add(bytes)?)?;
        let fold = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        Some(if little { field.iter().rev().fold(0, fold) } else { field.iter().fold(0, fold) })
    };
    let directory = number(4, 4)? as usize;
    let entries = number(directory, 2)? as usize;
    (0..entries).find_map(|index| {
        let entry = directory + 2 + index * 12;
        let bytes = match number(entry + 2, 2)? {
            1 => 1,
            3 => 2,
            4 => 4,
            _ => return None,
        };
        let ours = number(entry, 2)? == u32::from(ORIENTATION) && number(entry + 4, 4)? == 1;
        if ours { number(entry + 8, bytes) } else { None }
    })
}

/// Finds `tiff:Orientation="n"` or `tiff:Orientation>n`.
fn from_xmp(xmp: &[u8]) -> Option<u32> {
    const KEY: &[u8] = b"tiff:Orientation";
    xmp.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY).find_map(|(at, _)| {
        let rest = &xmp[at + KEY.len()..];
        let digit = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
        char::from(*digit).to_digit(10)
    })
}

/// Turns and mirrors `image` as orientation `wanted` says.
pub(super) fn upright(image: Rgb, wanted: u8) -> Rgb {
    let (w, h) = (image.width, image.height);
    // Where the pixel (x, y) of the upright image lies in the stored one.
    let source: fn(usize, usize, usize, usize) -> (usize, usize) = match wanted {
        2 => |x, y, w, _| (w - 1 - x, y),
        3 => |x, y, w, h| (w - 1 - x, h - 1 - y),
        4 => |x, y, _, h| (x, h - 1 - y),
        5 => |x, y, _, _| (y, x),
        6 => |x, y, _, h| (y, h - 1 - x),
        7 => |x, y, w, h| (w - 1 - y, h - 1 - x),
        8 => |x, y, w, _| (w - 1 - y, x),
        _ => return image,
    };
    let (width, height) = if wanted >= 5 { (h, w) } else { (w, h) };
    let mut pixels = Vec::with_capacity(image.pixels.len());
    for y in 0..height {
        for x in 0..width {
            let (x, y) = source(x, y, w, h);
            pixels.extend_from_slice(&image.pixels[(y * w + x) * 3..][..3]);
        }
    }
    Rgb { width, height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exif(big: bool, kind: u16, value: u32) -> Vec<u8> {
        let short = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let long = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut bytes = if big { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(2));
        for (tag, kind, value) in [(0x010f, 3, 6), (ORIENTATION, kind, value)] {
            bytes.extend([short(tag), short(kind)].concat());
            bytes.extend(long(1));
            if kind == 3 {
                bytes.extend([short(value as u16), short(0)].concat());
            } else {
                bytes.extend(long(value));
            }
        }
        bytes
    }

    #[test]
    fn reads_both_byte_orders_and_types() {
        for big in [false, true] {
            assert_eq!(wanted(Some(&exif(big, 3, 6)), None), 6);
            assert_eq!(wanted(Some(&exif(big, 4, 8)), None), 8);
            assert_eq!(wanted(Some(&exif(big, 2, 8)), None), 1, "text is no orientation");
        }
        assert_eq!(wanted(Some(&[b"Exif\0\0".to_vec(), exif(true, 3, 3)].concat()), None), 3);
        assert_eq!(wanted(Some(&exif(true, 3, 9)), None), 1);
        assert_eq!(wanted(None, Some(b"<x tiff:Orientation=\"5\"/>")), 5);
        assert_eq!(wanted(Some(b"II*\0"), Some(b"<tiff:Orientation>7</tiff:Orientation>")), 7);
    }

    #[test]
    fn every_truncation_is_harmless() {
        let whole = exif(false, 3, 6);
        for end in 0..whole.len() {
            wanted(Some(&whole[..end]), None);
        }
    }

    #[test]
    fn turns_and_mirrors() {
        // a b c
        // d e f
        let image = Rgb { width: 3, height: 2, pixels: b"abcdef".iter().flat_map(|&v| [v; 3]).collect() };
        for (wanted, expected, width) in [
            (1, "abcdef", 3),
            (2, "cbafed", 3),
            (3, "fedcba", 3),
            (4, "defabc", 3),
            (5, "adbecf", 2),
            (6, "daebfc", 2),
            (7, "fcebda", 2),
            (8, "cfbead", 2),
        ] {
            let turned = upright(image.clone(), wanted);
            let letters: String = turned.pixels.iter().step_by(3).map(|&v| char::from(v)).collect();
            assert_eq!((letters.as_str(), turned.width), (expected, width), "orientation {wanted}");
        }
    }
}
