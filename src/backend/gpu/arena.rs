//! Which parts of large chunks of device memory are in use: bookkeeping alone, no memory is touched here.
//!
//! A driver takes long to allocate and waits for the device when it frees, so chunks are kept and divided: the best
//! fitting free range is taken, neighbours unite when they are free again. All work runs on one stream, in order, so
//! a range may be given out again as soon as its last user is launched.
//!
//! A captured graph runs its launches again at any time, in memory it had when it was captured. So what is taken during a
//! capture and given back belongs to graphs from then on. All of them share it, since one runs after the other and leaves
//! nothing behind there; others may have it once all graphs are gone. What a capture keeps beyond its end can therefore not
//! be what an earlier graph writes to. What is given back during a capture, but was taken before, waits for the graph's end
//! without being used.

use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What ranges begin at and consist of: as `cudaMalloc` aligns.
const GRAIN: usize = 256;

/// What a driver hands out without waste.
const DRIVER_GRAIN: usize = 2 << 20;

/// The least that is asked of the driver. Larger tensors, weights above all, get chunks of their own size.
const CHUNK: usize = 64 << 20;

/// Names the owner of memory that was taken during a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GraphId(u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: BTreeMap<u64, usize>,
    taken: HashMap<u64, Block>,
    free: Ranges,
    /// Of graphs that are there: each has ranges that wait for its end.
    graphs: HashMap<GraphId, Vec<(u64, usize)>>,
    /// What graphs share.
    common: Ranges,
    /// What the present capture alone has used so far.
    own: Ranges,
    capturing: Option<GraphId>,
    captures: u64,
}

#[derive(Debug)]
struct Block {
    bytes: usize,
    owner: Owner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Whoever gives it back.
    Nobody,
    /// Taken during its capture, from what no other graph uses.
    Graph(GraphId),
    /// All graphs.
    Graphs,
}

impl Arena {
    /// What to ask of the driver when [`Arena::take`] finds no room.
    pub(super) fn chunk_for(bytes: usize) -> usize {
        bytes.max(CHUNK).checked_next_multiple_of(DRIVER_GRAIN).unwrap_or(bytes)
    }

    /// The least to ask of the driver instead, when it has no room for that.
    pub(super) fn least_for(bytes: usize) -> usize {
        bytes.max(1).checked_next_multiple_of(GRAIN).unwrap_or(bytes)
    }

    /// Room for so many bytes, if there is any.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        let bytes = Self::least_for(bytes);
        let (start, owner) = match self.capturing {
            None => (self.free.take(bytes)?, Owner::Nobody),
            Some(graph) => {
                let own = self.own.take(bytes).map(|start| (start, Owner::Graph(graph)));
                let common = || self.common.take(bytes).map(|start| (start, Owner::Graphs));
                own.or_else(common).or_else(|| Some((self.free.take(bytes)?, Owner::Graph(graph))))?
            }
        };
        self.taken.insert(start, Block { bytes, owner });
        Some(start)
    }

    /// Takes back what [`Arena::take`] gave.
    pub(super) fn give(&mut self, start: u64) -> Result<()> {
        let Some(Block { bytes, owner }) = self.taken.remove(&start) else {
            return Err(Error::internal("release", format!("nothing is allocated at {start:#x}")));
        };
        let ranges = match (owner, self.capturing) {
            (Owner::Nobody, Some(capture)) => {
                self.graphs.entry(capture).or_default().push((start, bytes));
                return Ok(());
            }
            (Owner::Nobody, None) => &mut self.free,
            (Owner::Graph(graph), capturing) if capturing == Some(graph) => &mut self.own,
            (Owner::Graph(_) | Owner::Graphs, _) if self.graphs.is_empty() => &mut self.free,
            (Owner::Graph(_) | Owner::Graphs, _) => &mut self.common,
        };
        ranges.insert(start, bytes, &self.chunks);
        Ok(())
    }

    /// Adds memory that the driver gave.
    pub(super) fn add(&mut self, start: u64, bytes: usize) {
        self.chunks.insert(start, bytes);
        self.free.insert(start, bytes, &self.chunks);
    }

    /// Forgets the chunks in which nothing is in use, for the driver to have them back.
    pub(super) fn trim(&mut self) -> Vec<u64> {
        let unused =
            |(start, bytes): (&u64, &usize)| (self.free.bytes_at(*start) == Some(*bytes)).then_some(*start);
        let unused: Vec<u64> = self.chunks.iter().filter_map(unused).collect();
        for start in &unused {
            self.chunks.remove(start);
            self.free.remove(*start);
        }
        unused
    }

    /// Every chunk there is.
    pub(super) fn chunks(&self) -> impl Iterator<Item = u64> {
        self.chunks.keys().copied()
    }

    /// Bytes that are free in chunks already here.
    pub(super) fn unused(&self) -> usize {
        self.free.by_size.iter().map(|range| range.0).sum()
    }

    /// From here on, what is taken belongs to a new graph.
    pub(super) fn begin(&mut self) -> GraphId {
        self.captures += 1;
        let graph = GraphId(self.captures);
        self.graphs.insert(graph, Vec::new());
        self.capturing = Some(graph);
        graph
    }

    /// Ends what [`Arena::begin`] began. Refuses a capture that keeps what other graphs write to.
    pub(super) fn end(&mut self) -> Result<()> {
        self.capturing = None;
        for (start, bytes) in std::mem::take(&mut self.own).by_start {
            self.common.insert(start, bytes, &self.chunks);
        }
        match self.taken.iter().find(|(_, block)| block.owner == Owner::Graphs) {
            Some((start, Block { bytes, .. })) => {
                let what =
                    format!("{bytes} bytes at {start:#x} outlive their capture, and other graphs use them");
                Err(Error::internal("capture", what))
            }
            None => Ok(()),
        }
    }

    /// The graph is gone; with the last one goes what they shared.
    pub(super) fn end_of(&mut self, graph: GraphId) {
        let mut unused = self.graphs.remove(&graph).unwrap_or_default();
        if self.graphs.is_empty() {
            unused.extend(std::mem::take(&mut self.common).by_start);
        }
        unused.into_iter().for_each(|(start, bytes)| self.free.insert(start, bytes, &self.chunks));
        self.taken
            .values_mut()
            .filter(|block| block.owner == Owner::Graph(graph))
            .for_each(|block| block.owner = Owner::Nobody);
    }
}

