//! A CUDA device through its driver. The caller's context is restored after each call, its streams are borrowed, and allocations
//! are freed.
//!
//! Calls that are not hot run with the thread's capture mode relaxed. While a stream of the caller is being captured, the driver
//! would otherwise refuse them and invalidate the capture.

mod driver;
mod entered;
mod kernel;
mod memory;
mod way_out;

pub use kernel::Kernel;
pub use memory::{Block, Event, Pinned};

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{CUcontext, CUdevice, CUfunction, CUmodule, CUstream};

use self::driver::Driver;
use self::entered::{Entered, current_context, release, warn_of};
use super::{Access, Capture, Grid, Stream};
use crate::error::{Error, Result};

// The constants of cuda.h, by their names there.
const CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS: c_uint = 88;
const CU_POINTER_ATTRIBUTE_MEMORY_TYPE: c_uint = 2;
const CU_POINTER_ATTRIBUTE_IS_MANAGED: c_uint = 8;
const CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: c_uint = 9;
const CU_MEMORYTYPE_HOST: c_uint = 1;
const CU_STREAM_NON_BLOCKING: c_uint = 1;
const CUDA_ERROR_INVALID_VALUE: c_int = 1;
const CUDA_ERROR_STREAM_CAPTURE_IMPLICIT: c_int = 906;

/// The fatbin of kernels/, and the PTX as a C string. build.rs writes both.
static FATBIN: Image<[u8; include_bytes!(concat!(env!("OUT_DIR"), "/eplb.fatbin")).len()]> =
    Image(*include_bytes!(concat!(env!("OUT_DIR"), "/eplb.fatbin")));
static PTX: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/eplb.ptx"));

/// Aligned, since the driver reads words from it.
#[repr(align(16))]
struct Image<T>(T);

/// Whether [`Context::primary`] could succeed.
pub fn available() -> Result<()> {
    let driver = Driver::get()?;
    match device_count(driver)? {
        0 => Err(Error::NoDriver("the CUDA driver has no device; use EPLB_DEVICE_HOST".into())),
        _ => Ok(()),
    }
}

fn device_count(driver: &Driver) -> Result<c_int> {
    let mut count = 0;
    // SAFETY: writes to a local.
    driver.check(unsafe { (driver.cuDeviceGetCount)(&raw mut count) }, || "cuDeviceGetCount".into())?;
    Ok(count)
}

/// A context with the library's kernels loaded, and a stream of the library, which waits for no other.
pub struct Context {
    driver: &'static Driver,
    context: CUcontext,
    device: CUdevice,
    retained: bool,
    stream: CUstream,
    module: CUmodule,
    functions: [CUfunction; Kernel::ALL.len()],
}

// SAFETY: the driver's handles may be used by any thread that makes the context current.
unsafe impl Send for Context {}
// SAFETY: as above. Nothing here changes after creation.
unsafe impl Sync for Context {}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CUDA device {}", self.device)
    }
}

impl Context {
    /// The calling thread's current context, which stays the caller's.
    pub fn current() -> Result<Self> {
        let driver = Driver::get()?;
        let context = current_context(driver)?;
        if context.is_null() {
            return Err(Error::InvalidArgument(
                "no CUDA context is current on this thread: make one current, or name the device's ordinal"
                    .into(),
            ));
        }
        let mut device = 0;
        // SAFETY: writes to a local.
        driver.check(unsafe { (driver.cuCtxGetDevice)(&raw mut device) }, || "cuCtxGetDevice".into())?;
        Context::bare(driver, context, device, false).loaded()
    }

    /// The primary context of a device, which is retained until drop.
    pub fn primary(ordinal: u32) -> Result<Self> {
        let driver = Driver::get()?;
        let count = device_count(driver)?;
        let Some(ordinal) = c_int::try_from(ordinal).ok().filter(|&ordinal| ordinal < count) else {
            return Err(Error::InvalidArgument(format!(
                "device {ordinal}: the CUDA driver has {count}, numbered from 0"
            )));
        };
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: writes to locals.
        unsafe {
            driver.check((driver.cuDeviceGet)(&raw mut device, ordinal), || "cuDeviceGet".into())?;
            driver.check((driver.cuDevicePrimaryCtxRetain)(&raw mut context, device), || {
                format!("cuDevicePrimaryCtxRetain of device {ordinal}")
            })?;
        }
        Context::bare(driver, context, device, true).loaded()
    }

    fn bare(driver: &'static Driver, context: CUcontext, device: CUdevice, retained: bool) -> Self {
        let functions = [null_mut(); Kernel::ALL.len()];
        Context { driver, context, device, retained, stream: null_mut(), module: null_mut(), functions }
    }

