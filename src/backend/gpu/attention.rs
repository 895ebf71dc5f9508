//! Attention on a device: `kernels/attention.cu` for many queries, `kernels/attention_split.cu` for few, and before it
//! `kernels/attention_group.cu` for what groups of sequences have in common.
//!
//! All ways give the same bits, so the choice between them is one of speed alone. Where sequences begin and how long they
//! are is on the device; the host knows how many rows, sequences and pages there are, and plans by these.

use super::device::{Gpu, TICKETS, expect_dtype, int};
use super::{
    Address,
    Argument::{self, Address as At, I32, Struct},
    Launch, Runtime,
};
use crate::{
    backend::{
        Groups, Pages, SPLIT, Segments,
        check::{self, AttentionSizes},
    },
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use bytemuck::Zeroable;

/// Keys of a page and of a kernel's tile.
pub(super) const TILE: usize = 64;
/// Queries times query heads of a key/value head that a block of each kernel takes at a time.
const MANY_LINES: usize = 64;
const FEW_LINES: usize = 16;
pub(super) const THREADS: usize = 128;
/// With fewer blocks, multiprocessors of a large device stand idle.
const BUSY: usize = 128;
/// The most blocks a grid has along y.
const MOST_Y: usize = 65_535;
/// Of a line's 16-column steps of queries, those `attention_128` keeps in shared memory.
const PARKED: usize = 6;

/// `struct Problem` of `kernels/common/attention.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Problem {
    q: Address,
    k: Address,
    v: Address,
    starts: Address,
    lengths: Address,
    tables: Address,
    shared: Address,
    parents: Address,
    width: i32,
    sequences: i32,
    kv_heads: i32,
    group: i32,
    head_dim: i32,
    causal: i32,
    /// Times log2(e).
    scale: f32,
    padding: i32,
}

impl Problem {
    /// With what all of them have, after checking it.
    pub(super) fn filled<R: Runtime>(
        self,
        gpu: &Gpu<R>,
        op: &'static str,
        [q, k, v]: [&Tensor; 3],
        sizes: AttentionSizes,
        sequences: usize,
        scale: f32,
    ) -> Result<Self> {
        let AttentionSizes { rows, heads, kv_heads, head_dim } = sizes;
        for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
            expect_dtype(op, name, tensor, Dtype::BF16)?;
        }
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(Error::caller(op, format!("scale is {scale}; on a device it has to be above 0")));
        }
        if rows > 0 && sequences == 0 {
            return Err(Error::caller(op, format!("{rows} rows of no sequence")));
        }
        int(op, "rows times heads", rows * heads)?;
        Ok(Problem {
            q: gpu.at(q)?,
            k: gpu.at(k)?,
            v: gpu.at(v)?,
            sequences: int(op, "sequences", sequences)?,
            kv_heads: int(op, "key/value heads", kv_heads)?,
            group: int(op, "heads of a group", heads / kv_heads)?,
            head_dim: int(op, "head dim", head_dim)?,
            scale: scale * std::f32::consts::LOG2_E,
            ..self
        })
    }
}

/// What is launched; a function of sizes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Blocks share the tiles of 16 lines among their warps, and z > 1 shares out splits.
    few: bool,
    /// Columns the kernel is written for, at least D.
    width: usize,
    grid: [usize; 3],
}

impl Plan {
    /// `keys` is what a sequence has at most, where that is known.
    fn new(op: &'static str, sizes: AttentionSizes, sequences: usize, keys: Option<usize>) -> Result<Self> {
        let AttentionSizes { rows, heads, kv_heads, head_dim } = sizes;
        let width = width_for(op, head_dim)?;
        let lines = rows * (heads / kv_heads);
        // A sequence has at most one tile of lines that is not full.
        let many = [lines / MANY_LINES + sequences, kv_heads, 1];
        let idle = many[0] * kv_heads < BUSY;
        let tiles = lines.div_ceil(FEW_LINES * sequences); // of a sequence on average
        let few = width > 128 || (keys.is_some() && (tiles == 1 || idle));
        if !few {
            return Ok(Plan { few, width, grid: many });
        }
        let shares = kv_heads * tiles.min((MOST_Y / kv_heads).max(1));
        let splits = keys.map_or(1, |keys| keys.div_ceil(SPLIT).max(1));
        // Parts cost memory; where there are blocks for several rounds, one for each ticket, they buy nothing.
        let splits = if sequences * shares <= TICKETS { splits } else { 1 };
        Ok(Plan { few, width, grid: [sequences, shares, splits] })
    }

