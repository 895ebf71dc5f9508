//! Gradients of a linear: products with its weight as it lies for dx, products of two activations for the weight.

use crate::{
    backend::{
        Linear, LinearGrads, check,
        cpu::{
            Cpu,
            combine::{self, Left, add_outer, by_tiles, lies_well, products},
            isa::{Isa, LANES, with_isa},
            linear::{plain_products, prepare},
            pack::{Packed, Pair, Unit, Units, View},
            scratch::Scratch,
            values::{Matrix, floats, floats_mut},
        },
    },
    error::Result,
    tensor::{Dtype, Tensor},
};
use std::{borrow::Cow, ops::Range};

const OP: &str = "linear_backward";

/// Columns of a matrix that is slim: an adapter's rank, of which there are few blocks of rows.
const SLIM: usize = 64;

/// Rows or columns of a sum worth a task of their own.
const PIECE: usize = 64;

/// dy·W for rows of dy, in the weight's type.
enum Back<'a> {
    F32(Units<'a, f32>, Packed<f32, LANES>),
    BF16(Units<'a, Pair>, Packed<Pair, LANES>),
}

impl<'a> Back<'a> {
    /// weight `[N, K]`.
    fn new(cpu: &Cpu, dy: &'a [f32], weight: Matrix<'_>, inner: usize) -> Self {
        match weight {
            Matrix::F32(weight) => {
                let view = View::whole(weight, inner);
                Back::F32(Units::new(cpu, dy, view.rows), Packed::new(cpu, view))
            }
            Matrix::BF16(weight) => {
                let view = View::whole(weight, inner);
                Back::BF16(Units::new(cpu, dy, view.rows), Packed::new(cpu, view))
            }
        }
    }

    fn products<I: Isa>(&self, isa: I, y: &mut [f32], rows: Range<usize>, columns: Range<usize>) {
        match self {
            Back::F32(dy, weight) => products(isa, y, Left::Rows(dy), rows, weight, columns),
            Back::BF16(dy, weight) => products(isa, y, Left::Rows(dy), rows, weight, columns),
        }
    }
}

/// An adapter, and dy·B for the rows it serves.
struct Adapter<'a> {
    rows: Range<usize>,
    a: Matrix<'a>,
    b: Matrix<'a>,
    rank: usize,
    scale: f32,
    /// `[T, R]`
    dhidden: Scratch<f32>,
}

/// See [`crate::backend::Backend::linear_backward`].
pub(in crate::backend::cpu) fn linear(
    cpu: &Cpu,
    dx: Option<&mut Tensor>,
    add: bool,
    grads: LinearGrads<'_>,
    dy: &Tensor,
    x: &Tensor,
    linear: &Linear<'_>,
) -> Result<()> {
    let sizes = check::linear_backward(dx.as_deref(), &grads, dy, x, linear)?;
    let (inner, columns) = (sizes.inner, sizes.columns);
    let (dy, x) = (floats(OP, "dy", dy)?, floats(OP, "x", x)?);
    let adapters: Vec<Adapter<'_>> = linear
        .lora
        .iter()
        .map(|lora| {
            let (a, b) = (Matrix::of(OP, "lora a", lora.a)?, Matrix::of(OP, "lora b", lora.b)?);
            let (rows, rank) = (lora.rows.clone(), lora.a.rows());
            let mut dhidden = Scratch::new(rows.len() * rank);
            let back = Back::new(cpu, &dy[rows.start * columns..rows.end * columns], b, rank);
            with_isa!(cpu.level, isa => by_tiles(
                cpu,
                isa,
                &mut dhidden,
                rank,
                |y, rows, columns| back.products(isa, y, rows, columns),
                #[inline(always)]
                |out, y| out.copy_from_slice(y),
            ));
            Ok(Adapter { rows, a, b, rank, scale: lora.scale, dhidden })
        })
        .collect::<Result<_>>()?;
    if let Some(dx) = dx {
        let weight = Matrix::of(OP, "weight", linear.weight)?;
        input(cpu, floats_mut(OP, "dx", dx)?, add, dy, weight, &adapters, inner);
    }
    if let Some(weight) = grads.weight {
        let narrow = linear.weight.dtype() == Dtype::BF16;
        outer(cpu, floats_mut(OP, "dweight", weight)?, 1.0, (dy, columns), (x, inner), narrow);
    }
    if let Some(bias) = grads.bias {
        column_sums(cpu, floats_mut(OP, "dbias", bias)?, dy);
    }
    for (grads, adapter) in grads.lora.into_iter().zip(&adapters) {
        let Adapter { rows, a, b, rank, scale, dhidden } = adapter;
        let (dy, own) =
            (&dy[rows.start * columns..rows.end * columns], &x[rows.start * inner..rows.end * inner]);
        let (narrow_a, narrow_b) = (matches!(a, Matrix::BF16(_)), matches!(b, Matrix::BF16(_)));
        let mut hidden = Scratch::<f32>::new(rows.len() * rank); // [T, R]
        let own_rows = prepare(cpu, Cow::Borrowed(own), inner, narrow_a);
        plain_products(cpu, &mut hidden, &own_rows, 0, *a, *rank);
        outer(cpu, floats_mut(OP, "lora da", grads.a)?, *scale, (dhidden, *rank), (own, inner), narrow_a);
        outer(cpu, floats_mut(OP, "lora db", grads.b)?, *scale, (dy, columns), (&hidden, *rank), narrow_b);
    }
    Ok(())
}