    /// Creates the stream and loads the kernels. On failure, dropping `self` releases what was created so far.
    fn loaded(mut self) -> Result<Self> {
        let Self { driver, context, stream, module, functions, .. } = &mut self;
        let entered = Entered::relaxed(driver, *context)?;
        // SAFETY: the context is current; every call writes to a field.
        unsafe {
            driver.check((driver.cuStreamCreate)(&raw mut *stream, CU_STREAM_NON_BLOCKING), || {
                "cuStreamCreate".into()
            })?;
            load_module(driver, module)?;
            for (function, kernel) in functions.iter_mut().zip(Kernel::ALL) {
                let name = kernel.name();
                driver.check(
                    (driver.cuModuleGetFunction)(&raw mut *function, *module, name.as_ptr()),
                    || format!("cuModuleGetFunction of {}", name.to_string_lossy()),
                )?;
            }
        }
        drop(entered);
        Ok(self)
    }

    /// Fills words, in the order of `stream`.
    pub fn fill(&self, address: u64, value: u32, count: usize, stream: Stream) -> Result<()> {
        let _entered = Entered::hot(self.driver, self.context)?;
        // SAFETY: words of memory of this device, as the caller checked.
        let code = unsafe { (self.driver.cuMemsetD32Async)(address, value, count, stream.0.cast()) };
        self.driver.check(code, || "cuMemsetD32Async".into())
    }

    /// Fills words and waits.
    pub fn initialize(&self, address: u64, value: u32, count: usize) -> Result<()> {
        self.fill(address, value, count, Stream(self.stream.cast()))?;
        let _entered = Entered::relaxed(self.driver, self.context)?;
        self.synchronize()
    }

    /// Copies words to the device and waits.
    pub fn write(&self, address: u64, words: &[u32]) -> Result<()> {
        let _entered = Entered::relaxed(self.driver, self.context)?;
        let (driver, bytes) = (self.driver, size_of_val(words));
        // SAFETY: memory of this device, as the caller checked. The stream is waited for before the words go.
        let code = unsafe { (driver.cuMemcpyHtoDAsync)(address, words.as_ptr().cast(), bytes, self.stream) };
        driver.check(code, || format!("cuMemcpyHtoDAsync of {bytes} bytes"))?;
        self.synchronize()
    }

    /// Whether both are the same context.
    pub fn is(&self, other: &Context) -> bool {
        self.context == other.context
    }

