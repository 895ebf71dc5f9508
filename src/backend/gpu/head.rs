//! The head on a device: `kernels/head.cu`, and `kernels/sample.cu` for rows with a penalty or filters.

use super::{
    Address,
    Argument::{self, Address as At, F32, I32},
    Launch, Runtime,
    device::{Gpu, expect_dtype, int},
};
use crate::{
    backend::{Backend, Draw, DrawTable, Drawn, LogProbs, check},
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use std::ops::Range;

/// Rows scored at once: few enough for them to stay in the device's cache while the vocabulary passes.
pub(super) const SCORED: usize = 4096;

/// Rows drawn at once where some keep their logits: they may all do.
const KEPT: usize = 256;

/// Tokens of a tile.
pub(super) const COLUMNS: usize = 128;

/// Largest vocabulary that `sample` draws from, whose numbers have 22 bits.
const SAMPLED: usize = 1 << 22;

/// Rows of a block of `head_logprobs` and `head_drawn`.
const JOINED: usize = 2;

/// A tile as `kernels/head.cu` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) name: &'static str,
    pub(super) rows: usize,
    pub(super) threads: u32,
    pub(super) shared: u32,
}

impl Tile {
    const fn new(name: &'static str, rows: usize, warps: u32, stages: u32) -> Self {
        Tile { name, rows, threads: warps * 32, shared: stages * (rows + COLUMNS) as u32 * 128 }
    }

    /// The lowest that holds all rows: the vocabulary makes tiles enough.
    pub(super) fn of(rows: usize) -> Self {
        match rows {
            0..=16 => Tile::new("narrow", 16, 4, 4),
            17..=64 => Tile::new("middle", 64, 8, 4),
            _ => Tile::new("wide", 128, 8, 3),
        }
    }
}

/// A row's draw as the kernels take it.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Settings {
    divisor: f32,
    greedy: i32,
    seed: [u32; 2],
    position: u32,
    slot: i32,
    top_k: i32,
    top_p: f32,
    min_p: f32,
    penalty: f32,
    seen: [i32; 2],
}

/// Words of [`Settings`], to upload them as indices.
pub(super) const SETTINGS_WORDS: usize = size_of::<Settings>() / size_of::<i32>();

impl Settings {
    /// Of a row that keeps its logits in a slot, or has none (-1), and whose seen tokens stand where `seen` says.
    fn of(draw: &Draw<'_>, vocabulary: usize, slot: i32, seen: Range<usize>) -> Self {
        let filters = draw.filters(vocabulary);
        Settings {
            divisor: draw.divisor(),
            greedy: draw.is_greedy().into(),
            seed: [draw.seed as u32, (draw.seed >> 32) as u32],
            position: draw.position,
            slot,
            top_k: if filters && draw.top_k < vocabulary { draw.top_k as i32 } else { 0 },
            top_p: if filters { draw.top_p } else { 1.0 },
            min_p: if filters { draw.min_p } else { 0.0 },
            penalty: draw.penalty,
            seen: [seen.start as i32, seen.end as i32],
        }
    }
}

/// Draws as tables for a device.
#[derive(Debug, Default)]
struct Plan {
    settings: Vec<Settings>,
    /// Rows that keep their logits, by slot.
    kept: Vec<i32>,
    /// The seen tokens of all rows that are penalised.
    seen: Vec<i32>,
}

