//! Numbers, each kept twice: as a complex double, and where it is rational as its residue modulo a prime.
//!
//! The double says where a number lies; the residue says whether two rational numbers are the same one, whatever their
//! size, in one word and without rounding (two different ones agree by chance once in 2⁶¹). So `2^{200}` is compared
//! exactly with its 61 digits, and no number can outgrow memory.

use super::fuel::{Fuel, Stop};

/// A Mersenne prime.
const PRIME: u64 = (1 << 61) - 1;

/// The largest exponent that is computed.
const LARGEST_EXPONENT: f64 = 1e4;

/// The largest number whose factorial is computed.
const LARGEST_FACTORIAL: f64 = 1e3;

/// A number; every one but infinity and the results of overflow has finite parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Number {
    pub(super) re: f64,
    pub(super) im: f64,
    pub(super) residue: Option<u64>,
}

fn times(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) % u128::from(PRIME)) as u64
}

fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = times(result, base);
        }
        base = times(base, base);
        exponent >>= 1;
    }
    result
}

fn inverse(a: u64) -> Option<u64> {
    (a != 0).then(|| power(a, PRIME - 2))
}

impl Number {
    pub(super) const INFINITY: Number = Number::real(f64::INFINITY);
    pub(super) const I: Number = Number { re: 0.0, im: 1.0, residue: None };
    pub(super) const UNDEFINED: Number = Number::real(f64::NAN);

    /// A real number of which nothing exact is known.
    pub(super) const fn real(re: f64) -> Self {
        Number { re, im: 0.0, residue: None }
    }

    /// A small whole number.
    pub(super) fn whole(value: i64) -> Self {
        let size = value.unsigned_abs() % PRIME;
        let residue = if value < 0 { (PRIME - size) % PRIME } else { size };
        Number { re: value as f64, im: 0.0, residue: Some(residue) }
    }

    /// A literal: digits before and after the point, digits that repeat after them, and a power of ten.
    pub(super) fn literal(whole: &str, decimals: &str, repeating: &str, exponent: i32) -> Self {
        let residue_of = |digits: &str| {
            digits.bytes().fold(0, |value, digit| (times(value, 10) + u64::from(digit - b'0')) % PRIME)
        };
        let ten_to = |places: usize| power(10, places as u64);
        let mut residue = residue_of(&format!("{whole}{decimals}"));
        let mut invert = ten_to(decimals.len());
        if !repeating.is_empty() {
            // 0.ab(cd) is (abcd - ab) / (10^4 - 10^2).
            let all = residue_of(&format!("{whole}{decimals}{repeating}"));
            residue = (all + PRIME - residue) % PRIME;
            invert = times(invert, (ten_to(repeating.len()) + PRIME - 1) % PRIME);
        }
        let shift = power(10, u64::from(exponent.unsigned_abs()));
        let shifted = if exponent < 0 { inverse(shift) } else { Some(shift) };
        let exact = inverse(invert).zip(shifted).map(|(by, shift)| times(times(residue, by), shift));
        let again =
            if repeating.is_empty() { String::new() } else { repeating.repeat(20 / repeating.len() + 1) };
        let text = format!("0{whole}.{decimals}{again}e{exponent}");
        Number { re: text.parse().unwrap_or(f64::NAN), im: 0.0, residue: exact }
    }

    pub(super) fn is_finite(self) -> bool {
        self.re.is_finite() && self.im.is_finite()
    }

    pub(super) fn is_real(self) -> bool {
        self.im.abs() <= 1e-9 * (1.0 + self.re.abs())
    }

    /// True of whole numbers that a double holds exactly, and of rational ones too large to tell.
    pub(super) fn is_whole(self) -> bool {
        self.im == 0.0 && self.re.is_finite() && self.residue.is_some() && self.re.fract() == 0.0
    }

    fn size(self) -> f64 {
        libm::hypot(self.re, self.im)
    }

    fn map(self, function: impl Fn(f64) -> f64) -> Self {
        if self.im == 0.0 { Number::real(function(self.re)) } else { Number::UNDEFINED }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        let residue = self.residue.zip(other.residue).map(|(a, b)| (a + b) % PRIME);
        Number { re: self.re + other.re, im: self.im + other.im, residue }
    }

