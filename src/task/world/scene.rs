//! What there is to see: labelled shapes in the cells of a grid.

use super::chance::Chance;
use std::fmt;

/// The colours, in the order of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "colours")]
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
}

/// The shapes, in the order of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "shapes")]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
}

impl Colour {
    /// All of them.
    pub const ALL: [Colour; 5] = [Colour::Red, Colour::Green, Colour::Blue, Colour::Yellow, Colour::Purple];
}

impl Shape {
    /// All of them.
    pub const ALL: [Shape; 4] = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Diamond];

    /// Sides of equal length; a circle has none.
    pub fn sides(self) -> u32 {
        match self {
            Shape::Circle => 0,
            Shape::Triangle => 3,
            Shape::Square | Shape::Diamond => 4,
        }
    }
}

/// A kind of object, of which a scene holds one at most: `red-circle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Its shape.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
}

impl Name {
    /// All twenty, shape by shape.
    pub fn all() -> impl Iterator<Item = Name> {
        Shape::ALL.into_iter().flat_map(|shape| Colour::ALL.map(|colour| Name { shape, colour }))
    }

    /// The name that is written so.
    pub fn parse(text: &str) -> Option<Self> {
        Name::all().find(|name| name.to_string() == text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:?}-{:?}", self.colour, self.shape);
        f.write_str(&text.to_lowercase())
    }
}

/// A place in the grid, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell(u8);

impl Cell {
    const NAMES: [&'static str; 9] = [
        "top-left",
        "top-middle",
        "top-right",
        "middle-left",
        "center",
        "middle-right",
        "bottom-left",
        "bottom-middle",
        "bottom-right",
    ];

    /// All nine.
    pub fn all() -> impl Iterator<Item = Cell> {
        (0..9).map(Cell)
    }

    /// The cell that is called so.
    pub fn parse(text: &str) -> Option<Self> {
        Cell::all().find(|cell| cell.name() == text)
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        Cell::NAMES[usize::from(self.0)]
    }

    /// From the top.
    pub fn row(self) -> usize {
        usize::from(self.0 / 3)
    }

    /// From the left.
    pub fn column(self) -> usize {
        usize::from(self.0 % 3)
    }
}

/// One thing in a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub name: Name,
    /// Where it is.
    pub cell: Cell,
    /// The number on it, from 1 to 9.
    pub label: u32,
    /// How far right and down it lies from its cell's middle, from -2 to 2 pixels.
    pub jitter: (i32, i32),
}

/// Objects of different names in different cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    /// In the order in which they were drawn by lot.
    pub objects: Vec<Object>,
}

impl Scene {
    /// A scene of `fewest` to `most` objects, each number as likely; nine at most.
    pub fn random(chance: &mut Chance, fewest: usize, most: usize) -> Self {
        let count = (fewest + chance.below(most - fewest + 1)).min(9);
        let mut cells: Vec<Cell> = Cell::all().collect();
        let mut names: Vec<Name> = Name::all().collect();
        chance.shuffle(&mut cells);
        chance.shuffle(&mut names);
        let objects = cells.into_iter().zip(names).take(count).map(|(cell, name)| Object {
            name,
            cell,
            label: 1 + chance.below(9) as u32,
            jitter: (chance.below(5) as i32 - 2, chance.below(5) as i32 - 2),
        });
        Scene { objects: objects.collect() }
    }

    /// The object of this name.
    pub fn object(&self, name: Name) -> Option<&Object> {
        self.objects.iter().find(|object| object.name == name)
    }
}
