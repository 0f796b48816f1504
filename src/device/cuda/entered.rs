//! Being in a context: made current for a call, and the thread left as it was found.

use std::ffi::c_int;
use std::ptr::null_mut;

use cudarc::driver::sys::CUcontext;

use super::driver::{CAPTURE_RELAXED, CaptureMode, Driver};
use crate::error::Result;

/// A context made current for as long as this lives; then the thread has again what it had.
pub struct Entered {
    driver: &'static Driver,
    previous: Option<CUcontext>,
    mode: Option<CaptureMode>,
}

impl Entered {
    /// For hot calls, which a capture may contain.
    pub fn hot(driver: &'static Driver, context: CUcontext) -> Result<Self> {
        let current = current_context(driver)?;
        if current == context {
            return Ok(Entered { driver, previous: None, mode: None });
        }
        // SAFETY: a live context, by the promise of whoever gave it.
        driver.check(unsafe { (driver.cuCtxSetCurrent)(context) }, || "cuCtxSetCurrent".into())?;
        Ok(Entered { driver, previous: Some(current), mode: None })
    }

    /// For all others.
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
        // A host with another context than it had would go on in it; what fails is tried once more.
        let insist = |restore: &dyn Fn() -> c_int, call: &str| {
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
            insist(&restore, "cuThreadExchangeStreamCaptureMode");
        }
        if let Some(previous) = self.previous {
            // SAFETY: it was current before.
            insist(&|| unsafe { (driver.cuCtxSetCurrent)(previous) }, "cuCtxSetCurrent");
        }
    }
}

pub fn current_context(driver: &Driver) -> Result<CUcontext> {
    let mut context = null_mut();
    // SAFETY: writes to a local.
    driver.check(unsafe { (driver.cuCtxGetCurrent)(&raw mut context) }, || "cuCtxGetCurrent".into())?;
    Ok(context)
}

/// Gives something back in its context. The driver's calls for that also return errors of earlier work, which are nobody's
/// error here, but somebody should know.
pub fn give_back(driver: &'static Driver, context: CUcontext, call: &str, release: impl FnOnce() -> c_int) {
    // What is not given back is lost, so a failure to get there is not taken at its first word.
    let entered = Entered::relaxed(driver, context).or_else(|_| Entered::relaxed(driver, context));
    warn_of(entered.and_then(|_entered| driver.check(release(), || call.to_owned())));
}

pub fn warn_of(result: Result<()>) {
    if let Err(e) = result {
        log::warn!("{e}");
    }
}