/// dx (+)= dy·W + s·(dy·B)·A, in this order, tile by tile.
fn input(
    cpu: &Cpu,
    dx: &mut [f32],
    add: bool,
    dy: &[f32],
    weight: Matrix<'_>,
    adapters: &[Adapter<'_>],
    inner: usize,
) {
    let base = Back::new(cpu, dy, weight, inner);
    let deltas: Vec<_> = adapters
        .iter()
        .map(|adapter| (adapter, Back::new(cpu, &adapter.dhidden, adapter.a, inner)))
        .collect();
    with_isa!(cpu.level, isa => by_tiles(
        cpu,
        isa,
        dx,
        inner,
        |y, rows, columns| {
            base.products(isa, y, rows.clone(), columns.clone());
            for (adapter, delta) in &deltas {
                let shared = adapter.rows.start.max(rows.start)..adapter.rows.end.min(rows.end);
                if shared.is_empty() {
                    continue;
                }
                let mut d = Scratch::<f32>::new(shared.len() * columns.len());
                let own = shared.start - adapter.rows.start..shared.end - adapter.rows.start;
                delta.products(isa, &mut d, own, columns.clone());
                let y = &mut y[(shared.start - rows.start) * columns.len()..][..d.len()];
                y.iter_mut().zip(d.iter()).for_each(|(y, &d)| *y += adapter.scale * d);
            }
        },
        #[inline(always)]
        |out, y| {
            if add {
                out.iter_mut().zip(y).for_each(|(out, &y)| *out += y);
            } else {
                out.copy_from_slice(y);
            }
        },
    ));
}

/// out `[N, K]` += s·aᵀ·b for a `[T, N]` and b `[T, K]`, both rounded to bf16 if `narrow`.
fn outer(
    cpu: &Cpu,
    out: &mut [f32],
    scale: f32,
    (a, columns): (&[f32], usize),
    (b, inner): (&[f32], usize),
    narrow: bool,
) {
    fn of<U: Unit>(cpu: &Cpu, out: &mut [f32], scale: f32, a: View<'_, f32>, b: View<'_, f32>)
    where
        [U; LANES]: bytemuck::Pod,
        [U; combine::ROWS]: bytemuck::Pod,
    {
        let (left, right) = (Packed::<U, { combine::ROWS }>::new(cpu, a), Packed::new(cpu, b));
        combine::add_products(cpu, out, b.columns, scale, Left::Columns(&left), &right);
    }
    let (a, b) = (View::whole(a, columns), View::whole(b, inner));
    match narrow {
        true => of::<Pair>(cpu, out, scale, a, b),
        false if columns <= SLIM && lies_well(&a, &b) => add_outer(cpu, out, scale, a, b),
        false if inner <= SLIM && lies_well(&b, &a) => {
            let mut turned = Scratch::<f32>::new(out.len()); // [K, N]
            turned.fill(0.0);
            add_outer(cpu, &mut turned, scale, b, a);
            let pieces = out.chunks_mut(PIECE * inner).enumerate().collect();
            cpu.spread(pieces, |(piece, out): (usize, &mut [f32])| {
                for (row, out) in out.chunks_exact_mut(inner).enumerate() {
                    let turned = turned[piece * PIECE + row..].iter().step_by(columns);
                    out.iter_mut().zip(turned).for_each(|(out, sum)| *out += sum);
                }
            });
        }
        false => of::<f32>(cpu, out, scale, a, b),
    }
}

/// out[n] += Σ dy[t, n], in the order of rows.
fn column_sums(cpu: &Cpu, out: &mut [f32], dy: &[f32]) {
    let columns = out.len();
    let pieces = out.chunks_mut(PIECE).enumerate().collect();
    with_isa!(cpu.level, isa => cpu.spread(pieces, |(at, out)| {
        isa.run(#[inline(always)] || {
            let mut sums = [0.0; PIECE];
            for dy in dy.chunks_exact(columns) {
                let dy = &dy[at * PIECE..][..out.len()];
                sums.iter_mut().zip(dy).for_each(|(sum, &dy)| *sum += dy);
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
        });
    }));
}
