//! The tower of Qwen2.5-VL learning: it keeps what each block began with, and the walk back computes each block again
//! before it goes through it.

use super::block::{Mlp, Norm, Projector, Surroundings, TowerBlock};
use super::qwen::{Arranged, QwenTower};
use super::{Kind, PatchedImage, Tower};
use crate::backend::{Activation, AttentionGrads, Backend, Epilogue, LinearGrads};
use crate::error::{Error, Result};
use crate::model::gradients::{LinearGradients, zeros_like};
use crate::model::weights::LinearWeights;
use crate::tensor::Tensor;

/// Gradients of a whole tower.
#[derive(Debug)]
pub struct TowerGradients {
    patch_embedding: LinearGradients,
    blocks: Vec<BlockGradients>,
    norm: Tensor,                 // [C]
    merger: [LinearGradients; 2], // as applied
}

#[derive(Debug)]
struct BlockGradients {
    attention_norm: Tensor, // [C]
    mlp_norm: Tensor,       // [C]
    linears: [LinearGradients; 7],
}

/// Where a linear of a block is among its seven.
const QUERY: usize = 0;
const OUTPUT: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// What the linears of a block are called; the first three are one.
const MODULES: [&str; 7] =
    ["attn.qkv", "attn.qkv", "attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

impl Tower {
    /// Every weight by the name its checkpoint has for it, parts of a fused one under the same name; in the order of
    /// [`TowerGradients::tensors`]. None of a tower that is not trained.
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let Ok(tower) = self.learner() else { return Vec::new() };
        let prefix = tower.prefix;
        let mut all: Vec<(String, &Tensor)> =
            tower.patch_embedding.parameters(&format!("{prefix}patch_embed.proj")).collect();
        for (layer, block) in tower.blocks.iter().enumerate() {
            let name = |name: &str| format!("{prefix}blocks.{layer}.{name}");
            all.push((name("norm1.weight"), block.attention_norm.weight()));
            all.push((name("norm2.weight"), block.mlp_norm.weight()));
            for (linear, module) in block.linears().into_iter().zip(MODULES) {
                all.extend(linear.parameters(&name(module)));
            }
        }
        let Projector { norm, first, second, .. } = &tower.merger;
        all.push((format!("{prefix}merger.ln_q.weight"), norm.weight()));
        all.extend(first.parameters(&format!("{prefix}merger.mlp.0")));
        all.extend(second.parameters(&format!("{prefix}merger.mlp.2")));
        all
    }

    /// The weights in the order of [`Tower::parameters`].
    pub fn parameters_mut(&mut self) -> Vec<&mut Tensor> {
        if self.learner().is_err() {
            return Vec::new();
        }
        let Kind::Qwen(tower) = &mut self.0 else { return Vec::new() };
        let mut all: Vec<&mut Tensor> = tower.patch_embedding.parameters_mut().collect();
        for TowerBlock { attention_norm, mlp_norm, qkv, projection, mlp, .. } in &mut tower.blocks {
            all.extend([attention_norm.weight_mut(), mlp_norm.weight_mut()]);
            all.extend(qkv.iter_mut().chain([projection]).flat_map(LinearWeights::parameters_mut));
            all.extend(mlp.linears_mut().into_iter().flat_map(LinearWeights::parameters_mut));
        }
        let Projector { norm, first, second, .. } = &mut tower.merger;
        all.push(norm.weight_mut());
        all.extend([first, second].into_iter().flat_map(LinearWeights::parameters_mut));
        all
    }

    /// Zeros for every weight.
    pub fn gradients(&self, backend: &dyn Backend) -> Result<TowerGradients> {
        let tower = self.learner()?;
        let zeros = |tensor: &Tensor| zeros_like(backend, tensor);
        let linear = |linear: &LinearWeights| LinearGradients::of(backend, linear);
        let block = |block: &TowerBlock| -> Result<BlockGradients> {
            let linears = block.linears().into_iter().map(linear).collect::<Result<Vec<_>>>()?;
            Ok(BlockGradients {
                attention_norm: zeros(block.attention_norm.weight())?,
                mlp_norm: zeros(block.mlp_norm.weight())?,
                linears: linears.try_into().map_err(|_| Error::internal(OP, "a block has seven linears"))?,
            })
        };
        let Projector { norm, first, second, .. } = &tower.merger;
        Ok(TowerGradients {
            patch_embedding: linear(&tower.patch_embedding)?,
            blocks: tower.blocks.iter().map(block).collect::<Result<_>>()?,
            norm: zeros(norm.weight())?,
            merger: [linear(first)?, linear(second)?],
        })
    }

    /// From the gradient of an image's features `[tokens, C]` to those of the weights, added to.
    pub fn backward(
        &self,
        backend: &dyn Backend,
        image: PatchedImage<'_>,
        features: &Tensor,
        gradients: &mut TowerGradients,
    ) -> Result<()> {
        self.learner()?.backward(backend, image, features, gradients)
    }

    /// The tower, if it is of the kind that learns.
    fn learner(&self) -> Result<&QwenTower> {
        let refused = |tower: &str| {
            let what = format!("full training of the image tower of {tower} is not supported; freeze it");
            Error::caller(OP, what)
        };
        match &self.0 {
            Kind::Qwen(tower) if tower.windows.is_some() => Ok(tower),
            Kind::Qwen(_) => Err(refused("Qwen2-VL")),
            Kind::InternVit(_) => Err(refused("InternVL")),
        }
    }
}