    fn kernel(&self) -> String {
        format!("attention{}_{}", if self.few { "_split" } else { "" }, self.width)
    }

    /// Bytes of shared memory: two stages of keys and values, and what else the kernel keeps there.
    fn shared(&self) -> usize {
        let scores = FEW_LINES * (TILE + 8) * size_of::<f32>();
        let parked = if self.width == 128 { PARKED * 16 * THREADS } else { 0 };
        self.ring() + if self.few { scores } else { parked }
    }

    fn ring(&self) -> usize {
        2 * 2 * TILE * (2 * self.width + 16)
    }

    /// The grid that goes through shared keys before; none where splits leave no parts to go on from, and for heads too
    /// wide for many lines.
    fn of_groups(&self, sizes: AttentionSizes, groups: usize) -> Option<[usize; 3]> {
        let AttentionSizes { rows, heads, kv_heads, .. } = sizes;
        if !self.few || self.grid[2] == 1 || self.width > 128 || groups == 0 {
            return None;
        }
        let tiles = (rows * (heads / kv_heads)).div_ceil(MANY_LINES * groups); // of a group on average
        Some([groups, kv_heads * tiles.min((MOST_Y / kv_heads).max(1)), self.grid[2]])
    }
}

/// The columns of the kernel that takes such heads.
pub(super) fn width_for(op: &'static str, head_dim: usize) -> Result<usize> {
    let width = [32, 64, 80, 128, 256].into_iter().find(|width| (1..=*width).contains(&head_dim));
    width.filter(|_| head_dim <= 32 || head_dim.is_multiple_of(8)).ok_or_else(|| {
        let known = "1 to 32, or a multiple of 8 up to 256";
        Error::caller(op, format!("heads of {head_dim} elements; kernels are written for {known}"))
    })
}

/// See [`crate::backend::Backend::attention`].
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub(super) fn attention<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments<'_>,
    causal: bool,
    scale: f32,
) -> Result<()> {
    const OP: &str = "attention";
    let sizes = check::attention(OP, out, lse.as_deref(), q, k, v)?;
    let (sequences, problem) = packed(gpu, OP, segments, causal)?;
    run(gpu, OP, out, lse, [q, k, v], sizes, sequences, None, None, scale, problem)
}

/// How many sequences there are, and how a problem says where they lie.
pub(super) fn packed<R: Runtime>(
    gpu: &Gpu<R>,
    op: &'static str,
    segments: &Segments<'_>,
    causal: bool,
) -> Result<(usize, Problem)> {
    let sequences = segments.starts.len().saturating_sub(1);
    expect_dtype(op, "starts", segments.starts, Dtype::I32)?;
    if let Some(parents) = segments.parents {
        expect_dtype(op, "parents", parents, Dtype::I32)?;
        if parents.len() != sequences {
            let what = format!("parents is {parents:?}, expected one for each of {sequences} sequences");
            return Err(Error::caller(op, what));
        }
        if !causal {
            let what = "sequences with parents attend causally, expected causal = true";
            return Err(Error::caller(op, what));
        }
    }
    let (starts, parents) = (gpu.at(segments.starts)?, gpu.at_or_null(segments.parents)?);
    Ok((sequences, Problem { starts, parents, causal: causal.into(), ..Problem::zeroed() }))
}

