//! The compiled kernels in this binary, loaded when they are first asked for.

use crate::error::{Error, Result};
use cudarc::driver::{
    DriverError, result,
    sys::{self, CUfunction_attribute, CUresult},
};
use std::{
    collections::HashMap,
    ffi::{CString, c_void},
};

/// The loader reads its header as words.
#[repr(C, align(64))]
struct Aligned<Bytes: ?Sized>(Bytes);

// NVCC, ARCHITECTURES, and IMAGES: a fatbin for each file of `kernels/`.
include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Dynamic shared memory that a kernel may have without asking.
const SHARED_UNASKED: u32 = 48 << 10;

/// What is loaded so far.
#[derive(Debug, Default)]
pub(super) struct Kernels {
    modules: Vec<sys::CUmodule>,
    /// How many of the images were looked at.
    opened: usize,
    functions: HashMap<String, Function>,
}

/// One kernel.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) handle: sys::CUfunction,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
    /// Bytes of dynamic shared memory it may be launched with.
    shared: u32,
}

impl Kernels {
    /// The kernel of this name, in the context that is current.
    pub(super) fn find(&mut self, name: &str) -> Result<&mut Function, Failure> {
        if !self.functions.contains_key(name) {
            let handle = self.load(name)?;
            let parameters = parameters(handle);
            let function = Function { handle, parameters, shared: SHARED_UNASKED };
            self.functions.insert(name.to_owned(), function);
        }
        Ok(self.functions.get_mut(name).expect("is there or was put there"))
    }

    /// Looks into what is loaded, then loads file after file until one has it.
    fn load(&mut self, name: &str) -> Result<sys::CUfunction, Failure> {
        let wanted = CString::new(name).map_err(|_| unknown(name))?;
        let mut next = 0;
        loop {
            while let Some(&module) = self.modules.get(next) {
                next += 1;
                // SAFETY: the module was loaded below and is unloaded with this table.
                match unsafe { result::module::get_function(module, wanted.clone()) } {
                    Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => {}
                    found => return Ok(found?),
                }
            }
            let &(_, image) = IMAGES.get(self.opened).ok_or_else(|| unknown(name))?;
            self.opened += 1;
            // SAFETY: nvcc wrote the image, and its header says where it ends.
            match unsafe { result::module::load_data(image.0.as_ptr().cast::<c_void>()) } {
                Ok(module) => self.modules.push(module),
                Err(DriverError(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)) => {} // a twin for another architecture
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Unloads everything; the context must be current.
    pub(super) fn unload(&mut self) {
        self.functions.clear();
        for module in self.modules.drain(..) {
            // SAFETY: each was loaded once, and its functions are forgotten. A lost device refuses; all the same.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

impl Function {
    /// Refuses arguments that are not what the compiled kernel takes.
    pub(super) fn check(
        &self,
        name: &str,
        sizes: impl ExactSizeIterator<Item = usize> + Clone,
    ) -> Result<()> {
        if self.parameters.iter().copied().eq(sizes.clone()) {
            return Ok(());
        }
        let (given, wanted) = (sizes.collect::<Vec<_>>(), &self.parameters);
        Err(Error::internal(
            "launch",
            format!("{name} was given arguments of {given:?} bytes and takes {wanted:?}"),
        ))
    }

    /// Lets it be launched with so much dynamic shared memory.
    pub(super) fn allow_shared(&mut self, bytes: u32) -> Result<(), DriverError> {
        if bytes > self.shared {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle is that of a loaded kernel.
            unsafe { result::function::set_function_attribute(self.handle, attribute, bytes as i32)? };
            self.shared = bytes;
        }
        Ok(())
    }
}

/// Bytes of each parameter of a kernel, asked until there are no more.
fn parameters(kernel: sys::CUfunction) -> Vec<usize> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the handle is that of a loaded kernel, and two sizes are written.
        match unsafe { sys::cuFuncGetParamInfo(kernel, sizes.len(), &mut offset, &mut size) } {
            CUresult::CUDA_SUCCESS => sizes.push(size),
            _ => return sizes,
        }
    }
}

/// The driver's refusal, or ours.
#[derive(Debug)]
pub(super) enum Failure {
    Driver(DriverError),
    Ours(Error),
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Failure::Driver(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Ours(error)
    }
}

fn unknown(name: &str) -> Failure {
    let files: Vec<&str> = IMAGES.iter().map(|image| image.0).collect();
    let what = format!("no kernel for this GPU is named {name:?} in {}", files.join(", "));
    Failure::Ours(Error::internal("launch", what))
}