impl Plan {
    fn of(draws: &[Draw<'_>], vocabulary: usize) -> Self {
        let mut plan = Plan::default();
        for (row, draw) in draws.iter().enumerate() {
            let first = plan.seen.len();
            if draw.penalises() {
                let known = draw.seen.iter().filter(|&&token| (token as usize) < vocabulary);
                plan.seen.extend(known.map(|&token| token as i32));
            }
            let mut slot = -1;
            if !draw.is_plain(vocabulary) {
                slot = plan.kept.len() as i32;
                plan.kept.push(row as i32);
            }
            plan.settings.push(Settings::of(draw, vocabulary, slot, first..plan.seen.len()));
        }
        plan
    }
}

/// See [`crate::backend::Recorder::settings`]: every row keeps its logits, or none does.
pub(super) fn settings(draws: &[Draw<'_>], vocabulary: usize, room: usize) -> Result<Tensor> {
    draws.iter().try_for_each(Draw::check)?;
    let kept = draws.iter().any(|draw| !draw.is_plain(vocabulary));
    let rows = draws.iter().enumerate().map(|(row, draw)| {
        let slot = if kept { (row % KEPT) as i32 } else { -1 };
        let seen = if draw.penalises() { draw.seen.len() } else { 0 };
        Settings::of(draw, vocabulary, slot, row * room..row * room + seen)
    });
    let rows: Vec<Settings> = rows.collect();
    Tensor::from_slice::<i32>(&[rows.len(), SETTINGS_WORDS], bytemuck::cast_slice(&rows))
}

/// See [`crate::backend::Backend::logprobs`].
pub(super) fn logprobs<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut LogProbs,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    temperature: f32,
) -> Result<()> {
    const OP: &str = "logprobs";
    let sizes = check::logprobs(out, hidden, weight, targets, temperature)?;
    check_inputs(OP, sizes, hidden, weight)?;
    for (name, tensor) in [("logp", &out.logp), ("lse", &out.lse), ("entropy", &out.entropy)] {
        expect_dtype(OP, name, tensor, Dtype::F32)?;
    }
    let outputs = [
        gpu.target(&mut out.logp)?,
        gpu.target(&mut out.lse)?,
        gpu.target(&mut out.entropy)?,
        gpu.target(&mut out.greedy)?,
    ];
    let nowhere = gpu.at_or_null(None)?;
    for rows in parts(sizes.rows, SCORED) {
        let head = Head::new(gpu, OP, sizes, rows, hidden, weight)?;
        let chosen = gpu.temporary(Dtype::F32, &[head.rows.len()])?;
        let place = |address: Address| At(address.plus(head.rows.start * 4));
        let targets = place(gpu.at(targets)?);
        head.launch([At(gpu.at(&chosen)?), At(nowhere), At(nowhere)], targets, At(nowhere), 0, temperature)?;
        let mut arguments = outputs.map(place).to_vec();
        arguments.extend([At(gpu.at(&head.summaries)?), At(gpu.at(&chosen)?)]);
        head.join("head_logprobs", arguments)?;
    }
    Ok(())
}

/// See [`crate::backend::Backend::sample`].
pub(super) fn sample<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Drawn,
    hidden: &Tensor,
    weight: &Tensor,
    draws: &[Draw<'_>],
) -> Result<()> {
    const OP: &str = "sample";
    let sizes = check::sample(out, hidden, weight, draws)?;
    check_inputs(OP, sizes, hidden, weight)?;
    let outputs = targets(gpu, OP, out)?;
    let most = if draws.iter().all(|draw| draw.is_plain(sizes.columns)) { SCORED } else { KEPT };
    for rows in parts(sizes.rows, most) {
        let plan = Plan::of(&draws[rows.clone()], sizes.columns);
        let head = Head::new(gpu, OP, sizes, rows, hidden, weight)?;
        let settings = bytemuck::cast_slice(&plan.settings);
        let shape = [plan.settings.len(), SETTINGS_WORDS];
        let settings = gpu.upload(Tensor::from_slice::<i32>(&shape, settings)?)?;
        let [kept, seen] = [&plan.kept, &plan.seen].map(|list| match list.is_empty() {
            true => Ok(None),
            false => gpu.upload(Tensor::from_slice(&[list.len()], list)?).map(Some),
        });
        let (kept, seen) = (kept?, seen?);
        let rows = gpu.at_or_null(kept.as_ref())?;
        let kept = Kept { count: plan.kept.len(), rows, seen: gpu.at_or_null(seen.as_ref())? };
        head.draw(gpu.at(&settings)?, &kept, outputs)?;
    }
    Ok(())
}

/// See [`crate::backend::Recorder::sample_by`].
pub(super) fn sample_by<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Drawn,
    hidden: &Tensor,
    weight: &Tensor,
    table: &DrawTable<'_>,
) -> Result<()> {
    const OP: &str = "sample";
    let sizes = check::drawn(OP, out, hidden, weight)?;
    check_inputs(OP, sizes, hidden, weight)?;
    if table.settings.shape() != [sizes.rows, SETTINGS_WORDS] {
        return Err(Error::caller(OP, format!("settings are {:?} for {} rows", table.settings, sizes.rows)));
    }
    let outputs = targets(gpu, OP, out)?;
    for rows in parts(sizes.rows, if table.kept { KEPT } else { SCORED }) {
        let settings = gpu.at(table.settings)?.plus(rows.start * size_of::<Settings>());
        let count = if table.kept { rows.len() } else { 0 };
        let kept = Kept { count, rows: Address(0), seen: gpu.at_or_null(table.seen)? };
        Head::new(gpu, OP, sizes, rows, hidden, weight)?.draw(settings, &kept, outputs)?;
    }
    Ok(())
}

