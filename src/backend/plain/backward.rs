//! The backward ops and the optimiser as their formulas say.

use super::{
    Real, dot, load, load_row,
    parts::{self, outer, product, product_back, rows_of, slope},
    store,
};
use crate::{
    backend::{Activation, AdamwParameter, AdamwSettings, Linear, LinearGrads, check},
    error::Result,
    tensor::Tensor,
};

/// tensor += s·values, from `at` on.
fn add<R: Real>(tensor: &mut Tensor, at: usize, scale: R, values: &[R]) -> Result<()> {
    let before = load::<R>(tensor, at..at + values.len())?;
    let after: Vec<R> = before.iter().zip(values).map(|(&before, &value)| before + scale * value).collect();
    store(tensor, at, &after)
}

/// [`add`] for row after row.
fn add_rows<R: Real>(tensor: &mut Tensor, scale: R, rows: &[Vec<R>]) -> Result<()> {
    let width = tensor.row_len();
    rows.iter().enumerate().try_for_each(|(row, values)| add(tensor, row * width, scale, values))
}

/// Stores or adds a row of a gradient.
fn put<R: Real>(tensor: &mut Tensor, at: usize, added: bool, values: &[R]) -> Result<()> {
    if added { add(tensor, at, R::of(1.0), values) } else { store(tensor, at, values) }
}

/// See [`crate::backend::Backend::gather_rows_backward`].
pub(super) fn gather_rows<R: Real>(dtable: &mut Tensor, dout: &Tensor, rows: &Tensor) -> Result<()> {
    check::gather_rows_backward(dtable, dout, rows)?;
    let rows = check::indices("gather_rows_backward", "rows", rows, dtable.rows())?;
    let width = dtable.row_len();
    for (at, &row) in rows.iter().enumerate() {
        add(dtable, row as usize * width, R::of(1.0), &load_row(dout, at)?)?;
    }
    Ok(())
}

/// See [`crate::backend::Backend::linear_backward`].
pub(super) fn linear<R: Real>(
    dx: Option<&mut Tensor>,
    added: bool,
    grads: LinearGrads<'_>,
    dy: &Tensor,
    x: &Tensor,
    linear: &Linear<'_>,
) -> Result<()> {
    check::linear_backward(dx.as_deref(), &grads, dy, x, linear)?;
    let (dy, x) = (rows_of::<R>(dy)?, rows_of::<R>(x)?);
    if let Some(dx) = dx {
        let mut all = product_back(&dy, linear.weight)?;
        for lora in linear.lora {
            let narrow = product_back(&dy[lora.rows.clone()], lora.b)?; // [T, R]
            let delta = product_back(&narrow, lora.a)?; // [T, K]
            for (dx, delta) in all[lora.rows.clone()].iter_mut().zip(&delta) {
                dx.iter_mut().zip(delta).for_each(|(dx, &d)| *dx += R::of(lora.scale.into()) * d);
            }
        }
        let width = dx.row_len();
        all.iter().enumerate().try_for_each(|(row, values)| put(dx, row * width, added, values))?;
    }
    if let Some(weight) = grads.weight {
        add_rows(weight, R::of(1.0), &outer(&dy, &x, linear.weight.dtype()))?;
    }
    if let Some(bias) = grads.bias {
        dy.iter().try_for_each(|dy| add(bias, 0, R::of(1.0), dy))?;
    }
    for (grads, lora) in grads.lora.into_iter().zip(linear.lora) {
        let (dy, x) = (&dy[lora.rows.clone()], &x[lora.rows.clone()]);
        let scale = R::of(lora.scale.into());
        add_rows(grads.a, scale, &outer(&product_back(dy, lora.b)?, x, lora.a.dtype()))?;
        add_rows(grads.b, scale, &outer(dy, &product(x, lora.a)?, lora.b.dtype()))?;
    }
    Ok(())
}

/// See [`crate::backend::Backend::gated_backward`].
pub(super) fn gated<R: Real>(
    gate: &mut Tensor,
    up: &mut Tensor,
    dout: &mut Tensor,
    activation: Activation,
) -> Result<()> {
    check::pointwise_backward("gated_backward", &[("gate", gate), ("up", up), ("dout", dout)])?;
    for row in 0..gate.rows() {
        let (g, u, d) = (load_row::<R>(gate, row)?, load_row::<R>(up, row)?, load_row::<R>(dout, row)?);
        let inputs = || g.iter().zip(&u).zip(&d);
        let dgate: Vec<R> = inputs().map(|((&g, &u), &d)| d * u * slope(g, activation)).collect();
        let dup: Vec<R> = inputs().map(|((&g, _), &d)| d * parts::activate(g, activation)).collect();
        let out: Vec<R> = inputs().map(|((&g, &u), _)| parts::activate(g, activation) * u).collect();
        store(gate, row * gate.row_len(), &dgate)?;
        store(up, row * up.row_len(), &dup)?;
        store(dout, row * dout.row_len(), &out)?;
    }
    Ok(())
}

