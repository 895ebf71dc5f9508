//! The emulated device: every facility against plain loops, bugs planted on purpose that must be reported by name,
//! and our kernels against the oracle. The small kernels are in `kernels/emu/tests`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod attention;
mod attention_backward;
mod backward;
mod bugs;
mod facilities;
mod head;
mod hopper;
mod layouts;
mod linear;
mod linear_backward;
mod linear_sm90;
mod norm;
mod recorded;
mod rope;
mod rows;
mod sample;

use half::bf16;
use pellucid::{
    backend::{
        Backend,
        gpu::{Address, Argument, Emulator, Gpu, Launch, Order, Runtime, Settings},
    },
    tensor::{Dtype, Element, Tensor},
};

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

/// The device as a backend, for kernels behind ops.
fn gpu() -> Gpu<Emulator> {
    Gpu::new(device())
}

fn gpus() -> Vec<Gpu<Emulator>> {
    devices().into_iter().map(Gpu::new).collect()
}

fn on_device<T: Element>(backend: &dyn Backend, shape: &[usize], values: &[T]) -> Tensor {
    backend.upload(Tensor::from_slice(shape, values).unwrap()).unwrap()
}

fn read<T: Element>(backend: &dyn Backend, tensor: &Tensor) -> Vec<T> {
    backend.download(tensor).unwrap().as_slice::<T>().unwrap().to_vec()
}

/// An output that is NaN where no kernel writes: fresh memory of the emulator is.
fn poisoned(backend: &dyn Backend, shape: &[usize]) -> Tensor {
    backend.alloc(Dtype::BF16, shape).unwrap()
}

/// Roughly normal, rounded to bf16.
fn normal(count: usize, seed: u64) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| bf16::from_f32((0..6).map(|_| uniform()).sum::<f32>() * 1.4)).collect()
}

/// |a - b| / |b|
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}
