//! Planes to RGB: chroma enlarged by the triangle filter ("fancy upsampling"), then the colour transform, both in
//! libjpeg's integers.

use super::{Colours, Frame};
use crate::prompt::image::Rgb;
use crate::prompt::image::vectorised::vectorised;
use rayon::prelude::*;

pub(super) fn rgb(frame: &Frame, planes: &[Vec<u8>], colours: Colours) -> Rgb {
    let (width, height) = (frame.width, frame.height);
    let mut pixels = vec![0; width * height * 3];
    pixels.par_chunks_exact_mut(width * 3).enumerate().for_each_init(
        // Enlarging may write a few samples beyond the width.
        || vec![vec![0; width + 8]; planes.len()],
        |lines, (y, out)| {
            vectorised(|| {
                for (index, line) in lines.iter_mut().enumerate() {
                    enlarge(frame, index, &planes[index], y, line);
                }
                convert(lines, colours, out.as_chunks_mut::<3>().0);
            });
        },
    );
    Rgb { width, height, pixels }
}

/// Row `y` of the image in one component.
#[inline(always)]
fn enlarge(frame: &Frame, index: usize, plane: &[u8], y: usize, out: &mut [u8]) {
    let component = &frame.components[index];
    let (width, height) = component.size;
    let stride = component.blocks.0 * 8;
    let row = |at: usize| &plane[at * stride..][..width];
    let (across, down) = (frame.sampling.0 / component.sampling.0, frame.sampling.1 / component.sampling.1);
    let at = y / down;
    let near = row(at);
    // The other row that a row between rows lies next to; the picture's edges repeat.
    let other = row(if y.is_multiple_of(2) { at.saturating_sub(1) } else { (at + 1).min(height - 1) });
    match (across, down) {
        (1, 1) => out[..width].copy_from_slice(near),
        (2, 1) if width > 2 => triangle(width, |x| i32::from(near[x]) * 4, [4, 8], out),
        (2, 2) if width > 2 => {
            triangle(width, |x| i32::from(near[x]) * 3 + i32::from(other[x]), [8, 7], out);
        }
        (1, 2) => {
            let bias = if y.is_multiple_of(2) { 1 } else { 2 };
            for ((out, near), other) in out.iter_mut().zip(near).zip(other) {
                *out = ((i32::from(*near) * 3 + i32::from(*other) + bias) >> 2) as u8;
            }
        }
        _ => {
            for (out, x) in out[..frame.width].iter_mut().zip(0..) {
                *out = near[x / across];
            }
        }
    }
}

/// Twice as many samples, each three parts its own column and one part the next; `column` gives a column's sum in
/// sixteenths over four, `bias` the rounding of left and right halves in sixteenths.
#[inline(always)]
fn triangle(width: usize, column: impl Fn(usize) -> i32, bias: [i32; 2], out: &mut [u8]) {
    let sample = |own: usize, next: usize, bias: i32| ((column(own) * 3 + column(next) + bias) >> 4) as u8;
    let pairs = out.as_chunks_mut::<2>().0;
    for (x, pair) in pairs[..width].iter_mut().enumerate().skip(1).take(width - 2) {
        *pair = [sample(x, x - 1, bias[0]), sample(x, x + 1, bias[1])];
    }
    pairs[0] = [sample(0, 0, bias[0]), sample(0, 1, bias[1])];
    let last = width - 1;
    pairs[last] = [sample(last, last - 1, bias[0]), sample(last, last, bias[1])];
}

/// One row of components to RGB.
#[inline(always)]
fn convert(lines: &[Vec<u8>], colours: Colours, out: &mut [[u8; 3]]) {
    match colours {
        Colours::Grey => {
            for (out, &grey) in out.iter_mut().zip(&lines[0]) {
                *out = [grey; 3];
            }
        }
        Colours::Rgb | Colours::YCbCr => {
            let planes = lines[0].iter().zip(&lines[1]).zip(&lines[2]);
            for (out, ((&a, &b), &c)) in out.iter_mut().zip(planes) {
                *out = if colours == Colours::Rgb { [a, b, c] } else { from_ycbcr(a, b, c) };
            }
        }
        Colours::Cmyk | Colours::Ycck => {
            let planes = lines[0].iter().zip(&lines[1]).zip(&lines[2]).zip(&lines[3]);
            for (out, (((&a, &b), &c), &light)) in out.iter_mut().zip(planes) {
                // Adobe stores ink inverted, and everyone believes that of all files: 255 is no ink.
                let inverted = if colours == Colours::Cmyk {
                    [a, b, c]
                } else {
                    from_ycbcr(a, b, c).map(|value| 255 - value)
                };
                *out = inverted.map(|value| {
                    let shade = u32::from(255 - value) * u32::from(light) + 128;
                    light.saturating_sub((((shade >> 8) + shade) >> 8) as u8)
                });
            }
        }
    }
}

#[inline(always)]
fn from_ycbcr(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91881 * cr + HALF) >> 16);
    let green = y + ((-22554 * cb - 46802 * cr + HALF) >> 16);
    let blue = y + ((116130 * cb + HALF) >> 16);
    [red, green, blue].map(|value| value.clamp(0, 255) as u8)
}
