//! Decoding that a device does by itself: it draws several tokens of each sequence before anybody looks.
//!
//! A decoding pass runs the last token of each sequence and draws the one behind it. The next pass differs in what its
//! index tensors hold, and the device knows all of that: the token it has drawn, a position more, the next slot of pages
//! that are there already (`kernels/decode.cu`). So a pass with its draws is recorded, the host uploads what the first one
//! reads, all index tensors and settings of draws in one, has the recording done as often as tokens are wanted, and
//! fetches a log of what was drawn, which it may read when the device is at work on what comes next. Whether a token ends
//! a completion is for the host to say: until it looks, a row draws on, in pages of its own, and what it drew too much is
//! dropped. A row that wants fewer tokens than others stands still: it computes its last pass again, bit for bit, to the
//! same place.
//!
//! There is a recording for each number of rows of each adapter, rounded up, and each width of the page tables, rounded up;
//! rows that are left over write to a page nobody reads. All give the same bits as passes launched op by op, because a
//! row's result depends on that row alone.
//!
//! A recording holds addresses. Whatever it reads and writes is compared with what a pass would use now, and a recording
//! that does not match is not replayed: work space that had to grow makes all recordings useless, an adapter elsewhere
//! only its own.

use super::adapter::{Adapter, AdapterRows, Projection, check_rows, lora_rows};
use super::cache::{KvCache, PAGE, pages_for};
use super::decoder::{Decoder, Workspace, recorder};
use super::packed::{Layout, Packed, Run, joined, windows};
use super::positions::{Positions, axes};
use crate::backend::{Advance, Backend, Draw, DrawTable, Drawn, DrawnToken, Landing, Recorder, Replay};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Tensor};
use std::ops::Range;

const OP: &str = "decode";

/// The most tokens of a sequence that are drawn before anybody looks.
pub const AHEAD: usize = 8;

/// Recordings that are kept; the one not used for longest goes first.
const KEPT: usize = 32;

/// Up to how many rows a pass is filled up to a power of two, and beyond to a multiple of twice as many.
const FEW: usize = 4;

/// Up to how many ranges of rows are filled up each: what is left over has slots of its own in one page.
const RANGES: usize = PAGE / (2 * FEW);

/// A sequence that decodes.
#[derive(Debug, Clone)]
pub struct Decoding<'a> {
    /// Its last token, and pages for all that will be computed.
    pub run: Run<'a>,
    /// How the token behind it is drawn; those after it likewise.
    pub draw: Draw<'a>,
    /// How many are drawn, 1 to [`AHEAD`].
    pub tokens: usize,
    /// Where the last of them is kept.
    pub seat: u32,
}

/// Tokens that a device draws by itself, on their way.
#[derive(Debug)]
pub struct Decoded {
    log: Box<dyn Landing>,
    /// Of each sequence its row, and at which lengths it draws.
    rows: Vec<(usize, Range<usize>)>,
}

impl Decoded {
    /// Waits for them: each sequence's, in order.
    pub fn land(self) -> Result<Vec<Vec<Result<DrawnToken>>>> {
        let log = self.log.land()?;
        let words: &[i32] = log.as_slice()?;
        let of = |row, length| {
            let at = (row * AHEAD + length % AHEAD) * 3;
            let [logp, entropy] = [words[at + 1], words[at + 2]].map(|bits| f32::from_bits(bits as u32));
            DrawnToken::of(row, words[at], logp, Some(entropy))
        };
        let rows =
            self.rows.into_iter().map(|(row, lengths)| lengths.map(|length| of(row, length)).collect());
        Ok(rows.collect())
    }
}

/// A seat that is none.
const NOBODYS: u32 = !0;

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
    /// All index tensors in one, and settings.
    state: Tensor,
    log: Tensor, // [B, AHEAD, 3]
    pass: Box<dyn Replay>,
}

/// What passes have in common that are one recording.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    /// How many rows each adapter has, one after the other, where its tensors are, and their ranks and scales.
    rows: Vec<(usize, Vec<u64>)>,
    /// Pages of a table.
    width: usize,
    groups: bool,
    /// Whether some rows have filters or a penalty, and whether some have a penalty.
    draws: [bool; 2],
}

