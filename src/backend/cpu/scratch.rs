//! Memory for intermediate values, kept by each thread from one use to the next: fresh pages would cost as much as
//! the work that is done in them.

use bytemuck::{Pod, Zeroable};
use std::{
    cell::RefCell,
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Pieces a thread keeps at most; an op holds fewer at a time.
const KEPT: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A slice of plain values, aligned to a cache line, whose contents are unspecified at first.
pub(super) struct Scratch<T: Pod> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Scratch<T> {
    pub(super) fn new(len: usize) -> Self {
        let needed = (len * size_of::<T>()).div_ceil(64);
        // The smallest that is large enough, else the largest there is: taken by chance, all would grow to the size of one.
        let mut lines = SPARE.with_borrow_mut(|spare| {
            let sizes = || spare.iter().map(Vec::len).enumerate();
            let fitting = sizes().filter(|(_, size)| *size >= needed).min_by_key(|(_, size)| *size);
            let best = fitting.or_else(|| sizes().max_by_key(|(_, size)| *size));
            best.map(|(at, _)| spare.swap_remove(at)).unwrap_or_default()
        });
        if lines.len() < needed {
            lines.resize(needed, Line([0; 64]));
        }
        Scratch { lines, len, of: PhantomData }
    }
}

impl<T: Pod> Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines[..(self.len * size_of::<T>()).div_ceil(64)])[..self.len]
    }
}

impl<T: Pod> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let lines = (self.len * size_of::<T>()).div_ceil(64);
        &mut bytemuck::cast_slice_mut(&mut self.lines[..lines])[..self.len]
    }
}

impl<T: Pod> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // A thread that is going away has nothing left to keep it in.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < KEPT {
                spare.push(lines);
            }
        });
    }
}

impl<T: Pod> fmt::Debug for Scratch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scratch({})", self.len)
    }
}
