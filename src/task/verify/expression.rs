//! Formulas, and what they are worth at a point.

use super::fuel::{Fuel, Stop};
use super::number::Number;
use crate::backend::philox::philox;
use std::collections::BTreeSet;

/// A formula.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expression {
    Number(Number),
    Pi,
    E,
    Variable(String),
    Sum(Vec<Expression>),
    Product(Vec<Expression>),
    Negated(Box<Expression>),
    Quotient(Box<Expression>, Box<Expression>),
    Power(Box<Expression>, Box<Expression>),
    /// So many degrees: an angle in a trigonometric function, and the bare number elsewhere.
    Degrees(Box<Expression>),
    Factorial(Box<Expression>),
    Call(Function, Box<Expression>),
    /// Of this degree.
    Root(Box<Expression>, Box<Expression>),
    /// To this base.
    Logarithm(Box<Expression>, Box<Expression>),
    /// Ways to choose the second out of the first.
    Choose(Box<Expression>, Box<Expression>),
}

/// Functions of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Ln,
    Lg,
    Exp,
    Sqrt,
    Abs,
    Floor,
    Ceil,
}

impl Function {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "sin" => Function::Sin,
            "cos" => Function::Cos,
            "tan" | "tg" => Function::Tan,
            "cot" | "ctg" => Function::Cot,
            "sec" => Function::Sec,
            "csc" => Function::Csc,
            "arcsin" | "asin" => Function::Arcsin,
            "arccos" | "acos" => Function::Arccos,
            "arctan" | "atan" => Function::Arctan,
            "sinh" => Function::Sinh,
            "cosh" => Function::Cosh,
            "tanh" => Function::Tanh,
            "ln" => Function::Ln,
            "log" | "lg" => Function::Lg,
            "exp" => Function::Exp,
            "sqrt" => Function::Sqrt,
            "abs" => Function::Abs,
            "floor" => Function::Floor,
            "ceil" => Function::Ceil,
            _ => return None,
        })
    }

    /// What `\sin^{-1}` means.
    pub(super) fn inverse(self) -> Option<Self> {
        Some(match self {
            Function::Sin => Function::Arcsin,
            Function::Cos => Function::Arccos,
            Function::Tan => Function::Arctan,
            _ => return None,
        })
    }

    fn takes_angle(self) -> bool {
        use Function::{Cos, Cot, Csc, Sec, Sin, Tan};
        matches!(self, Sin | Cos | Tan | Cot | Sec | Csc)
    }

    fn of(self, x: Number) -> Number {
        let over = |below: Number| Number::whole(1).over(below);
        match self {
            Function::Sin => x.apply(libm::sin),
            Function::Cos => x.apply(libm::cos),
            Function::Tan => x.apply(libm::tan),
            Function::Cot => over(x.apply(libm::tan)),
            Function::Sec => over(x.apply(libm::cos)),
            Function::Csc => over(x.apply(libm::sin)),
            Function::Arcsin => x.apply(libm::asin),
            Function::Arccos => x.apply(libm::acos),
            Function::Arctan => x.apply(libm::atan),
            Function::Sinh => x.apply(libm::sinh),
            Function::Cosh => x.apply(libm::cosh),
            Function::Tanh => x.apply(libm::tanh),
            Function::Ln => x.ln(),
            Function::Lg => x.ln().over(Number::real(std::f64::consts::LN_10)),
            Function::Exp => x.exp(),
            Function::Sqrt => x.sqrt(),
            Function::Abs => x.abs(),
            Function::Floor => x.rounded(libm::floor),
            Function::Ceil => x.rounded(libm::ceil),
        }
    }
}

/// Values of variables: the `index`th of an endless list of small rational points, the same in every run.
#[derive(Debug, Clone, Copy)]
struct Point(u32);

impl Point {
    fn coordinate(self, name: &str) -> Number {
        let key = name.bytes().fold([0x811c_9dc5u32, 7], |[a, b], byte| {
            [(a ^ u32::from(byte)).wrapping_mul(0x0100_0193), b.rotate_left(5) ^ u32::from(byte)]
        });
        let [above, below, sign, _] = philox([self.0, 0, 0, 0], key);
        let above = 1 + i64::from(above % 97);
        let above = if sign % 2 == 0 { above } else { -above };
        Number::whole(above).over(Number::whole(31 + i64::from(below % 17)))
    }
}

impl Expression {
    /// Its variables.
    pub(super) fn variables(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        self.collect(&mut names);
        names
    }

