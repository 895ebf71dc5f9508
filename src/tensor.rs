//! Contiguous row-major tensors: a dtype, a shape, and bytes that live somewhere.
//!
//! No strides, no broadcasting, no views: what an op needs beyond "these rows in this order" is in the
//! op's own signature. Host bytes are either owned (64-byte aligned, so vector loads never straddle a
//! line) or a window into a memory-mapped checkpoint, which is how weights are used without a second copy.
//! Bytes of a device are held by a handle that only its backend can follow; the host sees them by a download.
//!
//! Axis letters, here and everywhere: `T` packed tokens, `B` sequences, `H` query heads, `G` key/value
//! heads, `D` head dim, `C` hidden, `F` ffn, `V` vocabulary, `L` layers, `R` LoRA rank, `P` page size,
//! `N` pages.

mod owned;

use crate::error::{Error, Result};
use half::bf16;
use owned::Owned;
use std::{fmt, ops::Range, sync::Arc};

/// Element types the backends compute with. `F64` exists for the oracle in tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 64-bit float, the oracle's type.
    F64,
    /// 32-bit float.
    F32,
    /// bfloat16: weights and caches; sums are always taken in f32.
    BF16,
    /// 32-bit signed integer: token ids, positions, row numbers.
    I32,
}

impl Dtype {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::BF16 => 2,
        }
    }

    /// The name used in messages and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "f64",
            Dtype::F32 => "f32",
            Dtype::BF16 => "bf16",
            Dtype::I32 => "i32",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that tensors can be viewed as.
pub trait Element: bytemuck::Pod + Send + Sync + fmt::Debug + PartialEq {
    /// The matching dtype.
    const DTYPE: Dtype;
}

impl Element for f64 {
    const DTYPE: Dtype = Dtype::F64;
}
impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
impl Element for bf16 {
    const DTYPE: Dtype = Dtype::BF16;
}
impl Element for i32 {
    const DTYPE: Dtype = Dtype::I32;
}

/// Bytes shared with someone else (a mapped file), kept alive by the handle.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Memory of a device, given back when the last tensor in it is dropped.
pub trait DeviceMemory: Send + Sync {
    /// Where it begins, in the device's terms.
    fn address(&self) -> u64;

    /// How long it is.
    fn bytes(&self) -> usize;
}

/// Where a tensor's bytes live.
#[derive(Clone)]
enum Buffer {
    Owned(Owned),
    Shared { bytes: SharedBytes, range: Range<usize> },
    Device { memory: Arc<dyn DeviceMemory>, offset: usize },
}

/// A contiguous row-major tensor. A clone of a device's tensor is another handle to the same memory, which then is
/// no longer written to.
#[derive(Clone)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    buffer: Buffer,
}

impl Tensor {
    /// A zeroed host tensor. Large ones take memory as they are written.
    pub fn zeros(dtype: Dtype, shape: &[usize]) -> Result<Self> {
        let bytes = byte_length(dtype, shape)?;
        let owned = Owned::zeroed(bytes).map_err(|source| {
            Error::machine_because(
                "alloc",
                format!("no memory for a {dtype} tensor {shape:?} ({bytes} bytes)"),
                source,
            )
        })?;
        Ok(Tensor { dtype, shape: shape.to_vec(), buffer: Buffer::Owned(owned) })
    }

    /// A host tensor holding a copy of `values`.
    pub fn from_slice<E: Element>(shape: &[usize], values: &[E]) -> Result<Self> {
        let mut tensor = Tensor::zeros(E::DTYPE, shape)?;
        if tensor.len() != values.len() {
            return Err(Error::caller(
                "tensor",
                format!("shape {shape:?} needs {} values, got {}", tensor.len(), values.len()),
            ));
        }
        tensor.as_mut_slice::<E>()?.copy_from_slice(values);
        Ok(tensor)
    }

