//! Moving rows: embeddings, image features, keys and values into their pages.

use super::{
    Cpu,
    isa::{Isa, with_isa},
    math,
};
use crate::{
    backend::check,
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use half::bf16;

/// Rows of activations worth a task of their own.
const PIECE: usize = 128;

/// Rows of keys and values that one thread moves in the time it takes to wake another.
const ALONE: usize = 32;

/// See [`crate::backend::Backend::gather_rows`].
pub(super) fn gather_rows(cpu: &Cpu, out: &mut Tensor, table: &Tensor, rows: &Tensor) -> Result<()> {
    const OP: &str = "gather_rows";
    check::gather_rows(out, table, rows)?;
    let rows = check::indices(OP, "rows", rows, table.rows())?;
    if let (Dtype::F32, Dtype::F32, true) = (table.dtype(), out.dtype(), table.row_len() > 0) {
        let (out, table, width) = (out.as_mut_slice::<f32>()?, table.as_slice::<f32>()?, table.row_len());
        let pieces = out.chunks_mut(PIECE * width).zip(rows.chunks(PIECE)).collect();
        cpu.spread(pieces, |(out, rows): (&mut [f32], &[i32])| {
            for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
                out.copy_from_slice(&table[row as usize * width..][..width]);
            }
        });
        return Ok(());
    }
    let moves = rows.iter().enumerate().map(|(to, &from)| (to, from as usize));
    copy(OP, out, table, table.row_len(), moves)
}

/// See [`crate::backend::Backend::scatter_rows`].
pub(super) fn scatter_rows(out: &mut Tensor, source: &Tensor, rows: &Tensor) -> Result<()> {
    const OP: &str = "scatter_rows";
    check::scatter_rows(out, source, rows)?;
    let rows = check::indices(OP, "rows", rows, out.rows())?;
    let moves = rows.iter().enumerate().map(|(from, &to)| (to as usize, from));
    copy(OP, out, source, source.row_len(), moves)
}

/// See [`crate::backend::Backend::kv_append`].
pub(super) fn kv_append(
    cpu: &Cpu,
    k_pool: &mut Tensor,
    v_pool: &mut Tensor,
    k: &Tensor,
    v: &Tensor,
    slots: &Tensor,
) -> Result<()> {
    const OP: &str = "kv_append";
    let pool = check::kv_append(k_pool, v_pool, k, v, slots)?;
    let slots = check::indices(OP, "slots", slots, pool.pages * pool.page_len)?;
    let moves = || {
        slots.iter().enumerate().flat_map(|(row, &slot)| {
            let (page, offset) = (slot as usize / pool.page_len, slot as usize % pool.page_len);
            (0..pool.kv_heads).map(move |head| {
                let to = (page * pool.kv_heads + head) * pool.page_len + offset;
                (to, row * pool.kv_heads + head)
            })
        })
    };
    let mut results = [Ok(()), Ok(())];
    let pieces: Vec<_> = [(k_pool, k), (v_pool, v)].into_iter().zip(&mut results).collect();
    with_isa!(cpu.level, isa => {
        let each = |((pool_of, rows), result): ((&mut Tensor, &Tensor), &mut Result<()>)| {
            isa.run(#[inline(always)] || *result = copy(OP, pool_of, rows, pool.head_dim, moves()));
        };
        // A pass that draws has so little to move that the threads would take longer to meet.
        if slots.len() <= ALONE { pieces.into_iter().for_each(each) } else { cpu.spread(pieces, each) }
    });
    results.into_iter().collect()
}

/// Copies pieces of `len` elements, by number: (to, from). Inline, so that it is compiled for the caller's instructions.
#[inline(always)]
fn copy(
    op: &'static str,
    out: &mut Tensor,
    source: &Tensor,
    len: usize,
    moves: impl Iterator<Item = (usize, usize)>,
) -> Result<()> {
    #[inline(always)]
    fn each<A: Copy, B>(
        out: &mut [B],
        source: &[A],
        len: usize,
        moves: impl Iterator<Item = (usize, usize)>,
        convert: impl Fn(A) -> B,
    ) {
        for (to, from) in moves {
            let (out, source) = (&mut out[to * len..][..len], &source[from * len..][..len]);
            out.iter_mut().zip(source).for_each(|(out, &value)| *out = convert(value));
        }
    }
    match (source.dtype(), out.dtype()) {
        (Dtype::F32, Dtype::F32) => each(out.as_mut_slice()?, source.as_slice::<f32>()?, len, moves, |v| v),
        (Dtype::BF16, Dtype::BF16) => {
            each(out.as_mut_slice()?, source.as_slice::<bf16>()?, len, moves, |v| v)
        }
        (Dtype::BF16, Dtype::F32) => {
            each(out.as_mut_slice()?, source.as_slice::<bf16>()?, len, moves, bf16::to_f32);
        }
        (Dtype::F32, Dtype::BF16) => {
            each(out.as_mut_slice()?, source.as_slice::<f32>()?, len, moves, math::narrow);
        }
        (from, to) => {
            let what = format!("{from} rows do not become {to} rows, the cpu backend moves f32 and bf16");
            return Err(Error::caller(op, what));
        }
    }
    Ok(())
}
