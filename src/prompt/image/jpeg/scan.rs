//! Scans: entropy-coded passes over the blocks of some components, each adding to their coefficients.

use super::bits::{Bits, Huffman};
use super::{Component, Frame};

/// Where the n-th coefficient in coding order lies in its block. (A damaged run may step past the last.)
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// What a scan carries.
pub(super) struct Scan {
    /// Component, DC table, AC table.
    pub(super) parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    pub(super) band: (usize, usize),
    /// Bits known before (0 in a first pass) and still unknown after.
    pub(super) approximation: (u32, u32),
    /// MCUs between restart markers; 0 for none.
    pub(super) restart_interval: usize,
}

/// The tables in force.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) dc: [Option<Huffman>; 4],
    pub(super) ac: [Option<Huffman>; 4],
}

/// What one block leaves to the next.
#[derive(Default, Clone, Copy)]
struct Carry {
    dc: [i32; 4],
    end_of_band_run: i32,
}

type Pass = fn(&mut [i16; 64], &mut Bits, &Coder, &mut i32, &mut i32);

/// What a pass over a block needs to know.
struct Coder<'a> {
    dc: &'a Huffman,
    ac: &'a Huffman,
    band: (usize, usize),
    low: u32,
}

/// Decodes the scan that begins at `at`; returns where its bits end.
pub(super) fn decode(
    frame: &mut Frame,
    scan: &Scan,
    tables: &Tables,
    bytes: &[u8],
    at: usize,
) -> Result<usize, String> {
    let pass: Pass = match (frame.progressive, scan.band.0 == 0, scan.approximation.0 == 0) {
        (false, _, _) => whole,
        (true, true, true) => dc_first,
        (true, true, false) => dc_refine,
        (true, false, true) => ac_first,
        (true, false, false) => ac_refine,
    };
    let (needs_dc, needs_ac) = (scan.band.0 == 0 && scan.approximation.0 == 0, scan.band.1 > 0);
    // Any table will do where a pass reads none.
    let spare = Huffman::new([0; 16], &[])?;
    let mut coders = Vec::new();
    for &(component, dc, ac) in &scan.parts {
        let table = |tables: &'_ [Option<Huffman>; 4], index: usize, needed: bool| match &tables[index] {
            Some(table) => Ok(table.clone()),
            None if needed => {
                Err(format!("a scan uses Huffman table {index}, which the file does not define"))
            }
            None => Ok(spare.clone()),
        };
        coders.push((component, table(&tables.dc, dc, needs_dc)?, table(&tables.ac, ac, needs_ac)?));
    }
    let coders: Vec<_> = coders
        .iter()
        .map(|(part, dc, ac)| (*part, Coder { dc, ac, band: scan.band, low: scan.approximation.1 }))
        .collect();

    let single = scan.parts.len() == 1;
    let (across, down) = if single {
        let (width, height) = frame.components[scan.parts[0].0].size;
        (width.div_ceil(8), height.div_ceil(8))
    } else {
        let (h, v) = frame.sampling;
        (frame.width.div_ceil(8 * h), frame.height.div_ceil(8 * v))
    };
    let mut bits = Bits::new(bytes, at);
    let mut carry = Carry::default();
    for mcu in 0..across * down {
        if scan.restart_interval > 0 && mcu > 0 && mcu % scan.restart_interval == 0 {
            let number = (mcu / scan.restart_interval - 1) % 8;
            if !bits.restart(number as u8) {
                return Err(format!("restart marker {number} is missing"));
            }
            carry = Carry::default();
        }
        let (x, y) = (mcu % across, mcu / across);
        for (slot, (index, coder)) in coders.iter().enumerate() {
            let component = &mut frame.components[*index];
            let (h, v) = if single { (1, 1) } else { component.sampling };
            for block in 0..h * v {
                let block = component.block(x * h + block % h, y * v + block / h);
                pass(block, &mut bits, coder, &mut carry.dc[slot], &mut carry.end_of_band_run);
            }
        }
        if bits.overrun() {
            return Err("the file is truncated: a scan ends before the image does".into());
        }
    }
    Ok(bits.end())
}

