//! What the contents of a paged batch's index tensors say, for backends in host memory.

use super::{AttentionSizes, PoolSizes, starts};
use crate::{
    backend::Pages,
    error::{Error, Result},
};
use std::ops::Range;

/// For backends in host memory: what the pages' contents say, after checking that every page they name
/// exists and every sequence holds its own queries.
pub fn paged_sequences<'a>(
    pages: &Pages<'a>,
    sizes: AttentionSizes,
    pool: PoolSizes,
) -> Result<Vec<PagedSequence<'a>>> {
    const OP: &str = "paged_attention";
    let starts = starts(OP, "query_starts", pages.query_starts, sizes.rows)?;
    let lengths = pages.lengths.as_slice::<i32>()?;
    let tables = pages.tables.as_slice::<i32>()?;
    let width = pages.tables.row_len();
    let mut sequences = Vec::with_capacity(lengths.len());
    for (sequence, (&length, bounds)) in lengths.iter().zip(starts.windows(2)).enumerate() {
        let queries = bounds[0] as usize..bounds[1] as usize;
        let capacity = width.saturating_mul(pool.page_len);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length < queries.len() || length > capacity {
            return Err(Error::caller(
                OP,
                format!(
                    "lengths[{sequence}] is {}, expected at least its {} queries and at most the table's {capacity}",
                    lengths[sequence],
                    queries.len(),
                ),
            ));
        }
        let table = &tables[sequence * width..][..length.div_ceil(pool.page_len)];
        if let Some(&page) = table.iter().find(|&&page| page < 0 || page as usize >= pool.pages) {
            return Err(Error::caller(
                OP,
                format!("tables[{sequence}] names page {page}, expected 0 <= page < {}", pool.pages),
            ));
        }
        sequences.push(PagedSequence { queries, length, table });
    }
    Ok(sequences)
}

/// One sequence of a paged batch.
#[derive(Debug, Clone)]
pub struct PagedSequence<'a> {
    /// Its packed rows.
    pub queries: Range<usize>,
    /// Its keys in the cache.
    pub length: usize,
    /// Its pages, just as many as the keys need.
    pub table: &'a [i32],
}

/// Neighbours of a paged batch.
#[derive(Debug, Clone)]
pub struct PagedGroup {
    /// Which sequences.
    pub sequences: Range<usize>,
    /// Their leading keys that lie in the same pages.
    pub shared: usize,
}

/// For backends in host memory: the groups, after checking that what they share is the same. Without groups every
/// sequence is one.
pub fn paged_groups(
    pages: &Pages<'_>,
    sequences: &[PagedSequence<'_>],
    pool: PoolSizes,
) -> Result<Vec<PagedGroup>> {
    const OP: &str = "paged_attention";
    let Some(groups) = pages.groups else {
        let alone = |at| PagedGroup { sequences: at..at + 1, shared: 0 };
        return Ok((0..sequences.len()).map(alone).collect());
    };
    let shared = groups.shared.as_slice::<i32>()?;
    let bounds = starts(OP, "groups", groups.starts, sequences.len())?;
    let group = |bounds: &[i32]| {
        let members = bounds[0] as usize..bounds[1] as usize;
        let Some(first) = sequences.get(members.clone()).and_then(<[_]>::first) else {
            return Ok(PagedGroup { sequences: members, shared: 0 });
        };
        let keys = shared[members.start];
        let pages = usize::try_from(keys).ok().filter(|keys| keys.is_multiple_of(pool.page_len));
        let pages = pages.map(|keys| keys / pool.page_len);
        for at in members.clone() {
            let PagedSequence { queries, length, table } = &sequences[at];
            let same = |pages: usize| {
                pages * pool.page_len <= length - queries.len() && table[..pages] == first.table[..pages]
            };
            if shared[at] != keys || !pages.is_some_and(same) {
                let what = format!(
                    "shared[{at}] is {}, expected whole pages before its queries that begin all of sequences \
                     {members:?}",
                    shared[at]
                );
                return Err(Error::caller(OP, what));
            }
        }
        Ok(PagedGroup { sequences: members, shared: keys as usize })
    };
    bounds.windows(2).map(group).collect()
}
