//! Host memory of our own, zero at first, from a cache line's boundary on.

use memmap2::MmapMut;
use std::{
    io,
    ops::{Deref, DerefMut},
};

/// One cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

/// Lines from which on the system is asked for pages, which exist and are zero once they are touched: a key/value cache
/// costs what is written to it, be it of a small model. What is smaller comes and goes too often for that.
const LARGE: usize = (8 << 20) / size_of::<Line>();

/// As many bytes as were asked for, rounded up to whole lines.
pub(super) enum Owned {
    Lines(Vec<Line>),
    Pages(MmapMut),
}

impl Owned {
    pub(super) fn zeroed(bytes: usize) -> io::Result<Self> {
        let lines = bytes.div_ceil(size_of::<Line>());
        if lines >= LARGE {
            return MmapMut::map_anon(lines * size_of::<Line>()).map(Owned::Pages);
        }
        let mut owned = Vec::new();
        owned.try_reserve_exact(lines)?;
        owned.resize(lines, Line([0; 64]));
        Ok(Owned::Lines(owned))
    }
}

impl Deref for Owned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Owned::Lines(lines) => bytemuck::cast_slice(lines),
            Owned::Pages(pages) => pages,
        }
    }
}

impl DerefMut for Owned {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Owned::Lines(lines) => bytemuck::cast_slice_mut(lines),
            Owned::Pages(pages) => pages,
        }
    }
}

impl Clone for Owned {
    fn clone(&self) -> Self {
        Owned::Lines(bytemuck::cast_slice(self).to_vec())
    }
}
