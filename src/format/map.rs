//! Files as memory: the one place of this module that maps a file.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Maps `path` read-only. Nothing is read until it is touched, and the page cache is the only copy.
pub(crate) fn map_file(path: &Path) -> Result<Arc<Mmap>> {
    let unreadable = |cause| Error::file_because(path, "cannot be mapped", cause);
    // A pipe would block in `open`, so the kind is asked first.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Error::file(path, "expected a plain file"));
    }
    let file = File::open(path).map_err(unreadable)?;
    // SAFETY: the mapping must not change or shrink while it is borrowed. The operator meets this: weights
    // are written to a temporary name and renamed (as hub downloads, PEFT saves and this crate do), so a
    // path's bytes never change under a reader; the README says so.
    let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
    Ok(Arc::new(map))
}
