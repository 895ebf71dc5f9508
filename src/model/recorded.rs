//! Decoding passes done again: on a device that records, the launches of a pass are kept, and given to it at once.
//!
//! A pass that runs one token of each sequence differs from the next in what its index tensors hold, and in how many
//! sequences there are and how long. So there is a recording for each number of sequences, rounded up, and each width of
//! the page tables, rounded up; rows that are left over write to a page nobody reads. All index tensors are windows into
//! one, so that a pass is one upload and one replay. Other passes, and those whose adapters serve only some of the rows,
//! are launched op by op. Both give the same bits, because a row's result depends on that row alone.
//!
//! A recording holds addresses. Whatever it reads and writes is compared with what a pass would use now, and a recording
//! that does not match is not replayed: work space that had to grow makes all recordings useless, an adapter elsewhere
//! only its own.

use super::adapter::{AdapterRows, Projection, check_rows, lora_rows};
use super::cache::KvCache;
use super::decoder::{Decoder, Workspace};
use super::packed::{Layout, Run, widest};
use super::positions::{Positions, axes};
use crate::backend::{Backend, Replay};
use crate::error::Result;
use crate::tensor::Tensor;

/// Recordings that are kept; the one not used for longest goes first.
const KEPT: usize = 32;

/// Up to how many rows a pass is filled up to a power of two, and beyond to a multiple of twice as many.
const FEW: usize = 4;

/// What can be done again.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    /// Of work space and cache.
    places: Vec<Option<u64>>,
    /// The last used last.
    kept: Vec<Recording>,
}

#[derive(Debug)]
struct Recording {
    size: Size,
    /// All index tensors in one.
    joined: Tensor,
    pass: Box<dyn Replay>,
}

/// What passes have in common that are one recording.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    rows: usize,
    /// Pages of a table.
    width: usize,
    groups: bool,
    /// Where the adapter's tensors are, and their ranks and scales.
    adapter: Vec<u64>,
}

/// Rows of the recording for so many.
fn filled(rows: usize) -> usize {
    if rows <= FEW { rows.next_power_of_two() } else { rows.next_multiple_of(2 * FEW) }
}

/// As [`Decoder::forward`], if this is a pass to be recorded; says whether it was.
pub(super) fn forward(
    decoder: &Decoder,
    backend: &dyn Backend,
    runs: &[Run<'_>],
    adapters: &[AdapterRows<'_>],
    cache: &mut KvCache,
    work: &mut Workspace,
) -> Result<bool> {
    let Some(scratch) = cache.scratch() else { return Ok(false) };
    let single = runs.iter().all(|run| run.tokens.len() == 1 && run.images.is_empty());
    let alike = adapters.iter().all(|one| one.rows == (0..runs.len()));
    if !(single && alike && adapters.len() < 2) || runs.is_empty() {
        return Ok(false);
    }
    decoder.check_tokens(runs)?;
    check_rows(adapters, decoder.config(), runs.len())?;
    let rows = filled(runs.len());
    let (page, positions) = ([scratch], Positions::plain(2 * FEW));
    // Each of these has a slot of its own, and sees those before it.
    let filling = (0..rows - runs.len()).map(|start| Run {
        tokens: &[0],
        start,
        positions: &positions,
        pages: &page,
        images: &[],
    });
    let runs: Vec<Run<'_>> = runs.iter().cloned().chain(filling).collect();
    let adapters: Vec<AdapterRows<'_>> =
        adapters.iter().map(|one| AdapterRows { rows: 0..rows, adapter: one.adapter }).collect();
    let width = widest(&runs).next_power_of_two();
    let layout = Layout::of(&runs, axes(decoder.config()), width, true)?;
    let adapter = fingerprint(&adapters, decoder.config().layers);
    let size = Size { rows, width, groups: layout.has_groups(), adapter };

    work.fit(backend, decoder.config(), rows)?;
    let places = places(decoder, cache, work);
    if work.recordings.places != places {
        work.recordings = Recordings { places, kept: Vec::new() };
    }
    let kept = &mut work.recordings.kept;
    if let Some(at) = kept.iter().position(|recording| recording.size == size) {
        let mut recording = kept.remove(at);
        backend.overwrite(&recording.joined, &layout.joined()?)?;
        recording.pass.replay()?;
        kept.push(recording);
        return Ok(true);
    }
    if kept.len() == KEPT {
        kept.remove(0);
    }
    let joined = backend.upload(layout.joined()?)?;
    let packed = layout.windows(&joined)?;
    // Once by itself, so that all it needs is in its place, and then for the record.
    let mut walk = || decoder.walk(backend, &[], &packed, &adapters, cache, work);
    walk()?;
    let pass = backend.record(&mut walk)?;
    work.recordings.kept.push(Recording { size, joined, pass });
    Ok(true)
}

/// Where everything is that a pass writes to, and something by which the decoder is known.
fn places(decoder: &Decoder, cache: &KvCache, work: &Workspace) -> Vec<Option<u64>> {
    let pools = cache.keys.iter().chain(&cache.values).chain([decoder.head()]);
    pools.map(Tensor::device_address).chain(work.places()).collect()
}

/// What is baked into launches of an adapter.
fn fingerprint(adapters: &[AdapterRows<'_>], layers: usize) -> Vec<u64> {
    let linears = (0..layers).flat_map(|layer| Projection::ALL.map(|projection| (layer, projection)));
    let pairs = linears.map(|(layer, projection)| {
        let pair = lora_rows(adapters, layer, projection).pop();
        pair.map_or([0; 4], |pair| {
            let place = |tensor: &Tensor| tensor.device_address().unwrap_or(0);
            [place(pair.a), place(pair.b), pair.a.rows() as u64, u64::from(pair.scale.to_bits())]
        })
    });
    if adapters.is_empty() { Vec::new() } else { pairs.flatten().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_left_over_and_never_more_than_a_page_has_slots() {
        assert_eq!([1, 2, 3, 4, 5, 8, 9, 512].map(filled), [1, 2, 4, 4, 8, 8, 16, 512]);
        assert!((1..1000).all(|rows| filled(rows) >= rows && filled(rows) - rows < 2 * FEW));
    }
}
