//! An NVIDIA device, seen as a [`Runtime`] through cudarc's thin calls to the driver, whose library is looked for when
//! a device is opened: the program starts without it.
//!
//! One context, one stream, one lock. Everything on the stream runs in order, so the only events are those of the
//! pinned staging and of the clock, and memory is given out again as soon as its last user is launched. A kernel that
//! fails takes the context with it; from then on each call says so, and which kernel it may have been.

#![allow(unsafe_code)]

mod device;
mod failure;
mod kernels;
mod staging;

pub use device::{Properties, devices, driver_version};
pub use failure::version;
pub use kernels::{ARCHITECTURES, NVCC};

use super::{
    Address, Argument, Launch, Runtime, TensorMap, TensorShape,
    arena::{Arena, GraphId},
};
use crate::error::{Error, Result};
use cudarc::driver::{
    DriverError,
    result::{self, stream::StreamKind},
    sys::{self, CUresult},
};
use kernels::{Failure, Kernels};
use staging::{Coming, Pinned, Staging};
use std::{
    collections::VecDeque,
    ffi::c_void,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

/// How many launches are remembered, for when one of them fails.
const SUSPECTS: usize = 8;

/// A device opened.
pub struct Cuda {
    properties: Properties,
    state: Arc<Mutex<State>>,
    /// Rung when a capture is over.
    captured: Condvar,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({:?})", self.properties)
    }
}

struct State {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    arena: Arena,
    kernels: Kernels,
    staging: Staging,
    /// When what is timed began and ended.
    clock: [sys::CUevent; 2],
    /// The device's name in messages.
    name: String,
    /// Launched since the device was last known to be well, the newest last.
    suspects: VecDeque<String>,
    /// Each launch is waited for, so that the last suspect is the culprit.
    blocking: bool,
    capture: Option<Capture>,
    /// What every call says once a kernel has failed.
    lost: Option<String>,
}

/// A capture under way.
struct Capture {
    by: ThreadId,
    memory: GraphId,
    launches: usize,
    uploads: Vec<Pinned>,
}

// SAFETY: a context may be used by any thread that has made it current, which `Cuda::state` does at each call, and one
// at a time, which its lock ensures.
unsafe impl Send for State {}

/// Launches that the driver runs again as one.
pub struct Graph {
    state: Arc<Mutex<State>>,
    executable: sys::CUgraphExec,
    memory: GraphId,
    launches: usize,
    /// What it uploads, as it was when it was captured.
    uploads: Vec<Pinned>,
}

// SAFETY: the handle is used with the state locked and its context current, as above.
unsafe impl Send for Graph {}

/// A copy on its way to the host.
pub struct Landing {
    state: Arc<Mutex<State>>,
    /// Taken when it has landed.
    coming: Option<Coming>,
}

// SAFETY: its event and memory are used with the context current, by whoever has the landing or the lock.
unsafe impl Send for Landing {}

impl fmt::Debug for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Landing({:?})", self.coming)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(coming) = self.coming.take() {
            lock(&self.state).staging.take(coming, None);
        }
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({} launches)", self.launches)
    }
}

impl Cuda {
    /// Opens `cuda:index`.
    pub fn open(index: u32) -> Result<Self> {
        let (device, properties) = device::find(index)?;
        let refused = |error: DriverError| failure::refused("cuda", error.0);
        // SAFETY: the device is one the driver named; the context is released with the state.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(refused)?;
        let prepare = || {
            // SAFETY: the context was retained above.
            unsafe { result::ctx::set_current(context)? };
            let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
            Ok((result::stream::create(StreamKind::NonBlocking)?, Staging::new()?, [event()?, event()?]))
        };
        let (stream, staging, clock) = prepare().map_err(|error| {
            // SAFETY: retained above and not used any more; what was made in it goes with it.
            let _ = unsafe { result::primary_ctx::release(device) };
            refused(error)
        })?;
        let state = State {
            device,
            context,
            stream,
            arena: Arena::default(),
            kernels: Kernels::default(),
            staging,
            clock,
            name: format!("cuda:{index} ({})", properties.name),
            suspects: VecDeque::with_capacity(SUSPECTS),
            blocking: std::env::var_os("CUDA_LAUNCH_BLOCKING").is_some_and(|value| value == "1"),
            capture: None,
            lost: None,
        };
        Ok(Cuda { properties, state: Arc::new(Mutex::new(state)), captured: Condvar::new() })
    }

