//! Makes a context current for a call, and restores the thread's context after it.

use std::ffi::c_int;
use std::ptr::null_mut;

use cudarc::driver::sys::CUcontext;

use super::driver::{CAPTURE_RELAXED, CaptureMode, Driver};
use crate::error::Result;

/// Keeps a context current. Drop restores the thread's previous context and capture mode.
pub struct Entered {
    driver: &'static Driver,
    previous: Option<CUcontext>,
    mode: Option<CaptureMode>,
}

impl Entered {
    /// Enters for a hot call, which a capture may contain.
    pub fn hot(driver: &'static Driver, context: CUcontext) -> Result<Self> {
        let current = current_context(driver)?;
        if current == context {
            return Ok(Entered { driver, previous: None, mode: None });
        }
        // SAFETY: a live context, by the promise of the caller that named it.
        driver.check(unsafe { (driver.cuCtxSetCurrent)(context) }, || "cuCtxSetCurrent".into())?;
        Ok(Entered { driver, previous: Some(current), mode: None })
    }

    /// Enters for any other call, with the capture mode relaxed.
    pub fn relaxed(driver: &'static Driver, context: CUcontext) -> Result<Self> {
        let mut entered = Self::hot(driver, context)?;
        let mut mode = CAPTURE_RELAXED;
        // SAFETY: exchanges a local.
        let code = unsafe { (driver.cuThreadExchangeStreamCaptureMode)(&raw mut mode) };
        driver.check(code, || "cuThreadExchangeStreamCaptureMode".into())?;
        entered.mode = Some(mode);
        Ok(entered)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let driver = self.driver;
        // The caller would continue in the wrong context, so a failure is retried once.
        let restore_twice = |restore: &dyn Fn() -> c_int, call: &str| {
            if restore() != 0 {
                warn_of(driver.check(restore(), || call.to_owned()));
            }
        };
        if let Some(mode) = self.mode {
            let restore = || {
                let mut mode = mode;
                // SAFETY: exchanges a local.
                unsafe { (driver.cuThreadExchangeStreamCaptureMode)(&raw mut mode) }
            };
            restore_twice(&restore, "cuThreadExchangeStreamCaptureMode");
        }
        if let Some(previous) = self.previous {
            // SAFETY: it was current before.
            restore_twice(&|| unsafe { (driver.cuCtxSetCurrent)(previous) }, "cuCtxSetCurrent");
        }
    }
}

pub fn current_context(driver: &Driver) -> Result<CUcontext> {
    let mut context = null_mut();
    // SAFETY: writes to a local.
    driver.check(unsafe { (driver.cuCtxGetCurrent)(&raw mut context) }, || "cuCtxGetCurrent".into())?;
    Ok(context)
}

/// Releases something in its context. The driver's release calls also return errors of earlier work, which are logged.
pub fn release(driver: &'static Driver, context: CUcontext, call: &str, call_driver: impl FnOnce() -> c_int) {
    // Without a context the memory would leak, so a failure to enter is retried once.
    let entered = Entered::relaxed(driver, context).or_else(|_| Entered::relaxed(driver, context));
    warn_of(entered.and_then(|_entered| driver.check(call_driver(), || call.to_owned())));
}

pub fn warn_of(result: Result<()>) {
    if let Err(e) = result {
        log::warn!("{e}");
    }
}
