//! The CUDA driver's functions, looked up at run time.
//!
//! cudarc declares the types and knows the library's names. Its wrappers are not called: they panic where a symbol is missing,
//! and they return a Rust enum, which has no values for a newer driver's error codes.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream};
use libloading::Library;

use super::way_out::way_out;
use crate::error::{Error, Result};

/// 12.0, of driver 525: the oldest supported version.
const OLDEST_VERSION: c_int = 12_000;

/// A stream's or a thread's capture mode: 0 global, 1 of this thread, 2 relaxed.
pub type CaptureMode = c_uint;
/// Allows calls that the other modes refuse during a capture.
pub const CAPTURE_RELAXED: CaptureMode = 2;

macro_rules! driver {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// The functions that the library calls, each under its C name. They return CUDA's error number, or 0.
        #[allow(non_snake_case, reason = "the driver's names")]
        pub struct Driver {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Driver {
            fn find() -> std::result::Result<Self, Cow<'static, str>> {
                let library = library()?;
                Ok(Driver {
                    $($name: {
                        // SAFETY: the type is that of cuda.h, as cpp_tests/fake_cuda checks.
                        let found = unsafe { library.get(concat!($symbol, "\0").as_bytes()) };
                        *found.map_err(|e| format!("it lacks {}: {e}", $symbol))?
                    },)*
                })
            }
        }
    };
}

