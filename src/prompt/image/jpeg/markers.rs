//! The segments of a file: tables, the frame's header, metadata, and the scans.

use super::bits::Huffman;
use super::scan::{self, Scan, Tables, ZIGZAG};
use super::{Colours, Component, Frame};

/// More scans than any encoder writes; each costs a walk over the whole image.
const MOST_SCANS: usize = 100;

/// What a file says, its scans decoded to coefficients.
pub(super) struct File {
    pub(super) frame: Frame,
    pub(super) colours: Colours,
    pub(super) exif: Option<Vec<u8>>,
    pub(super) xmp: Option<Vec<u8>>,
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    quantisers: [Option<[u16; 64]>; 4],
    tables: Tables,
    restart_interval: usize,
    frame: Option<Frame>,
    jfif: bool,
    /// The colour transform that Adobe's segment names.
    adobe: Option<u8>,
    exif: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
    scans: usize,
}

pub(super) fn read(bytes: &[u8], admit: impl Fn(u32, u32) -> Result<(), String>) -> Result<File, String> {
    let mut reader = Reader::default();
    let mut at = 2;
    while let Some((marker, next)) = next_marker(bytes, at) {
        at = next;
        match marker {
            0xd9 => break,
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        // A cut-off tail behind complete scans harms nothing.
        let Some(segment) = segment(bytes, at) else {
            break;
        };
        at += 2 + segment.len();
        match marker {
            0xc4 => reader.huffman(segment)?,
            0xdb => reader.quantiser(segment)?,
            0xdd => reader.restart_interval = usize::from(short(segment, 0)?),
            0xc0..=0xc2 => {
                let (height, width) = (short(segment, 1)?, short(segment, 3)?);
                admit(width.into(), height.into())?;
                reader.frame(segment, marker == 0xc2)?;
            }
            0xc3 | 0xc5..=0xc7 | 0xcb | 0xcd..=0xcf => {
                return Err("lossless, hierarchical and arithmetic JPEG are not supported".into());
            }
            0xc9 | 0xca => return Err("arithmetic coding is not supported in JPEG".into()),
            0xda => at = reader.scan(segment, bytes, at)?,
            0xe0 => reader.jfif |= segment.starts_with(b"JFIF\0"),
            0xe1 => reader.metadata(segment),
            0xee if segment.starts_with(b"Adobe") && segment.len() >= 12 => reader.adobe = Some(segment[11]),
            _ => {}
        }
    }
    reader.finish()
}

/// The next marker's code, and where what follows it begins.
fn next_marker(bytes: &[u8], from: usize) -> Option<(u8, usize)> {
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        at += bytes[at..].iter().position(|&byte| byte != 0xff)?;
        if bytes[at] != 0 {
            return Some((bytes[at], at + 1));
        }
    }
}

/// A segment without its length.
fn segment(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    bytes.get(at + 2..at + length.max(2))
}

fn short(segment: &[u8], at: usize) -> Result<u16, String> {
    match segment.get(at..at + 2) {
        Some(&[high, low]) => Ok(u16::from_be_bytes([high, low])),
        _ => Err("a JPEG segment is too short".into()),
    }
}

fn byte(segment: &[u8], at: usize) -> Result<u8, String> {
    segment.get(at).copied().ok_or_else(|| "a JPEG segment is too short".into())
}

impl Reader {
    fn quantiser(&mut self, mut segment: &[u8]) -> Result<(), String> {
        while let Some((&head, rest)) = segment.split_first() {
            let (wide, index) = (head >> 4 > 0, usize::from(head & 15));
            let mut table = [0; 64];
            for (order, place) in ZIGZAG.into_iter().enumerate() {
                table[usize::from(place)] =
                    if wide { short(rest, order * 2)? } else { u16::from(byte(rest, order)?) };
            }
            *self.quantisers.get_mut(index).ok_or("a quantiser's number is beyond 3")? = Some(table);
            segment = &rest[if wide { 128 } else { 64 }..];
        }
        Ok(())
    }

    fn huffman(&mut self, mut segment: &[u8]) -> Result<(), String> {
        while let Some((&head, rest)) = segment.split_first() {
            let counts = *rest.first_chunk::<16>().ok_or("a Huffman table is cut off")?;
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let symbols = rest.get(16..16 + total).ok_or("a Huffman table is cut off")?;
            let tables = if head >> 4 == 0 { &mut self.tables.dc } else { &mut self.tables.ac };
            *tables.get_mut(usize::from(head & 15)).ok_or("a Huffman table's number is beyond 3")? =
                Some(Huffman::new(counts, symbols)?);
            segment = &rest[16 + total..];
        }
        Ok(())
    }