    /// What the device says of itself.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The state, with its context current, if the device still works. While another thread captures, what this one
    /// does would end up in its graph, so it waits.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let others = |state: &mut State| {
            state.capture.as_ref().is_some_and(|capture| capture.by != thread::current().id())
        };
        let state = self.captured.wait_while(lock(&self.state), others);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        match &state.lost {
            Some(lost) => Err(Error::machine("cuda", lost.clone())),
            None => {
                // SAFETY: the context lives as long as the state.
                unsafe { result::ctx::set_current(state.context) }
                    .map_err(|error| failure::refused("cuda", error.0))?;
                Ok(state)
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic while locked leaves books that are right: they are kept after the driver agreed.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The error of a refused call. A fatal one is remembered, and is what every later call gives.
    fn failed(&mut self, op: &'static str, DriverError(code): DriverError) -> Error {
        if !failure::is_fatal(code) {
            return failure::refused(op, code);
        }
        let known = if self.blocking { self.suspects.len().saturating_sub(1) } else { 0 };
        let suspects: Vec<String> = self.suspects.drain(..).skip(known).collect();
        let lost = failure::lost(code, &self.name, &suspects);
        self.lost = Some(lost.clone());
        Error::machine(op, lost)
    }

    fn suspect(&mut self, kernel: String) {
        if self.suspects.len() == SUSPECTS {
            self.suspects.pop_front();
        }
        self.suspects.push_back(kernel);
    }

    /// What can only be done at once is refused while other things are put off.
    fn outside_captures(&self, op: &'static str) -> Result<()> {
        match self.capture {
            Some(_) => {
                Err(Error::internal(op, "launches are being captured, which can hold only uploads besides"))
            }
            None => Ok(()),
        }
    }

    fn wait(&mut self, op: &'static str) -> Result<()> {
        // SAFETY: the stream lives as long as the state.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|error| self.failed(op, error))?;
        self.suspects.clear();
        Ok(())
    }

    /// Asks the driver for memory, the second time after giving back what nobody uses.
    fn grow(&mut self, bytes: usize) -> Result<()> {
        let mut chunk = Arena::chunk_for(bytes);
        // SAFETY: the memory is written before it is read, by contract of whoever asked for it.
        let mut start = unsafe { result::malloc_sync(chunk) };
        if matches!(start, Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY))) && self.capture.is_none() {
            self.wait("alloc")?;
            for unused in self.arena.trim() {
                // SAFETY: the arena knows of no user, and what was launched has run.
                unsafe { result::free_sync(unused) }.map_err(|error| self.failed("alloc", error))?;
            }
            chunk = Arena::least_for(bytes);
            // SAFETY: as above.
            start = unsafe { result::malloc_sync(chunk) };
        }
        match start {
            Ok(start) => self.arena.add(start, chunk),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = result::mem_get_info().map_err(|error| self.failed("alloc", error))?;
                return Err(failure::no_room(bytes, free, total));
            }
            Err(error) => return Err(self.failed("alloc", error)),
        }
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // A device that is lost refuses all of this, and has nothing left to give back.
        // SAFETY: everything was made in this context, which is current, and is used by nobody after this.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            self.staging.free();
            for event in self.clock {
                let _ = result::event::destroy(event);
            }
            self.kernels.unload();
            for chunk in self.arena.chunks() {
                let _ = result::free_sync(chunk);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        // SAFETY: the context is alive and the graph has run. A lost device refuses; all the same.
        unsafe {
            let _ = result::ctx::set_current(state.context);
            let _ = result::stream::synchronize(state.stream);
            let _ = result::graph::exec_destroy(self.executable);
        }
        self.uploads.iter().for_each(Pinned::free);
        state.arena.end_of(self.memory);
    }
}

impl Runtime for Cuda {
    type Graph = Graph;

    fn describe(&self) -> String {
        self.properties.to_string()
    }

    fn multiprocessors(&self) -> usize {
        self.properties.multiprocessors
    }

