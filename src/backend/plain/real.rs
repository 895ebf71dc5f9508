//! The arithmetic behind the plain ops, so that one text serves f64 and f32.

use crate::tensor::{Dtype, Element};
use half::bf16;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

/// The arithmetic a plain backend computes in: f32 or f64.
pub trait Real:
    Element
    + Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
{
    /// From any float we store (exact for those that fit).
    fn of(value: f64) -> Self;
    /// As f64, exact.
    fn wide(self) -> f64;
    /// The value a product with operands of `dtype` sees.
    fn rounded_for(self, dtype: Dtype) -> Self;
    /// eˣ
    fn exp(self) -> Self;
    /// ln x
    fn ln(self) -> Self;
    /// √x
    fn sqrt(self) -> Self;
    /// tanh x
    fn tanh(self) -> Self;
    /// erf x
    fn erf(self) -> Self;
    /// sin and cos x
    fn sin_cos(self) -> (Self, Self);
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }
    fn wide(self) -> f64 {
        self
    }
    fn rounded_for(self, _: Dtype) -> Self {
        self
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn tanh(self) -> Self {
        self.tanh()
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn sin_cos(self) -> (Self, Self) {
        self.sin_cos()
    }
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
    fn wide(self) -> f64 {
        self.into()
    }
    fn rounded_for(self, dtype: Dtype) -> Self {
        if dtype == Dtype::BF16 { bf16::from_f32(self).to_f32() } else { self }
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn tanh(self) -> Self {
        self.tanh()
    }
    fn erf(self) -> Self {
        libm::erff(self)
    }
    fn sin_cos(self) -> (Self, Self) {
        self.sin_cos()
    }
}