/// Free ranges, found by place and by size.
#[derive(Debug, Default)]
struct Ranges {
    by_start: BTreeMap<u64, usize>,
    by_size: BTreeSet<(usize, u64)>,
}

impl Ranges {
    /// Cuts `bytes` off the smallest range that has them, the lowest of equals.
    fn take(&mut self, bytes: usize) -> Option<u64> {
        let &(found, start) = self.by_size.range((bytes, 0)..).next()?;
        self.remove(start);
        if found > bytes {
            self.put(start + bytes as u64, found - bytes);
        }
        Some(start)
    }

    /// Adds a range, united with its free neighbours in the same chunk.
    fn insert(&mut self, mut start: u64, mut bytes: usize, chunks: &BTreeMap<u64, usize>) {
        let end = start + bytes as u64;
        if let Some(after) = self.bytes_at(end).filter(|_| !chunks.contains_key(&end)) {
            self.remove(end);
            bytes += after;
        }
        if let Some((&before, &length)) = self.by_start.range(..start).next_back()
            && before + length as u64 == start
            && !chunks.contains_key(&start)
        {
            self.remove(before);
            (start, bytes) = (before, bytes + length);
        }
        self.put(start, bytes);
    }

    fn put(&mut self, start: u64, bytes: usize) {
        self.by_start.insert(start, bytes);
        self.by_size.insert((bytes, start));
    }

    fn remove(&mut self, start: u64) {
        if let Some(bytes) = self.by_start.remove(&start) {
            self.by_size.remove(&(bytes, start));
        }
    }

