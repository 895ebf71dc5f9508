//! What several plain ops are made of.

use super::{Real, dot, load, load_row};
use crate::{
    backend::{Activation, Linear},
    error::Result,
    tensor::{Dtype, Tensor},
};

pub(super) fn activate<R: Real>(x: R, activation: Activation) -> R {
    let sigmoid = |x: R| R::of(1.0) / (R::of(1.0) + (R::of(0.0) - x).exp());
    let half = R::of(0.5);
    match activation {
        Activation::Silu => x * sigmoid(x),
        Activation::QuickGelu => x * sigmoid(R::of(1.702) * x),
        Activation::Gelu => half * x * (R::of(1.0) + (x * R::of(std::f64::consts::FRAC_1_SQRT_2)).erf()),
        Activation::GeluTanh => {
            let inner = R::of((2.0 / std::f64::consts::PI).sqrt()) * (x + R::of(0.044715) * x * x * x);
            half * x * (R::of(1.0) + inner.tanh())
        }
    }
}

/// x·Wᵀ for rows of x, each `[K]`: `[T, N]`.
pub(super) fn product<R: Real>(x: &[Vec<R>], weight: &Tensor) -> Result<Vec<Vec<R>>> {
    let x: Vec<Vec<R>> =
        x.iter().map(|row| row.iter().map(|value| value.rounded_for(weight.dtype())).collect()).collect();
    let mut y = vec![Vec::with_capacity(weight.rows()); x.len()];
    for column in 0..weight.rows() {
        let w = load_row::<R>(weight, column)?;
        for (y, x) in y.iter_mut().zip(&x) {
            y.push(dot(x, &w));
        }
    }
    Ok(y)
}

pub(super) fn rows_of<R: Real>(x: &Tensor) -> Result<Vec<Vec<R>>> {
    (0..x.rows()).map(|row| load_row(x, row)).collect()
}

/// A linear before its epilogue. The adapter's two products are linears of their own: each rounds its
/// activation if its weight is bf16.
pub(super) fn apply<R: Real>(x: &[Vec<R>], linear: &Linear<'_>) -> Result<Vec<Vec<R>>> {
    let mut y = product(x, linear.weight)?;
    if let Some(bias) = linear.bias {
        let bias = load::<R>(bias, 0..bias.len())?;
        for row in &mut y {
            row.iter_mut().zip(&bias).for_each(|(y, &b)| *y += b);
        }
    }
    for lora in linear.lora {
        let narrow = product(&x[lora.rows.clone()], lora.a)?; // [T, R]
        let delta = product(&narrow, lora.b)?; // [T, N]
        for (y, delta) in y[lora.rows.clone()].iter_mut().zip(&delta) {
            y.iter_mut().zip(delta).for_each(|(y, &d)| *y += R::of(lora.scale.into()) * d);
        }
    }
    Ok(y)
}

/// What a row of tempered logits sums up to.
pub(super) struct Softmax<R> {
    pub(super) best: usize,
    pub(super) lse: R,
    pub(super) entropy: R,
}

impl<R: Real> Softmax<R> {
    pub(super) fn of(logits: &[R], temperature: f32) -> (Vec<R>, Self) {
        let tempered: Vec<R> = logits.iter().map(|&logit| logit / R::of(temperature.into())).collect();
        let mut best = 0;
        for (token, &logit) in tempered.iter().enumerate() {
            if logit > tempered[best] {
                best = token;
            }
        }
        let (mut sum, mut weighted) = (R::of(0.0), R::of(0.0));
        for &logit in &tempered {
            let p = (logit - tempered[best]).exp();
            sum += p;
            weighted += p * (logit - tempered[best]);
        }
        let lse = tempered[best] + sum.ln();
        (tempered, Softmax { best, lse, entropy: sum.ln() - weighted / sum })
    }
}

/// f'(x)
pub(super) fn slope<R: Real>(x: R, activation: Activation) -> R {
    let (one, half) = (R::of(1.0), R::of(0.5));
    let sigmoid = |x: R| one / (one + (R::of(0.0) - x).exp());
    // (x·σ(ax))' = σ(ax)·(1 + ax·(1 − σ(ax)))
    let swish = |a: R| {
        let share = sigmoid(a * x);
        share * (one + a * x * (one - share))
    };
    match activation {
        Activation::Silu => swish(one),
        Activation::QuickGelu => swish(R::of(1.702)),
        Activation::Gelu => {
            let density =
                R::of((2.0 * std::f64::consts::PI).sqrt().recip()) * (R::of(0.0) - half * x * x).exp();
            half * (one + (x * R::of(std::f64::consts::FRAC_1_SQRT_2)).erf()) + x * density
        }
        Activation::GeluTanh => {
            let root = R::of((2.0 / std::f64::consts::PI).sqrt());
            let tanh = (root * (x + R::of(0.044715) * x * x * x)).tanh();
            let inner = root * (one + R::of(3.0 * 0.044715) * x * x);
            half * (one + tanh) + half * x * (one - tanh * tanh) * inner
        }
    }
}

/// dy·W for rows of dy, each `[N]`: `[T, K]`.
pub(super) fn product_back<R: Real>(dy: &[Vec<R>], weight: &Tensor) -> Result<Vec<Vec<R>>> {
    let mut dx = vec![vec![R::of(0.0); weight.row_len()]; dy.len()];
    for column in 0..weight.rows() {
        let w = load_row::<R>(weight, column)?;
        for (dx, dy) in dx.iter_mut().zip(dy) {
            let dy = dy[column].rounded_for(weight.dtype());
            dx.iter_mut().zip(&w).for_each(|(dx, &w)| *dx += dy * w);
        }
    }
    Ok(dx)
}

/// dyᵀ·x, one row of `[N, K]` after another, as a product with a weight of this dtype has it.
pub(super) fn outer<R: Real>(dy: &[Vec<R>], x: &[Vec<R>], dtype: Dtype) -> Vec<Vec<R>> {
    let (columns, inner) = (dy.first().map_or(0, Vec::len), x.first().map_or(0, Vec::len));
    let mut sums = vec![vec![R::of(0.0); inner]; columns];
    for (dy, x) in dy.iter().zip(x) {
        let x: Vec<R> = x.iter().map(|x| x.rounded_for(dtype)).collect();
        for (sums, dy) in sums.iter_mut().zip(dy) {
            let dy = dy.rounded_for(dtype);
            sums.iter_mut().zip(&x).for_each(|(sum, &x)| *sum += dy * x);
        }
    }
    sums
}
