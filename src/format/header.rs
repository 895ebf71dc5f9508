//! The header of a safetensors file: which tensors there are and where their bytes lie.
//!
//! The types are the `safetensors` crate's and so is the verdict (a property test holds the two equal), but
//! its reader says only *that* a header is wrong. This one says which tensor, and cannot be made to overflow.

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// The longest header that is believed, as in the reference implementation.
const LONGEST: usize = 100_000_000;
/// The file begins with the header's length, a little-endian `u64`.
const PREFIX: usize = size_of::<u64>();

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its axes, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub range: Range<usize>,
}

/// Reads the header of a whole file. The entries come in the order of their bytes, cover the rest of the
/// file without hole or overlap, and each has as many bytes as its shape and type ask for.
pub fn parse(file: &[u8]) -> Result<Vec<Entry>, String> {
    let (prefix, rest) = file
        .split_first_chunk::<PREFIX>()
        .ok_or_else(|| format!("{} bytes are too few for a safetensors file", file.len()))?;
    let claimed = u64::from_le_bytes(*prefix);
    let length = usize::try_from(claimed).ok().filter(|&length| length <= LONGEST);
    let length = length.ok_or_else(|| {
        format!("header length {claimed} is beyond the {LONGEST} bytes allowed: not a safetensors file")
    })?;
    let (header, data) = rest.split_at_checked(length).ok_or_else(|| {
        format!("header length {length} is beyond the file's {} bytes: truncated", file.len())
    })?;
    let text = std::str::from_utf8(header).map_err(|broken| format!("header is not utf-8: {broken}"))?;
    let Header(infos) = serde_json::from_str(text).map_err(|broken| format!("header: {broken}"))?;
    place(infos, PREFIX + length, data.len())
}

/// Checks every tensor's place in `data` bytes that begin at byte `start` of the file.
fn place(infos: Vec<(String, TensorInfo)>, start: usize, data: usize) -> Result<Vec<Entry>, String> {
    let mut names = HashSet::new();
    if let Some((twin, _)) = infos.iter().find(|(name, _)| !names.insert(name)) {
        return Err(format!("tensor {twin}: listed twice in the header"));
    }
    for (name, info) in &infos {
        let (begin, end) = info.data_offsets;
        if end < begin {
            return Err(format!("tensor {name}: data offsets {begin}..{end} run backwards"));
        }
        if end > data {
            return Err(format!(
                "tensor {name}: data offsets {begin}..{end} are beyond the file's {data} bytes of data: truncated"
            ));
        }
        let needed = byte_length(info.dtype, &info.shape);
        if needed != Some(end - begin) {
            let needed = needed.map_or("an impossible number of".to_owned(), |bytes| bytes.to_string());
            return Err(format!(
                "tensor {name}: {} {:?} needs {needed} bytes, data offsets {begin}..{end} hold {}",
                info.dtype,
                info.shape,
                end - begin
            ));
        }
    }

    let mut infos = infos;
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut covered = 0;
    let mut entries: Vec<Entry> = Vec::with_capacity(infos.len());
    for (name, info) in infos {
        let (begin, end) = info.data_offsets;
        if begin < covered {
            let before = entries.last().map_or("", |entry| &entry.name);
            return Err(format!(
                "tensor {name}: data offsets {begin}..{end} overlap those of tensor {before}"
            ));
        }
        if begin > covered {
            return Err(format!(
                "tensor {name}: bytes {covered}..{begin} of the data before it belong to no tensor"
            ));
        }
        covered = end;
        entries.push(Entry { name, dtype: info.dtype, shape: info.shape, range: start + begin..start + end });
    }
    if covered != data {
        return Err(format!("bytes {covered}..{data} of the data belong to no tensor"));
    }
    Ok(entries)
}

/// How many bytes a tensor takes, unless that is more than can be counted or no whole number.
pub fn byte_length(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &axis| product.checked_mul(axis))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The header as written: names in the file's order, twins included.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut infos = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<Option<HashMap<String, String>>>()?;
                        continue;
                    }
                    let info = map
                        .next_value()
                        .map_err(|fault| A::Error::custom(format!("tensor {name}: {fault}")))?;
                    infos.push((name, info));
                }
                Ok(Header(infos))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