/// Neighbouring rows of one adapter, or of none.
#[derive(Debug, Clone)]
struct Stretch<'a> {
    adapter: Option<&'a Adapter>,
    given: usize,
    /// With those that are left over.
    rows: usize,
}

/// Rows of a recording for so many.
fn filled(rows: usize) -> usize {
    if rows <= FEW { rows.next_power_of_two() } else { rows.next_multiple_of(2 * FEW) }
}

/// Cuts so many rows where adapters begin and end.
fn stretches<'a>(count: usize, adapters: &[AdapterRows<'a>]) -> Result<Vec<Stretch<'a>>> {
    let mut all = Vec::new();
    let mut at = 0;
    let mut push = |adapter, until: usize| {
        let given = until.checked_sub(at).ok_or_else(|| Error::internal(OP, "adapters overlap"))?;
        if given > 0 {
            all.push(Stretch { adapter, given, rows: given });
        }
        at = until;
        Ok(())
    };
    for AdapterRows { rows, adapter } in adapters {
        push(None, rows.start)?;
        push(Some(*adapter), rows.end)?;
    }
    push(None, count)?;
    let first = if all.len() > RANGES { all.len() - 1 } else { 0 };
    all[first..].iter_mut().for_each(|stretch| stretch.rows = filled(stretch.given));
    Ok(all)
}

