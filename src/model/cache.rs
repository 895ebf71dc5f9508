//! Keys and values of past tokens, in pages.
//!
//! A pool per block, `[N, G, P, D]`, so that one page of one head is contiguous. Who owns which page is
//! decided elsewhere; this only holds the memory and turns positions into slots.

use crate::backend::{Backend, SPLIT};
use crate::error::{Error, Result};
use crate::format::config::DecoderConfig;
use crate::tensor::{Dtype, Tensor};

/// `P`, positions per page. Splits of the attention begin on page boundaries.
pub const PAGE: usize = 64;
const _: () = assert!(SPLIT.is_multiple_of(PAGE));

/// Pages holding `positions` positions.
pub const fn pages_for(positions: usize) -> usize {
    positions.div_ceil(PAGE)
}

/// The key and value pools of all blocks.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) keys: Vec<Tensor>,   // L x [N, G, P, D]
    pub(crate) values: Vec<Tensor>, // L x [N, G, P, D]
    pages: usize,
    scratch: Option<u32>,
}

impl KvCache {
    /// Room for `pages` pages of a decoder's keys and values.
    pub fn new(backend: &dyn Backend, config: &DecoderConfig, dtype: Dtype, pages: usize) -> Result<Self> {
        // Recorded passes are filled up with rows that have to be written somewhere.
        let scratch = backend.recorder().map(|_| pages as u32);
        let held = pages + usize::from(scratch.is_some());
        let shape = [held, config.kv_heads, PAGE, config.head_dim];
        let needed = bytes_per_position(config, dtype) as u64 * (held * PAGE) as u64;
        if let Some(free) = backend.free_memory()?.filter(|&free| free < needed) {
            let what = format!(
                "{pages} pages of keys and values take {needed} bytes and {free} are free; use fewer pages or tokens"
            );
            return Err(Error::machine("kv cache", what));
        }
        let pools = || (0..config.layers).map(|_| backend.alloc(dtype, &shape)).collect::<Result<Vec<_>>>();
        Ok(KvCache { keys: pools()?, values: pools()?, pages, scratch })
    }

    /// Copies what one page holds to another, in all blocks.
    pub fn copy_page(&mut self, backend: &dyn Backend, from: u32, to: u32) -> Result<()> {
        let index = |page: u32| backend.upload(Tensor::from_slice(&[1], &[page as i32])?);
        let (from, to) = (index(from)?, index(to)?);
        for pool in self.keys.iter_mut().chain(&mut self.values) {
            let mut page = backend.alloc(pool.dtype(), &[1, pool.row_len()])?; // [1, G·P·D]
            backend.gather_rows(&mut page, pool, &from)?;
            backend.scatter_rows(pool, &page, &to)?;
        }
        Ok(())
    }

    /// A page beside the others that nobody reads, where the backend records passes.
    pub(crate) fn scratch(&self) -> Option<u32> {
        self.scratch
    }

    /// `N`, how many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }
}

/// Bytes of keys and values per token position.
pub fn bytes_per_position(config: &DecoderConfig, dtype: Dtype) -> usize {
    2 * config.layers * config.kv_heads * config.head_dim * dtype.size()
}

/// The slot of `position` in a sequence whose pages are `table`.
pub(crate) fn slot(table: &[u32], position: usize) -> Result<i32> {
    let page = table.get(position / PAGE).ok_or_else(|| {
        Error::internal("kv cache", format!("position {position} lies beyond {} pages", table.len()))
    })?;
    i32::try_from(*page as usize * PAGE + position % PAGE).map_err(|_| {
        Error::machine("kv cache", format!("page {page} has no 32-bit slot number; use fewer pages"))
    })
}
