//! Arguments of an op: tensors that know what they are to it, so that all ops are moved to a backend and cut down to
//! some rows by the same few lines.

use pellucid::{
    backend::Backend,
    error::Result,
    tensor::{Dtype, Tensor},
};
use std::sync::Arc;

/// Which dtype an argument has on a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// That of activations.
    Activation,
    /// That of log-probs.
    Statistic,
    /// The one it was made with: weights, caches, indices.
    Held,
}

/// What the leading axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    Rows,
    Columns,
    /// Rows, and columns behind them.
    RowsByColumns,
    /// Something, and rows behind it.
    ByRows,
    Other,
}

#[derive(Debug, Clone)]
pub(crate) struct Argument {
    pub(crate) name: &'static str,
    pub(crate) tensor: Tensor,
    pub(super) kind: Kind,
    pub(super) axis: Axis,
}

impl Argument {
    /// The argument as `backend` wants it, there.
    pub(super) fn on(&self, backend: &dyn Backend) -> Result<Argument> {
        let dtype = match self.kind {
            Kind::Activation => backend.activation(),
            Kind::Statistic => backend.statistic(),
            Kind::Held => self.tensor.dtype(),
        };
        Ok(Argument { tensor: backend.upload(self.tensor.converted(dtype)?)?, ..*self })
    }

    /// A copy in memory of its own.
    pub(super) fn copied(&self) -> Result<Tensor> {
        pick(&self.tensor, &(0..self.tensor.rows()).collect::<Vec<_>>())
    }

    /// In another float type.
    pub(crate) fn converted(&self, dtype: Dtype) -> Result<Argument> {
        Ok(Argument { tensor: self.tensor.converted(dtype)?, ..*self })
    }

    /// Whether two outputs are numbers of one kind, as k and v are.
    pub(crate) fn is_like(&self, other: &Argument) -> bool {
        self.tensor.shape() == other.tensor.shape() && self.tensor.dtype() == other.tensor.dtype()
    }

    /// Whether it has a row for each packed row.
    pub(crate) fn has_rows(&self) -> bool {
        matches!(self.axis, Axis::Rows | Axis::RowsByColumns)
    }

    /// The same with zeros in all but some rows.
    pub(super) fn emptied(&self, kept: &[usize]) -> Result<Argument> {
        let width = self.tensor.row_len() * self.tensor.dtype().size();
        let mut tensor = Tensor::zeros(self.tensor.dtype(), self.tensor.shape())?;
        for &row in kept {
            let part = row * width..(row + 1) * width;
            tensor.bytes_mut()?[part.clone()].copy_from_slice(&self.tensor.bytes()[part]);
        }
        Ok(Argument { tensor, ..*self })
    }

    /// Some rows, and some columns or all of them.
    pub(crate) fn narrowed(&self, rows: &[usize], columns: Option<&[usize]>) -> Result<Argument> {
        let columns_of = |tensor: Tensor| match columns {
            Some(columns) => pick_columns(&tensor, columns),
            None => Ok(tensor),
        };
        let tensor = match (self.axis, columns) {
            (Axis::Rows, _) => pick(&self.tensor, rows)?,
            (Axis::RowsByColumns, _) => columns_of(pick(&self.tensor, rows)?)?,
            (Axis::ByRows, _) => pick_columns(&self.tensor, rows)?,
            (Axis::Columns, Some(columns)) => pick(&self.tensor, columns)?,
            (Axis::Columns, None) | (Axis::Other, _) => self.tensor.clone(),
        };
        Ok(Argument { tensor, ..*self })
    }
}

/// A tensor that is only read, so that its clones share its memory.
pub(super) fn lent(tensor: Tensor) -> Result<Tensor> {
    struct Lent(Tensor);
    impl AsRef<[u8]> for Lent {
        fn as_ref(&self) -> &[u8] {
            self.0.bytes()
        }
    }
    let (dtype, shape, length) = (tensor.dtype(), tensor.shape().to_vec(), tensor.byte_len());
    Tensor::shared(dtype, &shape, Arc::new(Lent(tensor)), 0..length)
}

/// An output before the op: what no op may leave behind.
pub(super) fn poisoned(dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product();
    match dtype {
        Dtype::I32 => Tensor::from_slice(shape, &vec![-1; count]),
        dtype => Tensor::from_slice(shape, &vec![f32::NAN; count])?.converted(dtype),
    }
}

/// These indices of the leading axis.
pub(super) fn pick(tensor: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let mut shape = tensor.shape().to_vec();
    shape[0] = rows.len();
    let width = tensor.row_len() * tensor.dtype().size();
    let mut out = Tensor::zeros(tensor.dtype(), &shape)?;
    for (to, &row) in out.bytes_mut()?.chunks_exact_mut(width.max(1)).zip(rows) {
        to.copy_from_slice(&tensor.bytes()[row * width..][..width]);
    }
    Ok(out)
}

/// These indices of the trailing axis of a matrix.
fn pick_columns(tensor: &Tensor, columns: &[usize]) -> Result<Tensor> {
    let (rows, length, size) = (tensor.rows(), tensor.row_len(), tensor.dtype().size());
    let mut out = Tensor::zeros(tensor.dtype(), &[rows, columns.len()])?;
    let places = (0..rows).flat_map(|row| columns.iter().map(move |column| row * length + column));
    for (to, from) in out.bytes_mut()?.chunks_exact_mut(size).zip(places) {
        to.copy_from_slice(&tensor.bytes()[from * size..][..size]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_picked_wherever_they_lie() {
        let tensor = Tensor::from_slice(&[3, 2], &[0, 1, 10, 11, 20, 21]).unwrap();
        let argument = |axis| Argument { name: "x", tensor: tensor.clone(), kind: Kind::Held, axis };
        let narrowed = |axis, rows: &[usize], columns: Option<&[usize]>| {
            argument(axis).narrowed(rows, columns).unwrap().tensor.as_slice::<i32>().unwrap().to_vec()
        };
        assert_eq!(narrowed(Axis::Rows, &[2, 0], Some(&[1])), [20, 21, 0, 1]);
        assert_eq!(narrowed(Axis::RowsByColumns, &[2, 0], Some(&[1])), [21, 1]);
        assert_eq!(narrowed(Axis::RowsByColumns, &[1], None), [10, 11]);
        assert_eq!(narrowed(Axis::ByRows, &[1], Some(&[0])), [1, 11, 21]);
        assert_eq!(narrowed(Axis::Columns, &[0], Some(&[1])), [10, 11]);
        assert_eq!(narrowed(Axis::Columns, &[0], None).len(), 6);
        assert_eq!(narrowed(Axis::Other, &[0], Some(&[0])).len(), 6);
    }
}