    fn metadata(&mut self, segment: &[u8]) {
        if segment.starts_with(b"Exif\0") {
            self.exif.get_or_insert_with(|| segment.to_vec());
        } else if let Some(xmp) = segment.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            self.xmp.get_or_insert_with(|| xmp.to_vec());
        }
    }

    fn frame(&mut self, segment: &[u8], progressive: bool) -> Result<(), String> {
        if self.frame.is_some() {
            return Err("a JPEG with two frames is not supported".into());
        }
        let bits = byte(segment, 0)?;
        if bits != 8 {
            return Err(format!("JPEG of {bits} bits per sample is not supported, only 8"));
        }
        let (height, width) = (usize::from(short(segment, 1)?), usize::from(short(segment, 3)?));
        let count = usize::from(byte(segment, 5)?);
        if !matches!(count, 1 | 3 | 4) {
            return Err(format!("JPEG of {count} components is not supported, only 1, 3 and 4"));
        }
        let mut heads = Vec::new();
        for index in 0..count {
            let at = 6 + index * 3;
            let (id, sampling) = (byte(segment, at)?, byte(segment, at + 1)?);
            let sampling = (usize::from(sampling >> 4), usize::from(sampling & 15));
            if !(1..=4).contains(&sampling.0) || !(1..=4).contains(&sampling.1) {
                return Err(format!(
                    "component {id} claims sampling factors {sampling:?}, not within 1 to 4"
                ));
            }
            heads.push((id, sampling, usize::from(byte(segment, at + 2)?)));
        }
        let most = |factor: fn((usize, usize)) -> usize| heads.iter().map(|head| factor(head.1)).max();
        let sampling = (most(|s| s.0).unwrap_or(1), most(|s| s.1).unwrap_or(1));
        let mcus = (width.div_ceil(8 * sampling.0), height.div_ceil(8 * sampling.1));
        let mut components = Vec::new();
        for (id, own, quantiser_index) in heads {
            if sampling.0 % own.0 != 0 || sampling.1 % own.1 != 0 {
                return Err(format!(
                    "component {id} is sampled {own:?} of {sampling:?}, which is not supported"
                ));
            }
            let blocks = (mcus.0 * own.0, mcus.1 * own.1);
            components.push(Component {
                id,
                sampling: own,
                quantiser_index,
                quantiser: None,
                size: ((width * own.0).div_ceil(sampling.0), (height * own.1).div_ceil(sampling.1)),
                blocks,
                coefficients: vec![[0; 64]; blocks.0 * blocks.1],
            });
        }
        self.frame = Some(Frame { width, height, progressive, sampling, components });
        Ok(())
    }

    fn scan(&mut self, segment: &[u8], bytes: &[u8], at: usize) -> Result<usize, String> {
        let frame = self.frame.as_mut().ok_or("a scan comes before the frame header")?;
        self.scans += 1;
        if self.scans > MOST_SCANS {
            return Err(format!("the JPEG has more than {MOST_SCANS} scans"));
        }
        let count = usize::from(byte(segment, 0)?);
        let mut parts = Vec::new();
        for index in 0..count {
            let (id, tables) = (byte(segment, 1 + index * 2)?, byte(segment, 2 + index * 2)?);
            let found = frame.components.iter().position(|component| component.id == id);
            let component =
                found.ok_or_else(|| format!("a scan names component {id}, which is not there"))?;
            let (dc, ac) = (usize::from(tables >> 4), usize::from(tables & 15));
            if dc > 3 || ac > 3 || parts.iter().any(|part: &(usize, usize, usize)| part.0 == component) {
                return Err("a scan header is not sensible".into());
            }
            parts.push((component, dc, ac));
            let component = &mut frame.components[component];
            if component.quantiser.is_none() {
                component.quantiser = self.quantisers.get(component.quantiser_index).copied().flatten();
            }
        }
        let tail = 1 + count * 2;
        let (first, last, bits) = (byte(segment, tail)?, byte(segment, tail + 1)?, byte(segment, tail + 2)?);
        let (high, low) = (u32::from(bits >> 4), u32::from(bits & 15));
        let scan = match frame.progressive {
            false => {
                Scan { parts, band: (0, 63), approximation: (0, 0), restart_interval: self.restart_interval }
            }
            true => Scan {
                parts,
                band: (first.into(), last.into()),
                approximation: (high, low),
                restart_interval: self.restart_interval,
            },
        };
        let band_fits = if scan.band.0 == 0 && frame.progressive {
            scan.band.1 == 0
        } else {
            scan.band.0 <= scan.band.1 && scan.band.1 < 64 && (count == 1 || !frame.progressive)
        };
        if !(1..=4).contains(&count) || !band_fits || low > 13 {
            return Err("a scan header is not sensible".into());
        }
        scan::decode(frame, &scan, &self.tables, bytes, at)
    }

    fn finish(self) -> Result<File, String> {
        let frame = self.frame.ok_or("the JPEG is truncated: it has no frame header")?;
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        let colours = match (frame.components.len(), self.jfif, self.adobe) {
            (1, _, _) => Colours::Grey,
            (3, false, Some(0)) => Colours::Rgb,
            (3, false, None) if ids == *b"RGB" => Colours::Rgb,
            (3, _, _) => Colours::YCbCr,
            (_, _, None | Some(0)) => Colours::Cmyk,
            (_, _, Some(_)) => Colours::Ycck,
        };
        Ok(File { frame, colours, exif: self.exif, xmp: self.xmp })
    }
}
