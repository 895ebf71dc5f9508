//! What the rows of packed sequences see, after checking that the boundaries and parents make sense.

use super::{integer, refuse, starts};
use crate::{
    backend::Segments,
    error::{Error, Result},
};
use std::ops::Range;

/// One packed sequence.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Its parent's packed rows, which come first among its keys; none without a parent.
    pub prefix: Range<usize>,
    /// Its own packed rows.
    pub rows: Range<usize>,
    /// Whether a row sees only itself and what comes before it.
    pub causal: bool,
}

impl Segment {
    /// The packed row that holds the key at a position.
    pub fn key(&self, position: usize) -> usize {
        match position.checked_sub(self.prefix.len()) {
            Some(own) => self.rows.start + own,
            None => self.prefix.start + position,
        }
    }

    /// Keys it has.
    pub fn length(&self) -> usize {
        self.prefix.len() + self.rows.len()
    }

    /// Keys that one of its packed rows sees, as a number of leading positions.
    pub fn visible(&self, row: usize) -> usize {
        if self.causal { self.prefix.len() + row + 1 - self.rows.start } else { self.length() }
    }
}

/// For backends in host memory: the sequences that `rows` packed rows fall into.
pub fn segments(
    op: &'static str,
    segments: &Segments<'_>,
    rows: usize,
    causal: bool,
) -> Result<Vec<Segment>> {
    let bounds = starts(op, "starts", segments.starts, rows)?;
    let own = |sequence: usize| bounds[sequence] as usize..bounds[sequence + 1] as usize;
    let count = bounds.len() - 1;
    let alone = |rows| Segment { prefix: 0..0, rows, causal };
    let Some(parents) = segments.parents else {
        return Ok((0..count).map(|sequence| alone(own(sequence))).collect());
    };
    integer(op, "parents", parents)?;
    if parents.len() != count {
        return refuse(op, "parents", parents, format_args!("one for each of {count} sequences"));
    }
    if !causal {
        return Err(Error::caller(op, "sequences with parents attend causally, expected causal = true"));
    }
    let parents = parents.as_slice::<i32>()?;
    parents
        .iter()
        .enumerate()
        .map(|(sequence, &parent)| match usize::try_from(parent) {
            Ok(parent) if parent == sequence => Ok(alone(own(sequence))),
            Ok(parent) if parent < sequence && parents[parent] as usize == parent => {
                Ok(Segment { prefix: own(parent), ..alone(own(sequence)) })
            }
            _ => Err(Error::caller(
                op,
                format!(
                    "parents[{sequence}] is {parent}, expected {sequence} itself or an earlier sequence without a parent"
                ),
            )),
        })
        .collect()
}