const OP: &str = "train";

impl TowerGradients {
    /// Every gradient.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let mut all: Vec<&Tensor> = self.patch_embedding.tensors().collect();
        for block in &self.blocks {
            all.extend([&block.attention_norm, &block.mlp_norm]);
            all.extend(block.linears.iter().flat_map(LinearGradients::tensors));
        }
        all.push(&self.norm);
        all.extend(self.merger.iter().flat_map(LinearGradients::tensors));
        all
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self, backend: &dyn Backend) -> Result<()> {
        let mut all: Vec<&mut Tensor> = self.patch_embedding.tensors_mut().collect();
        for block in &mut self.blocks {
            all.extend([&mut block.attention_norm, &mut block.mlp_norm]);
            all.extend(block.linears.iter_mut().flat_map(LinearGradients::tensors_mut));
        }
        all.push(&mut self.norm);
        all.extend(self.merger.iter_mut().flat_map(LinearGradients::tensors_mut));
        all.into_iter().try_for_each(|tensor| backend.zero(tensor))
    }
}

impl QwenTower {
    fn backward(
        &self,
        backend: &dyn Backend,
        image: PatchedImage<'_>,
        features: &Tensor,
        gradients: &mut TowerGradients,
    ) -> Result<()> {
        let arranged = self.arrange(backend, image)?;
        let mut hidden = self.embed(backend, &arranged)?;
        let mut inputs = Vec::with_capacity(self.blocks.len());
        for (layer, block) in self.blocks.iter().enumerate() {
            inputs.push(copy(backend, &hidden)?);
            block.forward(backend, &mut hidden, &self.around(&arranged, layer))?;
        }
        let mut ordered = backend.alloc(features.dtype(), features.shape())?;
        backend.gather_rows(&mut ordered, features, &arranged.order)?;
        let TowerGradients { patch_embedding, blocks, norm, merger } = gradients;
        let mut stream = self.merger.backward(backend, &hidden, &ordered, norm, merger)?;
        let blocks = self.blocks.iter().zip(blocks).zip(&inputs).enumerate().rev();
        for (layer, ((block, room), input)) in blocks {
            block.backward(backend, input, &mut stream, &self.around(&arranged, layer), room)?;
        }
        let Arranged { pixels, .. } = &arranged;
        let embedding = self.patch_embedding.plain();
        backend.linear_backward(None, false, patch_embedding.targets(), &stream, pixels, &embedding)
    }
}

