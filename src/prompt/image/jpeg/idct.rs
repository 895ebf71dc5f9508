//! Coefficients to samples: the "slow integer" inverse transform, Loeffler, Ligtenberg and Moschytz's with 13-bit
//! constants, rounded where libjpeg rounds.

use super::Component;
use crate::prompt::image::vectorised::vectorised;
use rayon::prelude::*;
use std::num::Wrapping;

/// The component's samples. [blocks.1 * 8, blocks.0 * 8]
pub(super) fn plane(component: &Component) -> Result<Vec<u8>, String> {
    let Some(quantiser) = &component.quantiser else {
        return Err(format!("no scan carries component {}", component.id));
    };
    let stride = component.blocks.0 * 8;
    let mut samples = vec![0; stride * component.blocks.1 * 8];
    let rows = component.coefficients.par_chunks_exact(component.blocks.0);
    samples.par_chunks_exact_mut(stride * 8).zip(rows).for_each(|(samples, blocks)| {
        vectorised(|| {
            for (x, block) in blocks.iter().enumerate() {
                for (line, bytes) in inverse(block, quantiser).into_iter().enumerate() {
                    samples[line * stride + x * 8..][..8].copy_from_slice(&bytes);
                }
            }
        });
    });
    Ok(samples)
}

type Lanes = [Wrapping<i32>; 8];

/// Extra bits kept between the passes, and in the constants.
const BETWEEN: usize = 2;
const CONSTANT: usize = 13;

#[inline(always)]
fn inverse(block: &[i16; 64], quantiser: &[u16; 64]) -> [[u8; 8]; 8] {
    if block[1..].iter().all(|&coefficient| coefficient == 0) {
        // Both passes of a lone DC come to this.
        let level = i32::from(block[0].wrapping_mul(quantiser[0] as i16));
        return [[centred((level + 4) >> 3); 8]; 8];
    }
    let input: [Lanes; 8] = std::array::from_fn(|row| {
        std::array::from_fn(|column| {
            let at = row * 8 + column;
            Wrapping(i32::from(block[at].wrapping_mul(quantiser[at] as i16)))
        })
    });
    let columns = pass(input, CONSTANT - BETWEEN);
    let rows = pass(transposed(columns), CONSTANT + BETWEEN + 3);
    let mut samples = [[0; 8]; 8];
    for (row, line) in samples.iter_mut().enumerate() {
        for (sample, column) in line.iter_mut().zip(&rows) {
            *sample = centred(column[row].0);
        }
    }
    samples
}

#[inline(always)]
fn centred(sample: i32) -> u8 {
    (sample + 128).clamp(0, 255) as u8
}

#[inline(always)]
fn transposed(rows: [Lanes; 8]) -> [Lanes; 8] {
    std::array::from_fn(|row| std::array::from_fn(|column| rows[column][row]))
}

#[inline(always)]
fn lanes(f: impl Fn(usize) -> Wrapping<i32>) -> Lanes {
    std::array::from_fn(f)
}

/// One dimension, eight lanes at a time, `drop` bits rounded away.
#[inline(always)]
fn pass(input: [Lanes; 8], drop: usize) -> [Lanes; 8] {
    let times = |a: Lanes, constant: i32| lanes(|i| a[i] * Wrapping(constant));
    let add = |a: Lanes, b: Lanes| lanes(|i| a[i] + b[i]);
    let sub = |a: Lanes, b: Lanes| lanes(|i| a[i] - b[i]);
    let round = |a: Lanes| lanes(|i| (a[i] + Wrapping(1 << (drop - 1))) >> drop);

    let shared = times(add(input[2], input[6]), 4433);
    let even2 = sub(shared, times(input[6], 15137));
    let even3 = add(shared, times(input[2], 6270));
    let even0 = lanes(|i| (input[0][i] + input[4][i]) << CONSTANT);
    let even1 = lanes(|i| (input[0][i] - input[4][i]) << CONSTANT);
    let even = [add(even0, even3), add(even1, even2), sub(even1, even2), sub(even0, even3)];

    let (a, b, c, d) = (input[7], input[5], input[3], input[1]);
    let fifth = times(add(add(a, c), add(b, d)), 9633);
    let ad = times(add(a, d), -7373);
    let bc = times(add(b, c), -20995);
    let ac = add(times(add(a, c), -16069), fifth);
    let bd = add(times(add(b, d), -3196), fifth);
    let odd = [
        add(times(d, 12299), add(ad, bd)),
        add(times(c, 25172), add(bc, ac)),
        add(times(b, 16819), add(bc, bd)),
        add(times(a, 2446), add(ad, ac)),
    ];
    let sum = |i: usize| round(add(even[i], odd[i]));
    let difference = |i: usize| round(sub(even[i], odd[i]));
    [sum(0), sum(1), sum(2), sum(3), difference(3), difference(2), difference(1), difference(0)]
}
