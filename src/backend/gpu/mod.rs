//! What our kernels run on: memory that is not ours, and launches into it.
//!
//! [`Runtime`] is all that a device must offer, so everything above it (shape checks, tile choice, grid
//! arithmetic, memory plans) is the same code on every one. The driver implements it on NVIDIA devices (feature
//! `cuda`), the emulator on the CPU, with checks that no device makes: see `kernels/emu` (feature `emu`).

mod activation;
#[cfg(any(feature = "cuda", test))]
mod arena;
mod attention;
mod attention_backward;
mod column_sums;
mod decode;
mod device;
#[cfg(feature = "cuda")]
pub mod driver;
#[cfg(feature = "emu")]
mod emulator;
mod head;
mod head_backward;
mod linear;
mod linear_backward;
mod linear_sm90;
mod norm;
mod optimiser;
mod rope;
mod rows;
mod tensor_map;

pub use device::Gpu;
#[cfg(feature = "cuda")]
pub use driver::Cuda;
#[cfg(feature = "emu")]
pub use emulator::{Emulator, Graph, Order, Settings};
pub use tensor_map::{TensorMap, TensorShape};

use crate::error::{Error, Result};

/// A place in a device's memory. Zero is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    /// The place `bytes` further on.
    pub fn plus(self, bytes: usize) -> Self {
        Address(self.0 + bytes as u64)
    }
}

/// One kernel launch.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// The kernel's exported name.
    pub kernel: &'a str,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// In the kernel's order.
    pub arguments: &'a [Argument],
}

/// A kernel argument.
#[derive(Debug, Clone)]
pub enum Argument {
    /// A pointer.
    Address(Address),
    /// `int`
    I32(i32),
    /// `unsigned`
    U32(u32),
    /// `int64_t`
    I64(i64),
    /// `float`
    F32(f32),
    /// `__grid_constant__ CUtensorMap`
    TensorMap(TensorMap),
    /// A struct by value, laid out as C++ does; a kernel has 4096 bytes of arguments in all.
    Struct(Vec<u8>),
}

impl Argument {
    fn bytes(&self) -> &[u8] {
        match self {
            Argument::Address(value) => bytemuck::bytes_of(value),
            Argument::I32(value) => bytemuck::bytes_of(value),
            Argument::U32(value) => bytemuck::bytes_of(value),
            Argument::I64(value) => bytemuck::bytes_of(value),
            Argument::F32(value) => bytemuck::bytes_of(value),
            Argument::TensorMap(value) => &value.0,
            Argument::Struct(bytes) => bytes,
        }
    }
}

/// A device: memory, launches in order, and sequences of launches that can be run again.
pub trait Runtime: Send + Sync + 'static {
    /// What this is, for people.
    fn describe(&self) -> String;

    /// How many multiprocessors it has; ops cut their work by it.
    fn multiprocessors(&self) -> usize;

    /// A recorded sequence of launches.
    type Graph: Send;

    /// Bytes that can still be allocated.
    fn free_memory(&self) -> Result<usize>;

    /// Memory of unspecified contents.
    fn alloc(&self, bytes: usize) -> Result<Address>;

    /// Gives back what [`Runtime::alloc`] gave.
    fn release(&self, address: Address) -> Result<()>;

    /// Copies host bytes into memory.
    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Copies memory to host bytes, after all launches before it.
    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()>;

    /// A copy on its way to the host; who drops it does not want it any more.
    type Landing: Send;

    /// Begins to copy memory to the host as it is after all launches before; what comes after does not wait.
    fn fetch(&self, from: Address, bytes: usize) -> Result<Self::Landing>;

    /// Waits for what [`Runtime::fetch`] began; `bytes` are as many.
    fn land(&self, landing: Self::Landing, bytes: &mut [u8]) -> Result<()>;

    /// Encodes a tensor map.
    fn tensor_map(&self, shape: &TensorShape<'_>) -> Result<TensorMap>;

    /// Runs a kernel after all launches before it; a fault may be reported at the next [`Runtime::sync`].
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Waits for all launches.
    fn sync(&self) -> Result<()>;

    /// Records the launches and uploads that `body` makes instead of doing them, the uploaded bytes included; nothing
    /// else can be done meanwhile. Memory that `body` takes or gives back stays the graph's until that is dropped.
    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph>;

    /// Does what was recorded, with the arguments it had.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Replays, waits, and says how many seconds the launches took by the device's own clock, if it has one.
    fn seconds(&self, _graph: &Self::Graph) -> Result<f64> {
        Err(Error::caller("time", format!("there is no clock in {}", self.describe())))
    }
}
