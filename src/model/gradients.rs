//! Room for the gradients of parameters, shaped like the parameters.

use super::adapter::{Adapter, Projection};
use super::decoder::Decoder;
use super::weights::LinearWeights;
use crate::backend::{Backend, LinearGrads, LoraGrads};
use crate::error::Result;
use crate::tensor::Tensor;

/// Gradients of a linear.
#[derive(Debug, Default)]
pub(super) struct LinearGradients {
    pub(super) weight: Option<Tensor>,    // [N, K]
    pub(super) bias: Option<Tensor>,      // [N]
    pub(super) pair: Option<[Tensor; 2]>, // [R, K], [N, R]
}

impl LinearGradients {
    /// Zeros for the weights of a linear.
    pub(super) fn of(backend: &dyn Backend, linear: &LinearWeights) -> Result<Self> {
        let zeros = |tensor: &Tensor| zeros_like(backend, tensor);
        let bias = linear.bias.as_ref().map(zeros).transpose()?;
        Ok(LinearGradients { weight: Some(zeros(&linear.weight)?), bias, pair: None })
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.weight.iter().chain(&self.bias).chain(self.pair.iter().flatten())
    }

    pub(super) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.weight.iter_mut().chain(&mut self.bias).chain(self.pair.iter_mut().flatten())
    }

    /// As an op takes them.
    pub(super) fn targets(&mut self) -> LinearGrads<'_> {
        let lora = self.pair.iter_mut().map(|[a, b]| LoraGrads { a, b }).collect();
        LinearGrads { weight: self.weight.as_mut(), bias: self.bias.as_mut(), lora }
    }
}

/// Gradients of a block.
#[derive(Debug, Default)]
pub(super) struct BlockGradients {
    pub(super) attention_norm: Option<Tensor>,  // [C]
    pub(super) head_norms: Option<[Tensor; 2]>, // [D] each
    pub(super) ffn_norm: Option<Tensor>,        // [C]
    pub(super) linears: [LinearGradients; 7],   // by Projection
}

/// Gradients of what is trained: of an adapter, or of a whole decoder.
#[derive(Debug)]
pub struct Gradients {
    pub(super) embedding: Option<Tensor>, // [V, C]
    pub(super) blocks: Vec<BlockGradients>,
    pub(super) norm: Option<Tensor>, // [C]
    /// None where the head is the embedding.
    pub(super) head: Option<Tensor>, // [V, C]
}

impl Gradients {
    /// Zeros for every pair of an adapter.
    pub fn of_adapter(backend: &dyn Backend, adapter: &Adapter) -> Result<Self> {
        let block = |pairs: &[Option<super::adapter::Pair>; 7]| -> Result<BlockGradients> {
            let mut block = BlockGradients::default();
            for (linear, pair) in block.linears.iter_mut().zip(pairs) {
                let zeros = |pair: &super::adapter::Pair| -> Result<[Tensor; 2]> {
                    Ok([zeros_like(backend, &pair.a)?, zeros_like(backend, &pair.b)?])
                };
                linear.pair = pair.as_ref().map(zeros).transpose()?;
            }
            Ok(block)
        };
        let blocks = adapter.pairs.iter().map(block).collect::<Result<_>>()?;
        Ok(Gradients { embedding: None, blocks, norm: None, head: None })
    }

    /// Zeros for every weight of a decoder.
    pub fn of_decoder(backend: &dyn Backend, decoder: &Decoder) -> Result<Self> {
        let zeros = |tensor: &Tensor| zeros_like(backend, tensor);
        let blocks = decoder.blocks.iter().map(|block| -> Result<BlockGradients> {
            let mut linears: [LinearGradients; 7] = Default::default();
            for projection in Projection::ALL {
                linears[projection as usize] = LinearGradients::of(backend, block.linear(projection))?;
            }
            let head_norms = block.head_norms.as_ref();
            Ok(BlockGradients {
                attention_norm: Some(zeros(&block.attention_norm)?),
                head_norms: head_norms.map(|(q, k)| Ok([zeros(q)?, zeros(k)?])).transpose()?,
                ffn_norm: Some(zeros(&block.ffn_norm)?),
                linears,
            })
        });
        Ok(Gradients {
            embedding: Some(zeros(&decoder.embedding)?),
            blocks: blocks.collect::<Result<_>>()?,
            norm: Some(zeros(&decoder.norm)?),
            head: decoder.head.as_ref().map(zeros).transpose()?,
        })
    }

    /// Every gradient, in the order in which the parameters are listed.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let mut all: Vec<&Tensor> = self.embedding.iter().collect();
        for block in &self.blocks {
            all.extend(&block.attention_norm);
            all.extend(block.head_norms.iter().flatten());
            all.extend(&block.ffn_norm);
            all.extend(block.linears.iter().flat_map(LinearGradients::tensors));
        }
        all.extend(self.norm.iter().chain(&self.head));
        all
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self, backend: &dyn Backend) -> Result<()> {
        self.tensors_mut().into_iter().try_for_each(|tensor| backend.zero(tensor))
    }

    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let mut all: Vec<&mut Tensor> = self.embedding.iter_mut().collect();
        for block in &mut self.blocks {
            all.extend(&mut block.attention_norm);
            all.extend(block.head_norms.iter_mut().flatten());
            all.extend(&mut block.ffn_norm);
            all.extend(block.linears.iter_mut().flat_map(LinearGradients::tensors_mut));
        }
        all.extend(self.norm.iter_mut().chain(&mut self.head));
        all
    }
}

/// Room for the gradient of a tensor.
pub(super) fn zeros_like(backend: &dyn Backend, tensor: &Tensor) -> Result<Tensor> {
    let mut zeros = backend.alloc(backend.statistic(), tensor.shape())?;
    backend.zero(&mut zeros)?;
    Ok(zeros)
}
