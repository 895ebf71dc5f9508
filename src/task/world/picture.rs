//! A scene as a picture, in whole numbers and without smoothing: every machine draws the same bytes.

use super::scene::{Colour, Object, Scene, Shape};
use crate::error::{Error, Result};

/// Pixels along a side of the picture.
pub const SIDE: usize = 84;

/// Pixels along a side of a cell, and of what is drawn in one.
const CELL: usize = 28;
const SPRITE: i32 = 22;

const BACKGROUND: [u8; 3] = [245; 3];
const BLACK: [u8; 3] = [0; 3];
const WHITE: [u8; 3] = [255; 3];

/// Rows of three bits for the digits 1 to 9, the leftmost bit highest.
const DIGITS: [[u8; 5]; 9] = [
    [0b010, 0b110, 0b010, 0b010, 0b111],
    [0b111, 0b001, 0b111, 0b100, 0b111],
    [0b111, 0b001, 0b111, 0b001, 0b111],
    [0b101, 0b101, 0b111, 0b001, 0b001],
    [0b111, 0b100, 0b111, 0b001, 0b111],
    [0b111, 0b100, 0b111, 0b101, 0b111],
    [0b111, 0b001, 0b010, 0b010, 0b010],
    [0b111, 0b101, 0b111, 0b101, 0b111],
    [0b111, 0b101, 0b111, 0b001, 0b111],
];

/// A picture's pixels, row by row, red green blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pixels: Vec<u8>,
}

impl Picture {
    /// Draws a scene, in a black frame that says where the cells are.
    pub fn draw(scene: &Scene) -> Self {
        let mut picture = Picture { pixels: BACKGROUND.repeat(SIDE * SIDE) };
        for i in 0..SIDE {
            for (x, y) in [(i, 0), (i, SIDE - 1), (0, i), (SIDE - 1, i)] {
                picture.set(x, y, BLACK);
            }
        }
        scene.objects.iter().for_each(|object| picture.draw_object(object));
        picture
    }

    /// The pixels, 3 bytes each.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// One pixel.
    pub fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let start = 3 * (y * SIDE + x);
        [self.pixels[start], self.pixels[start + 1], self.pixels[start + 2]]
    }

    /// The picture as a PNG file.
    pub fn png(&self) -> Result<Vec<u8>> {
        use image::ImageEncoder;
        let mut file = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut file);
        let side = SIDE as u32;
        let written = encoder.write_image(&self.pixels, side, side, image::ExtendedColorType::Rgb8);
        written.map_err(|cause| Error::internal("picture", format!("cannot be encoded: {cause}")))?;
        Ok(file)
    }

    fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        let start = 3 * (y * SIDE + x);
        self.pixels[start..start + 3].copy_from_slice(&colour);
    }

    fn draw_object(&mut self, object: &Object) {
        let left = (CELL * object.cell.column()) as i32 + 3 + object.jitter.0;
        let top = (CELL * object.cell.row()) as i32 + 3 + object.jitter.1;
        for y in 0..SPRITE {
            for x in 0..SPRITE {
                if let Some(colour) = sprite(object, x, y) {
                    self.set((left + x) as usize, (top + y) as usize, colour);
                }
            }
        }
    }
}

/// What is drawn at a place of an object's square, if anything is.
fn sprite(object: &Object, x: i32, y: i32) -> Option<[u8; 3]> {
    let (colour, shape) = (object.name.colour, object.name.shape);
    let below = if shape == Shape::Triangle { 4 } else { 0 };
    let (column, row) = ((x - 8).div_euclid(2), (y - 6 - below).div_euclid(2));
    if (0..3).contains(&column) && (0..5).contains(&row) {
        let digit = DIGITS[object.label as usize - 1];
        if digit[row as usize] >> (2 - column) & 1 == 1 {
            return Some(if colour == Colour::Yellow { BLACK } else { WHITE });
        }
    }
    let (dx, dy) = (2 * x - 21, 2 * y - 21);
    let inside = match shape {
        Shape::Circle => dx * dx + dy * dy <= 441,
        Shape::Square => dx.abs() <= 19 && dy.abs() <= 19,
        Shape::Diamond => dx.abs() + dy.abs() <= 23,
        Shape::Triangle => 2 * dx.abs() <= dy + 23,
    };
    inside.then_some(match colour {
        Colour::Red => [220, 40, 40],
        Colour::Green => [30, 150, 60],
        Colour::Blue => [40, 80, 220],
        Colour::Yellow => [235, 200, 40],
        Colour::Purple => [150, 50, 180],
    })
}