/// Where tokens, log-probs and entropies go.
fn targets<R: Runtime>(gpu: &Gpu<R>, op: &'static str, out: &mut Drawn) -> Result<[Address; 3]> {
    expect_dtype(op, "logp", &out.logp, Dtype::F32)?;
    let entropy = match &mut out.entropy {
        Some(entropy) => {
            expect_dtype(op, "entropy", entropy, Dtype::F32)?;
            gpu.target(entropy)?
        }
        None => Address(0),
    };
    Ok([gpu.target(&mut out.token)?, gpu.target(&mut out.logp)?, entropy])
}

/// Rows that keep their logits, for `sample` to draw from.
struct Kept {
    count: usize,
    /// Which they are; all if null.
    rows: Address,
    /// The tokens seen in rows that are penalised; none if null.
    seen: Address,
}

pub(super) fn check_inputs(
    op: &'static str,
    sizes: check::LinearSizes,
    hidden: &Tensor,
    weight: &Tensor,
) -> Result<()> {
    expect_dtype(op, "hidden", hidden, Dtype::BF16)?;
    expect_dtype(op, "weight", weight, Dtype::BF16)?;
    if sizes.inner == 0 {
        return Err(Error::caller(
            op,
            format!("hidden is {hidden:?}, expected rows of at least one element"),
        ));
    }
    if sizes.columns >= 1 << 30 {
        return Err(Error::caller(op, format!("a vocabulary of {}; kernels count to 2^30", sizes.columns)));
    }
    Ok(())
}

pub(super) fn parts(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(most).map(move |start| start..rows.min(start + most))
}

/// Some rows before the whole vocabulary.
struct Head<'a, R: Runtime> {
    gpu: &'a Gpu<R>,
    op: &'static str,
    sizes: check::LinearSizes,
    rows: Range<usize>,
    hidden: Address,
    weight: Address,
    tiles: usize,
    summaries: Tensor,
}

impl<'a, R: Runtime> Head<'a, R> {
    fn new(
        gpu: &'a Gpu<R>,
        op: &'static str,
        sizes: check::LinearSizes,
        rows: Range<usize>,
        hidden: &Tensor,
        weight: &Tensor,
    ) -> Result<Self> {
        let tiles = sizes.columns.div_ceil(COLUMNS);
        let summaries = gpu.temporary(Dtype::F32, &[tiles, rows.len(), 4])?;
        let hidden = gpu.at(hidden)?.plus(rows.start * sizes.inner * 2);
        Ok(Head { gpu, op, sizes, rows, hidden, weight: gpu.at(weight)?, tiles, summaries })
    }

    /// Every tile's summaries, and what else `work` has room for: chosen logits, leaders, kept logits.
    fn launch(
        &self,
        work: [Argument; 3],
        targets: Argument,
        draws: Argument,
        pitch: i32,
        temperature: f32,
    ) -> Result<()> {
        let tile = Tile::of(self.rows.len());
        let mut arguments = vec![At(self.gpu.at(&self.summaries)?)];
        arguments.extend(work);
        arguments.extend([At(self.hidden), At(self.weight), targets, draws]);
        arguments.extend([
            I32(self.rows.len() as i32),
            I32(int(self.op, "the inner axis", self.sizes.inner)?),
            I32(self.sizes.columns as i32),
            I32(pitch),
            F32(temperature),
        ]);
        let blocks = int(self.op, "the number of tiles", self.rows.len().div_ceil(tile.rows) * self.tiles)?;
        self.gpu.launch(&Launch {
            kernel: &format!("head_{}", tile.name),
            grid: [blocks as u32, 1, 1],
            block: [tile.threads, 1, 1],
            shared: tile.shared,
            arguments: &arguments,
        })
    }

