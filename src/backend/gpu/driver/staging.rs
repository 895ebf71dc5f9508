//! Pinned host memory, through which bytes travel at the bus's full speed while the caller goes on.
//!
//! Uploads fill one slot after another; before a slot is filled again, its copies must have been done, which an event
//! tells. Downloads wait anyhow and share one landing place; what is fetched while others go on has one of its own.

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUevent_flags},
};

const SLOTS: usize = 4;
const SLOT: usize = 4 << 20;

/// What is fetched lands in as much pinned memory as a multiple of this.
const COMING: usize = 64 << 10;

/// Pinned memory is divided at multiples of this.
const GRAIN: usize = 256;

/// Where the next bytes of an upload go. Pure.
#[derive(Debug)]
struct Ring {
    slots: usize,
    bytes: usize,
    slot: usize,
    used: usize,
}

/// A piece of a slot.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    slot: usize,
    offset: usize,
    bytes: usize,
    /// The slot that was full and has been left for this one.
    left: Option<usize>,
}

impl Ring {
    /// Room for as many of so many bytes as the slot has.
    fn place(&mut self, wanted: usize) -> Place {
        let left = (self.used >= self.bytes).then_some(self.slot);
        if left.is_some() {
            self.slot = (self.slot + 1) % self.slots;
            self.used = 0;
        }
        let bytes = wanted.min(self.bytes - self.used);
        let place = Place { slot: self.slot, offset: self.used, bytes, left };
        self.used = (self.used + bytes).next_multiple_of(GRAIN);
        place
    }
}

#[derive(Debug)]
struct Slot {
    memory: Pinned,
    /// When the copies from here were done, the last time the slot was left.
    done: sys::CUevent,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Staging {
    ring: Ring,
    slots: Vec<Slot>,
    landing: Pinned,
    /// Landing places that nobody waits at.
    spare: Vec<Coming>,
}

/// Bytes on their way to the host.
#[derive(Debug)]
pub(super) struct Coming {
    memory: Pinned,
    bytes: usize,
    /// When they are there.
    pub(super) done: sys::CUevent,
}

impl Staging {
    /// In the context that is current.
    pub(super) fn new() -> Result<Self, DriverError> {
        let slot = || {
            let done = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
            Ok(Slot { memory: Pinned::new(SLOT)?, done })
        };
        let slots = (0..SLOTS).map(|_| slot()).collect::<Result<_, DriverError>>()?;
        let ring = Ring { slots: SLOTS, bytes: SLOT, slot: 0, used: 0 };
        Ok(Staging { ring, slots, landing: Pinned::new(SLOT)?, spare: Vec::new() })
    }

    /// Copies bytes to a device address, in order with everything on the stream. The bytes are free on return.
    pub(super) fn upload(
        &mut self,
        mut to: u64,
        mut bytes: &[u8],
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        while !bytes.is_empty() {
            let place = self.ring.place(bytes.len());
            let (piece, rest) = bytes.split_at(place.bytes);
            if let Some(left) = place.left {
                // SAFETY: events and stream are alive; one that was never recorded counts as done.
                unsafe {
                    result::event::record(self.slots[left].done, stream)?;
                    result::event::synchronize(self.slots[place.slot].done)?;
                }
            }
            let staged = self.slots[place.slot].memory.part(place.offset, piece);
            // SAFETY: the staged bytes stay as they are until the slot's event tells that they were read; the runtime
            // above gives out device addresses with as many bytes behind them as it asked room for.
            unsafe { result::memcpy_htod_async(to, staged, stream)? };
            (to, bytes) = (to + piece.len() as u64, rest);
        }
        Ok(())
    }

    /// Copies from a device address after everything on the stream, and waits for it.
    pub(super) fn download(
        &mut self,
        mut from: u64,
        bytes: &mut [u8],
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        for piece in bytes.chunks_mut(SLOT) {
            let landed = &mut self.landing.bytes()[..piece.len()];
            // SAFETY: the landing place is ours alone until the stream has been waited for.
            unsafe {
                result::memcpy_dtoh_async(landed, from, stream)?;
                result::stream::synchronize(stream)?;
            }
            piece.copy_from_slice(landed);
            from += piece.len() as u64;
        }
        Ok(())
    }

