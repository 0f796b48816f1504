//! A CUDA device through its driver: the host's context is left as found, its streams are borrowed, and what is taken is given
//! back.
//!
//! Calls that are not hot run with the thread's capture mode relaxed: while some stream of the host's is being captured, the
//! driver would otherwise refuse them and spoil the capture.

mod driver;
mod entered;
mod memory;

pub use memory::{Block, Event, Pinned};

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;

use cudarc::driver::sys::{CUcontext, CUdevice, CUfunction, CUmodule, CUstream};

use self::driver::Driver;
use self::entered::{Entered, current_context, give_back, warn_of};
use super::{Access, Capture, Stream};
use crate::error::{Error, Result};

/// What cuda.h calls them.
const CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS: c_uint = 88;
const CU_POINTER_ATTRIBUTE_MEMORY_TYPE: c_uint = 2;
const CU_POINTER_ATTRIBUTE_IS_MANAGED: c_uint = 8;
const CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: c_uint = 9;
const CU_MEMORYTYPE_HOST: c_uint = 1;
const CU_STREAM_NON_BLOCKING: c_uint = 1;
const CUDA_ERROR_INVALID_VALUE: c_int = 1;
const CUDA_ERROR_STREAM_CAPTURE_IMPLICIT: c_int = 906;

/// The fatbin and, as a C string, the PTX of kernels/; build.rs puts them there.
static FATBIN: Image<[u8; include_bytes!(concat!(env!("OUT_DIR"), "/eplb.fatbin")).len()]> =
    Image(*include_bytes!(concat!(env!("OUT_DIR"), "/eplb.fatbin")));
static PTX: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/eplb.ptx"));

/// The driver reads words from it.
#[repr(align(16))]
struct Image<T>(T);

/// The kernels, in the order of [`KERNELS`].
#[derive(Debug, Clone, Copy)]
pub enum Kernel {
    CountI32U32,
    CountI64U32,
    CountI32U64,
    CountI64U64,
    RoundRobinI32,
    RoundRobinI64,
    TokenHashI32,
    TokenHashI64,
    NearestI32,
    NearestI64,
    LeastLoadedI32,
    LeastLoadedI64,
}

const KERNELS: [&CStr; 12] = [
    c"eplb_count_i32_u32",
    c"eplb_count_i64_u32",
    c"eplb_count_i32_u64",
    c"eplb_count_i64_u64",
    c"eplb_route_round_robin_i32",
    c"eplb_route_round_robin_i64",
    c"eplb_route_token_hash_i32",
    c"eplb_route_token_hash_i64",
    c"eplb_route_nearest_i32",
    c"eplb_route_nearest_i64",
    c"eplb_route_least_loaded_i32",
    c"eplb_route_least_loaded_i64",
];

/// One launch of a kernel.
pub struct Launch<'a> {
    pub kernel: Kernel,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: u32,
    /// The kernel's one parameter, a struct.
    pub arguments: *const c_void,
    pub _lent: PhantomData<&'a ()>,
}

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

/// A context with eplb's kernels and a stream of eplb's own, which waits for no other.
pub struct Context {
    driver: &'static Driver,
    context: CUcontext,
    device: CUdevice,
    retained: bool,
    stream: CUstream,
    module: CUmodule,
    functions: [CUfunction; KERNELS.len()],
}

// SAFETY: the driver's handles may be used by any thread that makes the context current.
unsafe impl Send for Context {}
// SAFETY: as above; nothing here changes after it was made.
unsafe impl Sync for Context {}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CUDA device {}", self.device)
    }
}

impl Context {
    /// The calling thread's current context, which stays the host's.
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