    /// A read-only tensor over bytes owned elsewhere. The range must hold exactly the shape's bytes and be
    /// aligned to the dtype.
    pub fn shared(dtype: Dtype, shape: &[usize], bytes: SharedBytes, range: Range<usize>) -> Result<Self> {
        let needed = byte_length(dtype, shape)?;
        let window = (*bytes).as_ref().get(range.clone()).ok_or_else(|| {
            Error::internal("tensor", format!("range {range:?} lies outside the shared bytes"))
        })?;
        if window.len() != needed || window.as_ptr().align_offset(dtype.size()) != 0 {
            return Err(Error::internal(
                "tensor",
                format!("{} bytes at {range:?} are not an aligned {dtype} tensor {shape:?}", window.len()),
            ));
        }
        Ok(Tensor { dtype, shape: shape.to_vec(), buffer: Buffer::Shared { bytes, range } })
    }

    /// A tensor at the beginning of a device's memory.
    pub fn on_device(dtype: Dtype, shape: &[usize], memory: Arc<dyn DeviceMemory>) -> Result<Self> {
        let needed = byte_length(dtype, shape)?;
        if memory.bytes() < needed {
            let what = format!("{} bytes of a device do not hold a {dtype} tensor {shape:?}", memory.bytes());
            return Err(Error::internal("tensor", what));
        }
        Ok(Tensor { dtype, shape: shape.to_vec(), buffer: Buffer::Device { memory, offset: 0 } })
    }

    /// Where the tensor begins on its device; none if the host holds it.
    pub fn device_address(&self) -> Option<u64> {
        match &self.buffer {
            Buffer::Device { memory, offset } => Some(memory.address() + *offset as u64),
            _ => None,
        }
    }