    fn collect<'a>(&'a self, names: &mut BTreeSet<&'a str>) {
        use Expression::*;
        match self {
            Number(_) | Pi | E => {}
            Variable(name) => drop(names.insert(name)),
            Sum(parts) | Product(parts) => parts.iter().for_each(|part| part.collect(names)),
            Negated(a) | Degrees(a) | Factorial(a) | Call(_, a) => a.collect(names),
            Quotient(a, b) | Power(a, b) | Root(a, b) | Logarithm(a, b) | Choose(a, b) => {
                a.collect(names);
                b.collect(names);
            }
        }
    }

    /// Its worth, if it has no variables.
    pub(super) fn constant(&self, fuel: &mut Fuel) -> Result<Option<Number>, Stop> {
        if self.variables().is_empty() { self.at(Point(0), false, fuel).map(Some) } else { Ok(None) }
    }

    fn at(&self, point: Point, angle: bool, fuel: &mut Fuel) -> Result<Number, Stop> {
        fuel.spend(1)?;
        let mut of = |part: &Expression| part.at(point, angle, fuel);
        Ok(match self {
            Expression::Number(number) => *number,
            Expression::Pi => Number::real(std::f64::consts::PI),
            Expression::E => Number::real(std::f64::consts::E),
            Expression::Variable(name) => point.coordinate(name),
            Expression::Sum(parts) => {
                parts.iter().try_fold(Number::whole(0), |sum, part| Ok(sum.plus(of(part)?)))?
            }
            Expression::Product(parts) => {
                parts.iter().try_fold(Number::whole(1), |product, part| Ok(product.times(of(part)?)))?
            }
            Expression::Negated(a) => of(a)?.negated(),
            Expression::Quotient(a, b) => of(a)?.over(of(b)?),
            Expression::Power(a, b) => of(a)?.to_the(of(b)?)?,
            Expression::Degrees(a) if angle => of(a)?.times(Number::real(std::f64::consts::PI / 180.0)),
            Expression::Degrees(a) => of(a)?,
            Expression::Factorial(a) => of(a)?.factorial(fuel)?,
            Expression::Call(function, a) => function.of(a.at(point, function.takes_angle(), fuel)?),
            Expression::Root(a, degree) => of(a)?.root(of(degree)?)?,
            Expression::Logarithm(a, base) => of(a)?.ln().over(of(base)?.ln()),
            Expression::Choose(n, k) => {
                let (n, k) = (of(n)?, of(k)?);
                n.choose(k, fuel)?
            }
        })
    }
}

/// Points that must agree, and how many are tried to find them.
const AGREEING: usize = 6;
const TRIED: u32 = 36;

/// Values of two formulas at points where both have one: at points where both are real if there are enough, for
/// that is where people mean a formula to hold.
fn values(a: &Expression, b: &Expression, fuel: &mut Fuel) -> Result<Vec<(Number, Number)>, Stop> {
    let (mut real, mut complex) = (Vec::new(), Vec::new());
    for index in 0..TRIED {
        let pair = (a.at(Point(index), false, fuel)?, b.at(Point(index), false, fuel)?);
        if pair.0.is_finite() && pair.1.is_finite() {
            let both = pair.0.is_real() && pair.1.is_real();
            if both { &mut real } else { &mut complex }.push(pair);
        }
        if real.len() == AGREEING {
            return Ok(real);
        }
    }
    complex.truncate(AGREEING);
    Ok(if complex.len() == AGREEING { complex } else { Vec::new() })
}

/// Equal up to what rounding does on the way.
fn agree(a: Number, b: Number) -> bool {
    match a.residue.zip(b.residue) {
        Some((x, y)) => x == y,
        None => a.is_near(b, 1e-9, 1e-9),
    }
}

/// Whether two formulas in the same variables are equal wherever both mean something.
pub(super) fn identical(a: &Expression, b: &Expression, fuel: &mut Fuel) -> Result<bool, Stop> {
    if a == b {
        return Ok(true);
    }
    if a.variables() != b.variables() {
        return Ok(false);
    }
    if let Some((a, b)) = a.constant(fuel)?.zip(b.constant(fuel)?) {
        return Ok(a.is(b));
    }
    let values = values(a, b, fuel)?;
    Ok(!values.is_empty() && values.into_iter().all(|(a, b)| agree(a, b)))
}

/// Whether two formulas differ by a constant factor, and its sign: 0 where it is not real.
pub(super) fn proportional(a: &Expression, b: &Expression, fuel: &mut Fuel) -> Result<Option<f64>, Stop> {
    if a.variables() != b.variables() {
        return Ok(None);
    }
    let values = values(a, b, fuel)?;
    let Some(&(first_a, first_b)) = values.iter().find(|(a, b)| a.abs().re > 1e-9 && b.abs().re > 1e-9)
    else {
        return Ok(None);
    };
    let same = values.iter().all(|&(a, b)| agree(a.times(first_b), b.times(first_a)));
    let factor = first_a.over(first_b);
    Ok(same.then_some(if factor.is_real() { factor.re.signum() } else { 0.0 }))
}
