//! The same attention by another way: what one call computes, asked for as other sequences over pages.

use super::arguments::{Argument, Axis, Kind, lent};
use super::call::{Call, Op};
use super::random;
use pellucid::{
    error::{Error, Result},
    model::PAGE,
    tensor::Tensor,
};
use std::ops::Range;

/// Where one run of packed rows finds its keys.
struct Seen<'a> {
    table: &'a [i32],
    length: usize,
}

impl Call {
    /// The sequences of an attention, as ranges of packed rows.
    pub(crate) fn sequences(&self) -> Result<Vec<Range<usize>>> {
        let name = if self.op == Op::PagedAttention { "query_starts" } else { "starts" };
        let starts = self.input(name)?.as_slice::<i32>()?;
        Ok(starts.windows(2).map(|pair| pair[0] as usize..pair[1] as usize).collect())
    }

    /// One sequence of an attention, alone.
    pub(crate) fn alone(&self, sequence: &Range<usize>) -> Result<Call> {
        let mut call = self.narrowed(&sequence.clone().collect::<Vec<_>>(), None)?;
        let starts = Tensor::from_slice(&[2], &[0, sequence.len() as i32])?;
        call.inputs.retain(|input| input.name != "starts");
        call.inputs.push(Argument { name: "starts", tensor: starts, kind: Kind::Held, axis: Axis::Other });
        Ok(call)
    }

    /// Runs of packed rows, each a sequence of its own over the pages that hold the keys its last row sees; in
    /// attention that is not causal a run is one row.
    pub(crate) fn over_pages(&self, runs: &[Range<usize>]) -> Result<Call> {
        match self.op {
            Op::Attention { causal } => self.paged()?.runs(runs, causal),
            Op::PagedAttention => self.runs(runs, true),
            other => Err(Error::internal("kernels", format!("{other:?} has no pages"))),
        }
    }

    /// Keys and values moved into scrambled pages.
    fn paged(&self) -> Result<Call> {
        let sequences = self.sequences()?;
        let pages: usize = sequences.iter().map(|rows| rows.len().div_ceil(PAGE)).sum();
        let width = sequences.iter().map(|rows| rows.len().div_ceil(PAGE)).max().unwrap_or(0);
        let mut numbers = random::permutation(0, pages).into_iter();
        let mut tables = Vec::with_capacity(sequences.len() * width);
        for rows in &sequences {
            let mut table: Vec<i32> = numbers.by_ref().take(rows.len().div_ceil(PAGE)).collect();
            table.resize(width, 0);
            tables.extend(table);
        }
        let pool = |name: &'static str, from: &Tensor| -> Result<Argument> {
            let &[_, g, d] = from.shape() else {
                return Err(Error::internal("kernels", format!("{name} is {from:?}")));
            };
            let mut pool = Tensor::zeros(from.dtype(), &[pages, g, PAGE, d])?;
            let size = d * from.dtype().size();
            let to = pool.bytes_mut()?;
            for (sequence, rows) in sequences.iter().enumerate() {
                for (position, row) in rows.clone().enumerate() {
                    let page = tables[sequence * width + position / PAGE] as usize;
                    for head in 0..g {
                        let slot = ((page * g + head) * PAGE + position % PAGE) * size;
                        to[slot..slot + size]
                            .copy_from_slice(&from.bytes()[(row * g + head) * size..][..size]);
                    }
                }
            }
            Ok(Argument { name, tensor: lent(pool)?, kind: Kind::Held, axis: Axis::Other })
        };
        let lengths: Vec<i32> = sequences.iter().map(|rows| rows.len() as i32).collect();
        let mut inputs: Vec<Argument> =
            self.inputs.iter().filter(|input| input.name == "q").cloned().collect();
        inputs.extend([
            pool("k_pool", self.input("k")?)?,
            pool("v_pool", self.input("v")?)?,
            held("query_starts", self.input("starts")?.clone()),
            held("lengths", Tensor::from_slice(&[lengths.len()], &lengths)?),
            held("tables", Tensor::from_slice(&[lengths.len(), width], &tables)?),
        ]);
        Ok(Call {
            op: Op::PagedAttention,
            outputs: self.outputs.clone(),
            inputs,
            rope: None,
            draws: Vec::new(),
        })
    }

    /// See [`Call::over_pages`].
    fn runs(&self, runs: &[Range<usize>], causal: bool) -> Result<Call> {
        let (lengths, tables) = (self.input("lengths")?.as_slice::<i32>()?, self.input("tables")?);
        let width = tables.row_len();
        let tables = tables.as_slice::<i32>()?;
        let sequences = self.sequences()?;
        let seen = |run: &Range<usize>| {
            let at = sequences.iter().position(|rows| rows.start <= run.start && run.end <= rows.end);
            let at = at.filter(|_| causal || run.len() == 1);
            let at = at.ok_or_else(|| Error::internal("kernels", format!("rows {run:?} are no run")))?;
            let unseen = if causal { sequences[at].end - run.end } else { 0 };
            let length = lengths[at] as usize - unseen;
            Ok(Seen { table: &tables[at * width..][..width], length })
        };
        let seen: Vec<Seen<'_>> = runs.iter().map(seen).collect::<Result<_>>()?;
        let rows: Vec<usize> = runs.iter().flat_map(Clone::clone).collect();
        let mut call = self.narrowed(&rows, None)?;
        let mut starts = vec![0];
        starts.extend(runs.iter().scan(0, |end, run| {
            *end += run.len() as i32;
            Some(*end)
        }));
        let lengths: Vec<i32> = seen.iter().map(|seen| seen.length as i32).collect();
        let tables: Vec<i32> = seen.iter().flat_map(|seen| seen.table).copied().collect();
        call.inputs.retain(|input| ["q", "k_pool", "v_pool"].contains(&input.name));
        call.inputs.extend([
            held("query_starts", Tensor::from_slice(&[starts.len()], &starts)?),
            held("lengths", Tensor::from_slice(&[runs.len()], &lengths)?),
            held("tables", Tensor::from_slice(&[runs.len(), width], &tables)?),
        ]);
        Ok(call)
    }
}

fn held(name: &'static str, tensor: Tensor) -> Argument {
    Argument { name, tensor, kind: Kind::Held, axis: Axis::Other }
}