    fn free_memory(&self) -> Result<usize> {
        let mut state = self.state()?;
        let (free, _) = result::mem_get_info().map_err(|error| state.failed("memory", error))?;
        Ok(free + state.arena.unused())
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        let mut state = self.state()?;
        if let Some(start) = state.arena.take(bytes) {
            return Ok(Address(start));
        }
        state.grow(bytes)?;
        let start = state.arena.take(bytes);
        start
            .map(Address)
            .ok_or_else(|| Error::internal("alloc", format!("no room for {bytes} bytes in new room")))
    }

    fn release(&self, address: Address) -> Result<()> {
        self.state()?.arena.give(address.0)
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        let mut state = self.state()?;
        let stream = state.stream;
        let done = match &mut state.capture {
            Some(capture) if !bytes.is_empty() => {
                Pinned::upload_by_graph(to.0, bytes, stream).map(|kept| capture.uploads.push(kept))
            }
            _ => state.staging.upload(to.0, bytes, stream),
        };
        done.map_err(|error| state.failed("upload", error))
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        let mut state = self.state()?;
        state.outside_captures("download")?;
        let stream = state.stream;
        state.staging.download(from.0, bytes, stream).map_err(|error| state.failed("download", error))?;
        state.suspects.clear();
        Ok(())
    }

    type Landing = Landing;

    fn fetch(&self, from: Address, bytes: usize) -> Result<Landing> {
        let mut state = self.state()?;
        state.outside_captures("fetch")?;
        let stream = state.stream;
        let coming = state.staging.fetch(from.0, bytes, stream);
        let coming = coming.map_err(|error| state.failed("fetch", error))?;
        Ok(Landing { state: self.state.clone(), coming: Some(coming) })
    }

    fn land(&self, mut landing: Landing, bytes: &mut [u8]) -> Result<()> {
        let done = landing.coming.as_ref().map(|coming| coming.done);
        let done = done.ok_or_else(|| Error::internal("land", "it has landed before"))?;
        self.state()?.outside_captures("land")?; // and is free for others while this one waits
        // SAFETY: the event was recorded, is this landing's alone, and its context was just made current.
        let waited = unsafe { result::event::synchronize(done) };
        let mut state = self.state()?;
        if let Some(coming) = landing.coming.take() {
            state.staging.take(coming, waited.is_ok().then_some(bytes));
        }
        waited.map_err(|error| state.failed("land", error))
    }

