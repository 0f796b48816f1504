//! Statuses, messages, versions and the log.

use std::ffi::{CString, c_char, c_void};
use std::sync::{Once, PoisonError, RwLock};

use super::boundary::{boundary, last_error_message};
use crate::error::Error;

/// The version of the interface that this header describes. It changes only when a program compiled with an older
/// header would no longer work; compare with eplb_abi_version().
pub const EPLB_ABI_VERSION: u32 = 1;

/// How a call ended. Numbers keep their meaning for ever; new ones may come.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_status {
    /// Done.
    Ok = 0,
    /// An argument is wrong by itself: NULL, out of range, an unknown layer, a struct without its _INIT.
    InvalidArgument = 1,
    /// The progress callback asked to stop.
    Cancelled = 2,
    /// Memory could not be had.
    OutOfMemory = 3,
    /// The operating system refused something other than a file, such as a thread.
    System = 4,
    /// A defect of eplb, caught. Please report it; other calls work on.
    Internal = 5,
    /// A file could not be read.
    ReadFailed = 10,
    /// A file could not be written. What was there before is untouched.
    WriteFailed = 11,
    /// A statistic dump is damaged or contradicts itself.
    InvalidDump = 20,
    /// Ranks, iterations or layers are missing from a statistic dump.
    IncompleteDump = 21,
    /// Experts, slots and ranks do not fit together; the message names the nearest valid numbers of slots.
    InvalidShape = 30,
    /// A load is not a finite, non-negative number.
    InvalidLoads = 31,
    /// A placement or its configuration file cannot be served.
    InvalidPlacement = 40,
}

impl eplb_status {
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::InvalidArgument(_) => Self::InvalidArgument,
            Error::Cancelled => Self::Cancelled,
            Error::OutOfMemory { .. } => Self::OutOfMemory,
            Error::System(_) => Self::System,
            Error::Internal(_) => Self::Internal,
            Error::Read { .. } => Self::ReadFailed,
            Error::Write { .. } => Self::WriteFailed,
            Error::InvalidDump(_) => Self::InvalidDump,
            Error::IncompleteDump(_) => Self::IncompleteDump,
            Error::InvalidShape(_) => Self::InvalidShape,
            Error::InvalidLoads(_) => Self::InvalidLoads,
            Error::InvalidPlacement(_) => Self::InvalidPlacement,
        }
    }
}

/// The version of the interface that the loaded library has. A program whose EPLB_ABI_VERSION is another one must not
/// call anything else.
#[unsafe(no_mangle)]
pub extern "C" fn eplb_abi_version() -> u32 {
    EPLB_ABI_VERSION
}

/// The version of the library, such as "0.1.0". The string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn eplb_version_string() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// The name of a status, such as "EPLB_STATUS_INVALID_DUMP"; "unknown status" for a number that is none. The string
/// lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn eplb_status_string(status: i32) -> *const c_char {
    let name = match status {
        0 => c"EPLB_STATUS_OK",
        1 => c"EPLB_STATUS_INVALID_ARGUMENT",
        2 => c"EPLB_STATUS_CANCELLED",
        3 => c"EPLB_STATUS_OUT_OF_MEMORY",
        4 => c"EPLB_STATUS_SYSTEM",
        5 => c"EPLB_STATUS_INTERNAL",
        10 => c"EPLB_STATUS_READ_FAILED",
        11 => c"EPLB_STATUS_WRITE_FAILED",
        20 => c"EPLB_STATUS_INVALID_DUMP",
        21 => c"EPLB_STATUS_INCOMPLETE_DUMP",
        30 => c"EPLB_STATUS_INVALID_SHAPE",
        31 => c"EPLB_STATUS_INVALID_LOADS",
        40 => c"EPLB_STATUS_INVALID_PLACEMENT",
        _ => c"unknown status",
    };
    name.as_ptr()
}

/// What went wrong in this thread's last call that failed: what, where (file, rank, iteration, layer, slot) and what to
/// do about it. Empty before the first failure; a call that succeeds leaves it as it is.
///
/// \return a string that lives until this thread's next failing call; never NULL
#[unsafe(no_mangle)]
pub extern "C" fn eplb_last_error_message() -> *const c_char {
    last_error_message()
}

/// How serious a log message is.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_log_level {
    /// Something failed that no status could tell.
    Error = 1,
    /// Something was accepted that the operator should know of, such as missing ranks.
    Warning = 2,
    /// What was done.
    Info = 3,
}

/// Receives log messages. May be called by several threads at once; must not throw, and must not call
/// eplb_set_log_callback().
///
/// \param message  UTF-8, lives until the callback returns
pub type eplb_log_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: eplb_log_level, message: *const c_char)>;

/// Sends the library's log messages to `callback`, or nowhere with NULL, as it is from the start. This is the one thing
/// that all handles of a process share. After it returns, a thread already in the old callback may still finish there.
///
/// \param user_data  handed to each call of `callback`
#[unsafe(no_mangle)]
pub extern "C" fn eplb_set_log_callback(callback: eplb_log_callback, user_data: *mut c_void) -> eplb_status {
    static REGISTER: Once = Once::new();
    boundary(|| {
        *SINK.write().unwrap_or_else(PoisonError::into_inner) =
            callback.map(|callback| Sink { callback, user_data });
        REGISTER.call_once(|| {
            // Fails where a Rust host has a logger of its own, which gets the messages then.
            let _ = log::set_logger(&LogToHost).map(|()| log::set_max_level(log::LevelFilter::Info));
        });
        Ok(())
    })
}

#[derive(Clone, Copy)]
struct Sink {
    callback: unsafe extern "C" fn(*mut c_void, eplb_log_level, *const c_char),
    user_data: *mut c_void,
}

// SAFETY: the header asks for a callback, and so for user data, that any thread may use.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

struct LogToHost;

impl log::Log for LogToHost {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        // A copy, so that no lock is held while the host's code runs.
        let sink = *SINK.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Sink { callback, user_data }) = sink else { return };
        let level = match record.level() {
            log::Level::Error => eplb_log_level::Error,
            log::Level::Warn => eplb_log_level::Warning,
            _ => eplb_log_level::Info,
        };
        let text = record.args().to_string().replace('\0', "\u{fffd}");
        let message = CString::new(text).unwrap_or_default();
        // SAFETY: set by the host together with its user data, and the message outlives the call.
        unsafe { callback(user_data, level, message.as_ptr()) }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn every_status_has_its_name() {
        use eplb_status::*;
        for status in [
            eplb_status::Ok,
            InvalidArgument,
            Cancelled,
            OutOfMemory,
            System,
            Internal,
            ReadFailed,
            WriteFailed,
            InvalidDump,
            IncompleteDump,
            InvalidShape,
            InvalidLoads,
            InvalidPlacement,
        ] {
            // SAFETY: a string that lives for ever.
            let name = unsafe { CStr::from_ptr(eplb_status_string(status as i32)) }.to_str().unwrap();
            let words = format!("{status:?}").to_uppercase();
            assert_eq!(name.replace('_', ""), format!("EPLBSTATUS{words}"));
        }
    }
}
