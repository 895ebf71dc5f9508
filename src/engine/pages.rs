//! Which pages of a cache are free.

use crate::error::{Error, Result};
use crate::model::pages_for;

/// The free pages of one cache.
#[derive(Debug)]
pub(super) struct PagePool {
    free: Vec<u32>,
}

impl PagePool {
    pub(super) fn new(pages: usize) -> Self {
        PagePool { free: (0..pages as u32).rev().collect() }
    }

    /// Pages for `positions` positions.
    pub(super) fn take(&mut self, positions: usize) -> Result<Vec<u32>> {
        let needed = pages_for(positions);
        match self.free.len().checked_sub(needed) {
            Some(left) => Ok(self.free.split_off(left)),
            None => {
                Err(Error::internal("pages", format!("{needed} pages asked for, {} free", self.free.len())))
            }
        }
    }

    pub(super) fn give_back(&mut self, pages: Vec<u32>) {
        self.free.extend(pages);
    }
}