    /// Whether nobody else holds this memory, so that it may be written to.
    pub fn is_exclusive(&self) -> bool {
        match &self.buffer {
            Buffer::Owned(_) => true,
            Buffer::Shared { .. } => false,
            Buffer::Device { memory, .. } => Arc::strong_count(memory) == 1,
        }
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape, slowest axis first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the leading axis (1 for a scalar).
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements per step of the leading axis.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Bytes of the elements.
    pub fn byte_len(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// Whether the bytes belong to someone else (a mapped file).
    pub fn is_shared(&self) -> bool {
        matches!(self.buffer, Buffer::Shared { .. })
    }

    /// The same elements under another shape of equal length.
    pub fn reshaped(mut self, shape: &[usize]) -> Result<Self> {
        self.reshape(shape).map(|()| self)
    }

    /// As [`Tensor::reshaped`], in place.
    pub fn reshape(&mut self, shape: &[usize]) -> Result<()> {
        if byte_length(self.dtype, shape)? != self.byte_len() {
            return Err(Error::internal("reshape", format!("{:?} does not become {shape:?}", self.shape)));
        }
        self.shape = shape.to_vec();
        Ok(())
    }

    /// Gives a tensor another shape in place if its memory is its own and large enough, and says whether it was.
    /// Its contents are then unspecified (stale or zero).
    pub fn reuse_as(&mut self, shape: &[usize]) -> Result<bool> {
        let needed = byte_length(self.dtype, shape)?;
        let held = match &self.buffer {
            Buffer::Owned(owned) => owned.len(),
            Buffer::Shared { .. } => return Ok(false),
            Buffer::Device { memory, offset } => memory.bytes() - offset,
        };
        let fits = held >= needed && self.is_exclusive();
        if fits {
            self.shape = shape.to_vec();
        }
        Ok(fits)
    }

    /// Rows `range` of the leading axis: a narrower window for a mapping or a device, a copy for owned bytes. This is
    /// how a fused weight (q, k and v in one) becomes separate ones.
    pub fn rows_of(&self, range: Range<usize>) -> Result<Tensor> {
        let mut shape = self.shape.clone();
        if shape.is_empty() || range.start > range.end || range.end > shape[0] {
            return Err(Error::internal("tensor", format!("rows {range:?} of {:?}", self.shape)));
        }
        shape[0] = range.len();
        let width = self.row_len() * self.dtype.size();
        let window = range.start * width..range.end * width;
        match &self.buffer {
            Buffer::Shared { bytes, range: outer } => {
                let inner = outer.start + window.start..outer.start + window.end;
                Tensor::shared(self.dtype, &shape, bytes.clone(), inner)
            }
            Buffer::Device { memory, offset } => {
                let buffer = Buffer::Device { memory: memory.clone(), offset: offset + window.start };
                Ok(Tensor { dtype: self.dtype, shape, buffer })
            }
            Buffer::Owned(_) => {
                let mut out = Tensor::zeros(self.dtype, &shape)?;
                out.bytes_mut()?.copy_from_slice(&self.bytes()[window]);
                Ok(out)
            }
        }
    }

    /// The raw bytes.
    ///
    /// # Panics
    /// If they are a device's: download the tensor first.
    pub fn bytes(&self) -> &[u8] {
        match &self.buffer {
            Buffer::Owned(owned) => &owned[..self.byte_len()],
            Buffer::Shared { bytes, range } => &(**bytes).as_ref()[range.clone()],
            Buffer::Device { .. } => panic!("{self:?} was read by the host before it was downloaded"),
        }
    }

    /// The elements, if `E` is their type.
    pub fn as_slice<E: Element>(&self) -> Result<&[E]> {
        self.expect_dtype(E::DTYPE)?;
        self.expect_host()?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// The elements for writing; mapped weights are read-only.
    pub fn as_mut_slice<E: Element>(&mut self) -> Result<&mut [E]> {
        self.expect_dtype(E::DTYPE)?;
        Ok(bytemuck::cast_slice_mut(self.bytes_mut()?))
    }

    /// The raw bytes for writing; mapped weights are read-only.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        let length = self.byte_len();
        match &mut self.buffer {
            Buffer::Owned(owned) => Ok(&mut owned[..length]),
            Buffer::Shared { .. } => Err(Error::internal("tensor", "a mapped tensor was asked for writing")),
            Buffer::Device { .. } => {
                Err(Error::internal("tensor", "a device's tensor was asked for writing"))
            }
        }
    }

    /// The elements as f64, whatever float or integer type they have.
    pub fn to_f64(&self) -> Vec<f64> {
        match self.dtype {
            Dtype::F64 => bytemuck::cast_slice::<u8, f64>(self.bytes()).to_vec(),
            Dtype::F32 => bytemuck::cast_slice::<u8, f32>(self.bytes()).iter().map(|&v| v.into()).collect(),
            Dtype::BF16 => bytemuck::cast_slice::<u8, bf16>(self.bytes()).iter().map(|&v| v.into()).collect(),
            Dtype::I32 => bytemuck::cast_slice::<u8, i32>(self.bytes()).iter().map(|&v| v.into()).collect(),
        }
    }

    /// As [`Tensor::converted`], in memory of its own whatever the dtype.
    pub fn copied(&self, dtype: Dtype) -> Result<Tensor> {
        let tensor = self.converted(dtype)?;
        let mut copy = Tensor::zeros(dtype, tensor.shape())?;
        copy.bytes_mut()?.copy_from_slice(tensor.bytes());
        Ok(copy)
    }

    /// A float tensor converted to another float dtype (round to nearest even).
    pub fn converted(&self, dtype: Dtype) -> Result<Tensor> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        let mut out = Tensor::zeros(dtype, &self.shape)?;
        match (self.dtype, dtype) {
            (Dtype::BF16, Dtype::F32) => map(self.as_slice::<bf16>()?, out.as_mut_slice()?, bf16::to_f32),
            (Dtype::BF16, Dtype::F64) => map(self.as_slice::<bf16>()?, out.as_mut_slice()?, bf16::to_f64),
            (Dtype::F32, Dtype::BF16) => map(self.as_slice::<f32>()?, out.as_mut_slice()?, bf16::from_f32),
            (Dtype::F32, Dtype::F64) => map(self.as_slice::<f32>()?, out.as_mut_slice()?, f64::from),
            (Dtype::F64, Dtype::F32) => map(self.as_slice::<f64>()?, out.as_mut_slice()?, |v| v as f32),
            (Dtype::F64, Dtype::BF16) => map(self.as_slice::<f64>()?, out.as_mut_slice()?, bf16::from_f64),
            (from, to) => return Err(Error::internal("convert", format!("{from} does not become {to}"))),
        }
        Ok(out)
    }

    fn expect_host(&self) -> Result<()> {
        match self.device_address() {
            None => Ok(()),
            Some(_) => {
                Err(Error::internal("tensor", format!("{self:?} was read by the host; download it first")))
            }
        }
    }

    fn expect_dtype(&self, dtype: Dtype) -> Result<()> {
        if self.dtype == dtype {
            return Ok(());
        }
        Err(Error::internal("tensor", format!("a {} tensor was read as {dtype}", self.dtype)))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.buffer {
            Buffer::Owned(_) => "",
            Buffer::Shared { .. } => " (mapped)",
            Buffer::Device { .. } => " (on a device)",
        };
        write!(f, "{}{:?}{place}", self.dtype, self.shape)
    }
}

fn map<A: Copy, B>(from: &[A], to: &mut [B], convert: impl Fn(A) -> B) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = convert(from);
    }
}

