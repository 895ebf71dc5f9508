//! Scalar functions without branches, so that a loop over a slice becomes vectors, and the reduction trees
//! for slices. All of it uses plain additions and multiplications: the bits are those of IEEE arithmetic
//! whatever instructions the caller is compiled for and wherever in a slice an element stands.

use super::isa::LANES;
use crate::backend::Activation;
use half::bf16;

/// The sum over lanes by halving.
#[inline(always)]
pub(super) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// Σ f(value): element i goes to lane i mod 16, then the lanes' tree.
#[inline(always)]
pub(super) fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    sums(
        values,
        #[inline(always)]
        |value| [f(value)],
    )[0]
}

/// Several such sums at once.
#[inline(always)]
pub(super) fn sums<const N: usize>(values: &[f32], f: impl Fn(f32) -> [f32; N]) -> [f32; N] {
    let (steps, rest) = values.as_chunks::<LANES>();
    let mut lanes = [[0.0; LANES]; N];
    for step in steps {
        for lane in 0..LANES {
            let terms = f(step[lane]);
            for n in 0..N {
                lanes[n][lane] += terms[n];
            }
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        let terms = f(value);
        for n in 0..N {
            lanes[n][lane] += terms[n];
        }
    }
    lanes.map(sum_lanes)
}

/// The greatest value; −∞ of none.
#[inline(always)]
pub(super) fn greatest(values: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let (steps, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for step in steps {
        for lane in 0..LANES {
            lanes[lane] = greater(lanes[lane], step[lane]);
        }
    }
    rest.iter().chain(&lanes).copied().fold(f32::NEG_INFINITY, greater)
}

/// The nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(super) fn narrow(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    bf16::from_bits(((if value.is_nan() { bits | 0x40_0000 } else { rounded }) >> 16) as u16)
}

/// bf16 is the upper half of an f32.
#[inline(always)]
pub(super) fn wide(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// Keeps NaN, unlike `f32::clamp` keeps order of arguments: comparisons that fail leave x alone.
#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// eˣ within 1.5 units in the last place, over the whole range including subnormal results.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding and taking it away rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
    /// ln 2 in two parts; the first has so few bits that whole multiples of it are exact.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = clamp(x, -105.0, 89.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2.0) - n * LN_2.1; // |r| <= ln 2 / 2
    // The Taylor series leaves out less than 2⁻²⁷ here.
    let mut series = 1.0 / 5040.0;
    for inverse in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        series = series * r + inverse;
    }
    let power = 1.0 + (r + r * r * series);
    // 2ⁿ in two factors, since n reaches beyond the exponents of f32 on both sides.
    let n = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
    let two_to = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    power * two_to(n >> 1) * two_to(n - (n >> 1))
}

/// erf x within 3 units in the last place: an odd polynomial near 0, beyond it 1 − exp(−polynomial), each fitted to
/// Chebyshev nodes.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const NEAR: [f32; 7] = [
        7.882_497_4e-5,
        -8.018_855e-4,
        5.189_312e-3,
        -2.685_432_9e-2,
        0.112_835_97,
        -0.376_126_26,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const FAR: [f32; 10] = [
        6.582_857e-8,
        -3.095_204_4e-6,
        6.006_879_3e-5,
        -6.733_375_5e-4,
        5.021_044_5e-3,
        -2.699_949_8e-2,
        0.110_907_42,
        0.631_088_85,
        1.130_604_5,
        -4.005_005e-4,
    ];
    let square = x * x;
    let near = x * NEAR.into_iter().reduce(|sum, c| sum * square + c).unwrap_or(0.0);
    let size = clamp(x.abs(), 0.0, 4.0);
    let far = 1.0 - exp(-FAR.into_iter().reduce(|sum, c| sum * size + c).unwrap_or(0.0));
    if x.abs() < 1.0 { near } else { far.copysign(x) }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Applies a pointwise function.
