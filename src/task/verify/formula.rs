//! Reads a formula from normalised text, by descent, without looking back.
//!
//! LaTeX and what people type on one line are read alike: `\frac34`, `3/4`, `sqrt(2)`, `2^10`, `2**10`. Where the
//! two disagree with TeX's own rules (`2^10` is 2¹0 there), what people mean is what is read.

use super::expression::{Expression, Function};
use super::fuel::{DEEPEST, Fuel, Stop};
use super::literal::number_word;
use super::number::Number;
use super::units;

/// How letters after a number are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letters {
    /// Names of units are units, single letters where they stand apart.
    Units,
    /// Single letters are units even where they touch the number.
    TightUnits,
    /// All letters are variables.
    Variables,
}

/// What a formula is read with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) letters: Letters,
    /// What `±` stands for; `∓` is the other.
    pub(super) plus: bool,
}

type Read = Result<Expression, Stop>;

/// Reads as much of a text as is a formula; also returns where it ends.
pub(super) fn read(text: &[char], manner: Manner, fuel: &mut Fuel) -> Result<(Expression, usize), Stop> {
    let mut parser = Parser { text, at: 0, depth: 0, bars: 0, manner, fuel };
    let expression = parser.sum()?;
    Ok((expression, parser.at))
}

/// Reads from one place of a text to the next.
#[derive(Debug)]
pub(super) struct Parser<'a> {
    pub(super) text: &'a [char],
    pub(super) at: usize,
    depth: usize,
    /// Open absolute values, inside which `|` closes.
    bars: usize,
    manner: Manner,
    fuel: &'a mut Fuel,
}

const GREEK: &[&str] = &[
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "vartheta",
    "iota",
    "kappa",
    "lambda",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "varphi",
    "chi",
    "psi",
    "omega",
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Xi",
    "Sigma",
    "Phi",
    "Psi",
    "ell",
    "hbar",
];

fn boxed(expression: Expression) -> Box<Expression> {
    Box::new(expression)
}

