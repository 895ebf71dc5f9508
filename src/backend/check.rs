//! What every backend demands of an op's arguments before it touches a byte.
//!
//! One function per op: it looks at shapes alone, refuses with the op, the argument, its shape and what
//! was expected, and returns the sizes the op works with. Contents of index tensors are a question for
//! whoever can read them ([`indices`], for backends in host memory).

mod gradient;
mod pages;
mod segments;

pub use gradient::{
    adamw, attention_backward, gather_rows_backward, linear_backward, logprobs_backward, pointwise_backward,
    rms_norm_backward, sq_norm,
};
pub use pages::{PagedGroup, PagedSequence, paged_groups, paged_sequences};
pub use segments::{Segment, segments};

use super::{Draw, Drawn, Epilogue, Groups, Linear, LogProbs, Pages, Rope};
use crate::{
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use std::ops::Range;

/// Refuses with what an argument is and what it should be.
fn refuse<T>(op: &'static str, name: &str, tensor: &Tensor, expected: impl std::fmt::Display) -> Result<T> {
    Err(Error::caller(op, format!("{name} is {tensor:?}, expected {expected}")))
}

/// The argument has these many rows of this length, whatever axes make up the row.
fn matrix(op: &'static str, name: &str, tensor: &Tensor, rows: usize, row_len: usize) -> Result<()> {
    if tensor.rows() == rows && tensor.row_len() == row_len {
        return Ok(());
    }
    refuse(op, name, tensor, format_args!("{rows} rows of {row_len}"))
}

fn shape(op: &'static str, name: &str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.shape() == expected { Ok(()) } else { refuse(op, name, tensor, format_args!("{expected:?}")) }
}

fn float(op: &'static str, name: &str, tensor: &Tensor) -> Result<()> {
    if tensor.dtype() == Dtype::I32 { refuse(op, name, tensor, "a float dtype") } else { Ok(()) }
}

fn integer(op: &'static str, name: &str, tensor: &Tensor) -> Result<()> {
    if tensor.dtype() == Dtype::I32 { Ok(()) } else { refuse(op, name, tensor, "dtype i32") }
}

/// Every index lies in `0..limit`.
pub fn indices<'a>(op: &'static str, name: &str, tensor: &'a Tensor, limit: usize) -> Result<&'a [i32]> {
    integer(op, name, tensor)?;
    let indices = tensor.as_slice::<i32>()?;
    match indices.iter().position(|&index| usize::try_from(index).map_or(true, |index| index >= limit)) {
        None => Ok(indices),
        Some(at) => {
            Err(Error::caller(op, format!("{name}[{at}] is {}, expected 0 <= index < {limit}", indices[at])))
        }
    }
}

/// Sequence boundaries: they begin at 0, never fall, and end at `total`.
pub fn starts<'a>(op: &'static str, name: &str, tensor: &'a Tensor, total: usize) -> Result<&'a [i32]> {
    integer(op, name, tensor)?;
    let starts = tensor.as_slice::<i32>()?;
    let ordered = starts.windows(2).all(|pair| pair[0] <= pair[1]);
    if starts.first() == Some(&0) && ordered && starts.last().is_some_and(|&end| end as usize == total) {
        return Ok(starts);
    }
    refuse(op, name, tensor, format_args!("non-falling boundaries from 0 to {total}"))
}

/// As many rows go out as are named, each of the table's length.
pub fn gather_rows(out: &Tensor, table: &Tensor, rows: &Tensor) -> Result<()> {
    const OP: &str = "gather_rows";
    float(OP, "out", out)?;
    float(OP, "table", table)?;
    integer(OP, "rows", rows)?;
    matrix(OP, "out", out, rows.len(), table.row_len())
}

/// See [`gather_rows`].
pub fn scatter_rows(out: &Tensor, source: &Tensor, rows: &Tensor) -> Result<()> {
    const OP: &str = "scatter_rows";
    float(OP, "out", out)?;
    float(OP, "source", source)?;
    integer(OP, "rows", rows)?;
    matrix(OP, "source", source, rows.len(), out.row_len())
}

/// Sizes of a linear.
#[derive(Debug, Clone, Copy)]
pub struct LinearSizes {
    /// T.
    pub rows: usize,
    /// K.
    pub inner: usize,
    /// N.
    pub columns: usize,
}

/// Sizes of `out = x·Wᵀ`, with bias, adapters and gains checked against them.
pub fn linear(
    op: &'static str,
    out: &Tensor,
    x: &Tensor,
    linear: &Linear<'_>,
    epilogue: Epilogue<'_>,
) -> Result<LinearSizes> {
    let sizes = product(op, ("out", out), x, linear)?;
    if let Epilogue::AddScaled(gain) = epilogue {
        float(op, "gain", gain)?;
        shape(op, "gain", gain, &[sizes.columns])?;
    }
    Ok(sizes)
}

/// The same whatever becomes of y, which may be the gradient of it.
fn product(
    op: &'static str,
    (name, y): (&str, &Tensor),
    x: &Tensor,
    linear: &Linear<'_>,
) -> Result<LinearSizes> {
    let sizes = LinearSizes {
        rows: x.rows(),
        inner: x.row_len(),
        columns: linear.weight.shape().first().copied().unwrap_or(0),
    };
    let LinearSizes { rows, inner, columns } = sizes;
    for (name, tensor) in [(name, y), ("x", x), ("weight", linear.weight)] {
        float(op, name, tensor)?;
    }
    shape(op, "weight", linear.weight, &[columns, inner])?;
    matrix(op, name, y, rows, columns)?;
    if let Some(bias) = linear.bias {
        float(op, "bias", bias)?;
        shape(op, "bias", bias, &[columns])?;
    }
    for (at, lora) in linear.lora.iter().enumerate() {
        let Range { start, end } = lora.rows;
        let apart = |other: &Range<usize>| other.end <= start || end <= other.start;
        if start > end || end > rows || !linear.lora[..at].iter().all(|other| apart(&other.rows)) {
            return Err(Error::caller(
                op,
                format!(
                    "adapter {at} serves rows {start}..{end}, expected a range within 0..{rows} of its own"
                ),
            ));
        }
        let rank = lora.a.rows();
        float(op, "lora a", lora.a)?;
        float(op, "lora b", lora.b)?;
        shape(op, "lora a", lora.a, &[rank, inner])?;
        shape(op, "lora b", lora.b, &[columns, rank])?;
    }
    Ok(sizes)
}

/// Sizes of a gated linear.
pub fn gated_linear(out: &Tensor, x: &Tensor, gate: &Linear<'_>, up: &Linear<'_>) -> Result<LinearSizes> {
    const OP: &str = "gated_linear";
    linear(OP, out, x, gate, Epilogue::Store)?;
    if gate.weight.dtype() != up.weight.dtype() {
        return refuse(OP, "up", up.weight, format_args!("the gate's dtype {}", gate.weight.dtype()));
    }
    linear(OP, out, x, up, Epilogue::Store)
}

/// Length of the normalised groups.
pub fn rms_norm(out: &Tensor, x: &Tensor, weight: &Tensor) -> Result<usize> {
    norm_group("rms_norm", ("out", out), x, weight)
}

fn norm_group(op: &'static str, (name, out): (&str, &Tensor), x: &Tensor, weight: &Tensor) -> Result<usize> {
    for (name, tensor) in [(name, out), ("x", x), ("weight", weight)] {
        float(op, name, tensor)?;
    }
    let group = weight.len();
    if group == 0 || !x.row_len().is_multiple_of(group) {
        let expected = format_args!("a length that divides the row of x, {}", x.row_len());
        return refuse(op, "weight", weight, expected);
    }
    matrix(op, name, out, x.rows(), x.row_len())?;
    Ok(group)
}

/// Length of the normalised rows.
pub fn layer_norm(out: &Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<usize> {
    const OP: &str = "layer_norm";
    for (name, tensor) in [("out", out), ("x", x), ("weight", weight), ("bias", bias)] {
        float(OP, name, tensor)?;
    }
    let columns = x.row_len();
    if columns == 0 {
        return refuse(OP, "x", x, "rows of at least one element");
    }
    shape(OP, "weight", weight, &[columns])?;
    shape(OP, "bias", bias, &[columns])?;
    matrix(OP, "out", out, x.rows(), columns)?;
    Ok(columns)
}

/// D, the head dim the frequencies imply. The axes that `rope.axis` names are checked here too, since a
/// rope is built on the host.
pub fn rope(x: &Tensor, positions: &Tensor, rope: &Rope) -> Result<usize> {
    const OP: &str = "rope";
    float(OP, "x", x)?;
    integer(OP, "positions", positions)?;
    if rope.inv_freq.dtype() != Dtype::F32 {
        return refuse(OP, "inv_freq", &rope.inv_freq, "dtype f32");
    }
    integer(OP, "axis", &rope.axis)?;
    let half = rope.inv_freq.len();
    if half == 0 || !x.row_len().is_multiple_of(2 * half) {
        return refuse(OP, "x", x, format_args!("rows of whole heads of {}", 2 * half));
    }
    shape(OP, "axis", &rope.axis, &[half])?;
    matrix(OP, "positions", positions, positions.rows(), x.rows())?;
    Ok(2 * half)
}

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSizes {
    /// T.
    pub rows: usize,
    /// H.
    pub heads: usize,
    /// G.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
}

fn queries(
    op: &'static str,
    out: &Tensor,
    lse: Option<&Tensor>,
    q: &Tensor,
    kv: (&'static str, &Tensor),
    kv_heads: usize,
) -> Result<AttentionSizes> {
    let &[rows, heads, head_dim] = q.shape() else {
        return refuse(op, "q", q, "[T, H, D]");
    };
    float(op, "q", q)?;
    float(op, "out", out)?;
    float(op, kv.0, kv.1)?;
    shape(op, "out", out, &[rows, heads, head_dim])?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return refuse(op, kv.0, kv.1, format_args!("a number of heads that divides {heads}"));
    }
    if let Some(lse) = lse {
        float(op, "lse", lse)?;
        shape(op, "lse", lse, &[rows, heads])?;
    }
    Ok(AttentionSizes { rows, heads, kv_heads, head_dim })
}

/// Sizes of attention within packed sequences.
pub fn attention(
    op: &'static str,
    out: &Tensor,
    lse: Option<&Tensor>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<AttentionSizes> {
    let &[_, kv_heads, _] = k.shape() else {
        return refuse(op, "k", k, "[T, G, D]");
    };
    let sizes = queries(op, out, lse, q, ("k", k), kv_heads)?;
    shape(op, "k", k, &[sizes.rows, kv_heads, sizes.head_dim])?;
    same_kind(op, "v", v, k)?;
    Ok(sizes)
}

fn same_kind(op: &'static str, name: &str, tensor: &Tensor, like: &Tensor) -> Result<()> {
    if tensor.dtype() == like.dtype() && tensor.shape() == like.shape() {
        return Ok(());
    }
    refuse(op, name, tensor, format_args!("{like:?}"))
}

/// Sizes of a page pool `[N, G, P, D]`.
#[derive(Debug, Clone, Copy)]
pub struct PoolSizes {
    /// N.
    pub pages: usize,
    /// G.
    pub kv_heads: usize,
    /// P.
    pub page_len: usize,
    /// D.
    pub head_dim: usize,
}

fn pools(op: &'static str, k_pool: &Tensor, v_pool: &Tensor) -> Result<PoolSizes> {
    let &[pages, kv_heads, page_len, head_dim] = k_pool.shape() else {
        return refuse(op, "k_pool", k_pool, "[N, G, P, D]");
    };
    float(op, "k_pool", k_pool)?;
    same_kind(op, "v_pool", v_pool, k_pool)?;
    if page_len == 0 {
        return refuse(op, "k_pool", k_pool, "pages of at least one position");
    }
    Ok(PoolSizes { pages, kv_heads, page_len, head_dim })
}

/// Sizes of the cache written to.
pub fn kv_append(
    k_pool: &Tensor,
    v_pool: &Tensor,
    k: &Tensor,
    v: &Tensor,
    slots: &Tensor,
) -> Result<PoolSizes> {
    const OP: &str = "kv_append";
    let pool = pools(OP, k_pool, v_pool)?;
    integer(OP, "slots", slots)?;
    float(OP, "k", k)?;
    matrix(OP, "k", k, slots.len(), pool.kv_heads * pool.head_dim)?;
    same_kind(OP, "v", v, k)?;
    Ok(pool)
}

/// Sizes of attention over a paged cache.
pub fn paged_attention(
    out: &Tensor,
    lse: Option<&Tensor>,
    q: &Tensor,
    k_pool: &Tensor,
    v_pool: &Tensor,
    pages: &Pages<'_>,
) -> Result<(AttentionSizes, PoolSizes)> {
    const OP: &str = "paged_attention";
    let pool = pools(OP, k_pool, v_pool)?;
    let sizes = queries(OP, out, lse, q, ("k_pool", k_pool), pool.kv_heads)?;
    if sizes.head_dim != pool.head_dim {
        return refuse(OP, "k_pool", k_pool, format_args!("head dim {}", sizes.head_dim));
    }
    let sequences = pages.lengths.len();
    for (name, tensor) in
        [("query_starts", pages.query_starts), ("lengths", pages.lengths), ("tables", pages.tables)]
    {
        integer(OP, name, tensor)?;
    }
    matrix(OP, "query_starts", pages.query_starts, sequences + 1, 1)?;
    matrix(OP, "tables", pages.tables, sequences, pages.tables.row_len())?;
    if let Some(Groups { starts, shared }) = pages.groups {
        integer(OP, "groups", starts)?;
        integer(OP, "shared", shared)?;
        shape(OP, "shared", shared, &[sequences])?;
    }
    Ok((sizes, pool))
}

/// Sizes of the head: T, C and V.
pub fn logprobs(
    out: &LogProbs,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    temperature: f32,
) -> Result<LinearSizes> {
    const OP: &str = "logprobs";
    let sizes = head(OP, hidden, weight)?;
    let rows = sizes.rows;
    integer(OP, "targets", targets)?;
    for (name, tensor) in [("logp", &out.logp), ("lse", &out.lse), ("entropy", &out.entropy)] {
        float(OP, name, tensor)?;
        shape(OP, name, tensor, &[rows])?;
    }
    integer(OP, "greedy", &out.greedy)?;
    for (name, tensor) in [("targets", targets), ("greedy", &out.greedy)] {
        shape(OP, name, tensor, &[rows])?;
    }
    self::temperature(OP, temperature)?;
    Ok(sizes)
}

fn temperature(op: &'static str, temperature: f32) -> Result<()> {
    if temperature.is_finite() && temperature > 0.0 {
        return Ok(());
    }
    Err(Error::caller(op, format!("temperature is {temperature}, expected a positive number")))
}

/// A row goes out for each row of hidden and each draw.
pub fn sample(out: &Drawn, hidden: &Tensor, weight: &Tensor, draws: &[Draw<'_>]) -> Result<LinearSizes> {
    const OP: &str = "sample";
    let sizes = drawn(OP, out, hidden, weight)?;
    if draws.len() != sizes.rows {
        return refuse(OP, "hidden", hidden, format_args!("a row for each of {} draws", draws.len()));
    }
    draws.iter().try_for_each(Draw::check)?;
    Ok(sizes)
}

/// What is drawn from `[B, C]` and `[V, C]`.
pub fn drawn(op: &'static str, out: &Drawn, hidden: &Tensor, weight: &Tensor) -> Result<LinearSizes> {
    let sizes = head(op, hidden, weight)?;
    integer(op, "token", &out.token)?;
    float(op, "logp", &out.logp)?;
    for (name, tensor) in [("token", &out.token), ("logp", &out.logp)] {
        shape(op, name, tensor, &[sizes.rows])?;
    }
    if let Some(entropy) = &out.entropy {
        float(op, "entropy", entropy)?;
        shape(op, "entropy", entropy, &[sizes.rows])?;
    }
    Ok(sizes)
}

fn head(op: &'static str, hidden: &Tensor, weight: &Tensor) -> Result<LinearSizes> {
    let (rows, inner) = (hidden.rows(), hidden.row_len());
    let columns = weight.shape().first().copied().unwrap_or(0);
    float(op, "hidden", hidden)?;
    float(op, "weight", weight)?;
    shape(op, "weight", weight, &[columns, inner])?;
    if columns == 0 {
        return refuse(op, "weight", weight, "a vocabulary of at least one token");
    }
    Ok(LinearSizes { rows, inner, columns })
}
