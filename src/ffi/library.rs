//! Versions, messages and the log.

use std::ffi::{CString, c_char, c_void};
use std::sync::{Once, PoisonError, RwLock};

use super::boundary::{boundary, last_error_message};
use super::status::eplb_status;

/// The version of the interface that this header describes. It changes only when a program compiled with an older
/// header would no longer work; compare with eplb_abi_version().
pub const EPLB_ABI_VERSION: u32 = 1;

/// The version of the interface that the loaded library has. A program whose EPLB_ABI_VERSION is another one must not
/// call anything else.
///
/// \return a number to compare with EPLB_ABI_VERSION
#[unsafe(no_mangle)]
pub extern "C" fn eplb_abi_version() -> u32 {
    EPLB_ABI_VERSION
}

/// The version of the library.
///
/// \return a string such as "0.1.0", which lives for ever
#[unsafe(no_mangle)]
pub extern "C" fn eplb_version_string() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
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
    /// Something was accepted that the operator should know of, such as missing ranks.
    Warning = 1,
    /// What was done.
    Info = 2,
}

/// Receives log messages. May be called by several threads at once, those that are in a call of this library and a recorder's
/// own; must not throw, and must not call this library: the call that logs may hold what that call would wait for.
///
/// \param user_data  what eplb_set_log_callback() was given
/// \param level      how serious it is
/// \param message    UTF-8, lives until the callback returns
pub type eplb_log_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: eplb_log_level, message: *const c_char)>;

/// Sends the library's log messages to `callback`, or nowhere with NULL, as it is from the start. This is the one thing
/// that all handles of a process share. After it returns, a thread already in the old callback may still finish there.
///
/// \param callback   called by any thread that is in a call of this library, and by recorders' own; NULL for none
/// \param user_data  handed to each call of `callback`; yours, and must live until the callback is replaced
/// \return EPLB_STATUS_OK
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
            log::Level::Error | log::Level::Warn => eplb_log_level::Warning,
            _ => eplb_log_level::Info,
        };
        let text = record.args().to_string().replace('\0', "\u{fffd}");
        let message = CString::new(text).unwrap_or_default();
        // SAFETY: set by the host together with its user data, and the message outlives the call.
        unsafe { callback(user_data, level, message.as_ptr()) }
    }

    fn flush(&self) {}
}