impl Component {
    fn block(&mut self, x: usize, y: usize) -> &mut [i16; 64] {
        &mut self.coefficients[y * self.blocks.0 + x]
    }
}

#[inline(always)]
fn place(index: usize) -> usize {
    usize::from(ZIGZAG[index.min(63)])
}

fn whole(block: &mut [i16; 64], bits: &mut Bits, coder: &Coder, dc: &mut i32, _: &mut i32) {
    let size = u32::from(coder.dc.next(bits) & 15);
    *dc = dc.wrapping_add(bits.signed(size));
    block[0] = *dc as i16;
    let mut index = 1;
    while index < 64 {
        let symbol = coder.ac.next(bits);
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run < 15 {
                break;
            }
            index += 16;
        } else {
            index += run;
            block[place(index)] = bits.signed(size) as i16;
            index += 1;
        }
    }
}

fn dc_first(block: &mut [i16; 64], bits: &mut Bits, coder: &Coder, dc: &mut i32, _: &mut i32) {
    let size = u32::from(coder.dc.next(bits) & 15);
    *dc = dc.wrapping_add(bits.signed(size));
    block[0] = (*dc << coder.low) as i16;
}

fn dc_refine(block: &mut [i16; 64], bits: &mut Bits, coder: &Coder, _: &mut i32, _: &mut i32) {
    block[0] |= (bits.take(1) << coder.low) as i16;
}

fn ac_first(block: &mut [i16; 64], bits: &mut Bits, coder: &Coder, _: &mut i32, run_of_blocks: &mut i32) {
    if *run_of_blocks > 0 {
        *run_of_blocks -= 1;
        return;
    }
    let mut index = coder.band.0;
    while index <= coder.band.1 {
        let symbol = coder.ac.next(bits);
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            index += run as usize;
            block[place(index)] = (bits.signed(size) << coder.low) as i16;
            index += 1;
        } else if run == 15 {
            index += 16;
        } else {
            *run_of_blocks = (1 << run) + bits.take(run) - 1;
            break;
        }
    }
}

fn ac_refine(block: &mut [i16; 64], bits: &mut Bits, coder: &Coder, _: &mut i32, run_of_blocks: &mut i32) {
    let (first, last) = coder.band;
    let one = 1i16 << coder.low;
    let mut index = first;
    if *run_of_blocks == 0 {
        while index <= last {
            let symbol = coder.ac.next(bits);
            let (mut zeros, size) = (i32::from(symbol >> 4), symbol & 15);
            let mut fresh = 0;
            if size > 0 {
                fresh = if bits.take(1) == 1 { one } else { -one };
            } else if zeros < 15 {
                *run_of_blocks = (1 << zeros) + bits.take(zeros as u32);
                break;
            }
            while index <= last {
                let coefficient = &mut block[place(index)];
                if *coefficient != 0 {
                    refine(coefficient, one, bits);
                } else {
                    zeros -= 1;
                    if zeros < 0 {
                        break;
                    }
                }
                index += 1;
            }
            if fresh != 0 {
                block[place(index)] = fresh;
            }
            index += 1;
        }
    }
    if *run_of_blocks > 0 {
        for index in index..=last {
            let coefficient = &mut block[place(index)];
            if *coefficient != 0 {
                refine(coefficient, one, bits);
            }
        }
        *run_of_blocks -= 1;
    }
}

/// Adds the next bit to the magnitude of a coefficient, unless it is there.
#[inline(always)]
fn refine(coefficient: &mut i16, one: i16, bits: &mut Bits) {
    if bits.take(1) == 1 && *coefficient & one == 0 {
        *coefficient = coefficient.wrapping_add(if *coefficient >= 0 { one } else { -one });
    }
}