/// See [`crate::backend::Backend::activate_backward`].
pub(super) fn activate<R: Real>(x: &mut Tensor, dout: &Tensor, activation: Activation) -> Result<()> {
    check::pointwise_backward("activate_backward", &[("x", x), ("dout", dout)])?;
    for row in 0..x.rows() {
        let (values, d) = (load_row::<R>(x, row)?, load_row::<R>(dout, row)?);
        let dx: Vec<R> = values.iter().zip(&d).map(|(&x, &d)| d * slope(x, activation)).collect();
        store(x, row * x.row_len(), &dx)?;
    }
    Ok(())
}

/// See [`crate::backend::Backend::rms_norm_backward`]. With r = 1/rms: dx = r·w∘dy − x·r³·mean(w∘dy∘x), dw = Σ dy∘x·r.
pub(super) fn rms_norm<R: Real>(
    dx: &mut Tensor,
    added: bool,
    mut dweight: Option<&mut Tensor>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    let group = check::rms_norm_backward(dx, dweight.as_deref(), dy, x, weight)?;
    let weight = load::<R>(weight, 0..group)?;
    let count = R::of(group as f64);
    for at in (0..x.len()).step_by(group) {
        let (x, dy) = (load::<R>(x, at..at + group)?, load::<R>(dy, at..at + group)?);
        let inverse = R::of(1.0) / (dot(&x, &x) / count + R::of(eps.into())).sqrt();
        let weighted: Vec<R> = dy.iter().zip(&weight).map(|(&dy, &w)| dy * w).collect();
        let along = dot(&weighted, &x) / count * inverse * inverse * inverse;
        let own: Vec<R> = weighted.iter().zip(&x).map(|(&d, &x)| d * inverse - x * along).collect();
        put(dx, at, added, &own)?;
        if let Some(dweight) = dweight.as_deref_mut() {
            let own: Vec<R> = dy.iter().zip(&x).map(|(&dy, &x)| dy * (x * inverse)).collect();
            add(dweight, 0, R::of(1.0), &own)?;
        }
    }
    Ok(())
}

/// See [`crate::backend::Backend::logprobs_backward`]. A logit's gradient is dlogp·(1{target} − p) / temperature.
pub(super) fn logprobs<R: Real>(
    dhidden: &mut Tensor,
    mut dweight: Option<&mut Tensor>,
    (dlogp, lse): (&Tensor, &Tensor),
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[i32],
    temperature: f32,
) -> Result<()> {
    let temperature = R::of(temperature.into());
    for (row, &target) in targets.iter().enumerate() {
        let x = load_row::<R>(hidden, row)?;
        let (dlogp, lse) = (load::<R>(dlogp, row..row + 1)?[0], load::<R>(lse, row..row + 1)?[0]);
        let logits = product(std::slice::from_ref(&x), weight)?.remove(0);
        let of = |(token, &logit): (usize, &R)| {
            let hit = if token == target as usize { R::of(1.0) } else { R::of(0.0) };
            dlogp / temperature * (hit - (logit / temperature - lse).exp())
        };
        let dlogits: Vec<R> = logits.iter().enumerate().map(of).collect();
        let dlogits = [dlogits];
        store(dhidden, row * hidden.row_len(), &product_back(&dlogits, weight)?[0])?;
        if let Some(dweight) = dweight.as_deref_mut() {
            add_rows(dweight, R::of(1.0), &outer(&dlogits, &[x], weight.dtype()))?;
        }
    }
    Ok(())
}

/// See [`crate::backend::Backend::adamw`].
pub(super) fn adamw<R: Real>(parameter: &mut AdamwParameter<'_>, settings: &AdamwSettings) -> Result<()> {
    let all = |tensor: &Tensor| load::<R>(tensor, 0..tensor.len());
    let (mut master, gradient) = (all(parameter.master)?, all(parameter.gradient)?);
    let (mut first, mut second) = (all(parameter.first)?, all(parameter.second)?);
    let [rate, beta1, beta2, eps, scale, decay] = [
        settings.learning_rate,
        settings.beta1,
        settings.beta2,
        settings.eps,
        settings.scale,
        parameter.decay,
    ]
    .map(|setting| R::of(setting.into()));
    let correction = |beta: f32| R::of(1.0 - f64::from(beta).powf(settings.step as f64));
    let (correction1, correction2) = (correction(settings.beta1), correction(settings.beta2));
    let one = R::of(1.0);
    for at in 0..master.len() {
        let g = scale * gradient[at];
        first[at] = beta1 * first[at] + (one - beta1) * g;
        second[at] = beta2 * second[at] + (one - beta2) * g * g;
        let towards = first[at] / correction1 / ((second[at] / correction2).sqrt() + eps);
        master[at] = master[at] - rate * (towards + decay * master[at]);
    }
    store(parameter.first, 0, &first)?;
    store(parameter.second, 0, &second)?;
    store(parameter.master, 0, &master)?;
    match parameter.weight.as_deref_mut() {
        Some(weight) => store(weight, 0, &master),
        None => Ok(()),
    }
}
