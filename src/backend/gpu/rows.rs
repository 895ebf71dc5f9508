//! Rows moved by index, and how rows are laid over threads.

use super::{
    Argument::{Address as At, I32, I64},
    Launch, Runtime,
    device::{Gpu, expect_dtype, int},
};
use crate::{
    backend::check,
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};

/// Elements of a piece: 16 bytes, what a thread reads at once.
const PIECE: usize = 8;

/// Threads of a block that several short rows share.
const SHARED_BLOCK: u32 = 256;

/// How rows are laid over threads by kernels that memory bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread {
    /// Threads to a row, by its length alone, because sums follow them: a power of two within a warp, or whole warps.
    pub(super) lanes: u32,
    /// Rows to a block; one if a row has more threads than a warp.
    pub(super) rows: u32,
    blocks: u32,
}

impl Spread {
    /// For rows of so many elements.
    pub(super) fn over_elements(op: &'static str, rows: usize, columns: usize) -> Result<Self> {
        Spread::over_pieces(op, rows, columns.div_ceil(PIECE))
    }

    /// For rows of so many pieces.
    pub(super) fn over_pieces(op: &'static str, rows: usize, pieces: usize) -> Result<Self> {
        let refuse = |what: &str, count, limit: u32| {
            Err(Error::caller(op, format!("{what} are {count}; kernels count to {limit}")))
        };
        let lanes = match pieces {
            0..=32 => pieces.next_power_of_two() as u32,
            _ => pieces.next_multiple_of(32).min(1024) as u32,
        };
        let together = if lanes > 32 { 1 } else { SHARED_BLOCK / lanes };
        if pieces > 1 << 27 {
            return refuse("pieces of 16 bytes in a row", pieces, 1 << 27);
        }
        match u32::try_from(rows.div_ceil(together as usize)) {
            Ok(blocks) if blocks <= i32::MAX as u32 => Ok(Spread { lanes, rows: together, blocks }),
            _ => refuse("rows", rows, i32::MAX as u32),
        }
    }

    /// A launch of so many layers of this; the kernel knows a layer by z.
    pub(super) fn launch<'a>(
        self,
        kernel: &'a str,
        layers: u32,
        shared: usize,
        arguments: &'a [super::Argument],
    ) -> Launch<'a> {
        let grid = [self.blocks, 1, layers];
        Launch { kernel, grid, block: [self.lanes * self.rows, 1, 1], shared: shared as u32, arguments }
    }
}

/// See [`crate::backend::Backend::gather_rows`].
pub(super) fn gather_rows<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Tensor,
    table: &Tensor,
    rows: &Tensor,
) -> Result<()> {
    const OP: &str = "gather_rows";
    check::gather_rows(out, table, rows)?;
    if table.dtype() != Dtype::F32 {
        return copy_rows(gpu, OP, out, table, rows.len(), None, Some(rows));
    }
    expect_dtype(OP, "out", out, Dtype::BF16)?;
    let (count, columns) = (rows.len(), table.row_len());
    let spread = Spread::over_elements(OP, count, columns)?;
    if count == 0 || columns == 0 {
        return Ok(());
    }
    let arguments = [
        At(gpu.target(out)?),
        At(gpu.at(table)?),
        At(gpu.at(rows)?),
        I64(count as i64),
        I32(columns as i32),
        I32(spread.lanes as i32),
    ];
    gpu.launch(&spread.launch("narrow_rows", 1, 0, &arguments))
}

/// See [`crate::backend::Backend::scatter_rows`].
pub(super) fn scatter_rows<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Tensor,
    source: &Tensor,
    rows: &Tensor,
) -> Result<()> {
    check::scatter_rows(out, source, rows)?;
    copy_rows(gpu, "scatter_rows", out, source, rows.len(), Some(rows), None)
}

/// out[to[i]] = source[from[i]] for i up to `count`, where no index is i itself.
fn copy_rows<R: Runtime>(
    gpu: &Gpu<R>,
    op: &'static str,
    out: &mut Tensor,
    source: &Tensor,
    count: usize,
    to: Option<&Tensor>,
    from: Option<&Tensor>,
) -> Result<()> {
    expect_dtype(op, "out", out, Dtype::BF16)?;
    expect_dtype(op, "source", source, Dtype::BF16)?;
    let columns = source.row_len();
    let spread = Spread::over_elements(op, count, columns)?;
    if count == 0 || columns == 0 {
        return Ok(());
    }
    let arguments = [
        At(gpu.target(out)?),
        At(gpu.at(source)?),
        At(gpu.at_or_null(to)?),
        At(gpu.at_or_null(from)?),
        I64(count as i64),
        I32(columns as i32),
        I32(spread.lanes as i32),
    ];
    gpu.launch(&spread.launch("copy_rows", 1, 0, &arguments))
}

