//! A model written as a folder that anybody reads: its weights under the names, and beside the files, of the folder it
//! came from.

use super::{Model, host_tensor};
use crate::error::{Error, Result};
use crate::format::ModelFolder;
use crate::format::save::{copy_beside, replace_folder, write_tensors};
use crate::tensor::{Dtype, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

impl Model {
    /// Writes the model with floats in `dtype`; a folder already there is replaced. `source` is the folder it was loaded
    /// from, and gives all that is not in [`Model::parameters`].
    pub fn write(&self, folder: &Path, source: &ModelFolder, dtype: Dtype) -> Result<()> {
        let host = |(name, tensor)| Ok((name, self.backend.download(tensor)?));
        let changed = self.parameters().into_iter().map(host).collect::<Result<_>>()?;
        replace_folder(folder, |fresh| write_changed(fresh, source, dtype, changed))
    }
}

/// Writes the model in `source` once more into a folder, floats in `dtype`, with some of its tensors replaced by others
/// on the host: those of one name are parts of a fused weight, in order.
pub fn write_changed(
    folder: &Path,
    source: &ModelFolder,
    dtype: Dtype,
    changed: Vec<(String, Tensor)>,
) -> Result<()> {
    let mut parts: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    for (name, tensor) in changed {
        parts.entry(name).or_default().push(tensor.converted(dtype)?);
    }
    let checkpoint = source.checkpoint()?;
    let mut tensors = Vec::new();
    for view in checkpoint.views() {
        let tensor = match parts.remove(view.name()).map(joined).transpose()? {
            None => host_tensor(view, dtype)?,
            // A convolution over patches is a matrix here, and five axes in the file.
            Some(tensor) if tensor.len() == view.elements() => tensor.reshaped(view.shape())?,
            Some(tensor) => return Err(view.fault(format!("cannot become {tensor:?}"))),
        };
        tensors.push((view.name().to_owned(), tensor));
    }
    if let Some(name) = parts.keys().next() {
        return Err(Error::file(checkpoint.listing(), format!("holds no tensor {name} to be replaced")));
    }
    let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    write_tensors(&folder.join("model.safetensors"), tensors)?;
    copy_beside(source.path(), folder, |name, bytes| {
        if name != "config.json" {
            // An index would list shards that are not there.
            return Ok((!name.ends_with(".index.json")).then_some(bytes));
        }
        let damage = |cause| Error::file_because(source.path().join(name), "is not JSON", cause);
        let mut config: Value = serde_json::from_slice(&bytes).map_err(damage)?;
        declare(&mut config, dtype);
        serde_json::to_vec_pretty(&config).map(Some).map_err(damage)
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
