//! The block both kinds of tower are stacks of: attention within segments, then an MLP, each behind a norm
//! and each added to the residual stream.

use crate::backend::{Activation, Backend, Epilogue, Rope, Segments};
use crate::error::Result;
use crate::model::weights::{Bias, LinearWeights, Loader};
use crate::tensor::Tensor;

/// A norm over the width of the stream.
#[derive(Debug)]
pub(super) enum Norm {
    Layer { weight: Tensor, bias: Tensor, eps: f32 },
    Rms { weight: Tensor, eps: f32 },
}

impl Norm {
    pub(super) fn layer(loader: &Loader<'_>, module: &str, width: usize, eps: f32) -> Result<Self> {
        let weight = loader.vector(&format!("{module}.weight"), width)?;
        Ok(Norm::Layer { weight, bias: loader.vector(&format!("{module}.bias"), width)?, eps })
    }

    pub(super) fn rms(loader: &Loader<'_>, module: &str, width: usize, eps: f32) -> Result<Self> {
        Ok(Norm::Rms { weight: loader.vector(&format!("{module}.weight"), width)?, eps })
    }

    /// x normed, in a new tensor of x's shape.
    pub(super) fn apply(&self, backend: &dyn Backend, x: &Tensor) -> Result<Tensor> {
        let mut out = backend.alloc(x.dtype(), x.shape())?;
        match self {
            Norm::Layer { weight, bias, eps } => backend.layer_norm(&mut out, x, weight, bias, *eps)?,
            Norm::Rms { weight, eps } => backend.rms_norm(&mut out, x, weight, *eps)?,
        }
        Ok(out)
    }
}

/// The MLP of a block.
#[derive(Debug)]
pub(super) enum Mlp {
    /// down(f(up(x)))
    Plain { up: LinearWeights, down: LinearWeights, activation: Activation },
    /// down(silu(gate(x)) * up(x))
    Gated { gate: LinearWeights, up: LinearWeights, down: LinearWeights },
}

/// One block of an image tower.
#[derive(Debug)]
pub(super) struct TowerBlock {
    pub(super) attention_norm: Norm,
    pub(super) mlp_norm: Norm,
    pub(super) qkv: [LinearWeights; 3],
    /// Norms over the whole width of queries and keys.
    pub(super) qk_norms: Option<[Norm; 2]>,
    pub(super) projection: LinearWeights,
    pub(super) mlp: Mlp,
    /// Gains of the two branches.
    pub(super) scales: Option<[Tensor; 2]>, // [C]
}

/// What the blocks of one image share.
pub(super) struct Surroundings<'a> {
    pub(super) heads: usize,
    /// Starts of the segments that attend to each other, i32 `[B+1]`.
    pub(super) starts: &'a Tensor,
    /// Rotary positions `[2, T]`, where the tower has them.
    pub(super) rope: Option<(&'a Rope, &'a Tensor)>,
}

impl Surroundings<'_> {
    /// Who attends to whom, and the scale of heads of this width.
    pub(super) fn attention(&self, width: usize) -> (Segments<'_>, f32) {
        (Segments { starts: self.starts, parents: None }, (width as f32).powf(-0.5))
    }
}

impl TowerBlock {
    /// hidden `[T, C]`, in place.
    pub(super) fn forward(
        &self,
        backend: &dyn Backend,
        hidden: &mut Tensor,
        around: &Surroundings<'_>,
    ) -> Result<()> {
        let rows = hidden.rows();
        let (_, _, attended) = self.look(backend, hidden, around, None)?;
        backend.linear(hidden, &attended, &self.projection.plain(), self.add(0))?;

        let normed = self.mlp_norm.apply(backend, hidden)?;
        let (inner, down) = match &self.mlp {
            Mlp::Plain { up, down, activation } => {
                let mut inner = backend.alloc(hidden.dtype(), &[rows, up.weight.rows()])?;
                backend.linear(&mut inner, &normed, &up.plain(), Epilogue::Activate(*activation))?;
                (inner, down)
            }
            Mlp::Gated { gate, up, down } => {
                let mut inner = backend.alloc(hidden.dtype(), &[rows, up.weight.rows()])?;
                backend.gated_linear(&mut inner, &normed, &gate.plain(), &up.plain(), Activation::Silu)?;
                (inner, down)
            }
        };
        backend.linear(hidden, &inner, &down.plain(), self.add(1))
    }