impl Projector {
    /// The gradient of x; those of the weights are added to.
    fn backward(
        &self,
        backend: &dyn Backend,
        x: &Tensor,
        features: &Tensor,
        norm: &mut Tensor,
        [first, second]: &mut [LinearGradients; 2],
    ) -> Result<Tensor> {
        let tokens = features.rows();
        let normed = self.norm.apply(backend, x)?.reshaped(&[tokens, self.inputs])?;
        let wide = || backend.alloc(x.dtype(), &[tokens, self.first.weight.rows()]);
        let (mut before, mut inner, mut dinner) = (wide()?, wide()?, wide()?);
        backend.linear(&mut before, &normed, &self.first.plain(), Epilogue::Store)?;
        let gelu = Epilogue::Activate(Activation::Gelu);
        backend.linear(&mut inner, &normed, &self.first.plain(), gelu)?;
        let linear = self.second.plain();
        backend.linear_backward(Some(&mut dinner), false, second.targets(), features, &inner, &linear)?;
        backend.activate_backward(&mut before, &dinner, Activation::Gelu)?;
        let mut dnormed = backend.alloc(x.dtype(), normed.shape())?;
        let linear = self.first.plain();
        backend.linear_backward(Some(&mut dnormed), false, first.targets(), &before, &normed, &linear)?;
        let mut stream = backend.alloc(x.dtype(), x.shape())?;
        self.norm.backward(backend, &mut stream, false, norm, &dnormed.reshaped(x.shape())?, x)?;
        Ok(stream)
    }
}

impl TowerBlock {
    /// By their place among the seven. Only a block that learns has so many.
    fn linears(&self) -> Vec<&LinearWeights> {
        self.qkv.iter().chain([&self.projection]).chain(self.mlp.linears()).collect()
    }

    /// The gradient `stream` `[T, C]` of what the block gave for `input` becomes that of `input`.
    fn backward(
        &self,
        backend: &dyn Backend,
        input: &Tensor,
        stream: &mut Tensor,
        around: &Surroundings<'_>,
        room: &mut BlockGradients,
    ) -> Result<()> {
        let rows = input.rows();
        let like = |tensor: &Tensor| backend.alloc(tensor.dtype(), tensor.shape());
        let mut lse = backend.alloc(backend.statistic(), &[rows, around.heads])?;
        let (normed, states, attended) = self.look(backend, input, around, Some(&mut lse))?;
        let mut hidden = copy(backend, input)?;
        backend.linear(&mut hidden, &attended, &self.projection.plain(), Epilogue::Add)?;
        self.transform_backward(backend, &hidden, stream, room)?;

        let mut dattended = like(&attended)?;
        let (targets, output) = (room.linears[OUTPUT].targets(), self.projection.plain());
        backend.linear_backward(Some(&mut dattended), false, targets, stream, &attended, &output)?;
        let [queries, keys, values] = &states;
        let heads = queries.shape();
        let (attended, dattended) = (attended.reshaped(heads)?, dattended.reshaped(heads)?);
        let mut grads = AttentionGrads { dq: like(queries)?, dk: like(keys)?, dv: like(values)? };
        let (segments, scale) = around.attention(heads[2]);
        backend.attention_backward(
            &mut grads, &dattended, &attended, &lse, queries, keys, values, &segments, false, scale,
        )?;
        if let Some((rope, positions)) = around.rope {
            backend.rope(&mut grads.dq, positions, rope, true)?;
            backend.rope(&mut grads.dk, positions, rope, true)?;
        }
        let mut dnormed = like(&normed)?;
        for (part, gradient) in [grads.dq, grads.dk, grads.dv].into_iter().enumerate() {
            let gradient = gradient.reshaped(normed.shape())?;
            let (targets, linear) = (room.linears[QUERY + part].targets(), self.qkv[part].plain());
            backend.linear_backward(Some(&mut dnormed), part > 0, targets, &gradient, &normed, &linear)?;
        }
        self.attention_norm.backward(backend, stream, true, &mut room.attention_norm, &dnormed, input)
    }

