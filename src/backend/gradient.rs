//! What the backward ops write to, and what the optimiser updates.
//!
//! Gradients of activations have the activation dtype; gradients of parameters and the optimiser's state have the
//! statistic dtype, and parameter gradients are always added to, so that microbatches sum up.

use crate::tensor::Tensor;

/// Results of [`super::Backend::attention_backward`], all stored, in the activation dtype.
#[derive(Debug)]
pub struct AttentionGrads {
    /// `[T, H, D]`
    pub dq: Tensor,
    /// `[T, G, D]`
    pub dk: Tensor,
    /// `[T, G, D]`
    pub dv: Tensor,
}

/// Which parameters' gradients a linear adds to; all in the statistic dtype.
#[derive(Debug, Default)]
pub struct LinearGrads<'a> {
    /// dW += dyᵀ·x `[N, K]`
    pub weight: Option<&'a mut Tensor>,
    /// db += Σ dy `[N]`
    pub bias: Option<&'a mut Tensor>,
    /// One for each adapter of the linear, or none at all.
    pub lora: Vec<LoraGrads<'a>>,
}

/// Gradients of one adapter's pair, over the rows it serves.
#[derive(Debug)]
pub struct LoraGrads<'a> {
    /// dA += s·(dy·B)ᵀ·x `[R, K]`
    pub a: &'a mut Tensor,
    /// dB += s·dyᵀ·(x·Aᵀ) `[N, R]`
    pub b: &'a mut Tensor,
}

/// One parameter and its state, of one length; all but the weight in the statistic dtype.
#[derive(Debug)]
pub struct AdamwParameter<'a> {
    /// The parameter that the optimiser updates.
    pub master: &'a mut Tensor,
    /// Running mean of the gradient.
    pub first: &'a mut Tensor,
    /// Running mean of the gradient's square.
    pub second: &'a mut Tensor,
    /// This step's gradient, before [`AdamwSettings::scale`].
    pub gradient: &'a Tensor,
    /// The copy that the forward ops read, which gets the new master rounded to its dtype.
    pub weight: Option<&'a mut Tensor>,
    /// Decoupled weight decay.
    pub decay: f32,
}

/// What all parameters of a step share.
#[derive(Debug, Clone, Copy)]
pub struct AdamwSettings {
    /// η of this step.
    pub learning_rate: f32,
    /// β₁
    pub beta1: f32,
    /// β₂
    pub beta2: f32,
    /// ε, added to the corrected root.
    pub eps: f32,
    /// Counted from 1, for the bias correction.
    pub step: u64,
    /// What gradients are multiplied by first: clipping, an average's divisor.
    pub scale: f32,
}