    /// Launches a kernel with one parameter, the struct at `arguments`.
    ///
    /// # Safety
    /// As for [`Cuda::launch`](super::Cuda::launch).
    pub unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: Grid,
        arguments: *const c_void,
        stream: Stream,
    ) -> Result<()> {
        let _entered = Entered::hot(self.driver, self.context)?;
        let mut parameters = [arguments.cast_mut()];
        // SAFETY: the kernel takes one struct, which the driver copies before it returns.
        let code = unsafe {
            (self.driver.cuLaunchKernel)(
                self.functions[kernel as usize],
                grid.blocks,
                1,
                1,
                grid.threads,
                1,
                1,
                grid.shared_bytes,
                stream.0.cast(),
                parameters.as_mut_ptr(),
                null_mut(),
            )
        };
        self.driver.check(code, || format!("cuLaunchKernel of {}", kernel.name().to_string_lossy()))
    }

    /// Which capture affects `stream`.
    pub fn capture(&self, stream: Stream) -> Result<Capture> {
        let _entered = Entered::hot(self.driver, self.context)?;
        let mut status = 0;
        // SAFETY: writes to a local.
        let code = unsafe { (self.driver.cuStreamIsCapturing)(stream.0.cast(), &raw mut status) };
        if code == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT {
            return Ok(Capture::Elsewhere);
        }
        self.driver.check(code, || "cuStreamIsCapturing".into())?;
        Ok(if status == 0 { Capture::None } else { Capture::Active })
    }

    /// Copies memory to the host after `event`, and waits.
    pub fn copy_back(&self, address: u64, event: Option<&Event>, to: &mut [u8]) -> Result<()> {
        let _entered = Entered::relaxed(self.driver, self.context)?;
        let (driver, bytes) = (self.driver, to.len());
        if let Some(event) = event {
            // SAFETY: the event is live. It was created with blocking sync, so the thread sleeps.
            let code = unsafe { (driver.cuEventSynchronize)(event.event) };
            driver.check(code, || "cuEventSynchronize".into())?;
        }
        // SAFETY: memory of this device, as the caller checked. `to` is used only after the stream was waited for.
        unsafe {
            let code = (driver.cuMemcpyDtoHAsync)(to.as_mut_ptr().cast(), address, bytes, self.stream);
            driver.check(code, || format!("cuMemcpyDtoHAsync of {bytes} bytes"))?;
        }
        self.synchronize()
    }

    /// Waits for the library's stream.
    fn synchronize(&self) -> Result<()> {
        // SAFETY: a stream of this value.
        let code = unsafe { (self.driver.cuStreamSynchronize)(self.stream) };
        self.driver.check(code, || "cuStreamSynchronize".into())
    }

    pub fn check_stream(&self, stream: Stream) -> Result<()> {
        let _entered = Entered::relaxed(self.driver, self.context)?;
        let mut context = null_mut();
        // SAFETY: writes to a local.
        let code = unsafe { (self.driver.cuStreamGetCtx)(stream.0.cast(), &raw mut context) };
        self.driver.check(code, || "cuStreamGetCtx".into())?;
        if context == self.context {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "the stream is of another CUDA context than that of device {}, which was given at create",
            self.device
        )))
    }

    pub fn check_address(&self, address: u64, name: &str, access: Access) -> Result<()> {
        let _entered = Entered::relaxed(self.driver, self.context)?;
        let refuse = |what: String| Err(Error::InvalidArgument(format!("{name} is {what}")));
        let Some(kind) = self.pointer_attribute(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address, name)? else {
            // The driver does not know this memory. Some devices read all host memory.
            return match self.reads_all_host_memory()? && access == Access::Read {
                true => Ok(()),
                false => refuse(format!("not memory that CUDA device {} can reach", self.device)),
            };
        };
        if self.pointer_attribute(CU_POINTER_ATTRIBUTE_IS_MANAGED, address, name)? == Some(1) {
            return Ok(());
        }
        if kind == CU_MEMORYTYPE_HOST {
            return match access {
                Access::Read | Access::Write => Ok(()),
                Access::ReadWrite => {
                    refuse(format!("host memory; memory of CUDA device {} expected", self.device))
                }
            };
        }
        match self.pointer_attribute(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address, name)? {
            Some(owner) if owner as c_int != self.device => {
                refuse(format!("memory of CUDA device {owner}, and the handle is on device {}", self.device))
            }
            _ => Ok(()),
        }
    }

    /// An attribute of at most 32 bits. `None` for memory that the driver does not know.
    fn pointer_attribute(&self, attribute: c_uint, address: u64, name: &str) -> Result<Option<c_uint>> {
        let mut value = 0 as c_uint;
        // SAFETY: writes to a local that is large enough for the attribute.
        let code =
            unsafe { (self.driver.cuPointerGetAttribute)((&raw mut value).cast(), attribute, address) };
        if code == CUDA_ERROR_INVALID_VALUE {
            return Ok(None);
        }
        self.driver.check(code, || format!("cuPointerGetAttribute of {name}"))?;
        Ok(Some(value))
    }

    fn reads_all_host_memory(&self) -> Result<bool> {
        let (mut value, attribute) = (0, CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS);
        // SAFETY: writes to a local.
        let code = unsafe { (self.driver.cuDeviceGetAttribute)(&raw mut value, attribute, self.device) };
        self.driver.check(code, || "cuDeviceGetAttribute".into())?;
        Ok(value != 0)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let Self { driver, context, .. } = *self;
        if !self.module.is_null() {
            // SAFETY: loaded by this value, which is its last user.
            let unload = || unsafe { (driver.cuModuleUnload)(self.module) };
            release(driver, context, "cuModuleUnload", unload);
        }
        if !self.stream.is_null() {
            // SAFETY: created by this value, which is its last user.
            let destroy = || unsafe { (driver.cuStreamDestroy)(self.stream) };
            release(driver, context, "cuStreamDestroy", destroy);
        }
        if self.retained {
            // SAFETY: retained by this value, once.
            let code = unsafe { (driver.cuDevicePrimaryCtxRelease)(self.device) };
            warn_of(driver.check(code, || "cuDevicePrimaryCtxRelease".into()));
        }
    }
}

/// Loads the fatbin, or the PTX where the driver is older or the device newer than the fatbin's machine code.
///
/// # Safety
/// The context is current.
unsafe fn load_module(driver: &Driver, module: &mut CUmodule) -> Result<()> {
    // SAFETY: static images, of formats that the driver takes.
    let (fatbin, ptx) = unsafe {
        let fatbin = (driver.cuModuleLoadData)(&raw mut *module, FATBIN.0.as_ptr().cast());
        if fatbin == 0 {
            return Ok(());
        }
        (fatbin, (driver.cuModuleLoadData)(&raw mut *module, PTX.as_ptr().cast()))
    };
    driver.check(ptx, || {
        let first = driver.check(fatbin, || "cuModuleLoadData of the fatbin".into());
        format!("{}; cuModuleLoadData of the PTX", first.map_or_else(|e| e.to_string(), |()| String::new()))
    })
}
