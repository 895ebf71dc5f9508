//! A model written as a folder that anybody reads: its weights under the names, and beside the files, of the folder it
//! came from.

use super::{Model, host_tensor};
use crate::error::{Error, Result};
use crate::format::ModelFolder;
use crate::format::save::{replace_folder, write_file, write_tensors};
use crate::tensor::{Dtype, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

impl Model {
    /// Writes the model with floats in `dtype`; a folder already there is replaced. `source` is the folder it was loaded
    /// from, and gives all that is not in [`Model::parameters`].
    pub fn write(&self, folder: &Path, source: &ModelFolder, dtype: Dtype) -> Result<()> {
        let mut changed: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for (name, tensor) in self.parameters() {
            changed.entry(name).or_default().push(self.backend.download(tensor)?.converted(dtype)?);
        }
        let changed = changed.into_iter().map(|(name, parts)| Ok((name, joined(parts)?)));
        write_changed(folder, source, dtype, changed.collect::<Result<_>>()?)
    }
}

/// Writes the model in `source` once more, floats in `dtype`, with some of its tensors replaced by others on the host.
pub fn write_changed(
    folder: &Path,
    source: &ModelFolder,
    dtype: Dtype,
    mut changed: BTreeMap<String, Tensor>,
) -> Result<()> {
    let checkpoint = source.checkpoint()?;
    let mut tensors = Vec::new();
    for view in checkpoint.views() {
        let tensor = match changed.remove(view.name()) {
            None => host_tensor(view, dtype)?,
            // A convolution over patches is a matrix here, and five axes in the file.
            Some(tensor) if tensor.len() == view.elements() => {
                tensor.converted(dtype)?.reshaped(view.shape())?
            }
            Some(tensor) => return Err(view.fault(format!("cannot become {tensor:?}"))),
        };
        tensors.push((view.name().to_owned(), tensor));
    }
    if let Some(name) = changed.keys().next() {
        return Err(Error::file(checkpoint.listing(), format!("holds no tensor {name} to be replaced")));
    }
    replace_folder(folder, |fresh| {
        let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        write_tensors(&fresh.join("model.safetensors"), tensors)?;
        copy_files(source.path(), fresh, dtype)
    })
}

/// Parts of a fused weight, one below the other.
fn joined(mut parts: Vec<Tensor>) -> Result<Tensor> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let mut shape = parts[0].shape().to_vec();
    shape[0] = parts.iter().map(Tensor::rows).sum();
    let mut whole = Tensor::zeros(parts[0].dtype(), &shape)?;
    let bytes: Vec<&[u8]> = parts.iter().map(Tensor::bytes).collect();
    whole.bytes_mut()?.copy_from_slice(&bytes.concat());
    Ok(whole)
}

/// Configuration, tokenizer, chat template: what lies beside the weights and is text.
fn copy_files(from: &Path, to: &Path, dtype: Dtype) -> Result<()> {
    let unreadable = |path: &Path, cause| Error::file_because(path, "cannot be read", cause);
    for entry in fs::read_dir(from).map_err(|cause| unreadable(from, cause))? {
        let path = entry.map_err(|cause| unreadable(from, cause))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = [".json", ".jinja", ".txt", ".model"].iter().any(|end| name.ends_with(end));
        if !text || name.ends_with(".index.json") || !path.is_file() {
            continue;
        }
        let mut bytes = fs::read(&path).map_err(|cause| unreadable(&path, cause))?;
        if name == "config.json" {
            let damage = |cause| Error::file_because(&path, "is not JSON", cause);
            let mut config: Value = serde_json::from_slice(&bytes).map_err(damage)?;
            declare(&mut config, dtype);
            bytes = serde_json::to_vec_pretty(&config).map_err(damage)?;
        }
        write_file(&to.join(name), &bytes)?;
    }
    Ok(())
}

/// Says of which type the weights are, wherever a configuration says so.
fn declare(config: &mut Value, dtype: Dtype) {
    let name = if dtype == Dtype::BF16 { "bfloat16" } else { "float32" };
    let Value::Object(object) = config else { return };
    for (key, value) in object {
        match (key.as_str(), value) {
            ("dtype" | "torch_dtype", value @ Value::String(_)) => *value = name.into(),
            (_, value) => declare(value, dtype),
        }
    }
}