    /// norm(hidden), its queries, keys and values `[T, H, D]`, and what attention makes of them `[T, C]`.
    pub(super) fn look(
        &self,
        backend: &dyn Backend,
        hidden: &Tensor,
        around: &Surroundings<'_>,
        lse: Option<&mut Tensor>,
    ) -> Result<(Tensor, [Tensor; 3], Tensor)> {
        let (rows, width) = (hidden.rows(), hidden.row_len());
        let heads = [rows, around.heads, width / around.heads];
        let normed = self.attention_norm.apply(backend, hidden)?;
        let state = |part: usize| -> Result<Tensor> {
            let mut out = backend.alloc(hidden.dtype(), &[rows, width])?;
            backend.linear(&mut out, &normed, &self.qkv[part].plain(), Epilogue::Store)?;
            if let Some(norm) = self.qk_norms.as_ref().and_then(|norms| norms.get(part)) {
                out = norm.apply(backend, &out)?;
            }
            let mut out = out.reshaped(&heads)?;
            if let (Some((rope, positions)), true) = (around.rope, part < 2) {
                backend.rope(&mut out, positions, rope, false)?;
            }
            Ok(out)
        };
        let states = [state(0)?, state(1)?, state(2)?];
        let mut attended = backend.alloc(hidden.dtype(), &heads)?;
        let ([queries, keys, values], (segments, scale)) = (&states, around.attention(heads[2]));
        backend.attention(&mut attended, lse, queries, keys, values, &segments, false, scale)?;
        let attended = attended.reshaped(&[rows, width])?;
        Ok((normed, states, attended))
    }

    fn add(&self, branch: usize) -> Epilogue<'_> {
        self.scales.as_ref().map_or(Epilogue::Add, |scales| Epilogue::AddScaled(&scales[branch]))
    }
}

/// norm, linear, GELU, linear: how features leave a tower.
#[derive(Debug)]
pub(super) struct Projector {
    pub(super) norm: Norm,
    /// Width the normed rows are regrouped to before the first linear.
    pub(super) inputs: usize,
    pub(super) first: LinearWeights,
    pub(super) second: LinearWeights,
}

impl Projector {
    /// `modules` are the first and the second linear.
    pub(super) fn load(
        loader: &Loader<'_>,
        norm: Norm,
        modules: [&str; 2],
        [inputs, inner, outputs]: [usize; 3],
    ) -> Result<Self> {
        let first = loader.linear(modules[0], inner, inputs, Bias::Yes)?;
        let second = loader.linear(modules[1], outputs, inner, Bias::Yes)?;
        Ok(Projector { norm, inputs, first, second })
    }

    /// x in rows of the norm's width to features `[tokens, C]`.
    pub(super) fn apply(&self, backend: &dyn Backend, x: &Tensor) -> Result<Tensor> {
        let normed = self.norm.apply(backend, x)?;
        let tokens = normed.len() / self.inputs;
        let normed = normed.reshaped(&[tokens, self.inputs])?;
        let mut inner = backend.alloc(x.dtype(), &[tokens, self.first.weight.rows()])?;
        backend.linear(&mut inner, &normed, &self.first.plain(), Epilogue::Activate(Activation::Gelu))?;
        let mut out = backend.alloc(x.dtype(), &[tokens, self.second.weight.rows()])?;
        backend.linear(&mut out, &inner, &self.second.plain(), Epilogue::Store)?;
        Ok(out)
    }
}
