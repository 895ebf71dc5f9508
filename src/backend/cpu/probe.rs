//! What this machine can do at most, measured: the ceilings that speeds are shares of.

use super::{
    Cpu,
    isa::{Isa, LANES, with_isa},
};
use crate::{error::Result, tensor::Tensor};
use half::bf16;
use std::{hint::black_box, time::Instant};

/// Ceilings of one machine with a given number of threads.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// Bytes per second when all threads read memory that no cache holds.
    pub read: f64,
    /// Floating-point operations per second of bf16 dot products on registers.
    pub bf16: f64,
    /// Floating-point operations per second of f32 multiply-adds on registers.
    pub f32: f64,
}

/// Bytes read by the bandwidth probe: many times any cache.
const BYTES: usize = 1 << 29;

/// Steps of the arithmetic probes.
const STEPS: usize = 1 << 22;

/// Vectors in flight in the probes: enough to hide an instruction's latency.
const CHAINS: usize = 12;

impl Cpu {
    /// Measures the ceilings, the best of `rounds`; a round takes some tenths of a second.
    pub fn ceilings(&self, rounds: usize) -> Result<Ceilings> {
        let mut memory = Tensor::zeros(crate::tensor::Dtype::F32, &[BYTES / 4])?;
        memory.as_mut_slice::<f32>()?.fill(1.0); // what was never written is one page, in a cache
        let memory = memory.as_slice::<f32>()?;
        let mut best = Ceilings { read: 0.0, bf16: 0.0, f32: 0.0 };
        for _ in 0..rounds {
            with_isa!(self.level, isa => {
                let seconds = self.timed(|thread| {
                    let share = memory.len() / self.threads;
                    isa.run(#[inline(always)] || read(isa, &memory[thread * share..][..share]))
                });
                best.read = best.read.max(BYTES as f64 / seconds);
                let operations = (STEPS * CHAINS * LANES * self.threads) as f64;
                let seconds = self.timed(|_| isa.run(#[inline(always)] || multiply_f32(isa)));
                best.f32 = best.f32.max(2.0 * operations / seconds);
                let seconds = self.timed(|_| isa.run(#[inline(always)] || multiply_bf16(isa)));
                best.bf16 = best.bf16.max(4.0 * operations / seconds);
            });
        }
        Ok(best)
    }

    /// Seconds until every thread has done its work once.
    fn timed(&self, work: impl Fn(usize) -> [f32; LANES] + Sync) -> f64 {
        let start = Instant::now();
        self.spread((0..self.threads).collect(), |thread| {
            black_box(work(thread));
        });
        start.elapsed().as_secs_f64()
    }
}

/// All chains' sums, so that none of them can be left out.
#[inline(always)]
fn total<I: Isa>(isa: I, chains: [I::Lanes; CHAINS]) -> [f32; LANES] {
    let one = isa.splat(1.0);
    let sum = chains.into_iter().fold(isa.zero(), |sum, chain| isa.multiply_add(chain, one, sum));
    let mut out = [0.0; LANES];
    isa.store(sum, &mut out);
    out
}

#[inline(always)]
fn read<I: Isa>(isa: I, memory: &[f32]) -> [f32; LANES] {
    let mut sums = [isa.zero(); CHAINS];
    let one = isa.splat(1.0);
    for block in memory.as_chunks::<LANES>().0.as_chunks::<CHAINS>().0 {
        for (sum, step) in sums.iter_mut().zip(block) {
            *sum = isa.multiply_add(isa.load(step), one, *sum);
        }
    }
    total(isa, sums)
}

#[inline(always)]
fn multiply_f32<I: Isa>(isa: I) -> [f32; LANES] {
    let mut sums = [isa.zero(); CHAINS];
    let (a, b) = (isa.splat(black_box(0.5)), isa.splat(black_box(0.25)));
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = isa.multiply_add(*sum, a, b);
        }
    }
    total(isa, sums)
}

#[inline(always)]
fn multiply_bf16<I: Isa>(isa: I) -> [f32; LANES] {
    let mut sums = [isa.zero(); CHAINS];
    let (a, b) =
        (isa.pairs(&black_box([bf16::ONE; 2 * LANES])), isa.pairs(&black_box([bf16::ONE; 2 * LANES])));
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = isa.add_products(*sum, a, b);
        }
    }
    total(isa, sums)
}