    /// Through hidden + down(silu(gate(norm(hidden))) * up(norm(hidden))).
    fn transform_backward(
        &self,
        backend: &dyn Backend,
        hidden: &Tensor,
        stream: &mut Tensor,
        room: &mut BlockGradients,
    ) -> Result<()> {
        let Mlp::Gated { gate, up, down } = &self.mlp else {
            return Err(Error::internal(OP, "a plain MLP does not learn"));
        };
        let normed = self.mlp_norm.apply(backend, hidden)?;
        let wide = || backend.alloc(hidden.dtype(), &[hidden.rows(), up.weight.rows()]);
        let (mut gates, mut ups, mut inner) = (wide()?, wide()?, wide()?);
        backend.linear(&mut gates, &normed, &gate.plain(), Epilogue::Store)?;
        backend.linear(&mut ups, &normed, &up.plain(), Epilogue::Store)?;
        // Without targets nobody reads x; it only has its shape.
        let nobody = LinearGrads::default();
        backend.linear_backward(Some(&mut inner), false, nobody, stream, &gates, &down.plain())?;
        // The product itself takes the place of its gradient.
        backend.gated_backward(&mut gates, &mut ups, &mut inner, Activation::Silu)?;
        let mut dnormed = backend.alloc(normed.dtype(), normed.shape())?;
        let targets = room.linears[DOWN].targets();
        backend.linear_backward(None, false, targets, stream, &inner, &down.plain())?;
        let targets = room.linears[GATE].targets();
        backend.linear_backward(Some(&mut dnormed), false, targets, &gates, &normed, &gate.plain())?;
        let targets = room.linears[UP].targets();
        backend.linear_backward(Some(&mut dnormed), true, targets, &ups, &normed, &up.plain())?;
        self.mlp_norm.backward(backend, stream, true, &mut room.mlp_norm, &dnormed, hidden)
    }
}

impl Mlp {
    fn linears(&self) -> Vec<&LinearWeights> {
        match self {
            Mlp::Plain { up, down, .. } => vec![up, down],
            Mlp::Gated { gate, up, down } => vec![gate, up, down],
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut LinearWeights> {
        match self {
            Mlp::Plain { up, down, .. } => vec![up, down],
            Mlp::Gated { gate, up, down } => vec![gate, up, down],
        }
    }
}

impl Norm {
    fn weight(&self) -> &Tensor {
        match self {
            Norm::Layer { weight, .. } | Norm::Rms { weight, .. } => weight,
        }
    }

    fn weight_mut(&mut self) -> &mut Tensor {
        match self {
            Norm::Layer { weight, .. } | Norm::Rms { weight, .. } => weight,
        }
    }

    /// As [`Backend::rms_norm_backward`].
    fn backward(
        &self,
        backend: &dyn Backend,
        dx: &mut Tensor,
        add: bool,
        dweight: &mut Tensor,
        dy: &Tensor,
        x: &Tensor,
    ) -> Result<()> {
        let Norm::Rms { weight, eps } = self else {
            return Err(Error::internal(OP, "a layer norm does not learn"));
        };
        backend.rms_norm_backward(dx, add, Some(dweight), dy, x, weight, *eps)
    }
}

/// The same rows in memory of their own.
fn copy(backend: &dyn Backend, x: &Tensor) -> Result<Tensor> {
    let mut copy = backend.alloc(x.dtype(), x.shape())?;
    let rows: Vec<i32> = (0..x.rows() as i32).collect();
    backend.gather_rows(&mut copy, x, &super::index(backend, &rows)?)?;
    Ok(copy)
}
