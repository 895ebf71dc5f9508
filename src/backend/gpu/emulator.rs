//! The emulated device of `kernels/emu`, seen as a [`Runtime`].
//!
//! Launches run at once, on the calling thread, one at a time. Each emulator has memory of its own, so tests that
//! run beside each other do not meet. In checked mode a launch that breaks a rule of CUDA returns an error that
//! names the rule, the kernel, block, thread and place; the device stays usable.

#![allow(unsafe_code)]

use super::{Address, Argument, Launch, Runtime, TensorMap, TensorShape};
use crate::error::{Error, Result};
use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr::NonNull,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

/// The C++ side's state.
#[repr(C)]
struct Machine {
    opaque: [u8; 0],
}

unsafe extern "C" {
    fn emu_new() -> *mut Machine;
    fn emu_delete(machine: *mut Machine);
    fn emu_configure(machine: *mut Machine, order: u32, seed: u64, checked: bool, lines: bool);
    fn emu_allocate(machine: *mut Machine, bytes: usize) -> u64;
    fn emu_free(machine: *const Machine) -> usize;
    fn emu_release(machine: *mut Machine, address: u64) -> *const c_char;
    fn emu_host(machine: *mut Machine, address: u64, bytes: usize) -> *mut u8;
    fn emu_launch(
        machine: *mut Machine,
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared: u32,
        arguments: *const *const c_void,
        sizes: *const usize,
        count: usize,
    ) -> *const c_char;
    fn emu_tensor_map(
        out: *mut u8,
        address: u64,
        rank: u32,
        sizes: *const u64,
        strides: *const u64,
        tile: *const u32,
        element: u32,
        swizzle: u32,
    );
}

/// In which order threads and blocks get their turns. A correct kernel gives the same under all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Lowest first.
    #[default]
    Ascending,
    /// Highest first.
    Descending,
    /// By a seed, with turns taken away at any synchronisation.
    Random(u64),
}

/// How an emulator runs kernels.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Who goes first.
    pub order: Order,
    /// Follow every access: bounds, alignment, uninitialised reads, races, missing fences. Several times slower.
    pub checked: bool,
    /// Let reports name the kernel's source line, by `addr2line`; takes a second or so a report.
    pub lines: bool,
    /// How many multiprocessors ops think there are. Blocks run one after another whatever it says.
    pub multiprocessors: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { order: Order::Ascending, checked: true, lines: false, multiprocessors: 132 }
    }
}

struct State {
    machine: NonNull<Machine>,
    /// The steps of a capture under way, and whose it is.
    recording: Option<(ThreadId, Vec<Step>)>,
    /// How many captures there were; the last one's number while one is under way.
    captures: u64,
    /// By which capture memory was taken, as long as its graph is there.
    taken: HashMap<Address, u64>,
    /// What was given back but belongs to a graph.
    held: HashMap<u64, Vec<Address>>,
}

impl State {
    /// What can only be done at once is refused while other things are put off.
    fn outside_captures(&self, op: &'static str) -> Result<()> {
        match self.recording {
            Some(_) => {
                Err(Error::internal(op, "launches are being captured, which can hold only uploads besides"))
            }
            None => Ok(()),
        }
    }

    fn release(&mut self, address: Address) -> Result<()> {
        // SAFETY: the machine is locked; the text is a constant.
        unsafe { complaint("release", emu_release(self.machine.as_ptr(), address.0)) }
    }

    /// The graph is gone, and nobody can ask for its memory any more.
    fn end_of(&mut self, graph: u64) {
        self.taken.retain(|_, owner| *owner != graph);
        for address in self.held.remove(&graph).unwrap_or_default() {
            let _ = self.release(address); // given back twice, and nobody left to tell
        }
    }
}

// SAFETY: the machine has no ties to a thread between calls (a launch sets its thread-local state and clears it),
// and it is reached through the mutex in `Emulator` alone.
unsafe impl Send for State {}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `emu_new` and nothing uses it after this.
        unsafe { emu_delete(self.machine.as_ptr()) }
    }
}

