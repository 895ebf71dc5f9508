//! A checkpoint: the tensors of a folder, by name, left where they are.
//!
//! One `model.safetensors`, or several shards listed by `model.safetensors.index.json`. Opening maps the
//! files and reads their headers only; a [`TensorView`] points into a mapping and keeps it alive, so a
//! tensor that needs no conversion is never copied. The checkpoint remembers which names were asked for,
//! so that what nobody wanted can be reported.

use super::header::{self, Entry};
use super::json::{Document, brief, read_bytes};
use super::map::map_file;
use crate::error::{Error, Result};
use memmap2::Mmap;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The element types a safetensors file may hold; more than a model can compute with.
pub use safetensors::Dtype as FileDtype;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A tensor's bytes inside a mapped file.
#[derive(Debug, Clone)]
pub struct TensorView {
    name: Arc<str>,
    file: Arc<Path>,
    dtype: FileDtype,
    shape: Vec<usize>,
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl TensorView {
    /// The tensor's name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The type of its elements in the file.
    pub fn dtype(&self) -> FileDtype {
        self.dtype
    }

    /// Its axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its bytes: row-major, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    /// The mapping it lies in. A clone of this handle keeps the bytes at [`Self::range`] alive.
    pub fn mapping(&self) -> &Arc<Mmap> {
        &self.map
    }

    /// Where in the mapping it lies.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Whether its bytes may be read in place as elements; if not, they must be copied.
    pub fn is_aligned(&self) -> bool {
        let width = self.dtype.bitsize().div_ceil(8);
        (self.bytes().as_ptr() as usize).is_multiple_of(width)
    }

    /// This view, if it has the shape the model expects.
    pub fn shaped(self, expected: &[usize]) -> Result<Self> {
        if self.shape == expected {
            return Ok(self);
        }
        Err(self.fault(format!("expected shape {expected:?}, got {:?}", self.shape)))
    }

    /// An error about this tensor, naming its file.
    pub fn fault(&self, what: impl std::fmt::Display) -> Error {
        Error::file(&self.file, format!("tensor {}: {what}", self.name))
    }
}

/// The tensors of a folder.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file that lists the tensors: the single file, or the index.
    listing: PathBuf,
    tensors: BTreeMap<Arc<str>, Slot>,
    maps: Vec<Arc<Mmap>>,
}

#[derive(Debug)]
struct Slot {
    view: TensorView,
    taken: AtomicBool,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder`: its files are mapped and their headers checked, nothing more.
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.join(SINGLE).exists() {
            return Self::open_file(&folder.join(SINGLE));
        }
        if folder.join(INDEX).exists() {
            return Self::open_shards(&folder.join(INDEX));
        }
        let found = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
        let remedy = match found.iter().find(|name| folder.join(name).exists()) {
            Some(name) => format!("; {name} is there, convert it to safetensors first"),
            None => String::new(),
        };
        Err(Error::file(folder, format!("holds neither {SINGLE} nor {INDEX}{remedy}")))
    }

    /// Opens one safetensors file, whatever its name.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut checkpoint = Self { listing: path.to_owned(), tensors: BTreeMap::new(), maps: Vec::new() };
        checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    fn open_shards(index: &Path) -> Result<Self> {
        let shard_of = parse_index(index, &read_bytes(index)?)?;
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut checkpoint = Self { listing: index.to_owned(), tensors: BTreeMap::new(), maps: Vec::new() };
        for shard in shard_of.values().collect::<BTreeSet<_>>() {
            let path = folder.join(shard);
            if !path.exists() {
                return Err(Error::file(index, format!("weight_map: shard {shard} is not in the folder")));
            }
            checkpoint.add_file(&path)?;
        }
        for (name, shard) in &shard_of {
            let place = checkpoint.tensors.get(name.as_str()).map(|slot| slot.view.file());
            if place != Some(&folder.join(shard)) {
                let instead = place.map(|file| format!(" ({} has it)", file.display())).unwrap_or_default();
                let what = format!("weight_map: tensor {name} is not in its shard {shard}{instead}");
                return Err(Error::file(index, what));
            }
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let map = map_file(path)?;
        let file: Arc<Path> = Arc::from(path);
        for Entry { name, dtype, shape, range } in
            header::parse(&map).map_err(|what| Error::file(path, what))?
        {
            let name: Arc<str> = Arc::from(name);
            if let Some(twin) = self.tensors.get(&name) {
                return Err(twin.view.fault(format!("is in {} too", path.display())));
            }
            let view =
                TensorView { name: name.clone(), file: file.clone(), dtype, shape, map: map.clone(), range };
            self.tensors.insert(name, Slot { view, taken: AtomicBool::new(false) });
        }
        self.maps.push(map);
        Ok(())
    }

    /// The file that lists the tensors: the safetensors file itself, or the index of the shards.
    pub fn listing(&self) -> &Path {
        &self.listing
    }

    /// Every tensor's name, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(AsRef::as_ref)
    }

    /// Every tensor, in the order of their names, without counting as asked for.
    pub fn views(&self) -> impl Iterator<Item = &TensorView> {
        self.tensors.values().map(|slot| &slot.view)
    }

    /// Whether there is a tensor `name`, without counting as asked for.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name`, if there is one; it then counts as asked for.
    pub fn find(&self, name: &str) -> Option<TensorView> {
        let slot = self.tensors.get(name)?;
        slot.taken.store(true, Ordering::Relaxed);
        Some(slot.view.clone())
    }

    /// The tensor `name`, which must be there.
    pub fn view(&self, name: &str) -> Result<TensorView> {
        self.find(name).ok_or_else(|| Error::file(&self.listing, format!("tensor {name}: missing")))
    }

    /// The tensors nobody has asked for.
    pub fn surplus(&self) -> impl Iterator<Item = &TensorView> {
        self.tensors.values().filter(|slot| !slot.taken.load(Ordering::Relaxed)).map(|slot| &slot.view)
    }

    /// Asks the system to begin reading the files from disk, and to have their pages at hand before a pass comes for
    /// them one by one; hints, without effect on results.
    pub fn prefetch(&self) {
        #[cfg(unix)]
        for map in &self.maps {
            // A refused hint costs only time.
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
        #[cfg(target_os = "linux")]
        {
            let maps = self.maps.clone();
            let all_pages =
                move || maps.iter().for_each(|map| drop(map.advise(memmap2::Advice::PopulateRead)));
            drop(std::thread::Builder::new().name("pellucid-pages".into()).spawn(all_pages));
        }
    }
}

/// Which shard holds each tensor, from the bytes of an index file. Shards are plain names beside the index.
pub fn parse_index(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let document = Document::parse(path, bytes)?;
    let weight_map = document.root()?.required_object("weight_map")?;
    let mut shard_of = BTreeMap::new();
    for (name, shard) in weight_map.entries() {
        let Value::String(shard) = shard else {
            return Err(weight_map.fault(name, format!("expected the name of a shard, got {}", brief(shard))));
        };
        let mut components = Path::new(shard).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !plain || shard.contains(['/', '\\', '\0']) {
            let what = format!("shard {} is not a file name in this folder", brief(&json!(shard)));
            return Err(weight_map.fault(name, what));
        }
        shard_of.insert(name.clone(), shard.clone());
    }
    Ok(shard_of)
}