    fn bytes_at(&self, start: u64) -> Option<usize> {
        self.by_start.get(&start).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(chunks: &[(u64, usize)]) -> Arena {
        let mut arena = Arena::default();
        chunks.iter().for_each(|&(start, bytes)| arena.add(start, bytes));
        arena
    }

    #[test]
    fn ranges_are_cut_from_the_best_fit_and_unite_again() {
        let mut arena = arena(&[(0x10000, 4096), (0x20000, 1024)]);
        assert_eq!(arena.take(1000), Some(0x20000), "the smaller chunk fits best");
        assert_eq!(
            (arena.take(1), arena.take(257), arena.take(256)),
            (Some(0x10000), Some(0x10100), Some(0x10300))
        );
        assert_eq!(arena.take(4096), None);
        for start in [0x10000, 0x10300, 0x10100] {
            arena.give(start).unwrap();
        }
        assert_eq!(arena.take(4096), Some(0x10000));
        assert!(arena.give(0x10100).is_err() && arena.give(0x20000).is_ok() && arena.give(0x20000).is_err());
        assert_eq!(arena.take(usize::MAX), None);
        assert_eq!(Arena::chunk_for(usize::MAX), usize::MAX);
        assert_eq!((Arena::chunk_for(1), Arena::chunk_for(CHUNK + 1)), (CHUNK, CHUNK + DRIVER_GRAIN));
    }

    #[test]
    fn chunks_side_by_side_stay_apart_and_are_trimmed_when_unused() {
        let mut arena = arena(&[(0x1000, 4096), (0x2000, 4096)]);
        assert_eq!(arena.take(8192), None);
        let held = arena.take(4096).unwrap();
        arena.take(256).unwrap();
        arena.give(held).unwrap();
        assert_eq!(arena.trim(), [held]);
        assert_eq!((arena.chunks().count(), arena.unused()), (1, 4096 - 256));
        assert!(arena.trim().is_empty());
    }

    #[test]
    fn a_graph_keeps_what_its_launches_use() {
        let mut arena = arena(&[(0x1000, 4096)]);
        let before = arena.take(1024).unwrap();
        let graph = arena.begin();
        let work = arena.take(1024).unwrap();
        arena.give(work).unwrap();
        assert_eq!(arena.take(1024), Some(work), "launches of one graph run in order, so they share");
        let output = arena.take(1024).unwrap();
        arena.give(before).unwrap();
        assert_eq!(arena.take(1024), Some(0x1c00), "what the graph may read is not written over");
        arena.end().unwrap();
        arena.give(work).unwrap();
        arena.give(0x1c00).unwrap();
        assert_eq!(arena.take(256), None, "all of it belongs to the graph");
        arena.end_of(graph);
        assert_eq!(arena.take(2049), None, "its output is still held");
        arena.give(output).unwrap();
        assert_eq!(arena.take(4096), Some(0x1000));
    }

    #[test]
    fn graphs_share_what_each_leaves_behind() {
        let mut arena = arena(&[(0x1000, 4096)]);
        let passing = |arena: &mut Arena, bytes| {
            let graph = arena.begin();
            let work = arena.take(bytes).unwrap();
            arena.give(work).unwrap();
            (graph, work)
        };
        let (first, work) = passing(&mut arena, 1024);
        arena.end().unwrap();
        let (second, shared) = passing(&mut arena, 1024);
        let fresh = arena.take(2048).unwrap();
        arena.end().unwrap();
        assert_eq!((shared, fresh), (work, 0x1400), "it keeps only what no other graph writes to");
        let (third, _) = passing(&mut arena, 1024);
        let kept = arena.take(1024).unwrap();
        assert!(arena.end().unwrap_err().to_string().contains("outlive their capture"));
        for graph in [second, third] {
            arena.end_of(graph);
        }
        arena.give(fresh).unwrap();
        arena.give(kept).unwrap();
        assert_eq!((arena.take(3072), arena.take(256)), (Some(0x1400), None), "the first graph is there");
        arena.end_of(first);
        assert_eq!(arena.take(1024), Some(work));
    }

    /// Against a model that knows what is held and what each graph writes to.
    #[test]
    fn nothing_is_given_out_twice_and_nothing_is_lost() {
        const BYTES: usize = 64 * GRAIN;
        let meets = |(a, length): (u64, usize), (b, other): (u64, usize)| {
            a < b + other as u64 && b < a + length as u64
        };
        let mut arena = arena(&[(0, BYTES)]);
        let (mut held, mut state) = (Vec::<(u64, usize)>::new(), 1_u64);
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % below
        };
        let mut graphs = Vec::<(GraphId, Vec<(u64, usize)>)>::new();
        // What graphs that are gone wrote to is the others' until the last goes.
        let (mut capturing, mut left) = (false, Vec::<(u64, usize)>::new());
        for step in 0..8000 {
            match step % 97 {
                50 => {
                    graphs.push((arena.begin(), Vec::new()));
                    capturing = true;
                }
                60 if capturing => {
                    capturing = false;
                    let others = &graphs[..graphs.len() - 1];
                    let shared = || others.iter().flat_map(|graph| &graph.1).chain(&left);
                    let written = |range| shared().any(|&its| meets(its, range));
                    let own = graphs.last().map_or(&[][..], |graph| &graph.1);
                    let (passing, kept) =
                        held.into_iter().partition(|range| own.contains(range) && written(*range));
                    held = kept;
                    let passing: Vec<(u64, usize)> = passing;
                    passing.iter().for_each(|&(start, _)| arena.give(start).unwrap());
                    arena.end().unwrap();
                }
                80 if random(3) > 0 => {
                    let count = if random(4) == 0 { graphs.len() } else { 1 };
                    for _ in 0..count {
                        let (id, writes) = graphs.remove(random(graphs.len()));
                        arena.end_of(id);
                        left.extend(writes);
                    }
                    left.retain(|_| !graphs.is_empty());
                }
                _ => {}
            }
            if random(2) == 0 && !held.is_empty() {
                let (start, _) = held.swap_remove(random(held.len()));
                arena.give(start).unwrap();
                continue;
            }
            let bytes = 1 + random(6 * GRAIN);
            let Some(start) = arena.take(bytes) else { continue };
            let range = (start, bytes);
            assert!(start as usize + bytes <= BYTES);
            assert!(held.iter().all(|&other| !meets(other, range)), "{start:#x} is held");
            let written = graphs.iter().flat_map(|graph| &graph.1).any(|&its| meets(its, range));
            assert!(capturing || !written, "a graph writes to {start:#x}");
            held.push(range);
            if let Some((_, writes)) = graphs.last_mut().filter(|_| capturing) {
                writes.push(range);
            }
        }
        graphs.into_iter().for_each(|(id, _)| arena.end_of(id));
        held.into_iter().for_each(|(start, _)| arena.give(start).unwrap());
        assert_eq!((arena.unused(), arena.trim().len()), (BYTES, 1));
    }
}
