//! Bicubic resampling, to the last bit as the reference processors do it.
//!
//! Pillow and torch share one algorithm for 8-bit pixels: antialiased bicubic (a = -0.5) weights in f64,
//! normalised, rounded to fixed point; rows first, then columns, each pass rounded and clamped to a byte. They
//! differ in one thing alone, the precision of the fixed-point weights, and that is [`Arithmetic`].
//!
//! Speed comes from layout: sixteen rows are transposed so that one weight multiplies 48 neighbouring bytes, and
//! both passes become the same loop, "sum of byte vectors times weights", compiled once more for AVX2.

use super::Rgb;
use super::vectorised::vectorised;
use rayon::prelude::*;
use std::borrow::Cow;

/// Whose fixed-point weights to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// torch's native 8-bit kernel (the "fast" processors): as many bits as keep every weight in an i16.
    Torch,
    /// Pillow's `Image.resize`: 22 bits. (From version 13 on Pillow begins with the columns where that drops more
    /// than twice as many rows as columns, so images that lose much of their height alone differ by a level.)
    Pil,
}

/// The image at `width` x `height`. An axis whose length stays is not touched.
pub fn bicubic(image: &Rgb, width: usize, height: usize, arithmetic: Arithmetic) -> Rgb {
    let mut image = Cow::Borrowed(image);
    if width != image.width {
        let pixels = along_rows(&image, &Taps::new(image.width, width, arithmetic));
        image = Cow::Owned(Rgb { width, height: image.height, pixels });
    }
    if height != image.height {
        let pixels = along_columns(&image, &Taps::new(image.height, height, arithmetic));
        image = Cow::Owned(Rgb { width, height, pixels });
    }
    image.into_owned()
}

/// For every output position, which inputs it sees and with what fixed-point weights.
struct Taps {
    first: Vec<usize>,      // [to]
    weights: Vec<Vec<i32>>, // [to][taps]
    precision: u32,
}

impl Taps {
    fn new(from: usize, to: usize, arithmetic: Arithmetic) -> Taps {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let (support, shrink) = (2.0 * stretch, 1.0 / stretch);
        let mut largest = 0.0f64;
        let (first, real): (Vec<usize>, Vec<Vec<f64>>) = (0..to)
            .map(|position| {
                let centre = (position as f64 + 0.5) * scale;
                let first = (centre - support + 0.5).max(0.0) as usize;
                let end = ((centre + support + 0.5) as usize).min(from);
                let mut weights: Vec<f64> =
                    (first..end).map(|input| cubic((input as f64 - centre + 0.5) * shrink)).collect();
                let total: f64 = weights.iter().sum();
                for weight in &mut weights {
                    *weight /= total;
                    largest = largest.max(*weight);
                }
                (first, weights)
            })
            .unzip();
        let precision = match arithmetic {
            Arithmetic::Pil => 22,
            Arithmetic::Torch => (0..22)
                .find(|bits| (0.5 + largest * f64::from(1u32 << (bits + 1))) as i32 >= 1 << 15)
                .unwrap_or(22),
        };
        let fixed = |weight: f64| {
            (weight * f64::from(1u32 << precision) + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        let weights = real.into_iter().map(|taps| taps.into_iter().map(fixed).collect()).collect();
        Taps { first, weights, precision }
    }
}

/// Keys' cubic with a = -0.5.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    } else {
        0.0
    }
}

/// Rows handled together by the first pass, and the bytes that one weight then multiplies.
const ROWS: usize = 16;
const LANES: usize = ROWS * 3;

fn along_rows(image: &Rgb, taps: &Taps) -> Vec<u8> {
    let (row, new_row) = (image.width * 3, taps.first.len() * 3);
    let mut out = vec![0; image.height * new_row];
    out.par_chunks_mut(ROWS * new_row).zip(image.pixels.par_chunks(ROWS * row)).for_each_init(
        || (vec![[0; LANES]; image.width], vec![[0; LANES]; taps.first.len()]),
        |(lanes, new_lanes), (out, rows)| {
            for (index, line) in rows.chunks_exact(row).enumerate() {
                for (lane, pixel) in lanes.iter_mut().zip(line.chunks_exact(3)) {
                    lane[index * 3..index * 3 + 3].copy_from_slice(pixel);
                }
            }
            vectorised(|| {
                for ((lane, &first), weights) in new_lanes.iter_mut().zip(&taps.first).zip(&taps.weights) {
                    *lane = weigh(lanes[first..].iter().zip(weights), taps.precision);
                }
            });
            for (index, line) in out.chunks_exact_mut(new_row).enumerate() {
                for (lane, pixel) in new_lanes.iter().zip(line.chunks_exact_mut(3)) {
                    pixel.copy_from_slice(&lane[index * 3..index * 3 + 3]);
                }
            }
        },
    );
    out
}

fn along_columns(image: &Rgb, taps: &Taps) -> Vec<u8> {
    let row = image.width * 3;
    let mut out = vec![0; row * taps.first.len()];
    out.par_chunks_exact_mut(row).zip(&taps.first).zip(&taps.weights).for_each(|((out, &first), weights)| {
        let rows = &image.pixels[first * row..];
        vectorised(|| {
            let (wide, narrow) = out.as_chunks_mut::<LANES>();
            let start = wide.len() * LANES;
            for (index, bytes) in wide.iter_mut().enumerate() {
                *bytes = weigh(column(rows, row, index * LANES).zip(weights), taps.precision);
            }
            for (index, pixel) in narrow.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                *pixel = weigh(column(rows, row, start + index * 3).zip(weights), taps.precision);
            }
        });
    });
    out
}

/// The `N` bytes at `offset` of every row.
#[inline(always)]
fn column<const N: usize>(rows: &[u8], row: usize, offset: usize) -> impl Iterator<Item = &[u8; N]> {
    rows.chunks_exact(row)
        .map(move |line| line[offset..].first_chunk().expect("offset + N is within the row"))
}

#[inline(always)]
fn weigh<'a, const N: usize>(
    inputs: impl Iterator<Item = (&'a [u8; N], &'a i32)>,
    precision: u32,
) -> [u8; N] {
    let mut sums = [1i32 << (precision - 1); N];
    for (bytes, &weight) in inputs {
        for (sum, &byte) in sums.iter_mut().zip(bytes) {
            *sum += weight * i32::from(byte);
        }
    }
    let mut bytes = [0; N];
    for (byte, sum) in bytes.iter_mut().zip(sums) {
        *byte = (sum >> precision).clamp(0, 255) as u8;
    }
    bytes
}