    /// Begins to copy from a device address after everything on the stream.
    pub(super) fn fetch(
        &mut self,
        from: u64,
        bytes: usize,
        stream: sys::CUstream,
    ) -> Result<Coming, DriverError> {
        let mut coming = match self.spare.iter().position(|spare| spare.memory.bytes >= bytes) {
            Some(at) => self.spare.swap_remove(at),
            None => {
                let done = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
                Coming { memory: Pinned::new(bytes.next_multiple_of(COMING))?, bytes: 0, done }
            }
        };
        coming.bytes = bytes;
        // SAFETY: the landing place is this copy's until the event tells that it is done: another copy that was begun
        // here before and given up is done before this one begins. The address has as many bytes behind it.
        let begun = unsafe {
            result::memcpy_dtoh_async(&mut coming.memory.bytes()[..bytes], from, stream)
                .and_then(|()| result::event::record(coming.done, stream))
        };
        match begun {
            Ok(()) => Ok(coming),
            Err(error) => {
                self.spare.push(coming);
                Err(error)
            }
        }
    }

    /// Reads what has come, if anybody still wants it, and keeps the landing place.
    pub(super) fn take(&mut self, mut coming: Coming, bytes: Option<&mut [u8]>) {
        if let Some(bytes) = bytes {
            bytes.copy_from_slice(&coming.memory.bytes()[..coming.bytes]);
        }
        self.spare.push(coming);
    }

    /// Gives everything back; the stream is idle and the context current.
    pub(super) fn free(&mut self) {
        for slot in &self.slots {
            slot.memory.free();
            // SAFETY: the event was created here and is not used again. A lost device refuses; all the same.
            let _ = unsafe { result::event::destroy(slot.done) };
        }
        self.slots.clear();
        self.landing.free();
        for coming in self.spare.drain(..) {
            coming.memory.free();
            // SAFETY: as above.
            let _ = unsafe { result::event::destroy(coming.done) };
        }
    }
}

/// Host memory the device reads and writes by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    memory: *mut u8,
    bytes: usize,
}

impl Pinned {
    fn new(bytes: usize) -> Result<Self, DriverError> {
        // SAFETY: the memory is filled below before anybody reads it.
        let memory = unsafe { result::malloc_host(bytes, 0)? }.cast::<u8>();
        // SAFETY: so many bytes were just allocated there.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Pinned { memory, bytes })
    }

    /// Bytes for a graph to upload each time it runs; they are to stay until it is gone.
    pub(super) fn upload_by_graph(
        to: u64,
        bytes: &[u8],
        capturing: sys::CUstream,
    ) -> Result<Self, DriverError> {
        let mut pinned = Pinned::new(bytes.len())?;
        let kept = pinned.part(0, bytes);
        // SAFETY: the caller keeps the bytes, and the runtime above gave out the address with room for as many.
        let recorded = unsafe { result::memcpy_htod_async(to, kept, capturing) };
        recorded.inspect_err(|_| pinned.free())?;
        Ok(pinned)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: initialised bytes that only this value points to.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) }
    }

    /// Copies bytes to an offset and shows them there.
    fn part(&mut self, offset: usize, bytes: &[u8]) -> &[u8] {
        let part = &mut self.bytes()[offset..offset + bytes.len()];
        part.copy_from_slice(bytes);
        part
    }

    /// Gives it back; the context is current and nothing on the device uses it any more.
    pub(super) fn free(&self) {
        // SAFETY: allocated in `new`, and the owner forgets it with this call. A lost device refuses; all the same.
        let _ = unsafe { result::free_host(self.memory.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_fills_slots_in_turn_and_names_the_one_it_leaves() {
        let mut ring = Ring { slots: 2, bytes: 1024, slot: 0, used: 0 };
        let place = |slot, offset, bytes, left| Place { slot, offset, bytes, left };
        assert_eq!(ring.place(100), place(0, 0, 100, None));
        assert_eq!(ring.place(300), place(0, 256, 300, None));
        assert_eq!(ring.place(300), place(0, 768, 256, None), "the rest comes after");
        assert_eq!(ring.place(44), place(1, 0, 44, Some(0)));
        assert_eq!(ring.place(1000), place(1, 256, 768, None));
        assert_eq!(ring.place(1), place(0, 0, 1, Some(1)));
    }
}
