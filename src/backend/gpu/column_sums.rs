//! Sums over packed rows, column by column: gradients of biases and of norms' gains.

use super::{
    Address,
    Argument::{Address as At, I32, I64},
    Launch, Runtime,
    device::{Gpu, TICKETS, int},
};
use crate::{
    error::{Error, Result},
    tensor::Dtype,
};

/// Columns of a block.
const COLUMNS: usize = 256;
/// Fewest rows of a block, and the most blocks that share a column, whose sums the last of them adds up.
const SHARE: usize = 128;
const BLOCKS: usize = 256;

/// Rows of a block, by their number alone, because sums follow them.
fn share(rows: usize) -> usize {
    rows.div_ceil(BLOCKS).next_multiple_of(SHARE)
}

/// out f32 `[C]` += Σ a over T rows, or Σ a∘b·factor with b and a factor per row.
pub(super) fn add<R: Runtime>(
    gpu: &Gpu<R>,
    op: &'static str,
    out: Address,
    a: Address,
    weighed: Option<(Address, Address)>,
    [rows, columns]: [usize; 2],
) -> Result<()> {
    let (across, share) = (columns.div_ceil(COLUMNS), share(rows));
    if across > TICKETS {
        let what = format!("columns are {columns}; kernels sum up {}", TICKETS * COLUMNS);
        return Err(Error::caller(op, what));
    }
    let along = rows.div_ceil(share);
    let partial = if along > 1 { Some(gpu.temporary(Dtype::F32, &[along, columns])?) } else { None };
    let tickets = if along > 1 { gpu.tickets()? } else { Address(0) };
    let (b, factor) = weighed.unwrap_or((Address(0), Address(0)));
    gpu.launch(&Launch {
        kernel: "column_sums",
        grid: [across as u32, along as u32, 1],
        block: [256, 1, 1],
        shared: 8192,
        arguments: &[
            At(out),
            At(a),
            At(b),
            At(factor),
            At(gpu.at_or_null(partial.as_ref())?),
            At(tickets),
            I64(rows as i64),
            I32(int(op, "columns", columns)?),
            I32(int(op, "rows of a block", share)?),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_alone_decide_who_sums_what() {
        assert_eq!(
            [1, 128, 129, 4096, 32_768, 32_769, 1 << 20].map(share),
            [128, 128, 128, 128, 128, 256, 4096]
        );
        for rows in [1usize, 129, 32_769, 1 << 20, (1 << 20) + 1] {
            assert!(rows.div_ceil(share(rows)) <= BLOCKS);
        }
    }
}
