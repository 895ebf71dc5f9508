//! Writing so that a reader who arrives at any moment finds all of it or what was there before.

use super::json::read_bytes;
use super::weights::FileDtype;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Tensor};
use safetensors::{SafeTensorError, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Writes a folder's files beside it, makes them durable and moves them into place; a folder already there is
/// replaced.
pub fn replace_folder(folder: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = folder.file_name().ok_or_else(|| Error::file(folder, "is no name for a folder"))?;
    let beside = |kind: &str| {
        let mut beside = name.to_owned();
        beside.push(format!(".{kind}-{}", std::process::id()));
        parent.join(beside)
    };
    let (fresh, stale) = (beside("new"), beside("old"));

    fs::create_dir_all(&fresh).map_err(|cause| unwritable(&fresh, cause))?;
    let written = write(&fresh).and_then(|()| {
        sync(&fresh).map_err(|cause| unwritable(&fresh, cause))?;
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

/// Writes a file beside the one that is there, makes it durable and moves it into place.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    let written = write_file(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, path).map_err(|cause| unwritable(path, cause)));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Adds to the end of a file; what is there already stays.
pub fn append_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = File::options().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(bytes)).map_err(|cause| unwritable(path, cause))
}

/// Writes a file and waits until it is on the disk.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|cause| unwritable(path, cause))
}

/// Writes tensors on the host as safetensors and waits until they are on the disk.
pub fn write_tensors(path: &Path, tensors: Vec<(String, &Tensor)>) -> Result<()> {
    let wrapped = tensors.into_iter().map(|(name, tensor)| Ok((name, Stored::new(tensor)?)));
    write_views(path, wrapped.collect::<Result<Vec<_>>>()?)
}

/// As [`write_tensors`], of anything that can be seen as a tensor.
pub(super) fn write_views<N: AsRef<str> + Ord + Display, V: View>(
    path: &Path,
    views: Vec<(N, V)>,
) -> Result<()> {
    // The crate's writer makes private files; these are as public as any other.
    let mode = File::create(path).and_then(|file| file.metadata()).map(|metadata| metadata.permissions());
    let mode = mode.map_err(|cause| unwritable(path, cause))?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|failure| match failure {
        SafeTensorError::IoError(cause) => unwritable(path, cause),
        other => Error::file_because(path, UNWRITABLE, other),
    })?;
    fs::set_permissions(path, mode).and_then(|()| sync(path)).map_err(|cause| unwritable(path, cause))
}

/// What a trainer says of itself beside the weights it leaves.
pub const TRAINER_STATE: &str = "trainer_state.json";

/// How files end that hold weights.
const WEIGHTS: [&str; 8] = [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"];

/// Copies what lies beside a model's weights: configuration, tokenizer, templates, licences, and nothing that a trainer
/// left there. `change` may write a file anew, or leave it out.
pub fn copy_beside(
    from: &Path,
    to: &Path,
    mut change: impl FnMut(&str, Vec<u8>) -> Result<Option<Vec<u8>>>,
) -> Result<()> {
    let unreadable = |cause| Error::file_because(from, "cannot be read", cause);
    for entry in fs::read_dir(from).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_beside = name != TRAINER_STATE && !WEIGHTS.iter().any(|end| name.ends_with(end));
        if is_beside
            && path.is_file()
            && let Some(bytes) = change(&name, read_bytes(&path)?)?
        {
            write_file(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

const UNWRITABLE: &str = "cannot be written; what was there before is as it was";

fn unwritable(path: &Path, cause: io::Error) -> Error {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match cause.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            let what = format!("{UNWRITABLE}; make room (a run then goes on with --resume latest)");
            Error::file_because(path, what, cause)
        }
        _ => Error::file_because(path, UNWRITABLE, cause),
    }
}

/// Waits until a file's bytes, or a folder's names, are on the disk.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A tensor as the writer sees it.
struct Stored<'a> {
    tensor: &'a Tensor,
    dtype: FileDtype,
}

impl<'a> Stored<'a> {
    fn new(tensor: &'a Tensor) -> Result<Self> {
        let dtype = match tensor.dtype() {
            Dtype::F64 => FileDtype::F64,
            Dtype::F32 => FileDtype::F32,
            Dtype::BF16 => FileDtype::BF16,
            Dtype::I32 => FileDtype::I32,
        };
        match tensor.device_address() {
            None => Ok(Self { tensor, dtype }),
            Some(_) => Err(Error::internal("save", format!("{tensor:?} was not downloaded"))),
        }
    }
}

impl View for Stored<'_> {
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