/// See [`crate::backend::Backend::paged_attention`].
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub(super) fn paged_attention<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    k_pool: &Tensor,
    v_pool: &Tensor,
    pages: &Pages<'_>,
    scale: f32,
) -> Result<()> {
    const OP: &str = "paged_attention";
    let (sizes, pool) = check::paged_attention(out, lse.as_deref(), q, k_pool, v_pool, pages)?;
    if pool.page_len != TILE {
        let what = format!("pages of {} positions; on a device pages have {TILE}", pool.page_len);
        return Err(Error::caller(OP, what));
    }
    let width = pages.tables.row_len();
    if width == 0 && sizes.rows > 0 {
        return Err(Error::caller(OP, format!("tables of no pages for {} queries", sizes.rows)));
    }
    int(OP, "page numbers", pages.tables.len())?;
    let problem = Problem {
        starts: gpu.at(pages.query_starts)?,
        lengths: gpu.at(pages.lengths)?,
        tables: gpu.at(pages.tables)?,
        width: int(OP, "pages of a sequence", width)?,
        causal: 1,
        ..Problem::zeroed()
    };
    let keys = Some(width * TILE);
    let sequences = pages.lengths.len();
    run(gpu, OP, out, lse, [q, k_pool, v_pool], sizes, sequences, keys, pages.groups, scale, problem)
}

