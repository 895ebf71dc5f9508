//! An adapter worked into the weights it was made for: a plain checkpoint that needs no adapter.

use super::adapter::{Adapter, Pair, canonical_module};
use super::save::{copy_beside, replace_folder, write_views};
use super::weights::{Checkpoint, FileDtype, TensorView};
use crate::error::{Error, Result};
use half::{bf16, f16};
use safetensors::View;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

/// Writes the checkpoint in `model` to `out` with the adapter's product added to every weight it touches, rounded once
/// to the type the weight has. All other tensors and files are those of `model`. Gives the number of weights changed.
pub fn merge(model: &Path, adapter: &Adapter, out: &Path) -> Result<usize> {
    if out.exists() {
        return Err(Error::file(out, "is there already; give another folder"));
    }
    let checkpoint = Checkpoint::open(model)?;
    let mut shards: BTreeMap<&OsStr, Vec<(&str, Merged<'_>)>> = BTreeMap::new();
    let mut changed = 0;
    for view in checkpoint.views() {
        let pair =
            view.name().strip_suffix(".weight").and_then(|module| adapter.pair(canonical_module(module)));
        if let Some(pair) = pair {
            fits(view, pair)?;
            changed += 1;
        }
        let file = view.file().file_name().unwrap_or_default();
        shards.entry(file).or_default().push((view.name(), Merged { view, pair }));
    }
    if changed != adapter.pairs().count() {
        let what = format!(
            "{changed} of its {} modules are in {}; it was made for another model",
            adapter.pairs().count(),
            model.display()
        );
        return Err(Error::file(adapter.file(), what));
    }
    replace_folder(out, |fresh| {
        copy_beside(model, fresh, |_, bytes| Ok(Some(bytes)))?;
        shards.into_iter().try_for_each(|(name, tensors)| write_views(&fresh.join(name), tensors))
    })?;
    Ok(changed)
}

fn fits(view: &TensorView, pair: &Pair) -> Result<()> {
    let shape = [pair.b.shape()[0], pair.a.shape()[1]];
    if view.shape() != shape {
        return Err(view.fault(format!("is {:?}, but the adapter's product is {shape:?}", view.shape())));
    }
    for tensor in [view, &pair.a, &pair.b] {
        if !matches!(tensor.dtype(), FileDtype::F32 | FileDtype::BF16 | FileDtype::F16) {
            return Err(tensor.fault(format!("{:?} cannot be merged", tensor.dtype())));
        }
    }
    Ok(())
}

/// A tensor as it was, or with a product added when its bytes are asked for.
struct Merged<'a> {
    view: &'a TensorView,
    pair: Option<&'a Pair>,
}

impl View for Merged<'_> {
    fn dtype(&self) -> FileDtype {
        self.view.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.view.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.pair {
            None => self.view.bytes().into(),
            Some(pair) => sum(self.view, pair).into(),
        }
    }

    fn data_len(&self) -> usize {
        self.view.bytes().len()
    }
}

/// W + s·B·A in f64, rounded once.
fn sum(weight: &TensorView, pair: &Pair) -> Vec<u8> {
    let (a, b) = (values(&pair.a), values(&pair.b)); // [R, K], [N, R]
    let mut sums = values(weight); // [N, K]
    let columns = pair.a.shape()[1];
    for (row, b) in sums.chunks_mut(columns.max(1)).zip(b.chunks(pair.rank().max(1))) {
        for (&b, a) in b.iter().zip(a.chunks(columns.max(1))) {
            let factor = pair.scale * b;
            row.iter_mut().zip(a).for_each(|(sum, &a)| *sum += factor * a);
        }
    }
    match weight.dtype() {
        FileDtype::BF16 => sums.iter().flat_map(|&sum| bf16::from_f64(sum).to_le_bytes()).collect(),
        FileDtype::F16 => sums.iter().flat_map(|&sum| f16::from_f64(sum).to_le_bytes()).collect(),
        _ => sums.iter().flat_map(|&sum| (sum as f32).to_le_bytes()).collect(),
    }
}

/// Elements of a float tensor; [`fits`] has seen its type.
fn values(view: &TensorView) -> Vec<f64> {
    let bytes = view.bytes();
    let two = |pair: &[u8]| [pair[0], pair[1]];
    match view.dtype() {
        FileDtype::BF16 => {
            bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes(two(pair)).to_f64()).collect()
        }
        FileDtype::F16 => bytes.chunks_exact(2).map(|pair| f16::from_le_bytes(two(pair)).to_f64()).collect(),
        _ => bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]).into())
            .collect(),
    }
}
