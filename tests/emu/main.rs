//! The emulated device: every facility against plain loops, bugs planted on purpose that must be reported by name,
//! and our kernels against the oracle. The small kernels are in `kernels/emu/tests`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod bugs;
mod facilities;
mod hopper;
mod rms_norm;

use pellucid::backend::gpu::{Address, Argument, Emulator, Launch, Order, Runtime, Settings};

/// Every order threads can be given turns in; random ones by different seeds.
fn devices() -> Vec<Emulator> {
    let orders = [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2), Order::Random(3)];
    orders
        .into_iter()
        .map(|order| Emulator::new(Settings { order, ..Settings::default() }).unwrap())
        .collect()
}

fn device() -> Emulator {
    Emulator::new(Settings::default()).unwrap()
}

fn upload<T: bytemuck::Pod>(device: &Emulator, values: &[T]) -> Address {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let address = device.alloc(bytes.len()).unwrap();
    device.upload(address, bytes).unwrap();
    address
}

fn download<T: bytemuck::Pod>(device: &Emulator, from: Address, count: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); count];
    device.download(from, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// Memory for so many values, full of NaN.
fn blank<T>(device: &Emulator, count: usize) -> Address {
    device.alloc(count * size_of::<T>()).unwrap()
}

/// A launch on one-dimensional grids and blocks; the error is the report.
fn launch(
    device: &Emulator,
    kernel: &str,
    [blocks, threads]: [u32; 2],
    shared: u32,
    arguments: &[Argument],
) -> Result<(), String> {
    let launch = Launch { kernel, grid: [blocks, 1, 1], block: [threads, 1, 1], shared, arguments };
    device.launch(&launch).map_err(|e| e.to_string())
}

/// Small whole numbers, whose sums are exact in every order.
fn whole(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) % 17) as f32 - 8.0
    };
    (0..count).map(|_| next()).collect()
}
