//! Entropy-coded bits, and the Huffman codes in them.

/// Reads bits until a marker; behind it come zeros, and [`Bits::overrun`] tells.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    buffer: u64, // the next bits, from the top
    count: u32,
    /// How many of the bits last put in were made up.
    made_up: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Bits { bytes, at, buffer: 0, count: 0, made_up: 0 }
    }

    /// Whether bits were taken that the file does not hold.
    pub(super) fn overrun(&self) -> bool {
        self.made_up > self.count
    }

    /// Drops what is left of the current byte and passes restart marker `number`, if it comes next.
    pub(super) fn restart(&mut self, number: u8) -> bool {
        let rest = &self.bytes[self.at..];
        let Some(marker) = rest.iter().position(|&byte| byte != 0xff) else {
            return false;
        };
        let found = marker > 0 && rest[marker] == 0xd0 + number;
        if found {
            *self = Bits::new(self.bytes, self.at + marker + 1);
        }
        found
    }

    /// Where the marker stands that ended the bits, or could be looked for.
    pub(super) fn end(&self) -> usize {
        self.at
    }

    /// Makes at least 32 bits available.
    #[inline(always)]
    fn refill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some(next) = self.bytes.get(self.at..self.at + 4) {
            let next = u32::from_be_bytes(next.try_into().expect("four bytes"));
            if (next & !next.wrapping_add(0x0101_0101) & 0x8080_8080) == 0 {
                self.buffer |= u64::from(next) << (32 - self.count);
                self.count += 32;
                self.at += 4;
                return;
            }
        }
        while self.count <= 56 {
            let byte = self.byte();
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    fn byte(&mut self) -> u8 {
        let byte = match self.bytes[self.at.min(self.bytes.len())..] {
            [0xff, 0, ..] => {
                self.at += 1;
                Some(0xff)
            }
            [0xff, ..] | [] => None,
            [byte, ..] => Some(byte),
        };
        match byte {
            Some(byte) => {
                self.at += 1;
                byte
            }
            None => {
                self.made_up += 8;
                0
            }
        }
    }

    #[inline(always)]
    fn peek(&self, bits: u32) -> usize {
        (self.buffer >> (64 - bits)) as usize
    }

    #[inline(always)]
    fn skip(&mut self, bits: u32) {
        self.buffer <<= bits;
        self.count -= bits;
    }

    /// The next `bits` (at most 16) as a number.
    #[inline(always)]
    pub(super) fn take(&mut self, bits: u32) -> i32 {
        if bits == 0 {
            return 0;
        }
        self.refill();
        let value = self.peek(bits) as i32;
        self.skip(bits);
        value
    }

    /// The next `bits` as a number whose upper half is positive and whose lower half counts up to -1.
    #[inline(always)]
    pub(super) fn signed(&mut self, bits: u32) -> i32 {
        let value = self.take(bits);
        if bits > 0 && value < 1 << (bits - 1) { value - (1 << bits) + 1 } else { value }
    }
}

/// Bits looked up at once.
const FAST: u32 = 9;

/// A Huffman code.
#[derive(Clone)]
pub(super) struct Huffman {
    /// Length and symbol of every code that begins with an index; length 0 for longer codes.
    fast: Vec<(u8, u8)>, // [2^FAST]
    /// The first number of 16 bits beyond the codes of a length, and what to add for a code's place in `symbols`.
    longer: [(u32, i32); 17],
    symbols: Vec<u8>,
}

impl Huffman {
    /// The canonical code with `counts[n]` codes of length n + 1.
    pub(super) fn new(counts: [u8; 16], symbols: &[u8]) -> Result<Self, String> {
        let mut table =
            Huffman { fast: vec![(0, 0); 1 << FAST], longer: [(0, 0); 17], symbols: symbols.to_vec() };
        let (mut code, mut place) = (0u32, 0usize);
        for (length, count) in (1u32..).zip(counts) {
            table.longer[length as usize].1 = place as i32 - code as i32;
            for _ in 0..count {
                if code >= 1 << length {
                    return Err("a Huffman table has more codes than fit".into());
                }
                if length <= FAST {
                    let first = (code << (FAST - length)) as usize;
                    table.fast[first..first + (1 << (FAST - length))].fill((length as u8, symbols[place]));
                }
                code += 1;
                place += 1;
            }
            table.longer[length as usize].0 = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// The next symbol; 0 for bits that are no code.
    #[inline(always)]
    pub(super) fn next(&self, bits: &mut Bits) -> u8 {
        bits.refill();
        let (length, symbol) = self.fast[bits.peek(FAST)];
        if length > 0 {
            bits.skip(u32::from(length));
            return symbol;
        }
        self.next_longer(bits)
    }

    fn next_longer(&self, bits: &mut Bits) -> u8 {
        let code = bits.peek(16) as u32;
        for length in FAST + 1..=16 {
            let (beyond, shift) = self.longer[length as usize];
            if code < beyond {
                bits.skip(length);
                return self.symbols[((code >> (16 - length)) as i32 + shift) as usize];
            }
        }
        bits.skip(16);
        0
    }
}