#[inline(always)]
pub(super) fn activate(values: &mut [f32], activation: Activation) {
    #[inline(always)]
    fn each(values: &mut [f32], f: impl Fn(f32) -> f32) {
        values.iter_mut().for_each(|value| *value = f(*value));
    }
    match activation {
        Activation::Silu => each(values, |x| x * sigmoid(x)),
        Activation::QuickGelu => each(values, |x| x * sigmoid(1.702 * x)),
        Activation::Gelu => each(values, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
        // (1 + tanh u) / 2 is σ(2u), which loses no digits near 0.
        Activation::GeluTanh => {
            let twice_root = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
            each(values, |x| x * sigmoid(twice_root * (x + 0.044_715 * x * x * x)));
        }
    }
}

/// x becomes dout·f'(x).
#[inline(always)]
pub(super) fn activate_backward(x: &mut [f32], dout: &[f32], activation: Activation) {
    with_slope(activation, Alone(x, dout));
}

/// Of out = f(gate)·up: gate becomes dout·up·f'(gate), up becomes dout·f(gate), dout becomes out.
#[inline(always)]
pub(super) fn gated_backward(gate: &mut [f32], up: &mut [f32], dout: &mut [f32], activation: Activation) {
    with_slope(activation, Gated(gate, up, dout));
}

/// What is done with a function and its slope, element by element.
trait Pointwise {
    fn each(self, f: impl Fn(f32) -> (f32, f32));
}

struct Alone<'a>(&'a mut [f32], &'a [f32]);
struct Gated<'a>(&'a mut [f32], &'a mut [f32], &'a mut [f32]);

impl Pointwise for Alone<'_> {
    #[inline(always)]
    fn each(self, f: impl Fn(f32) -> (f32, f32)) {
        self.0.iter_mut().zip(self.1).for_each(|(x, &dout)| *x = dout * f(*x).1);
    }
}

impl Pointwise for Gated<'_> {
    #[inline(always)]
    fn each(self, f: impl Fn(f32) -> (f32, f32)) {
        for ((gate, up), dout) in self.0.iter_mut().zip(self.1).zip(self.2) {
            let (value, slope) = f(*gate);
            (*gate, *up, *dout) = (*dout * *up * slope, *dout * value, value * *up);
        }
    }
}

/// Gives a function's value and slope: all are x·share(x) with a share between 0 and 1.
#[inline(always)]
fn with_slope(activation: Activation, work: impl Pointwise) {
    #[inline(always)]
    fn swish(x: f32, a: f32) -> (f32, f32) {
        let share = sigmoid(a * x);
        (x * share, share * (1.0 + a * x * (1.0 - share)))
    }
    match activation {
        Activation::Silu => work.each(|x| swish(x, 1.0)),
        Activation::QuickGelu => work.each(|x| swish(x, 1.702)),
        Activation::Gelu => {
            let density_at_0 = (2.0 * std::f32::consts::PI).sqrt().recip();
            work.each(|x| {
                let share = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
                (x * share, share + x * density_at_0 * exp(-0.5 * x * x))
            });
        }
        Activation::GeluTanh => {
            let twice_root = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
            work.each(|x| {
                let share = sigmoid(twice_root * (x + 0.044_715 * x * x * x));
                let inner = twice_root * (1.0 + 3.0 * 0.044_715 * x * x);
                (x * share, share + x * share * (1.0 - share) * inner)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(got: f32, expected: f64) -> f64 {
        let unit =
            f64::from(f32::from_bits((expected.abs() as f32).to_bits() + 1)) - expected.abs() as f32 as f64;
        (f64::from(got) - expected).abs() / unit
    }

    #[test]
    fn exp_is_accurate_over_its_whole_range() {
        let worst = (0..2_000_000)
            .map(|i| -103.0 + i as f32 * (191.7 / 2e6))
            .map(|x| units(exp(x), f64::from(x).exp()))
            .fold(0.0, f64::max);
        assert!(worst < 1.5, "{worst} units");
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(f32::INFINITY)), (1.0, 0.0, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_accurate() {
        let worst = (-500_000..500_000)
            .map(|i| i as f32 * 1.2e-5)
            .filter(|x| *x != 0.0)
            .map(|x| units(erf(x), libm::erf(x.into())))
            .fold(0.0, f64::max);
        assert!(worst < 4.0, "{worst} units");
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn narrow_rounds_as_half_does() {
        for step in 0..1_000_000u32 {
            let value = f32::from_bits(step.wrapping_mul(4_294_967)); // all exponents, many ties apart
            let (got, expected) = (narrow(value), bf16::from_f32(value));
            assert!(got == expected || value.is_nan() && got.is_nan(), "{value}");
        }
        for bits in [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0xff80_0000, 0x8000_0000] {
            assert_eq!(narrow(f32::from_bits(bits)), bf16::from_f32(f32::from_bits(bits)));
        }
    }
}