/// Bytes of a tensor, refusing shapes whose size does not fit a `usize`.
pub fn byte_length(dtype: Dtype, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(dtype.size(), |bytes, &axis| bytes.checked_mul(axis))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| Error::caller("tensor", format!("shape {shape:?} of {dtype} is larger than memory")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_access_checks_the_dtype() {
        let tensor = Tensor::from_slice(&[2, 2], &[1f32, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(tensor.as_slice::<f32>().unwrap(), &[1.0, 2.0, 3.0, 4.0]);
        assert!(tensor.as_slice::<i32>().is_err());
        assert_eq!((tensor.rows(), tensor.row_len(), tensor.byte_len()), (2, 2, 16));
    }

    #[test]
    fn absurd_shapes_are_refused_before_memory_is_touched() {
        assert!(Tensor::zeros(Dtype::F32, &[usize::MAX, 2]).is_err());
        assert!(Tensor::zeros(Dtype::F32, &[1 << 50, 1 << 20]).is_err());
    }

    #[test]
    fn shared_bytes_are_used_in_place_and_read_only() {
        let bytes: SharedBytes = Arc::new(bytemuck::cast_slice::<f32, u8>(&[1.0, 2.0, 3.0]).to_vec());
        let mut tensor = Tensor::shared(Dtype::F32, &[2], bytes.clone(), 4..12).unwrap();
        assert_eq!(tensor.as_slice::<f32>().unwrap(), &[2.0, 3.0]);
        assert!(tensor.as_mut_slice::<f32>().is_err());
        assert!(Tensor::shared(Dtype::F32, &[3], bytes.clone(), 4..12).is_err());
        assert!(Tensor::shared(Dtype::F32, &[2], bytes, 8..16).is_err());
    }

    #[test]
    fn rows_of_a_mapped_tensor_stay_in_the_mapping() {
        let bytes: SharedBytes = Arc::new(bytemuck::cast_slice::<i32, u8>(&[1, 2, 3, 4, 5, 6]).to_vec());
        let mapped = Tensor::shared(Dtype::I32, &[3, 2], bytes, 0..24).unwrap();
        let owned = Tensor::from_slice(&[3, 2], &[1, 2, 3, 4, 5, 6]).unwrap();
        for (tensor, shared) in [(mapped, true), (owned, false)] {
            let rows = tensor.rows_of(1..3).unwrap();
            assert_eq!((rows.as_slice::<i32>().unwrap(), rows.is_shared()), (&[3, 4, 5, 6][..], shared));
            assert!(tensor.rows_of(2..4).is_err());
        }
    }

    #[test]
    fn reuse_keeps_memory_and_says_when_it_is_too_small() {
        let mut tensor = Tensor::zeros(Dtype::F32, &[64, 4]).unwrap();
        let address = tensor.bytes().as_ptr();
        assert!(tensor.reuse_as(&[3, 5]).unwrap());
        assert_eq!((tensor.shape(), tensor.bytes().as_ptr()), (&[3, 5][..], address));
        assert!(!tensor.reuse_as(&[1000, 5]).unwrap());
        assert_eq!(tensor.shape(), [3, 5]);
    }

    #[test]
    fn conversion_rounds_to_nearest_even() {
        let tensor = Tensor::from_slice(&[3], &[1.0f32, 257.0 / 256.0, -2.5]).unwrap();
        let narrow = tensor.converted(Dtype::BF16).unwrap();
        assert_eq!(narrow.to_f64(), vec![1.0, 1.0, -2.5]);
    }
}
