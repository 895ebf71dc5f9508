//! Whether an answer says what the gold says. The arguments are not interchangeable.

use super::answer::{Answer, Relation, Value};
use super::expression::{Expression, identical, proportional};
use super::fuel::{Fuel, Stop};
use super::number::Number;
use super::{Policy, Rule};

/// A verdict, and what decided it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) right: bool,
    pub(super) rule: Rule,
}

fn outcome(right: bool, rule: Rule) -> Result<Outcome, Stop> {
    Ok(Outcome { right, rule })
}

/// What a comparison needs beside the two sides.
#[derive(Debug)]
pub(super) struct Comparer<'a> {
    pub(super) policy: &'a Policy,
    /// Whole golds are compared with tolerance, too.
    pub(super) inexact: bool,
    pub(super) fuel: &'a mut Fuel,
}

impl Comparer<'_> {
    /// The gold comes first.
    pub(super) fn compare(&mut self, gold: &Answer, answer: &Answer) -> Result<Outcome, Stop> {
        self.fuel.spend(1)?;
        if let Some(right) = self.equation(gold, answer)? {
            return Ok(right);
        }
        match (gold, answer) {
            (Answer::Value(gold), Answer::Value(answer)) => self.values(gold, answer),
            (Answer::Set(golds) | Answer::List(golds), Answer::Set(answers) | Answer::List(answers)) => {
                outcome(self.same_items(golds, answers)?, Rule::Set)
            }
            (Answer::Union(golds), Answer::Union(answers) | Answer::List(answers)) => {
                outcome(self.same_items(golds, answers)?, Rule::Interval)
            }
            (_, Answer::List(answers)) => self.hedged(gold, answers),
            (Answer::Set(golds), _) if golds.len() == 1 => self.compare(&golds[0], answer),
            (Answer::Value(_), Answer::Set(answers)) if answers.len() == 1 => self.compare(gold, &answers[0]),
            (Answer::Bracketed(open, golds, close), Answer::Bracketed(opened, answers, closed)) => {
                let brackets = (open, close) == (opened, closed);
                let rule = if (*open, *close) == ('(', ')') { Rule::Tuple } else { Rule::Interval };
                outcome(brackets && self.same_order(golds, answers)?, rule)
            }
            (Answer::Ratio(golds), Answer::Ratio(answers)) => {
                outcome(self.ratios(golds, answers)?, Rule::Ratio)
            }
            (Answer::Matrix { determinant, rows }, Answer::Matrix { determinant: other, rows: answers }) => {
                let mut right = determinant == other && rows.len() == answers.len();
                for (row, answer) in rows.iter().zip(answers) {
                    right = right && self.same_order(row, answer)?;
                }
                outcome(right, Rule::Matrix)
            }
            (Answer::Relation(gold), Answer::Relation(answer)) => self.inequalities(gold, answer),
            // A gold inequality may be answered by its interval, but not the other way: that would be the problem.
            (Answer::Relation(gold), Answer::Bracketed(..)) => match interval(gold, self.fuel)? {
                Some((_, gold)) => outcome(self.compare(&gold, answer)?.right, Rule::Interval),
                None => outcome(false, Rule::Inequality),
            },
            (Answer::Union(golds), Answer::Bracketed(..) | Answer::Relation(_)) if golds.len() == 1 => {
                self.compare(&golds[0], answer)
            }
            _ => outcome(false, rule_of(gold)),
        }
    }

    /// What names its right-hand side is that side. None where there is no equation.
    fn equation(&mut self, gold: &Answer, answer: &Answer) -> Result<Option<Outcome>, Stop> {
        match (gold, answer) {
            (Answer::Relation(gold), Answer::Relation(answer))
                if gold.is_equation() && answer.is_equation() =>
            {
                self.equations(gold, answer).map(Some)
            }
            (Answer::Relation(gold), answer) if gold.is_equation() => {
                let answers_label = gold.label.is_some() && !matches!(answer, Answer::Relation(_));
                match gold.last().filter(|_| answers_label) {
                    Some(gold) => self.compare(gold, answer).map(Some),
                    None => outcome(false, Rule::Equation).map(Some),
                }
            }
            (gold, Answer::Relation(answer)) if answer.is_equation() => {
                let fits = answer.label.is_some() || gold.is_constant();
                let Some(last) = answer.last().filter(|_| fits) else {
                    return outcome(false, rule_of(gold)).map(Some);
                };
                let verdict = self.compare(gold, last)?;
                if let Some(exact) = self.before_rounding(answer)?.filter(|_| !verdict.right) {
                    return self.compare(gold, exact).map(Some);
                }
                Ok(Some(verdict))
            }
            _ => Ok(None),
        }
    }

    /// The side before a last `≈`, where the two are within a percent: the exact answer, then rounded.
    fn before_rounding<'b>(&mut self, relation: &'b Relation) -> Result<Option<&'b Answer>, Stop> {
        let [.., Some(Answer::Value(exact)), Some(Answer::Value(rounded))] = relation.sides.as_slice() else {
            return Ok(None);
        };
        if relation.signs.last() != Some(&'≈') {
            return Ok(None);
        }
        let (a, b) = (exact.expression.constant(self.fuel)?, rounded.expression.constant(self.fuel)?);
        let near = a.zip(b).is_some_and(|(a, b)| b.is_near(a, 0.0, 0.01));
        Ok(if near { relation.sides[relation.sides.len() - 2].as_ref() } else { None })
    }

    fn equations(&mut self, gold: &Relation, answer: &Relation) -> Result<Outcome, Stop> {
        if let (true, Some(right), Some(other)) =
            (gold.label.is_some() && gold.label == answer.label, gold.last(), answer.last())
        {
            let verdict = self.compare(right, other)?;
            if verdict.right {
                return Ok(verdict);
            }
        }
        let right = match (difference(gold), difference(answer)) {
            (Some(gold), Some(answer)) => proportional(&gold, &answer, self.fuel)?.is_some(),
            _ => false,
        };
        outcome(right, Rule::Equation)
    }

    fn inequalities(&mut self, gold: &Relation, answer: &Relation) -> Result<Outcome, Stop> {
        if let (Some((name, gold)), Some((other, answer))) =
            (interval(gold, self.fuel)?, interval(answer, self.fuel)?)
        {
            let right = name == other && self.compare(&gold, &answer)?.right;
            return outcome(right, Rule::Inequality);
        }
        // a > b is b < a, so that only < ≤ ≠ are left.
        let directed = |relation: &Relation| {
            let [sign] = relation.signs.as_slice() else { return None };
            let difference = difference(relation)?;
            Some(match sign {
                '>' => ('<', Expression::Negated(Box::new(difference))),
                '≥' => ('≤', Expression::Negated(Box::new(difference))),
                sign => (*sign, difference),
            })
        };
        let right = match (directed(gold), directed(answer)) {
            (Some((sign, gold)), Some((other, answer))) if sign == other => {
                let factor = proportional(&gold, &answer, self.fuel)?;
                factor.is_some_and(|factor| factor > 0.0 || sign == '≠')
            }
            _ => false,
        };
        outcome(right, Rule::Inequality)
    }

    /// Several answers where one is wanted: right only if they are all the same.
    fn hedged(&mut self, gold: &Answer, answers: &[Answer]) -> Result<Outcome, Stop> {
        let mut verdict = Outcome { right: false, rule: Rule::Hedge };
        for answer in answers {
            verdict = self.compare(gold, answer)?;
            if !verdict.right {
                return outcome(false, Rule::Hedge);
            }
        }
        Ok(verdict)
    }

    fn same_order(&mut self, golds: &[Answer], answers: &[Answer]) -> Result<bool, Stop> {
        if golds.len() != answers.len() {
            return Ok(false);
        }
        for (gold, answer) in golds.iter().zip(answers) {
            if !self.compare(gold, answer)?.right {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same items as often, in any order.
    fn same_items(&mut self, golds: &[Answer], answers: &[Answer]) -> Result<bool, Stop> {
        if golds.len() != answers.len() {
            return Ok(false);
        }
        let mut left: Vec<&Answer> = answers.iter().collect();
        for gold in golds {
            let mut found = None;
            for (i, answer) in left.iter().enumerate() {
                if self.compare(gold, answer)?.right {
                    found = Some(i);
                    break;
                }
            }
            match found {
                Some(i) => drop(left.remove(i)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn ratios(&mut self, golds: &[Expression], answers: &[Expression]) -> Result<bool, Stop> {
        let product = |a: &Expression, b: &Expression| Expression::Product(vec![a.clone(), b.clone()]);
        for (gold, answer) in golds.iter().zip(answers) {
            if !identical(&product(gold, &answers[0]), &product(answer, &golds[0]), self.fuel)? {
                return Ok(false);
            }
        }
        Ok(golds.len() == answers.len())
    }

    fn values(&mut self, gold: &Value, answer: &Value) -> Result<Outcome, Stop> {
        let (a, b) = (gold.expression.constant(self.fuel)?, answer.expression.constant(self.fuel)?);
        let (Some(a), Some(b)) = (a, b) else {
            let right =
                a.is_none() == b.is_none() && identical(&gold.expression, &answer.expression, self.fuel)?;
            return outcome(right, Rule::Expression);
        };
        if let (true, Some((dimension, factor)), Some((other, by))) =
            (self.policy.convert_units, gold.tail.unit, answer.tail.unit)
        {
            let (a, b) = (a.times(Number::real(factor)), b.times(Number::real(by)));
            return outcome(dimension == other && self.close(a, b), Rule::Units);
        }
        let rule = if a.is_whole() && !self.inexact { Rule::Integer } else { Rule::Float };
        if self.close(a, b) {
            return outcome(true, rule);
        }
        if self.policy.percent && gold.tail.percent != answer.tail.percent {
            let hundred = Number::whole(100);
            let (a, b) = if gold.tail.percent { (a.over(hundred), b) } else { (a, b.over(hundred)) };
            if self.close(a, b) {
                return outcome(true, Rule::Percent);
            }
        }
        outcome(false, rule)
    }

    /// The same number, or within the tolerance of a gold that is not whole.
    fn close(&self, gold: Number, answer: Number) -> bool {
        let exact = gold.is_whole() && !self.inexact;
        let near = gold.is_finite() && answer.is_near(gold, self.policy.abs_tol, self.policy.rel_tol);
        answer.is(gold) || (!exact && near)
    }
}

/// What an equation or inequality says is zero, or compares with it.
fn difference(relation: &Relation) -> Option<Expression> {
    let [Some(Answer::Value(left)), .., Some(Answer::Value(right))] = relation.sides.as_slice() else {
        return None;
    };
    let negated = Expression::Negated(Box::new(right.expression.clone()));
    Some(Expression::Sum(vec![left.expression.clone(), negated]))
}

/// The interval that an inequality in one variable gives, and the variable.
fn interval(relation: &Relation, fuel: &mut Fuel) -> Result<Option<(String, Answer)>, Stop> {
    let mut sides = Vec::new();
    for side in &relation.sides {
        let Some(Answer::Value(value)) = side else { return Ok(None) };
        sides.push(&value.expression);
    }
    let rising = relation.signs.iter().all(|sign| ['<', '≤'].contains(sign));
    let falling = relation.signs.iter().all(|sign| ['>', '≥'].contains(sign));
    if !rising && !falling || sides.len() > 3 {
        return Ok(None);
    }
    let mut signs = relation.signs.clone();
    if falling {
        sides.reverse();
        signs.reverse();
    }
    let Some(at) = sides.iter().position(|side| matches!(side, Expression::Variable(_))) else {
        return Ok(None);
    };
    let infinity = Expression::Number(Number::INFINITY);
    let below = Expression::Number(Number::INFINITY.negated());
    let (low, high) = match (at, sides.as_slice()) {
        (0, [_, high]) => (below, (*high).clone()),
        (1, [low, _]) => ((*low).clone(), infinity),
        (1, [low, _, high]) => ((*low).clone(), (*high).clone()),
        _ => return Ok(None),
    };
    if low.constant(fuel)?.is_none() || high.constant(fuel)?.is_none() {
        return Ok(None);
    }
    let closed = |sign: Option<&char>| sign.is_some_and(|sign| ['≤', '≥'].contains(sign));
    let open = if at > 0 && closed(signs.first()) { '[' } else { '(' };
    let close = if at + 1 < sides.len() && closed(signs.last()) { ']' } else { ')' };
    let Expression::Variable(name) = sides[at] else { return Ok(None) };
    let ends = vec![Answer::plain(low), Answer::plain(high)];
    Ok(Some((name.clone(), Answer::Bracketed(open, ends, close))))
}

/// The rule by which an answer of another kind than the gold's is refused.
fn rule_of(gold: &Answer) -> Rule {
    match gold {
        Answer::Value(value) => match &value.expression {
            Expression::Number(number) if number.is_whole() => Rule::Integer,
            other if other.variables().is_empty() => Rule::Float,
            _ => Rule::Expression,
        },
        Answer::Relation(relation) if relation.is_equation() => Rule::Equation,
        Answer::Relation(_) => Rule::Inequality,
        Answer::Bracketed('(', _, ')') => Rule::Tuple,
        Answer::Bracketed(..) | Answer::Union(_) => Rule::Interval,
        Answer::Set(_) | Answer::List(_) => Rule::Set,
        Answer::Ratio(_) => Rule::Ratio,
        Answer::Matrix { .. } => Rule::Matrix,
    }
}