/// Fills in the rest of a problem and launches what solves it.
#[expect(clippy::too_many_arguments, reason = "both ops end here")]
fn run<R: Runtime>(
    gpu: &Gpu<R>,
    op: &'static str,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    [q, k, v]: [&Tensor; 3],
    sizes: AttentionSizes,
    sequences: usize,
    keys: Option<usize>,
    groups: Option<Groups<'_>>,
    scale: f32,
    problem: Problem,
) -> Result<()> {
    let AttentionSizes { rows, heads, .. } = sizes;
    expect_dtype(op, "out", out, Dtype::BF16)?;
    if let Some(lse) = &lse {
        expect_dtype(op, "lse", lse, Dtype::F32)?;
    }
    let problem = problem.filled(gpu, op, [q, k, v], sizes, sequences, scale)?;
    if rows == 0 || heads == 0 {
        return Ok(());
    }
    let plan = Plan::new(op, sizes, sequences, keys)?;
    let launch = |kernel: String, grid: [usize; 3], shared: usize, arguments: &[Argument]| {
        let (grid, block) = (grid.map(|side| side as u32), [THREADS as u32, 1, 1]);
        gpu.launch(&Launch { kernel: &kernel, grid, block, shared: shared as u32, arguments })
    };
    let of = |problem: &Problem| Struct(bytemuck::bytes_of(problem).to_vec());
    let (out, lse) = (At(gpu.target(out)?), At(lse.map_or(Ok(Address(0)), |lse| gpu.target(lse))?));
    if !plan.few {
        return launch(plan.kernel(), plan.grid, plan.shared(), &[out, lse, of(&problem)]);
    }
    let splits = plan.grid[2];
    let shape = [splits, rows, heads, plan.width + 8];
    let parts = if splits > 1 { Some(gpu.temporary(Dtype::F32, &shape)?) } else { None };
    let (parts, tickets) = (At(gpu.at_or_null(parts.as_ref())?), At(gpu.tickets()?));
    let groups = groups.map(|groups| (groups, plan.of_groups(sizes, groups.starts.len().saturating_sub(1))));
    let problem = match groups {
        Some((Groups { starts, shared }, Some(grid))) => {
            let problem = Problem { shared: gpu.at(shared)?, ..problem };
            let arguments = [parts.clone(), At(gpu.at(starts)?), I32(rows as i32), of(&problem)];
            launch(format!("attention_group_{}", plan.width), grid, plan.ring(), &arguments)?;
            problem
        }
        _ => problem,
    };
    let arguments = [out, lse, parts, tickets, I32(rows as i32), of(&problem)];
    launch(plan.kernel(), plan.grid, plan.shared(), &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rows: usize, heads: usize, kv_heads: usize, sequences: usize, keys: Option<usize>) -> Plan {
        let sizes = AttentionSizes { rows, heads, kv_heads, head_dim: 128 };
        Plan::new("attention", sizes, sequences, keys).expect("these sizes have a kernel")
    }

    #[test]
    fn few_lines_share_a_block_and_their_keys_are_split() {
        let many = |grid| Plan { few: false, width: 128, grid };
        let few = |grid| Plan { few: true, width: 128, grid };
        assert_eq!(plan(4096, 16, 2, 1, None), many([513, 2, 1]));
        assert_eq!(plan(4096, 16, 2, 1, Some(4096)), many([513, 2, 1]));
        assert_eq!(plan(64, 16, 2, 64, Some(1024)), few([64, 2, 4]));
        assert_eq!(plan(1, 16, 2, 1, Some(1025)), few([1, 2, 5]));
        assert_eq!(plan(64, 16, 2, 64, Some(256)), few([64, 2, 1]), "one split needs no merging");
        assert_eq!(plan(512, 16, 2, 512, Some(4096)), few([512, 2, 16]));
        assert_eq!(plan(513, 16, 2, 513, Some(4096)), few([513, 2, 1]), "enough blocks as it is");
        assert_eq!(plan(129, 16, 2, 64, Some(1024)), many([80, 2, 1]));
        assert_eq!(plan(20, 16, 2, 1, Some(1024)), few([1, 20, 4]), "a short suffix keeps a device busy");
        assert_eq!(plan(20, 16, 2, 1, None), many([3, 2, 1]), "nobody knows how many keys there are");
    }

    #[test]
    fn groups_are_gone_through_where_parts_are_left() {
        let sizes = |rows, heads, kv_heads, head_dim| AttentionSizes { rows, heads, kv_heads, head_dim };
        let of = |sizes: AttentionSizes, keys, groups| {
            let plan = Plan::new("paged_attention", sizes, sizes.rows, Some(keys));
            plan.expect("these sizes have a kernel").of_groups(sizes, groups)
        };
        assert_eq!(
            of(sizes(128, 16, 2, 128), 800, 16),
            Some([16, 2, 4]),
            "8 members of 8 heads are a block's lines"
        );
        assert_eq!(of(sizes(128, 16, 2, 128), 800, 8), Some([8, 4, 4]), "16 of them are two blocks'");
        assert_eq!(of(sizes(8, 16, 2, 128), 256, 1), None, "one split leaves nothing");
        assert_eq!(of(sizes(8, 16, 2, 256), 800, 1), None, "wide heads take few lines");
        assert_eq!(of(sizes(1000, 16, 2, 128), 800, 1), None, "enough blocks as it is");
        assert_eq!(of(sizes(8, 16, 2, 128), 800, 0), None);
    }

    #[test]
    fn wide_heads_share_lines_within_the_bounds_of_a_grid() {
        let sizes = AttentionSizes { rows: 1 << 20, heads: 8, kv_heads: 2, head_dim: 256 };
        let plan = Plan::new("attention", sizes, 1, None).expect("this size has a kernel");
        assert_eq!(plan, Plan { few: true, width: 256, grid: [1, 65_534, 1] });
    }

    #[test]
    fn a_head_takes_the_next_wider_kernel_or_is_refused() {
        let of = |head_dim| {
            let sizes = AttentionSizes { rows: 40, heads: 4, kv_heads: 2, head_dim };
            Plan::new("attention", sizes, 2, None).map(|plan| (plan.kernel(), plan.shared() <= 232_448))
        };
        for (head_dim, kernel) in [
            (1, "attention_32"),
            (20, "attention_32"),
            (40, "attention_64"),
            (72, "attention_80"),
            (80, "attention_80"),
            (96, "attention_128"),
            (136, "attention_split_256"),
            (256, "attention_split_256"),
        ] {
            assert_eq!(of(head_dim).ok(), Some((kernel.to_owned(), true)));
        }
        for head_dim in [0, 33, 100, 264] {
            let refusal = of(head_dim).map_err(|e| e.to_string()).unwrap_err();
            assert!(refusal.contains(&format!("heads of {head_dim} elements")), "{refusal}");
        }
    }
}