    /// The primary context of a device, which is retained.
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
        let functions = [null_mut(); KERNELS.len()];
        Context { driver, context, device, retained, stream: null_mut(), module: null_mut(), functions }
    }

    /// Makes what the context needs. Where that fails, dropping `self` gives back what was made so far.
    fn loaded(mut self) -> Result<Self> {
        let Self { driver, context, stream, module, functions, .. } = &mut self;
        let entered = Entered::relaxed(driver, *context)?;
        // SAFETY: the context is current; every call writes to a field.
        unsafe {
            driver.check((driver.cuStreamCreate)(&raw mut *stream, CU_STREAM_NON_BLOCKING), || {
                "cuStreamCreate".into()
            })?;
            load_module(driver, module)?;
            for (function, name) in functions.iter_mut().zip(KERNELS) {
                driver.check(
                    (driver.cuModuleGetFunction)(&raw mut *function, *module, name.as_ptr()),
                    || format!("cuModuleGetFunction of {}", name.to_string_lossy()),
                )?;
            }
        }
        drop(entered);
        Ok(self)
    }

    /// Fills words in the order of `stream`.
    pub fn fill(&self, address: u64, value: u32, count: usize, stream: Stream) -> Result<()> {
        let _entered = Entered::hot(self.driver, self.context)?;
        // SAFETY: words of memory of this device's, as the caller checked.
        let code = unsafe { (self.driver.cuMemsetD32Async)(address, value, count, stream.0.cast()) };
        self.driver.check(code, || "cuMemsetD32Async".into())
    }

    /// Fills words and waits for that.
    pub fn initialize(&self, address: u64, value: u32, count: usize) -> Result<()> {
        self.fill(address, value, count, Stream(self.stream.cast()))?;
        let _entered = Entered::relaxed(self.driver, self.context)?;
        self.synchronize()
    }

    /// Copies words to the device and waits for that.
    pub fn write(&self, address: u64, words: &[u32]) -> Result<()> {
        let _entered = Entered::relaxed(self.driver, self.context)?;
        let (driver, bytes) = (self.driver, size_of_val(words));
        // SAFETY: memory of this device's, as the caller checked; the words are not used after the stream was waited for.
        let code = unsafe { (driver.cuMemcpyHtoDAsync)(address, words.as_ptr().cast(), bytes, self.stream) };
        driver.check(code, || format!("cuMemcpyHtoDAsync of {bytes} bytes"))?;
        self.synchronize()
    }

    /// Whether both are one context.
    pub fn is(&self, other: &Context) -> bool {
        self.context == other.context
    }

    /// Launches a kernel.
    pub fn launch(&self, launch: &Launch, stream: Stream) -> Result<()> {
        let _entered = Entered::hot(self.driver, self.context)?;
        let mut parameters = [launch.arguments.cast_mut()];
        // SAFETY: the kernel takes one struct, which the driver copies before it returns.
        let code = unsafe {
            (self.driver.cuLaunchKernel)(
                self.functions[launch.kernel as usize],
                launch.blocks,
                1,
                1,
                launch.threads,
                1,
                1,
                launch.shared_bytes,
                stream.0.cast(),
                parameters.as_mut_ptr(),
                null_mut(),
            )
        };
        self.driver.check(code, || {
            format!("cuLaunchKernel of {}", KERNELS[launch.kernel as usize].to_string_lossy())
        })
    }

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

    /// Copies memory to the host after `event`, and waits for that.
    pub fn copy_back(&self, address: u64, event: Option<&Event>, to: &mut [u8]) -> Result<()> {
        let _entered = Entered::relaxed(self.driver, self.context)?;
        let (driver, bytes) = (self.driver, to.len());
        if let Some(event) = event {
            // SAFETY: the event lives. The thread sleeps meanwhile: that is how the event was made.
            let code = unsafe { (driver.cuEventSynchronize)(event.event) };
            driver.check(code, || "cuEventSynchronize".into())?;
        }
        // SAFETY: memory of this device's, as the caller checked; `to` is not used before the stream has been waited for.
        unsafe {
            let code = (driver.cuMemcpyDtoHAsync)(to.as_mut_ptr().cast(), address, bytes, self.stream);
            driver.check(code, || format!("cuMemcpyDtoHAsync of {bytes} bytes"))?;
        }
        self.synchronize()
    }

    /// Waits for eplb's own stream.
    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is this value's.
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
            // Not memory that the driver knows; some devices read all of the host's.
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
                Access::Read => Ok(()),
                Access::ReadWrite => {
                    refuse(format!("host memory, and memory of CUDA device {} is needed", self.device))
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

    /// An attribute of 32 bits or fewer; none for memory that the driver does not know.
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
            give_back(driver, context, "cuModuleUnload", unload);
        }
        if !self.stream.is_null() {
            // SAFETY: made by this value, which is its last user.
            let destroy = || unsafe { (driver.cuStreamDestroy)(self.stream) };
            give_back(driver, context, "cuStreamDestroy", destroy);
        }
        if self.retained {
            // SAFETY: retained by this value, once.
            let code = unsafe { (driver.cuDevicePrimaryCtxRelease)(self.device) };
            warn_of(driver.check(code, || "cuDevicePrimaryCtxRelease".into()));
        }
    }
}

/// Loads the fatbin, or the PTX where the driver is older than the fatbin's machine code or the device newer.
///
/// # Safety
/// The context is current.
unsafe fn load_module(driver: &Driver, module: &mut CUmodule) -> Result<()> {
    // SAFETY: images that live for ever, of the kinds that the driver takes.
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