driver! {
    cuInit = "cuInit"(c_uint);
    cuDriverGetVersion = "cuDriverGetVersion"(*mut c_int);
    cuGetErrorName = "cuGetErrorName"(c_int, *mut *const c_char);
    cuGetErrorString = "cuGetErrorString"(c_int, *mut *const c_char);
    cuDeviceGetCount = "cuDeviceGetCount"(*mut c_int);
    cuDeviceGet = "cuDeviceGet"(*mut CUdevice, c_int);
    cuDeviceGetAttribute = "cuDeviceGetAttribute"(*mut c_int, c_uint, CUdevice);
    cuDevicePrimaryCtxRetain = "cuDevicePrimaryCtxRetain"(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease = "cuDevicePrimaryCtxRelease_v2"(CUdevice);
    cuCtxGetCurrent = "cuCtxGetCurrent"(*mut CUcontext);
    cuCtxSetCurrent = "cuCtxSetCurrent"(CUcontext);
    cuCtxGetDevice = "cuCtxGetDevice"(*mut CUdevice);
    cuThreadExchangeStreamCaptureMode = "cuThreadExchangeStreamCaptureMode"(*mut CaptureMode);
    cuMemAlloc = "cuMemAlloc_v2"(*mut CUdeviceptr, usize);
    cuMemFree = "cuMemFree_v2"(CUdeviceptr);
    cuMemHostAlloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost = "cuMemFreeHost"(*mut c_void);
    cuMemsetD32Async = "cuMemsetD32Async"(CUdeviceptr, c_uint, usize, CUstream);
    cuMemcpyDtoHAsync = "cuMemcpyDtoHAsync_v2"(*mut c_void, CUdeviceptr, usize, CUstream);
    cuMemcpyHtoDAsync = "cuMemcpyHtoDAsync_v2"(CUdeviceptr, *const c_void, usize, CUstream);
    cuPointerGetAttribute = "cuPointerGetAttribute"(*mut c_void, c_uint, CUdeviceptr);
    cuModuleLoadData = "cuModuleLoadData"(*mut CUmodule, *const c_void);
    cuModuleUnload = "cuModuleUnload"(CUmodule);
    cuModuleGetFunction = "cuModuleGetFunction"(*mut CUfunction, CUmodule, *const c_char);
    cuLaunchKernel = "cuLaunchKernel"(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void
    );
    cuStreamCreate = "cuStreamCreate"(*mut CUstream, c_uint);
    cuStreamDestroy = "cuStreamDestroy_v2"(CUstream);
    cuStreamSynchronize = "cuStreamSynchronize"(CUstream);
    cuStreamIsCapturing = "cuStreamIsCapturing"(CUstream, *mut c_uint);
    cuStreamGetCtx = "cuStreamGetCtx"(CUstream, *mut CUcontext);
    cuEventCreate = "cuEventCreate"(*mut CUevent, c_uint);
    cuEventDestroy = "cuEventDestroy_v2"(CUevent);
    cuEventRecord = "cuEventRecord"(CUevent, CUstream);
    cuEventSynchronize = "cuEventSynchronize"(CUevent);
}

/// The driver's library, which stays loaded.
fn library() -> std::result::Result<&'static Library, Cow<'static, str>> {
    // The name under which a CUDA process has loaded the driver. Another name may be another copy, or a toolkit's stub.
    // SAFETY: loading a driver runs its initialisers, as a process with a driver expects.
    if let Ok(library) = unsafe { Library::new("libcuda.so.1") } {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        return Ok(LIBRARY.get_or_init(|| library));
    }
    // SAFETY: as above.
    if unsafe { sys::is_culib_present() } {
        // SAFETY: as above. The library is present, so this does not panic.
        return Ok(unsafe { sys::culib() });
    }
    Err("no libcuda.so.1 is installed".into())
}

/// Whether this program is linked statically. The dlopen of such a program would bring a second C library into the process.
fn is_static_program() -> bool {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the callback reads what the C library passes, and gets no data of its own.
        unsafe { libc::dl_iterate_phdr(Some(has_interpreter), std::ptr::null_mut()) == NO_INTERPRETER }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The callback's results. 0 would continue with the next object.
#[cfg(target_os = "linux")]
const INTERPRETER: c_int = 1;
#[cfg(target_os = "linux")]
const NO_INTERPRETER: c_int = 2;

/// Whether the first object, which is the program, names a dynamic linker. A dynamic program does, even if started as an argument
/// of its dynamic linker. A static program does not, even if it is position-independent.
#[cfg(target_os = "linux")]
unsafe extern "C" fn has_interpreter(program: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: the C library passes an object that lives during the call.
    let program = unsafe { &*program };
    // SAFETY: as above; these are the object's program headers.
    let headers = unsafe { std::slice::from_raw_parts(program.dlpi_phdr, program.dlpi_phnum.into()) };
    if headers.iter().any(|header| header.p_type == libc::PT_INTERP) { INTERPRETER } else { NO_INTERPRETER }
}

impl Driver {
    /// The driver of this machine, initialised and new enough.
    pub fn get() -> Result<&'static Driver> {
        static DRIVER: OnceLock<std::result::Result<Driver, Cow<'static, str>>> = OnceLock::new();
        if is_static_program() {
            return Err(Error::NoDriver(
                "no CUDA driver can be used: this program is linked statically, and only a dynamic one can load the driver; \
                 link it dynamically, or use EPLB_DEVICE_HOST"
                    .into(),
            ));
        }
        let found = DRIVER.get_or_init(Driver::find);
        let driver = found.as_ref().map_err(|why| no_driver(why))?;
        // SAFETY: takes flags, which are 0. May be called any number of times.
        let code = unsafe { (driver.cuInit)(0) };
        if code != 0 {
            let error = driver.error(code, "cuInit".into());
            return Err(match way_out(code) {
                Some(_) => {
                    Error::NoDriver(format!("no CUDA driver can be used: {error}; or use EPLB_DEVICE_HOST"))
                }
                None => no_driver(&error.to_string()),
            });
        }
        let mut version = 0;
        // SAFETY: writes to a local.
        driver.check(unsafe { (driver.cuDriverGetVersion)(&raw mut version) }, || {
            "cuDriverGetVersion".into()
        })?;
        if version < OLDEST_VERSION {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            return Err(no_driver(&format!(
                "it supports CUDA {major}.{minor}, and 12.0 (driver 525) is required"
            )));
        }
        Ok(driver)
    }

    /// Returns an error for every code but 0. `call` names the call and its purpose.
    pub fn check(&self, code: c_int, call: impl FnOnce() -> String) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(self.error(code, call())) }
    }

    fn error(&self, code: c_int, call: String) -> Error {
        let text = |describe: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: writes a static string to a local, or NULL for an unknown code.
            let known = unsafe { describe(code, &raw mut text) } == 0 && !text.is_null();
            // SAFETY: as above.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let mut name = match (text(self.cuGetErrorName), text(self.cuGetErrorString)) {
            (Some(name), Some(description)) => format!("{name}: {description}"),
            (Some(name), None) => name,
            _ => "which this driver does not name".to_owned(),
        };
        if let Some(way_out) = way_out(code) {
            name += "; ";
            name += way_out;
        }
        Error::Cuda { call, code, name }
    }
}

fn no_driver(why: &str) -> Error {
    Error::NoDriver(format!(
        "no CUDA driver can be used: {why}; install NVIDIA's driver 525 or newer, or use EPLB_DEVICE_HOST"
    ))
}

// scripts/check_static.sh tests static programs.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn dynamic_program_may_load_the_driver() {
        assert!(!super::is_static_program());
    }
}