    pub(super) fn negated(self) -> Self {
        let residue = self.residue.map(|a| (PRIME - a) % PRIME);
        Number { re: -self.re, im: 0.0 - self.im, residue }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        self.plus(other.negated())
    }

    pub(super) fn times(self, other: Self) -> Self {
        let residue = self.residue.zip(other.residue).map(|(a, b)| times(a, b));
        if self.im == 0.0 && other.im == 0.0 {
            return Number { re: self.re * other.re, im: 0.0, residue };
        }
        let re = self.re * other.re - self.im * other.im;
        let im = self.re * other.im + self.im * other.re;
        Number { re, im, residue }
    }

    pub(super) fn over(self, other: Self) -> Self {
        let residue = self.residue.zip(other.residue.and_then(inverse)).map(|(a, b)| times(a, b));
        if other.re == 0.0 && other.im == 0.0 {
            return Number::UNDEFINED;
        }
        if self.im == 0.0 && other.im == 0.0 {
            return Number { re: self.re / other.re, im: 0.0, residue };
        }
        let square = other.re * other.re + other.im * other.im;
        let re = (self.re * other.re + self.im * other.im) / square;
        let im = (self.im * other.re - self.re * other.im) / square;
        Number { re, im, residue }
    }

    /// Refuses exponents that an honest answer does not have.
    pub(super) fn to_the(self, exponent: Self) -> Result<Self, Stop> {
        if exponent.re.abs() > LARGEST_EXPONENT && exponent.re.is_finite() {
            return Err(Stop::Guard);
        }
        if exponent.is_whole() {
            return Ok(self.to_the_whole(exponent.re as i32));
        }
        if self.im == 0.0 && exponent.im == 0.0 && self.re >= 0.0 {
            return Ok(Number::real(libm::pow(self.re, exponent.re)));
        }
        Ok(self.ln().times(exponent).exp())
    }

    fn to_the_whole(self, exponent: i32) -> Self {
        let (mut base, mut left, mut result) = (self, exponent.unsigned_abs(), Number::whole(1));
        while left > 0 {
            if left & 1 == 1 {
                result = result.times(base);
            }
            left >>= 1;
            if left > 0 {
                base = base.times(base);
            }
        }
        if exponent < 0 { Number::whole(1).over(result) } else { result }
    }

    pub(super) fn sqrt(self) -> Self {
        if self.im == 0.0 && self.re >= 0.0 {
            return Number::real(libm::sqrt(self.re));
        }
        let size = self.size();
        let re = libm::sqrt((size + self.re).max(0.0) / 2.0);
        let im = libm::sqrt((size - self.re).max(0.0) / 2.0);
        Number { re, im: if self.im < 0.0 { -im } else { im }, residue: None }
    }

    /// The root of this degree: of a negative number, the real one if there is one.
    pub(super) fn root(self, degree: Self) -> Result<Self, Stop> {
        let odd = degree.is_whole() && degree.re.abs() % 2.0 == 1.0;
        if self.im == 0.0 && self.re < 0.0 && odd {
            return Ok(self.negated().root(degree)?.negated());
        }
        let root = self.to_the(Number::whole(1).over(degree))?;
        // A power by a rounded third is not quite the cube root; where the root is whole, it is that.
        let near = Number::whole(root.re.round().clamp(-1e9, 1e9) as i64);
        let exact = degree.is_whole() && degree.re.abs() <= 64.0 && self.residue.is_some();
        if exact && near.to_the(degree)?.residue == self.residue && (root.re - near.re).abs() < 1e-6 {
            return Ok(near);
        }
        Ok(root)
    }

    pub(super) fn exp(self) -> Self {
        let size = libm::exp(self.re);
        if self.im == 0.0 {
            return Number::real(size);
        }
        Number { re: size * libm::cos(self.im), im: size * libm::sin(self.im), residue: None }
    }

    pub(super) fn ln(self) -> Self {
        if self.im == 0.0 && self.re > 0.0 {
            return Number::real(libm::log(self.re));
        }
        if self.size() == 0.0 {
            return Number::UNDEFINED;
        }
        Number { re: libm::log(self.size()), im: libm::atan2(self.im, self.re), residue: None }
    }

