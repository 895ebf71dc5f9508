//! What is asked about a scene, and what one must know to answer.

use super::chance::Chance;
use super::scene::{Cell, Name, Scene, Shape};
use std::fmt;

/// A question about one or two objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The number on an object.
    Read(Name),
    /// The sum of two objects' numbers.
    Sum(Name, Name),
    /// The perimeter of an object whose number is the length of its sides.
    Perimeter(Name),
    /// The cell of an object.
    Where(Name),
}

/// What can be known about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// The number on it.
    Number,
    /// The cell it is in.
    Position,
}

/// What is known about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// The number on it.
    Number(u32),
    /// The cell it is in.
    Position(Cell),
}

impl Value {
    /// What kind of knowledge this is.
    pub fn attribute(self) -> Attribute {
        match self {
            Value::Number(_) => Attribute::Number,
            Value::Position(_) => Attribute::Position,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => number.fmt(f),
            Value::Position(cell) => f.write_str(cell.name()),
        }
    }
}

/// Something known: `red-circle 7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact {
    /// About what.
    pub name: Name,
    /// What.
    pub value: Value,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.value)
    }
}

impl Scene {
    /// A fact about an object of this scene.
    pub fn fact(&self, name: Name, attribute: Attribute) -> Option<Fact> {
        let object = self.object(name)?;
        let value = match attribute {
            Attribute::Number => Value::Number(object.label),
            Attribute::Position => Value::Position(object.cell),
        };
        Some(Fact { name, value })
    }
}

impl Question {
    /// A question about a scene: 20 % read, 35 % sum, 20 % perimeter, 25 % where. Where all are circles, a perimeter is
    /// read instead.
    pub fn random(chance: &mut Chance, scene: &Scene) -> Self {
        let mut names: Vec<Name> = scene.objects.iter().map(|object| object.name).collect();
        chance.shuffle(&mut names);
        let cornered = names.iter().copied().find(|name| name.shape != Shape::Circle);
        match chance.below(100) {
            0..20 => Question::Read(names[0]),
            20..55 => Question::Sum(names[0], names[1]),
            55..75 => cornered.map_or(Question::Read(names[0]), Question::Perimeter),
            _ => Question::Where(names[0]),
        }
    }

    /// What kind of question it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Question::Read(_) => "read",
            Question::Sum(..) => "sum",
            Question::Perimeter(_) => "peri",
            Question::Where(_) => "where",
        }
    }

    /// The objects it names, in its order.
    pub fn names(&self) -> Vec<Name> {
        match *self {
            Question::Read(name) | Question::Perimeter(name) | Question::Where(name) => vec![name],
            Question::Sum(first, second) => vec![first, second],
        }
    }

    /// What one must know about each of them.
    pub fn attribute(&self) -> Attribute {
        match self {
            Question::Where(_) => Attribute::Position,
            _ => Attribute::Number,
        }
    }

    /// The answer that follows from what is known about each object, in the question's order. None where something is
    /// not known.
    pub fn answer(&self, known: &[Option<Value>]) -> Option<String> {
        let number = |i: usize| match known.get(i) {
            Some(Some(Value::Number(number))) => Some(*number),
            _ => None,
        };
        Some(match self {
            Question::Read(_) => number(0)?.to_string(),
            Question::Sum(..) => (number(0)? + number(1)?).to_string(),
            Question::Perimeter(name) => (name.shape.sides() * number(0)?).to_string(),
            Question::Where(_) => match known.first() {
                Some(Some(Value::Position(cell))) => cell.name().to_owned(),
                _ => return None,
            },
        })
    }

    /// The right answer.
    pub fn truth(&self, scene: &Scene) -> Option<String> {
        let value = |name| scene.fact(name, self.attribute()).map(|fact| fact.value);
        self.answer(&self.names().into_iter().map(value).collect::<Vec<_>>())
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Question::Read(name) => write!(f, "what is the number on the {name} ?"),
            Question::Sum(first, second) => write!(f, "what is the sum of the {first} and the {second} ?"),
            Question::Perimeter(name) => write!(f, "what is the perimeter of the {name} ?"),
            Question::Where(name) => write!(f, "where is the {name} ?"),
        }
    }
}
