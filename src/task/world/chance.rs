//! Chance that can be asked again: each draw is a function of the seed, the purpose, the example and how many draws
//! came before it.

use crate::backend::philox::philox;

/// What draws are for. Changing how one thing is drawn leaves the others as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The objects of a scene.
    Scene = 1,
    /// What is asked.
    Question = 2,
    /// What a caption says.
    Caption = 3,
    /// What is taught.
    Lesson = 4,
    /// What a weight is before anything is learned.
    Weight = 5,
}

/// A stream of draws.
#[derive(Debug, Clone)]
pub struct Chance {
    key: [u32; 2],
    /// The purpose in the lowest bits, and the example above them.
    stream: u64,
    drawn: u64,
}

impl Chance {
    /// The draws for a purpose in the `index`th example of a seed.
    pub fn new(seed: u64, index: u64, purpose: Purpose) -> Self {
        Chance { key: [seed as u32, (seed >> 32) as u32], stream: index << 4 | purpose as u64, drawn: 0 }
    }

    /// A number below `count`, all as likely; draws from the uneven end of the range are thrown away.
    pub fn below(&mut self, count: usize) -> usize {
        let count = count.max(1) as u64;
        let even = (1 << 32) / count * count;
        loop {
            let counter = [
                self.drawn as u32,
                (self.drawn >> 32) as u32,
                self.stream as u32,
                (self.stream >> 32) as u32,
            ];
            self.drawn += 1;
            let draw = u64::from(philox(counter, self.key)[0]);
            if draw < even {
                return (draw % count) as usize;
            }
        }
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, times: usize) -> bool {
        self.below(100) < times
    }

    /// One of these.
    pub fn one<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Puts things into any order, all as likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