/// A device on the CPU.
pub struct Emulator {
    state: Arc<Mutex<State>>,
    /// Rung when a capture is over.
    captured: Condvar,
    checked: bool,
    multiprocessors: usize,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Emulator")
    }
}

/// What [`Runtime::capture`] recorded.
pub struct Graph {
    state: Arc<Mutex<State>>,
    number: u64,
    steps: Vec<Step>,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Graph").field(&self.steps).finish()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        lock(&self.state).end_of(self.number);
    }
}

#[derive(Debug)]
enum Step {
    Launch { kernel: String, grid: [u32; 3], block: [u32; 3], shared: u32, arguments: Vec<Argument> },
    Upload { to: Address, bytes: Vec<u8> },
}

impl Emulator {
    /// A device with no memory allocated.
    pub fn new(settings: Settings) -> Result<Self> {
        // SAFETY: takes no arguments and shares nothing.
        let machine = NonNull::new(unsafe { emu_new() }).ok_or_else(|| {
            Error::machine("emulator", "cannot reserve 80 GB of addresses; raise the limit on virtual memory")
        })?;
        let (order, seed) = match settings.order {
            Order::Ascending => (0, 0),
            Order::Descending => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        // SAFETY: the machine is ours alone and `order` is one of the three that C++ knows.
        unsafe { emu_configure(machine.as_ptr(), order, seed, settings.checked, settings.lines) };
        let (taken, held) = (HashMap::new(), HashMap::new());
        let state = Arc::new(Mutex::new(State { machine, recording: None, captures: 0, taken, held }));
        let captured = Condvar::new();
        Ok(Emulator { state, captured, checked: settings.checked, multiprocessors: settings.multiprocessors })
    }

    /// The state; while another thread captures, what this one does would end up in its graph, so it waits.
    fn state(&self) -> MutexGuard<'_, State> {
        let others = |state: &mut State| {
            state.recording.as_ref().is_some_and(|(recorder, _)| *recorder != thread::current().id())
        };
        self.captured.wait_while(lock(&self.state), others).unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic while locked leaves nothing half done: the C++ side finishes each call.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The host's pointer to device memory.
fn host(op: &'static str, state: &State, at: Address, bytes: usize) -> Result<*mut u8> {
    // SAFETY: looks the address up, does not follow it.
    let pointer = unsafe { emu_host(state.machine.as_ptr(), at.0, bytes) };
    if pointer.is_null() && bytes != 0 {
        return Err(Error::internal(op, format!("{bytes} bytes at {:#x} are not in one allocation", at.0)));
    }
    Ok(pointer)
}

/// The text behind a non-null pointer from C++.
///
/// # Safety
/// `text` is null or a C string that outlives the call.
unsafe fn complaint(op: &'static str, text: *const c_char) -> Result<()> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    Err(Error::internal(op, text.to_string_lossy()))
}

impl Runtime for Emulator {
    type Graph = Graph;

    fn describe(&self) -> String {
        let checked = if self.checked { "every access checked" } else { "accesses not checked" };
        format!("emu, our CUDA kernels on one CPU thread, {checked}")
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn free_memory(&self) -> Result<usize> {
        let state = self.state();
        // SAFETY: the machine is locked.
        Ok(unsafe { emu_free(state.machine.as_ptr()) })
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        let mut state = self.state();
        // SAFETY: the machine is locked.
        match unsafe { emu_allocate(state.machine.as_ptr(), bytes) } {
            0 => Err(Error::machine(
                "alloc",
                format!("no room for {bytes} more bytes; the emulator has 4 GiB"),
            )),
            address => {
                let number = state.captures;
                if state.recording.is_some() {
                    state.taken.insert(Address(address), number);
                }
                Ok(Address(address))
            }
        }
    }

    fn release(&self, address: Address) -> Result<()> {
        let mut state = self.state();
        let capture = state.recording.is_some().then_some(state.captures);
        match state.taken.get(&address).copied().or(capture) {
            Some(graph) => state.held.entry(graph).or_default().push(address),
            None => return state.release(address),
        }
        Ok(())
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        let mut state = self.state();
        let target = host("upload", &state, to, bytes.len())?;
        if let Some((_, steps)) = &mut state.recording {
            steps.push(Step::Upload { to, bytes: bytes.to_vec() });
            return Ok(());
        }
        if !bytes.is_empty() {
            // SAFETY: `host` found the range inside one allocation, which no Rust reference points into.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) }
        }
        Ok(())
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        let state = self.state();
        state.outside_captures("download")?;
        let source = host("download", &state, from, bytes.len())?;
        if !bytes.is_empty() {
            // SAFETY: `host` found the range inside one allocation, which is readable and disjoint from ours.
            unsafe { std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) }
        }
        Ok(())
    }

    type Landing = Vec<u8>;

    fn fetch(&self, from: Address, bytes: usize) -> Result<Vec<u8>> {
        let mut landing = vec![0; bytes];
        self.download(from, &mut landing)?;
        Ok(landing)
    }

    fn land(&self, landing: Vec<u8>, bytes: &mut [u8]) -> Result<()> {
        self.state().outside_captures("land")?;
        bytes.copy_from_slice(&landing);
        Ok(())
    }

    fn tensor_map(&self, shape: &TensorShape<'_>) -> Result<TensorMap> {
        shape.check()?;
        let mut map = [0; 128];
        // SAFETY: `map` has the 128 bytes that are written; the slices have as many entries as the rank says, strides
        // one fewer, as was checked.
        unsafe {
            emu_tensor_map(
                map.as_mut_ptr(),
                shape.address.0,
                shape.sizes.len() as u32,
                shape.sizes.as_ptr(),
                shape.strides.as_ptr(),
                shape.tile.as_ptr(),
                shape.element,
                shape.swizzle,
            );
        }
        Ok(TensorMap(map))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let mut state = self.state();
        if let Some((_, steps)) = &mut state.recording {
            let &Launch { kernel, grid, block, shared, arguments } = launch;
            let (kernel, arguments) = (kernel.to_owned(), arguments.to_vec());
            steps.push(Step::Launch { kernel, grid, block, shared, arguments });
            return Ok(());
        }
        let name = CString::new(launch.kernel)
            .map_err(|_| Error::internal("launch", format!("no kernel is named {:?}", launch.kernel)))?;
        let bytes: Vec<&[u8]> = launch.arguments.iter().map(Argument::bytes).collect();
        let sizes: Vec<usize> = bytes.iter().map(|b| b.len()).collect();
        let pointers: Vec<*const c_void> = bytes.iter().map(|b| b.as_ptr().cast()).collect();
        // SAFETY: every pointer is to as many bytes as `sizes` says, and C++ compares these sizes with the kernel's
        // parameters before it reads them. Kernels reach memory of the machine only, or fault into a report; the
        // report lives until the next launch, and the machine is locked until it has been copied.
        unsafe {
            let report = emu_launch(
                state.machine.as_ptr(),
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared,
                pointers.as_ptr(),
                sizes.as_ptr(),
                sizes.len(),
            );
            complaint("launch", report)
        }
    }

    fn sync(&self) -> Result<()> {
        self.state().outside_captures("sync") // launches have run when they return
    }

    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        {
            let mut state = self.state();
            state.outside_captures("capture")?;
            state.captures += 1;
            state.recording = Some((thread::current().id(), Vec::new()));
        }
        let outcome = catch_unwind(AssertUnwindSafe(body)); // others wait for the end
        let mut state = self.state();
        let number = state.captures;
        let steps = state.recording.take().map(|(_, steps)| steps).unwrap_or_default();
        drop(state); // which a graph locks to go
        self.captured.notify_all();
        let graph = Graph { state: self.state.clone(), number, steps };
        outcome.unwrap_or_else(|panic| resume_unwind(panic)).map(|()| graph)
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        self.state().outside_captures("replay")?;
        graph.steps.iter().try_for_each(|step| match step {
            Step::Upload { to, bytes } => self.upload(*to, bytes),
            Step::Launch { kernel, grid, block, shared, arguments } => {
                self.launch(&Launch { kernel, grid: *grid, block: *block, shared: *shared, arguments })
            }
        })
    }
}