impl Parser<'_> {
    /// Also says whether there were any.
    fn skip_spaces(&mut self) -> bool {
        while self.text.get(self.at) == Some(&' ') {
            self.at += 1;
        }
        self.at > 0 && self.text[self.at - 1] == ' '
    }

    /// The next character that is no space, which is left where it is.
    fn peek(&mut self) -> Option<char> {
        self.skip_spaces();
        self.here(0)
    }

    pub(super) fn here(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn accept(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, c: char) -> Result<(), Stop> {
        if self.accept(c) { Ok(()) } else { Err(Stop::Unreadable) }
    }

    /// Reads something one level further down.
    fn deeper(&mut self, read: impl FnOnce(&mut Self) -> Read) -> Read {
        self.fuel.spend(1)?;
        self.depth += 1;
        if self.depth > 2 * DEEPEST {
            return Err(Stop::Guard);
        }
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn sum(&mut self) -> Read {
        let mut terms = vec![self.term()?];
        loop {
            let plus = match self.peek() {
                Some('+') => true,
                Some('-') => false,
                Some('±') => self.manner.plus,
                Some('∓') => !self.manner.plus,
                _ => break,
            };
            self.at += 1;
            let term = self.term()?;
            terms.push(if plus { term } else { Expression::Negated(boxed(term)) });
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Expression::Sum(terms) })
    }

    fn term(&mut self) -> Read {
        let mut product = vec![self.signed()?];
        loop {
            let spaces = self.skip_spaces();
            match self.here(0) {
                Some('*') => {
                    self.at += 1;
                    product.push(self.signed()?);
                }
                Some('/') => {
                    self.at += 1;
                    let below = self.signed()?;
                    let above = one(product);
                    product = vec![Expression::Quotient(boxed(above), boxed(below))];
                }
                Some(c) if self.continues(c, spaces) => product.push(self.factor()?),
                _ => return Ok(one(product)),
            }
        }
    }

    /// Whether a factor follows without a sign between.
    fn continues(&mut self, c: char, apart: bool) -> bool {
        match c {
            '(' | '[' | '{' | '√' | '∞' | 'π' => true,
            '|' => self.bars == 0,
            '\\' => {
                self.here(1).is_some_and(|c| c.is_ascii_alphabetic())
                    && !["end", "rfloor", "rceil"].iter().any(|name| self.command_is(name))
            }
            c if c.is_ascii_alphabetic() => self.is_product(&self.run(), apart),
            'μ' | 'Ω' => self.manner.letters == Letters::Variables,
            c => ('α'..='ω').contains(&c) || ('Α'..='Ω').contains(&c),
        }
    }

    /// Whether a run of letters after a factor is more of the product, and no unit or word.
    fn is_product(&self, run: &str, apart: bool) -> bool {
        if ["or", "and"].contains(&run) {
            return false;
        }
        if Function::named(run).is_some() || ["pi", "infinity", "infty"].contains(&run) {
            return true;
        }
        let wordy = run.len() >= 4 || apart && run.len() >= 3;
        match self.manner.letters {
            _ if wordy && prefix(run).is_none() => false,
            Letters::Units => !units::is_unit(run, apart),
            Letters::TightUnits => !units::is_unit(run, true),
            Letters::Variables => true,
        }
    }

    /// The letters that come next.
    fn run(&self) -> String {
        self.text[self.at..].iter().take_while(|c| c.is_ascii_alphabetic()).collect()
    }

    pub(super) fn command_is(&self, name: &str) -> bool {
        let rest = &self.text[self.at + 1..];
        let letters = rest.iter().take_while(|c| c.is_ascii_alphabetic()).count();
        letters == name.len() && rest.iter().zip(name.chars()).all(|(a, b)| *a == b)
    }

    fn signed(&mut self) -> Read {
        let negative = match self.peek() {
            Some('-') => true,
            Some('+') => false,
            Some('±') => !self.manner.plus,
            Some('∓') => self.manner.plus,
            _ => return self.factor(),
        };
        self.at += 1;
        let value = self.deeper(Self::signed)?;
        Ok(if negative { Expression::Negated(boxed(value)) } else { value })
    }

    /// Something with what is written behind it: powers, factorials, degrees.
    fn factor(&mut self) -> Read {
        let mut base = self.deeper(Self::primary)?;
        loop {
            match self.peek() {
                Some('^') => {
                    self.at += 1;
                    let exponent = self.deeper(Self::exponent)?;
                    base = Expression::Power(boxed(base), boxed(exponent));
                }
                Some('*') if self.here(1) == Some('*') => {
                    self.at += 2;
                    let exponent = self.deeper(Self::exponent)?;
                    base = Expression::Power(boxed(base), boxed(exponent));
                }
                Some('!') if self.here(1) != Some('=') => {
                    self.at += 1;
                    base = Expression::Factorial(boxed(base));
                }
                Some('°') => {
                    self.at += 1;
                    let scale = matches!(self.peek(), Some('C' | 'F'));
                    if scale && !self.here(1).is_some_and(char::is_alphabetic) {
                        self.at += 1;
                    }
                    base = Expression::Degrees(boxed(base));
                }
                _ => return Ok(base),
            }
        }
    }

    /// A group, or one sign, number, letter or command; powers of it go first.
    fn exponent(&mut self) -> Read {
        if let Some(sign @ ('-' | '+')) = self.peek() {
            self.at += 1;
            let value = self.deeper(Self::exponent)?;
            return Ok(if sign == '-' { Expression::Negated(boxed(value)) } else { value });
        }
        let base = self.primary()?;
        let double = self.peek() == Some('*') && self.here(1) == Some('*');
        if double || self.peek() == Some('^') {
            self.at += if double { 2 } else { 1 };
            let exponent = self.deeper(Self::exponent)?;
            return Ok(Expression::Power(boxed(base), boxed(exponent)));
        }
        Ok(base)
    }

    fn primary(&mut self) -> Read {
        match self.peek().ok_or(Stop::Unreadable)? {
            c if c.is_ascii_digit() => self.number(),
            '.' if self.here(1).is_some_and(|c| c.is_ascii_digit()) => self.number(),
            '(' => self.group(')'),
            '[' => self.group(']'),
            '{' => self.group('}'),
            '|' => {
                self.at += 1;
                self.bars += 1;
                let inside = self.sum()?;
                self.bars -= 1;
                self.expect('|')?;
                Ok(Expression::Call(Function::Abs, boxed(inside)))
            }
            '∞' => self.constant(Expression::Number(Number::INFINITY)),
            'π' => self.constant(Expression::Pi),
            '\\' => self.command(),
            c if c.is_ascii_alphabetic() => self.name(),
            c if ('Α'..='ω').contains(&c) => {
                self.at += 1;
                Ok(self.variable(c.to_string()))
            }
            _ => Err(Stop::Unreadable),
        }
    }

    fn constant(&mut self, value: Expression) -> Read {
        self.at += 1;
        Ok(value)
    }

    /// Something in brackets, inside which bars are new ones.
    fn group(&mut self, close: char) -> Read {
        self.at += 1;
        let bars = std::mem::take(&mut self.bars);
        let inside = self.sum()?;
        self.bars = bars;
        self.expect(close)?;
        Ok(inside)
    }

    fn name(&mut self) -> Read {
        let run = self.run();
        let known =
            |name: &str| Function::named(name).is_some() || ["pi", "infinity", "infty"].contains(&name);
        let name = if run.len() >= 2 && known(&run) { Some(run.as_str()) } else { prefix(&run) };
        if let Some(name) = name {
            self.at += name.len();
            return match (name, Function::named(name)) {
                ("pi", _) => Ok(Expression::Pi),
                ("infinity" | "infty", _) => Ok(Expression::Number(Number::INFINITY)),
                (_, Some(function)) => self.call(function, name == "log"),
                _ => Err(Stop::Unreadable),
            };
        }
        if let Some(value) = number_word(&run) {
            self.at += run.len();
            return Ok(Expression::Number(value));
        }
        if run.len() >= 4 {
            return Err(Stop::Unreadable); // a word
        }
        let letter = run.chars().next().ok_or(Stop::Unreadable)?;
        self.at += 1;
        let plain = self.here(0) != Some('_') && self.here(0) != Some('\'');
        Ok(match letter {
            'e' if plain => Expression::E,
            'i' if plain => Expression::Number(Number::I),
            _ => self.variable(letter.to_string()),
        })
    }

    /// A variable, with its index and primes.
    fn variable(&mut self, mut name: String) -> Expression {
        if self.here(0) == Some('_') {
            self.at += 1;
            name.push('_');
            if self.here(0) == Some('{') {
                let inside = self.text[self.at + 1..].iter().take_while(|c| **c != '}');
                name.extend(inside.clone().filter(|c| **c != ' '));
                self.at = (self.at + inside.count() + 2).min(self.text.len());
            } else if let Some(index) = self.here(0) {
                name.push(index);
                self.at += 1;
            }
        }
        while self.here(0) == Some('\'') {
            name.push('\'');
            self.at += 1;
        }
        Expression::Variable(name)
    }

    fn command(&mut self) -> Read {
        self.at += 1;
        let name = self.run();
        self.at += name.len();
        match name.as_str() {
            "frac" => {
                let above = self.argument()?;
                Ok(Expression::Quotient(boxed(above), boxed(self.argument()?)))
            }
            "binom" => {
                let above = self.argument()?;
                Ok(Expression::Choose(boxed(above), boxed(self.argument()?)))
            }
            "sqrt" => {
                let degree =
                    if self.peek() == Some('[') { Some(self.deeper(|p| p.group(']'))?) } else { None };
                let inside = self.deeper(Self::primary)?;
                Ok(match degree {
                    Some(degree) => Expression::Root(boxed(inside), boxed(degree)),
                    None => Expression::Call(Function::Sqrt, boxed(inside)),
                })
            }
            "lfloor" | "lceil" => {
                let (function, close) =
                    if name == "lfloor" { (Function::Floor, "rfloor") } else { (Function::Ceil, "rceil") };
                let inside = self.sum()?;
                if self.peek() != Some('\\') || !self.command_is(close) {
                    return Err(Stop::Unreadable);
                }
                self.at += 1 + close.len();
                Ok(Expression::Call(function, boxed(inside)))
            }
            "hat" | "vec" | "bar" | "tilde" | "dot" => {
                let inside: String = match self.deeper(Self::primary)? {
                    Expression::Variable(inside) => inside,
                    Expression::Number(number) if number == Number::I => "i".into(),
                    Expression::E => "e".into(),
                    _ => return Err(Stop::Unreadable),
                };
                Ok(Expression::Variable(format!("{name} {inside}")))
            }
            _ if GREEK.contains(&name.as_str()) => Ok(self.variable(name)),
            _ => match Function::named(&name) {
                Some(function) => self.call(function, name == "log"),
                None => Err(Stop::Unreadable),
            },
        }
    }

    /// An argument of `\frac`: a group, or a single digit, letter or command.
    fn argument(&mut self) -> Read {
        match self.peek() {
            Some(c) if c.is_ascii_digit() => {
                self.at += 1;
                Ok(Expression::Number(Number::whole(i64::from(c.to_digit(10).unwrap_or(0)))))
            }
            _ => self.deeper(Self::primary),
        }
    }

    fn call(&mut self, function: Function, has_base: bool) -> Read {
        let mut base = None;
        let mut exponent = None;
        loop {
            match self.peek() {
                Some('^') if exponent.is_none() => {
                    self.at += 1;
                    exponent = Some(self.deeper(Self::exponent)?);
                }
                Some('_') if base.is_none() && has_base => {
                    self.at += 1;
                    base = Some(self.argument()?);
                }
                _ => break,
            }
        }
        let inside = match self.peek() {
            Some('(' | '{' | '[') => self.deeper(Self::primary)?,
            _ => self.deeper(Self::bare_argument)?,
        };
        let minus_one = Expression::Negated(boxed(Expression::Number(Number::whole(1))));
        if let Some(inverse) = function.inverse().filter(|_| exponent.as_ref() == Some(&minus_one)) {
            return Ok(Expression::Call(inverse, boxed(inside)));
        }
        let call = match base {
            Some(base) => Expression::Logarithm(boxed(inside), boxed(base)),
            None => Expression::Call(function, boxed(inside)),
        };
        Ok(match exponent {
            Some(exponent) => Expression::Power(boxed(call), boxed(exponent)),
            None => call,
        })
    }

    /// The argument of a function without brackets: factors up to the next sign or function.
    fn bare_argument(&mut self) -> Read {
        let mut product = vec![self.signed()?];
        loop {
            let spaces = self.skip_spaces();
            let c = self.here(0).filter(|c| !"([|".contains(*c));
            let function = match c {
                Some('\\') => {
                    let name: String =
                        self.text[self.at + 1..].iter().take_while(|c| c.is_ascii_alphabetic()).collect();
                    Function::named(&name).is_some_and(|f| f != Function::Sqrt)
                }
                Some(_) => Function::named(&self.run()).is_some(),
                None => true,
            };
            match c {
                Some(c) if !function && self.continues(c, spaces) => product.push(self.factor()?),
                _ => return Ok(one(product)),
            }
        }
    }
}

fn one(mut product: Vec<Expression>) -> Expression {
    if product.len() == 1 { product.remove(0) } else { Expression::Product(product) }
}

/// The function or constant that a short run of letters starts with, as in `sinx` and `pir`.
fn prefix(run: &str) -> Option<&str> {
    let names = ["sin", "cos", "tan", "ln", "log", "sqrt", "pi"];
    let name = names.into_iter().find(|name| run.starts_with(name))?;
    (run.len() - name.len() <= 2).then(|| &run[..name.len()])
}