    /// Draws a token for each row, with settings that the device has.
    fn draw(&self, settings: Address, kept: &Kept, outputs: [Address; 3]) -> Result<()> {
        let (gpu, count, vocabulary) = (self.gpu, self.rows.len(), self.sizes.columns);
        // One row more than tiles: what `sample` leaves.
        let leaders = gpu.temporary(Dtype::F32, &[self.tiles + 1, count, 4])?;
        let pitch = vocabulary.next_multiple_of(4);
        let logits = gpu.temporary(Dtype::F32, &[kept.count, pitch])?;
        let (leaders, logits) = (gpu.at(&leaders)?, gpu.at(&logits)?);
        let work = [At(Address(0)), At(leaders), At(logits)];
        self.launch(work, At(Address(0)), At(settings), int(self.op, "the vocabulary", pitch)?, 1.0)?;
        if kept.count > 0 {
            self.draw_kept(settings, kept, leaders.plus(self.tiles * count * 16), logits)?;
        }
        let place =
            |address: Address| At(if address.0 == 0 { address } else { address.plus(self.rows.start * 4) });
        let mut arguments = outputs.map(place).to_vec();
        arguments.extend([At(self.gpu.at(&self.summaries)?), At(leaders), At(settings)]);
        self.join("head_drawn", arguments)
    }

    /// The leaders of rows whose logits were kept.
    fn draw_kept(&self, settings: Address, kept: &Kept, leaders: Address, logits: Address) -> Result<()> {
        let vocabulary = self.sizes.columns;
        if vocabulary > SAMPLED {
            let what =
                format!("a vocabulary of {vocabulary}; penalties and filters on a device have {SAMPLED}");
            return Err(Error::caller(self.op, what));
        }
        let seen_bits = if kept.seen.0 == 0 { 0 } else { vocabulary.div_ceil(32) * 4 };
        let arguments = [
            At(leaders),
            At(logits),
            At(settings),
            At(kept.rows),
            At(kept.seen),
            I32(vocabulary as i32),
            I32(vocabulary.next_multiple_of(4) as i32),
        ];
        self.gpu.launch(&Launch {
            kernel: "sample",
            grid: [kept.count as u32, 1, 1],
            block: [1024, 1, 1],
            shared: 16_896 + seen_bits as u32,
            arguments: &arguments,
        })
    }

    /// Joins each row's summaries.
    fn join(&self, kernel: &str, mut arguments: Vec<Argument>) -> Result<()> {
        arguments.extend([I32(self.tiles as i32), I32(self.rows.len() as i32)]);
        self.gpu.launch(&Launch {
            kernel,
            grid: [self.rows.len().div_ceil(JOINED) as u32, 1, 1],
            block: [256, 1, 1],
            shared: 512,
            arguments: &arguments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_decide_the_tile_and_fit_shared_memory() {
        for (rows, kernel) in [(1, "narrow"), (16, "narrow"), (17, "middle"), (64, "middle"), (65, "wide")] {
            let tile = Tile::of(rows);
            assert_eq!(tile.name, kernel);
            assert!(tile.shared <= 99 * 1024 && tile.shared >= tile.rows as u32 * 128);
        }
    }

    #[test]
    fn only_rows_with_filters_or_a_penalty_keep_logits() {
        let draws = [
            Draw::default(),
            Draw { top_k: 3, ..Draw::default() },
            Draw { temperature: 0.0, top_p: 0.5, ..Draw::default() },
            Draw { temperature: 0.0, penalty: 2.0, seen: &[1, 99, 4], ..Draw::default() },
            Draw { top_k: 10, ..Draw::default() },
        ];
        let plan = Plan::of(&draws, 10);
        assert_eq!((&plan.kept[..], &plan.seen[..]), (&[1, 3][..], &[1, 4][..]));
        let slots: Vec<i32> = plan.settings.iter().map(|settings| settings.slot).collect();
        assert_eq!(slots, [-1, 0, -1, 1, -1]);
        assert_eq!((plan.settings[3].seen, plan.settings[3].divisor), ([0, 2], 1.0));
    }
}