    fn tensor_map(&self, shape: &TensorShape<'_>) -> Result<TensorMap> {
        shape.check()?;
        let _current = self.state()?;
        tensor_map(shape).map_err(|error| failure::refused("tensor_map", error.0))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let &Launch { kernel, grid, block, shared, arguments } = launch;
        if shared as usize > self.properties.shared_memory {
            let (name, most) = (&self.properties.name, self.properties.shared_memory);
            let what = format!("kernel {kernel} needs {shared} bytes of shared memory and {name} has {most}");
            return Err(Error::machine("launch", what));
        }
        let mut state = self.state()?;
        let prepared = state.kernels.find(kernel).and_then(|function| {
            function.check(kernel, arguments.iter().map(|argument| argument.bytes().len()))?;
            function.allow_shared(shared)?;
            Ok(function.handle)
        });
        let handle = match prepared {
            Ok(handle) => handle,
            Err(Failure::Driver(error)) => return Err(state.failed("launch", error)),
            Err(Failure::Ours(error)) => return Err(error),
        };
        let pointer = |argument: &Argument| argument.bytes().as_ptr().cast_mut().cast::<c_void>();
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(pointer).collect();
        match &mut state.capture {
            Some(capture) => capture.launches += 1,
            None => state.suspect(kernel.to_owned()),
        }
        let [grid, block] = [grid, block].map(|[x, y, z]| (x, y, z));
        // SAFETY: the kernel is loaded, and the pointers are to as many bytes each as it takes, which the driver copies
        // before it returns. That addresses among them have memory behind them is the launcher's part.
        unsafe { result::launch_kernel(handle, grid, block, shared, state.stream, &mut pointers) }.map_err(
            |error| {
                let refused = |what: Error| {
                    Error::machine("launch", format!("{kernel}, grid {grid:?}, block {block:?}: {what}"))
                };
                match failure::is_fatal(error.0) {
                    true => state.failed("launch", error),
                    false => refused(state.failed("launch", error)),
                }
            },
        )
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.state()?;
        state.outside_captures("sync")?;
        state.wait("sync")
    }

    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        {
            let mut state = self.state()?;
            state.outside_captures("capture")?;
            // Relaxed: we load modules and ask for memory meanwhile, which stays out of the graph.
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
            // SAFETY: the stream lives as long as the state.
            unsafe { result::stream::begin_capture(state.stream, mode) }
                .map_err(|error| state.failed("capture", error))?;
            let memory = state.arena.begin();
            let by = thread::current().id();
            state.capture = Some(Capture { by, memory, launches: 0, uploads: Vec::new() });
        }
        let outcome = catch_unwind(AssertUnwindSafe(body)); // others wait for the end
        let mut state = lock(&self.state);
        let Some(Capture { memory, launches, uploads, .. }) = state.capture.take() else {
            return Err(Error::internal("capture", "it ended by itself"));
        };
        let kept = state.arena.end();
        let executable = state.end_capture();
        if executable.is_err() {
            uploads.iter().for_each(Pinned::free);
            state.arena.end_of(memory);
        }
        drop(state); // which a graph locks to go
        self.captured.notify_all();
        let state = self.state.clone();
        let graph = executable.map(|executable| Graph { state, executable, memory, launches, uploads });
        outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
        kept?;
        graph
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        if !Arc::ptr_eq(&self.state, &graph.state) {
            return Err(Error::internal("replay", "the graph was captured on another device"));
        }
        let mut state = self.state()?;
        state.outside_captures("replay")?;
        state.suspect(format!("one of {} in a graph", graph.launches));
        // SAFETY: graph and stream are of this context, and the graph's memory is held for it.
        unsafe { result::graph::launch(graph.executable, state.stream) }
            .map_err(|error| state.failed("replay", error))
    }

    fn seconds(&self, graph: &Graph) -> Result<f64> {
        // The first replay keeps the device busy while what is timed is queued, so that it does not wait in between.
        self.replay(graph)?;
        self.mark(0)?;
        self.replay(graph)?;
        self.mark(1)?;
        let mut state = self.state()?;
        state.wait("time")?;
        let [start, end] = state.clock;
        // SAFETY: both events live as long as the state, were recorded, and the stream has passed them.
        let milliseconds =
            unsafe { result::event::elapsed(start, end) }.map_err(|error| state.failed("time", error))?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Cuda {
    /// Has the clock note when the stream comes this far.
    fn mark(&self, event: usize) -> Result<()> {
        let mut state = self.state()?;
        // SAFETY: event and stream live as long as the state and are of its context.
        unsafe { result::event::record(state.clock[event], state.stream) }
            .map_err(|error| state.failed("time", error))
    }
}

impl State {
    /// What was captured, ready to run. The capture is over in any case.
    fn end_capture(&mut self) -> Result<sys::CUgraphExec> {
        // SAFETY: the context outlives this, the stream is capturing, and the graph is used for the one thing here.
        let executable = unsafe {
            result::ctx::set_current(self.context).and_then(|()| {
                let graph = result::stream::end_capture(self.stream)?;
                let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
                let _ = result::graph::destroy(graph);
                executable
            })
        };
        executable.map_err(|error| self.failed("capture", error))
    }
}

/// Encodes a shape that was checked.
fn tensor_map(shape: &TensorShape<'_>) -> Result<TensorMap, DriverError> {
    use sys::{
        CUtensorMapDataType::*, CUtensorMapFloatOOBfill::*, CUtensorMapInterleave::*,
        CUtensorMapL2promotion::*, CUtensorMapSwizzle::*,
    };
    let element = match shape.element {
        1 => CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2 => CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        4 => CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        _ => CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
    };
    let swizzle = match shape.swizzle {
        0 => CU_TENSOR_MAP_SWIZZLE_NONE,
        32 => CU_TENSOR_MAP_SWIZZLE_32B,
        64 => CU_TENSOR_MAP_SWIZZLE_64B,
        _ => CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let steps = [1; 5];
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: rank is 1 to 5 and the slices have rank, rank - 1, rank and at least rank entries; the driver looks at
    // the address but does not follow it.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            element,
            shape.sizes.len() as u32,
            shape.address.0 as *mut c_void,
            shape.sizes.as_ptr(),
            shape.strides.as_ptr(),
            shape.tile.as_ptr(),
            steps.as_ptr(),
            CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(TensorMap(bytemuck::cast(map.opaque)))
}