    pub(super) fn abs(self) -> Self {
        let residue = if self.im != 0.0 {
            None
        } else if self.re < 0.0 {
            self.negated().residue
        } else {
            self.residue
        };
        Number { re: self.size(), im: 0.0, residue }
    }

    /// A function of real numbers.
    pub(super) fn apply(self, function: fn(f64) -> f64) -> Self {
        self.map(function)
    }

    /// The floor or the ceiling.
    pub(super) fn rounded(self, function: fn(f64) -> f64) -> Self {
        let rounded = self.map(function);
        if rounded.re.abs() < 9e15 { Number::whole(rounded.re as i64) } else { rounded }
    }

    pub(super) fn factorial(self, fuel: &mut Fuel) -> Result<Self, Stop> {
        if self.re > LARGEST_FACTORIAL {
            return Err(Stop::Guard);
        }
        if !self.is_whole() || self.re < 0.0 {
            return Ok(Number::UNDEFINED);
        }
        fuel.spend(self.re as u32)?;
        Ok((1..=self.re as i64).fold(Number::whole(1), |product, i| product.times(Number::whole(i))))
    }

    /// The number of ways to choose `k` of these.
    pub(super) fn choose(self, k: Self, fuel: &mut Fuel) -> Result<Self, Stop> {
        let range = 0.0..=LARGEST_FACTORIAL;
        if self.re > LARGEST_FACTORIAL || k.re > LARGEST_FACTORIAL {
            return Err(Stop::Guard);
        }
        if !(self.is_whole() && k.is_whole() && range.contains(&self.re) && range.contains(&k.re)) {
            return Ok(Number::UNDEFINED);
        }
        fuel.spend(k.re as u32)?;
        let (n, k) = (self.re as i64, k.re as i64);
        let step = |ways: Number, i| ways.times(Number::whole(n - i)).over(Number::whole(i + 1));
        Ok((0..k).fold(Number::whole(1), step))
    }

    /// The same number up to rounding; exactly the same where both are rational.
    pub(super) fn is(self, other: Self) -> bool {
        if !self.is_finite() || !other.is_finite() {
            // Infinity is itself; two overflows are compared by their residues.
            return self.re == other.re && self.residue == other.residue;
        }
        self.is_near(other, 1e-9, 1e-9) && self.residue.zip(other.residue).is_none_or(|(a, b)| a == b)
    }

    /// No further away than one of the tolerances allows.
    pub(super) fn is_near(self, gold: Self, absolute: f64, relative: f64) -> bool {
        let distance = self.minus(gold).size();
        distance <= absolute.max(relative * gold.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residues_tell_large_numbers_apart() {
        let two = Number::whole(2);
        let large = two.to_the(Number::whole(200)).unwrap();
        let digits = "1606938044258990275541962092341162602522202993782792835301376";
        assert!(large.is(Number::literal(digits, "", "", 0)));
        assert!(!large.plus(Number::whole(1)).is(large));
        let huge = two.to_the(Number::whole(5000)).unwrap();
        assert!(
            !huge.is_finite() && huge.is(huge) && !huge.is(huge.plus(huge)) && !huge.is(Number::INFINITY)
        );
    }

    #[test]
    fn literals_are_exact() {
        let third = Number::whole(1).over(Number::whole(3));
        assert!(Number::literal("0", "", "3", 0).is(third));
        assert!(Number::literal("0", "1", "6", 0).is(Number::whole(1).over(Number::whole(6))));
        assert!(!Number::literal("0", "3333333333333333", "", 0).is(third));
        assert!(Number::literal("1", "2", "", 3).is(Number::whole(1200)));
        assert!(Number::literal("12", "", "", -1).is(Number::literal("1", "2", "", 0)));
    }

    #[test]
    fn roots_and_powers() {
        assert!(Number::whole(-27).root(Number::whole(3)).unwrap().is(Number::whole(-3)));
        assert!(Number::whole(-4).sqrt().is(Number::whole(2).times(Number::I)));
        assert_eq!(Number::whole(9).to_the(Number::whole(20_000)), Err(Stop::Guard));
        assert!(
            Number::whole(5).choose(Number::whole(2), &mut Fuel::default()).unwrap().is(Number::whole(10))
        );
    }
}