impl Decoder {
    /// Has tokens of each sequence drawn by a backend that decodes by itself. Adapters serve ranges of sequences, one behind
    /// the other.
    pub fn decode(
        &self,
        backend: &dyn Backend,
        sequences: &[Decoding<'_>],
        adapters: &[AdapterRows<'_>],
        cache: &mut KvCache,
        work: &mut Workspace,
    ) -> Result<Decoded> {
        let recorder = recorder(backend)?;
        let Some(scratch) = cache.scratch() else {
            return Err(Error::internal(OP, "the cache has no page that nobody reads"));
        };
        self.check(sequences)?;
        check_rows(adapters, self.config(), sequences.len())?;
        let (page, positions) = ([scratch], Positions::plain(PAGE));
        let mut slots = 0..PAGE;
        let mut given = sequences.iter();
        let (mut rows, mut places, mut ranges, mut named) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for Stretch { adapter, given: count, rows: filled } in stretches(sequences.len(), adapters)? {
            let range = rows.len()..rows.len() + filled;
            places.extend(range.start..range.start + count);
            rows.extend(given.by_ref().take(count).cloned());
            // Each of these has a slot of its own, and sees those before it.
            rows.extend(slots.by_ref().take(filled - count).map(|start| Decoding {
                run: Run {
                    tokens: &[0],
                    seat: None,
                    start,
                    positions: &positions,
                    pages: &page,
                    images: &[],
                },
                draw: Draw::default(),
                tokens: 1,
                seat: NOBODYS,
            }));
            let range = adapter.map(|adapter| AdapterRows { rows: range, adapter });
            named.push((filled, fingerprint(range.as_ref(), self.config().layers)));
            ranges.extend(range);
        }
        work.fit(backend, self.config(), rows.len())?;
        let addresses = addresses(self, cache, work);
        if work.recordings.places != addresses {
            work.recordings = Recordings { places: addresses, kept: Vec::new() };
        }
        let first = First::of(self, recorder, &rows)?;
        let size =
            Size { rows: named, width: first.width, groups: first.groups, draws: [first.kept, first.seen] };
        let most = sequences.iter().map(|one| one.tokens).max().unwrap_or(0);
        let log = self.run(backend, recorder, &first, size, &ranges, most, cache, work)?;
        let lengths = |one: &Decoding<'_>| one.run.start + 1..one.run.start + one.tokens + 1;
        Ok(Decoded { log, rows: places.into_iter().zip(sequences.iter().map(lengths)).collect() })
    }

    fn check(&self, sequences: &[Decoding<'_>]) -> Result<()> {
        for Decoding { run, tokens, .. } in sequences {
            let room = run.pages.len() * PAGE;
            if run.tokens.len() != 1
                || !run.images.is_empty()
                || !(1..=AHEAD).contains(tokens)
                || run.start + tokens > room
            {
                let what = format!("{tokens} tokens behind {} at {} in {room}", run.tokens.len(), run.start);
                return Err(Error::internal(OP, what));
            }
        }
        self.check_tokens(sequences.iter().map(|one| &one.run))
    }

    /// Makes `most` passes, the first of which reads what `first` says, and fetches the log of what they drew.
    #[expect(clippy::too_many_arguments, reason = "what a pass needs, and where it is kept")]
    fn run(
        &self,
        backend: &dyn Backend,
        recorder: &dyn Recorder,
        first: &First,
        size: Size,
        adapters: &[AdapterRows<'_>],
        most: usize,
        cache: &mut KvCache,
        work: &mut Workspace,
    ) -> Result<Box<dyn Landing>> {
        let kept = &mut work.recordings.kept;
        let mut done = 0;
        let mut recording = match kept.iter().position(|recording| recording.size == size) {
            Some(at) => {
                let recording = kept.remove(at);
                recorder.overwrite(&recording.state, &joined(&first.tensors)?)?;
                recording
            }
            None => {
                if kept.len() == KEPT {
                    kept.remove(0);
                }
                let rows = first.rows;
                let state = backend.upload(joined(&first.tensors)?)?;
                let log = backend.alloc(Dtype::I32, &[rows, AHEAD, 3])?;
                // Once by itself, so that all it needs is in its place, and then for the record.
                let mut pass = || first.pass(self, backend, recorder, [&state, &log], adapters, cache, work);
                pass()?;
                done = 1;
                let pass = recorder.record(&mut pass)?;
                Recording { size, state, log, pass }
            }
        };
        for _ in done..most {
            recording.pass.replay()?;
        }
        let log = backend.fetch(&recording.log)?;
        work.recordings.kept.push(recording);
        Ok(log)
    }
}

/// What the first of some passes reads.
struct First {
    /// Until, seats, settings, tokens seen; then what every pass reads.
    tensors: Vec<Tensor>,
    rows: usize,
    width: usize,
    groups: bool,
    kept: bool,
    seen: bool,
}

impl First {
    fn of(decoder: &Decoder, recorder: &dyn Recorder, rows: &[Decoding<'_>]) -> Result<Self> {
        let config = decoder.config();
        let ends = rows.iter().map(|row| row.run.start + row.tokens);
        let width = ends.clone().map(pages_for).max().unwrap_or(0).next_power_of_two();
        let runs: Vec<Run<'_>> = rows.iter().map(|row| row.run.clone()).collect();
        let draws: Vec<Draw<'_>> = rows.iter().map(|row| row.draw).collect();
        let kept = draws.iter().any(|draw| !draw.is_plain(config.vocab));
        let seen = draws.iter().any(Draw::penalises);
        let room = if seen { width * PAGE } else { 0 };
        let mut tokens = vec![0i32; rows.len() * room];
        for (to, draw) in tokens.chunks_mut(room.max(1)).zip(&draws).filter(|(_, draw)| draw.penalises()) {
            to.iter_mut().zip(draw.seen).for_each(|(to, &token)| *to = token as i32);
        }
        let until: Vec<i32> = ends.map(|end| end as i32).collect();
        let seat: Vec<i32> = rows.iter().map(|row| row.seat as i32).collect();
        let layout = Layout::of(&runs, axes(config), width, true)?;
        let groups = layout.has_groups();
        let mut tensors = vec![
            Tensor::from_slice(&[rows.len()], &until)?,
            Tensor::from_slice(&[rows.len()], &seat)?,
            recorder.settings(&draws, config.vocab, room)?,
            Tensor::from_slice(&[rows.len(), room], &tokens)?,
        ];
        tensors.extend(layout.tensors);
        Ok(First { tensors, rows: rows.len(), width, groups, kept, seen })
    }

    /// From the last tokens in `state` to those behind them, in `log`, and to the next pass's state.
    #[expect(clippy::too_many_arguments, reason = "what a pass needs")]
    fn pass(
        &self,
        decoder: &Decoder,
        backend: &dyn Backend,
        recorder: &dyn Recorder,
        [state, log]: [&Tensor; 2],
        adapters: &[AdapterRows<'_>],
        cache: &mut KvCache,
        work: &mut Workspace,
    ) -> Result<()> {
        let mut all = windows(&self.tensors, state)?;
        let packed = Packed::of(all.split_off(4), self.rows)?;
        let [until, seat, settings, seen] = &all[..] else {
            return Err(Error::internal(OP, "four tensors stand before a layout"));
        };
        recorder.take_seats(&packed.tokens, work.seats())?;
        decoder.walk(backend, &[], &packed, adapters, cache, work)?;
        let table = DrawTable { settings, kept: self.kept, seen: self.seen.then_some(seen) };
        let mut drawn = Drawn::alloc(backend, self.rows, true)?;
        recorder.sample_by(&mut drawn, work.normed(), decoder.head(), &table)?;
        recorder.advance(&Advance {
            drawn: &drawn,
            table,
            tokens: &packed.tokens,
            positions: &packed.positions,
            slots: &packed.slots,
            lengths: &packed.lengths,
            tables: &packed.tables,
            page_len: PAGE,
            seat,
            seats: work.seats(),
            until,
            log,
        })
    }
}

/// Where everything is that a pass writes to, and something by which the decoder is known.
fn addresses(decoder: &Decoder, cache: &KvCache, work: &Workspace) -> Vec<Option<u64>> {
    let pools = cache.keys.iter().chain(&cache.values).chain([decoder.head()]);
    pools.map(Tensor::device_address).chain(work.places()).collect()
}

/// What is baked into launches of an adapter.
fn fingerprint(adapter: Option<&AdapterRows<'_>>, layers: usize) -> Vec<u64> {
    let Some(adapter) = adapter else { return Vec::new() };
    let linears = (0..layers).flat_map(|layer| Projection::ALL.map(|projection| (layer, projection)));
    let pairs = linears.flat_map(|(layer, projection)| {
        let pair = lora_rows(std::slice::from_ref(adapter), layer, projection).pop();
        pair.map_or([0; 4], |pair| {
            let place = |tensor: &Tensor| tensor.device_address().unwrap_or(0);
            [place(pair.a), place(pair.b), pair.a.rows() as u64, u64::from(pair.scale.to_bits())]
        })
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_left_over_and_never_more_than_a_page_has_slots() {
        assert_eq!([1, 2, 3, 4, 5, 8, 9, 512].map(filled), [1, 2, 4, 4, 8, 8, 16, 512]);
        assert!((1..1000).all(|rows| filled(rows) >= rows && filled(rows) - rows < 2 * FEW));
    }

    #[test]
    fn rows_are_cut_where_adapters_begin_and_filled_up_while_there_are_slots() {
        let adapter = Adapter { pairs: Vec::new() };
        let cut = |count, ranges: &[Range<usize>]| {
            let adapters: Vec<AdapterRows<'_>> =
                ranges.iter().map(|rows| AdapterRows { rows: rows.clone(), adapter: &adapter }).collect();
            let all = stretches(count, &adapters);
            all.map(|all| {
                all.iter().map(|one| (one.adapter.is_some(), one.given, one.rows)).collect::<Vec<_>>()
            })
        };
        assert_eq!(cut(5, &[]).ok(), Some(vec![(false, 5, 8)]));
        assert_eq!(cut(9, &[2..5, 5..9]).ok(), Some(vec![(false, 2, 2), (true, 3, 4), (true, 4, 4)]));
        assert_eq!(cut(9, std::slice::from_ref(&(0..5))).ok(), Some(vec![(true, 5, 8), (false, 4, 4)]));
        assert!(cut(9, &[0..5, 3..9]).is_err());
        for count in 1..20 {
            let each: Vec<_> = (0..count).map(|at| at * 9..at * 9 + 9).collect();
            let left: usize =
                cut(count * 9, &each).unwrap().iter().map(|(_, given, rows)| rows - given).sum();
            assert!((7..=PAGE).contains(&left), "{left} of {count}");
        }
    }
}
