//! Writing an adapter so that PEFT, and a reader that arrives at any moment, finds it whole.

use super::{AdapterConfig, CONFIG, PREFIX, SUFFIX_A, SUFFIX_B, WEIGHTS};
use crate::error::{Error, Result};
use crate::format::weights::FileDtype;
use crate::tensor::{Dtype, Tensor};
use safetensors::View;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Writes an adapter into `folder`: its configuration, and for each module its A `[R, in]` and B `[out, R]`.
///
/// Modules are named by their full path in the base model's code. The files are written beside `folder`, made
/// durable and moved into place; an adapter already there is replaced.
pub fn write_adapter(
    folder: &Path,
    config: &AdapterConfig,
    pairs: &[(&str, &Tensor, &Tensor)],
) -> Result<()> {
    for (module, a, b) in pairs {
        let rank = config.rank_of(module);
        if !matches!((a.shape(), b.shape()), (&[r, _], &[_, s]) if (r, s) == (rank, rank)) {
            let what = format!("{module}: expected rank {rank}, got {:?} and {:?}", a.shape(), b.shape());
            return Err(Error::internal("adapter", what));
        }
    }
    let unwritable =
        |path: &Path, cause: std::io::Error| Error::file_because(path, "cannot be written", cause);
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = folder.file_name().ok_or_else(|| Error::file(folder, "is no name for a folder"))?;
    let beside = |kind: &str| {
        let mut beside = name.to_owned();
        beside.push(format!(".{kind}-{}", std::process::id()));
        parent.join(beside)
    };
    let (fresh, stale) = (beside("new"), beside("old"));

    fs::create_dir_all(&fresh).map_err(|cause| unwritable(&fresh, cause))?;
    let written = write_files(&fresh, config, pairs).and_then(|()| {
        let replaces = folder.exists();
        if replaces {
            fs::rename(folder, &stale).map_err(|cause| unwritable(folder, cause))?;
        }
        fs::rename(&fresh, folder).map_err(|cause| unwritable(folder, cause))?;
        sync(parent).map_err(|cause| unwritable(parent, cause))?;
        if replaces {
            fs::remove_dir_all(&stale).map_err(|cause| unwritable(&stale, cause))?;
        }
        Ok(())
    });
    if written.is_err() {
        // The first error is the one to report; what is left behind has a name that says so.
        let _ = fs::remove_dir_all(&fresh);
    }
    written
}

fn write_files(folder: &Path, config: &AdapterConfig, pairs: &[(&str, &Tensor, &Tensor)]) -> Result<()> {
    let unwritable =
        |path: &Path, cause: std::io::Error| Error::file_because(path, "cannot be written", cause);
    let path = folder.join(CONFIG);
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(config.to_json().as_bytes())?;
        file.sync_all()?;
        file.metadata()
    });
    let mode = written.map_err(|cause| unwritable(&path, cause))?.permissions();

    let path = folder.join(WEIGHTS);
    let mut tensors = Vec::with_capacity(pairs.len() * 2);
    for (module, a, b) in pairs {
        tensors.push((format!("{PREFIX}{module}{SUFFIX_A}"), Half::new(a)?));
        tensors.push((format!("{PREFIX}{module}{SUFFIX_B}"), Half::new(b)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), &path)
        .map_err(|cause| Error::file_because(&path, "cannot be written", cause))?;
    // The crate's writer makes private files; an adapter is as public as the configuration beside it.
    fs::set_permissions(&path, mode).and_then(|()| sync(&path)).map_err(|cause| unwritable(&path, cause))?;
    sync(folder).map_err(|cause| unwritable(folder, cause))
}

/// Waits until a file's bytes, or a folder's names, are on the disk.
fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// A tensor as the writer sees it.
struct Half<'a> {
    tensor: &'a Tensor,
    dtype: FileDtype,
}

impl<'a> Half<'a> {
    fn new(tensor: &'a Tensor) -> Result<Self> {
        let dtype = match tensor.dtype() {
            Dtype::F32 => FileDtype::F32,
            Dtype::BF16 => FileDtype::BF16,
            other => {
                return Err(Error::internal("adapter", format!("a half of type {other} cannot be written")));
            }
        };
        Ok(Self { tensor, dtype })
    }
}

impl View for Half<'_> {
    fn dtype(&self) -> FileDtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.tensor.bytes().into()
    }

    fn data_len(&self) -> usize {
        self.tensor.byte_len()
    }
}
