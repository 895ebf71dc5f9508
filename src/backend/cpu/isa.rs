//! The few vector operations that everything fast on the CPU is made of, and who provides them.
//!
//! A value of a type that implements [`Isa`] is the proof that this processor has those instructions:
//! it can only be had by asking the processor. Kernels are written once, generic over it, and compiled
//! once per instruction set inside [`Isa::run`]. An instruction set has one order of summation per pair of
//! dtypes; different sets may round differently.

#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use crate::error::{Error, Result};
use half::bf16;

/// f32 lanes of one vector, on every instruction set.
pub(super) const LANES: usize = 16;

/// Columns that one block of dot products spans.
pub(super) const COLUMNS: usize = 4;

/// Vectors of 16 f32 lanes.
pub(super) trait Isa: Copy + Send + Sync {
    /// 16 f32.
    type Lanes: Copy;
    /// 32 bf16, to be multiplied pair by pair.
    type Pairs: Copy;
    /// Whether there are registers for blocks of eight rows and three vectors.
    const TALL: bool;
    /// Runs work compiled for these instructions. What is to profit must be inlined into `work`.
    fn run<R>(self, work: impl FnOnce() -> R) -> R;
    /// 0 in every lane.
    fn zero(self) -> Self::Lanes;
    /// One value in every lane.
    fn splat(self, value: f32) -> Self::Lanes;
    /// 16 consecutive values.
    fn load(self, from: &[f32; LANES]) -> Self::Lanes;
    /// 16 consecutive values, widened.
    fn widen(self, from: &[bf16; LANES]) -> Self::Lanes;
    /// Writes the lanes in order.
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]);
    /// a·b + c, fused where the instruction set fuses.
    fn multiply_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    /// Starts to bring memory into the first cache; only a hint, and harmless wherever it points.
    fn prefetch<T>(self, from: *const T);
    /// 32 consecutive values.
    fn pairs(self, from: &[bf16; 2 * LANES]) -> Self::Pairs;
    /// One pair in every place.
    fn repeat(self, pair: &[bf16; 2]) -> Self::Pairs;
    /// Adds to each lane the two products of its pair.
    fn add_products(self, sums: Self::Lanes, a: Self::Pairs, b: Self::Pairs) -> Self::Lanes;
    /// The sum over each vector's lanes, by one fixed tree.
    fn sums(self, vectors: [Self::Lanes; COLUMNS]) -> [f32; COLUMNS];
    /// All products of rows of bf16, where this instruction set has its own way; says whether it has.
    #[inline(always)]
    fn own_products(self, _out: &mut [f32], _x: &[&[bf16]], _w: &[&[bf16]]) -> bool {
        false
    }
    /// The same of rows of f32.
    #[inline(always)]
    fn own_float_products(self, _out: &mut [f32], _x: &[&[f32]], _w: &[&[f32]]) -> bool {
        false
    }
}

/// The instruction sets there are kernels for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Level {
    Portable(super::portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// The variable that forces an instruction set.
const VARIABLE: &str = "PELLUCID_CPU";

impl Level {
    /// All that this processor has, the best last.
    pub(super) fn available() -> Vec<Level> {
        #[allow(unused_mut, reason = "other processors have the portable level alone")]
        let mut levels = vec![Level::Portable(super::portable::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx2::detect().map(Level::Avx2));
            levels.extend(Avx512::detect().map(Level::Avx512));
        }
        levels
    }

    /// The one called `name`, or else the one the environment names, or else the best.
    pub(super) fn choose(name: Option<&str>) -> Result<Level> {
        let asked = name.map(str::to_owned).or_else(|| std::env::var(VARIABLE).ok());
        let mut levels = Level::available();
        let Some(asked) = asked else {
            return levels.pop().ok_or_else(|| Error::internal("cpu", "no portable kernels"));
        };
        let names: Vec<_> = levels.iter().map(Level::name).collect();
        levels.iter().find(|level| level.name() == asked).copied().ok_or_else(|| {
            Error::caller("cpu", format!("{VARIABLE}={asked}, but this processor has {}", names.join(", ")))
        })
    }

    /// The name the environment variable takes.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Level::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
        }
    }
}

/// Evaluates an expression once for each instruction set, with its proof bound to a name.
macro_rules! with_isa {
    ($level:expr, $isa:ident => $work:expr) => {
        match $level {
            $crate::backend::cpu::isa::Level::Portable($isa) => $work,
            #[cfg(target_arch = "x86_64")]
            $crate::backend::cpu::isa::Level::Avx2($isa) => $work,
            #[cfg(target_arch = "x86_64")]
            $crate::backend::cpu::isa::Level::Avx512($isa) => $work,
        }
    };
}
pub(super) use with_isa;