/// See [`crate::backend::Backend::kv_append`].
pub(super) fn kv_append<R: Runtime>(
    gpu: &Gpu<R>,
    k_pool: &mut Tensor,
    v_pool: &mut Tensor,
    k: &Tensor,
    v: &Tensor,
    slots: &Tensor,
) -> Result<()> {
    const OP: &str = "kv_append";
    let pool = check::kv_append(k_pool, v_pool, k, v, slots)?;
    expect_dtype(OP, "k_pool", k_pool, Dtype::BF16)?;
    expect_dtype(OP, "k", k, Dtype::BF16)?;
    let rows = slots.len() * pool.kv_heads;
    let spread = Spread::over_elements(OP, rows, pool.head_dim)?;
    if k.is_empty() {
        return Ok(());
    }
    let arguments = [
        At(gpu.target(k_pool)?),
        At(gpu.target(v_pool)?),
        At(gpu.at(k)?),
        At(gpu.at(v)?),
        At(gpu.at(slots)?),
        I64(rows as i64),
        I32(int(OP, "kv heads", pool.kv_heads)?),
        I32(int(OP, "page length", pool.page_len)?),
        I32(pool.head_dim as i32),
        I32(spread.lanes as i32),
    ];
    gpu.launch(&spread.launch("kv_append", 2, 0, &arguments))
}

/// See [`crate::backend::Backend::gather_rows_backward`].
pub(super) fn gather_rows_backward<R: Runtime>(
    gpu: &Gpu<R>,
    dtable: &mut Tensor,
    dout: &Tensor,
    rows: &Tensor,
) -> Result<()> {
    const OP: &str = "gather_rows_backward";
    check::gather_rows_backward(dtable, dout, rows)?;
    expect_dtype(OP, "dtable", dtable, Dtype::F32)?;
    expect_dtype(OP, "dout", dout, Dtype::BF16)?;
    if dout.is_empty() {
        return Ok(());
    }
    let (count, columns) = (int(OP, "rows", rows.len())?, int(OP, "columns", dtable.row_len())?);
    let arguments = [At(gpu.target(dtable)?), At(gpu.at(dout)?), At(gpu.at(rows)?), I32(count), I32(columns)];
    let (grid, block) = ([count as u32, 1, 1], [256, 1, 1]);
    gpu.launch(&Launch { kernel: "add_rows", grid, block, shared: 0, arguments: &arguments })
}

/// See [`crate::backend::Backend::zero`].
pub(super) fn zero<R: Runtime>(gpu: &Gpu<R>, out: &mut Tensor) -> Result<()> {
    const OP: &str = "zero";
    let bytes = out.byte_len();
    if bytes == 0 {
        return Ok(());
    }
    let blocks = int(OP, "blocks of 4096 bytes", bytes.div_ceil(4096))?;
    let (arguments, grid) = ([At(gpu.target(out)?), I64(bytes as i64)], [blocks as u32, 1, 1]);
    gpu.launch(&Launch { kernel: OP, grid, block: [256, 1, 1], shared: 0, arguments: &arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_rows_share_blocks_and_long_ones_fill_warps() {
        let spread = |rows, columns| {
            let Spread { lanes, rows, blocks } = Spread::over_elements("test", rows, columns).unwrap();
            (lanes, rows, blocks)
        };
        assert_eq!(spread(1, 1), (1, 256, 1));
        assert_eq!(spread(257, 8), (1, 256, 2));
        assert_eq!(spread(33, 80), (16, 16, 3)); // 10 pieces
        assert_eq!(spread(33, 128), (16, 16, 3));
        assert_eq!(spread(9, 256), (32, 8, 2));
        assert_eq!(spread(9, 257), (64, 1, 9));
        assert_eq!(spread(9, 3584), (448, 1, 9));
        assert_eq!(spread(9, 16384), (1024, 1, 9));
        assert_eq!(spread(0, 64), (8, 32, 0));
    }

    #[test]
    fn what_kernels_cannot_count_is_refused() {
        let error = Spread::over_elements("test", 1 << 32, 4096).unwrap_err().to_string();
        assert!(error.contains("4294967296"), "{error}");
        Spread::over_elements("test", 1, (1 << 30) + 1).unwrap_err();
    }
}
