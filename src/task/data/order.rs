//! In which order problems are taken: a function of the seed and the epoch, so that a run that goes on takes what it
//! would have taken.

use crate::backend::philox::philox;
use serde::{Deserialize, Serialize};

/// How far a run has come: everything that must be kept to go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Times everything was taken.
    pub epoch: u64,
    /// How many were taken since.
    pub position: u64,
}

/// The order of one epoch after the other.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    shuffle: bool,
    count: usize,
    /// The epoch last asked for, and its permutation.
    current: Option<(u64, Vec<u32>)>,
}

impl Order {
    /// The order of `count` problems, each epoch another one, or all as they stand.
    pub fn new(seed: u64, count: usize, shuffle: bool) -> Self {
        Order { seed, shuffle, count, current: None }
    }

    /// The next `wanted` problems, which moves the cursor. None where there are none at all.
    pub fn take(&mut self, cursor: &mut Cursor, wanted: usize) -> Vec<usize> {
        if self.count == 0 {
            return Vec::new();
        }
        let mut taken = Vec::with_capacity(wanted);
        while taken.len() < wanted {
            if cursor.position >= self.count as u64 {
                *cursor = Cursor { epoch: cursor.epoch + 1, position: 0 };
            }
            taken.push(self.at(*cursor));
            cursor.position += 1;
        }
        taken
    }

    fn at(&mut self, cursor: Cursor) -> usize {
        let position = cursor.position as usize;
        if !self.shuffle {
            return position;
        }
        let stale = self.current.as_ref().is_none_or(|(epoch, _)| *epoch != cursor.epoch);
        if stale {
            self.current = Some((cursor.epoch, permutation(self.seed, cursor.epoch, self.count)));
        }
        self.current.as_ref().map_or(position, |(_, order)| order[position] as usize)
    }
}

/// Numbers below `count` in the order of an epoch.
pub fn permutation(seed: u64, epoch: u64, count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    for last in (1..count).rev() {
        order.swap(last, below(seed, epoch, last as u32));
    }
    order
}

/// A number from 0 to `last`, all as likely: draws from the uneven end of the range are thrown away.
fn below(seed: u64, epoch: u64, last: u32) -> usize {
    let key = [seed as u32, (seed >> 32) as u32];
    let range = u64::from(last) + 1;
    let even = (1 << 32) / range * range;
    let draws = (0u32..).flat_map(|attempt| {
        // The upper half of the epoch is mixed with the attempts, of which there are a few.
        philox([last, epoch as u32, (epoch >> 32) as u32 ^ attempt.rotate_left(16), ORDER], key)
    });
    let drawn = draws.map(u64::from).find(|draw| *draw < even).unwrap_or(0);
    (drawn % range) as usize
}

/// Keeps these draws apart from others with the same seed.
const ORDER: u32 = 0x6f72_6465;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_takes_everything_once_in_another_order() {
        let mut order = Order::new(7, 10, true);
        let mut cursor = Cursor::default();
        let first = order.take(&mut cursor, 10);
        let second = order.take(&mut cursor, 10);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_ne!(first, second);
        assert_ne!(first, Order::new(8, 10, true).take(&mut Cursor::default(), 10));
        assert_eq!(Order::new(7, 3, false).take(&mut Cursor::default(), 5), [0, 1, 2, 0, 1]);
        assert!(Order::new(7, 0, true).take(&mut Cursor::default(), 5).is_empty());
    }

    #[test]
    fn a_run_that_goes_on_takes_what_it_would_have_taken() {
        let whole = Order::new(3, 7, true).take(&mut Cursor::default(), 40);
        for cut in 0..40 {
            let mut cursor = Cursor::default();
            let mut taken = Order::new(3, 7, true).take(&mut cursor, cut);
            let kept = serde_json::to_string(&cursor).unwrap();
            let mut cursor = serde_json::from_str(&kept).unwrap();
            taken.extend(Order::new(3, 7, true).take(&mut cursor, 40 - cut));
            assert_eq!(taken, whole, "cut at {cut}");
        }
    }

    #[test]
    fn every_place_is_as_likely() {
        let mut counts = [[0u32; 5]; 5];
        for epoch in 0..5_000 {
            for (place, item) in permutation(1, epoch, 5).into_iter().enumerate() {
                counts[place][item as usize] += 1;
            }
        }
        // 1000 each, with a standard deviation of 28.
        assert!(counts.iter().flatten().all(|count| count.abs_diff(1000) < 120), "{counts:?}");
    }
}
