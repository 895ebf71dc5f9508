//! Writing an adapter so that PEFT, and a reader that arrives at any moment, finds it whole.

use super::{AdapterConfig, CONFIG, PREFIX, SUFFIX_A, SUFFIX_B, WEIGHTS};
use crate::error::{Error, Result};
use crate::format::save::{replace_folder, write_file, write_tensors};
use crate::tensor::Tensor;
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
    replace_folder(folder, |fresh| write_adapter_files(fresh, config, pairs))
}

/// As [`write_adapter`], into a folder that is there and that nobody reads yet.
pub fn write_adapter_files(
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
    write_file(&folder.join(CONFIG), config.to_json().as_bytes())?;
    let mut tensors = Vec::with_capacity(pairs.len() * 2);
    for (module, a, b) in pairs {
        tensors.push((format!("{PREFIX}{module}{SUFFIX_A}"), *a));
        tensors.push((format!("{PREFIX}{module}{SUFFIX_B}"), *b));
    }
    write_tensors(&folder.join(WEIGHTS), tensors)
}
