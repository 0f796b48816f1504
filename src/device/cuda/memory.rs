//! Allocations of a context: memory on the device, page-locked memory on the host, events.

use std::ffi::{c_int, c_uint};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::CUevent;

use super::entered::{Entered, release};
use super::{Context, Stream};
use crate::error::{Error, Result};

const CU_MEMHOSTALLOC_PORTABLE: c_uint = 1;
const CU_EVENT_BLOCKING_SYNC_DISABLE_TIMING: c_uint = 1 | 2;
const CUDA_ERROR_OUT_OF_MEMORY: c_int = 2;

/// The error of a failed allocation.
fn allocation_error(error: Error, bytes: usize, what: &str) -> Error {
    match error {
        Error::Cuda { code: CUDA_ERROR_OUT_OF_MEMORY, .. } => {
            Error::out_of_memory(bytes, format!("{what} ({error})"))
        }
        Error::Cuda { call, code, name } => {
            Error::Cuda { call: format!("{call} of {bytes} bytes for {what}"), code, name }
        }
        other => other,
    }
}

/// Memory of a device.
#[derive(Debug)]
pub struct Block {
    context: Arc<Context>,
    address: u64,
}

impl Block {
    pub fn allocate(context: &Arc<Context>, bytes: usize, what: &str) -> Result<Self> {
        let Context { driver, context: handle, .. } = **context;
        let _entered = Entered::relaxed(driver, handle)?;
        let mut address = 0;
        // SAFETY: writes to a local.
        let code = unsafe { (driver.cuMemAlloc)(&raw mut address, bytes) };
        driver.check(code, || "cuMemAlloc".into()).map_err(|e| allocation_error(e, bytes, what))?;
        Ok(Block { context: context.clone(), address })
    }

    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Context { driver, context, .. } = *self.context;
        // SAFETY: allocated by this value, which is its last user.
        release(driver, context, "cuMemFree", || unsafe { (driver.cuMemFree)(self.address) });
    }
}

/// Page-locked host memory, filled with zeros.
#[derive(Debug)]
pub struct Pinned {
    context: Arc<Context>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: memory belongs to no thread, and borrows keep its users apart.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub fn allocate(context: &Arc<Context>, bytes: usize, what: &str) -> Result<Self> {
        let Context { driver, context: handle, .. } = **context;
        let _entered = Entered::relaxed(driver, handle)?;
        let mut start = null_mut();
        // SAFETY: writes to a local, and then to the memory allocated.
        unsafe {
            let code = (driver.cuMemHostAlloc)(&raw mut start, bytes, CU_MEMHOSTALLOC_PORTABLE);
            driver.check(code, || "cuMemHostAlloc".into()).map_err(|e| allocation_error(e, bytes, what))?;
            start.cast::<u8>().write_bytes(0, bytes);
        }
        Ok(Pinned { context: context.clone(), start: start.cast(), bytes })
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }

    pub fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let Context { driver, context, .. } = *self.context;
        // SAFETY: allocated by this value, which is its last user.
        release(driver, context, "cuMemFreeHost", || unsafe { (driver.cuMemFreeHost)(self.start.cast()) });
    }
}

/// A place in a stream.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    pub(super) event: CUevent,
}

// SAFETY: the driver's handles may be used by any thread that makes the context current.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub fn create(context: &Arc<Context>) -> Result<Self> {
        let Context { driver, context: handle, .. } = **context;
        let _entered = Entered::relaxed(driver, handle)?;
        let mut event = null_mut();
        // SAFETY: writes to a local.
        let code = unsafe { (driver.cuEventCreate)(&raw mut event, CU_EVENT_BLOCKING_SYNC_DISABLE_TIMING) };
        driver.check(code, || "cuEventCreate".into())?;
        Ok(Event { context: context.clone(), event })
    }

    pub fn record(&self, stream: Stream) -> Result<()> {
        let Context { driver, context, .. } = *self.context;
        let _entered = Entered::hot(driver, context)?;
        // SAFETY: an event of this value.
        driver
            .check(unsafe { (driver.cuEventRecord)(self.event, stream.0.cast()) }, || "cuEventRecord".into())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Context { driver, context, .. } = *self.context;
        // SAFETY: created by this value, which is its last user.
        release(driver, context, "cuEventDestroy", || unsafe { (driver.cuEventDestroy)(self.event) });
    }
}
