//! Versions, messages and the log.

use std::ffi::{CString, c_char, c_void};
use std::sync::{Once, PoisonError, RwLock};

use super::boundary::{boundary, last_error_message};
use super::status::eplb_status;

/// The version of the binary interface. It rises when programs compiled with an older header stop working.
pub const EPLB_ABI_VERSION: u32 = 2;

/// Returns the EPLB_ABI_VERSION of the loaded library. If it differs from the header's, call nothing else.
///
/// \return a number to compare with EPLB_ABI_VERSION
#[unsafe(no_mangle)]
pub extern "C" fn eplb_abi_version() -> u32 {
    EPLB_ABI_VERSION
}

/// Returns the version of the loaded library, such as "0.1.0".
///
/// \return a static string
#[unsafe(no_mangle)]
pub extern "C" fn eplb_version_string() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Returns the message of this thread's last failed call: what failed, where (file, rank, iteration, layer,
/// slot), and what to do. Empty before the first failure; a successful call does not change it. Call it in
/// a statement of its own: C does not order the arguments of a call.
///
/// \return a string that lives until this thread's next failed call; never NULL
#[unsafe(no_mangle)]
pub extern "C" fn eplb_last_error_message() -> *const c_char {
    last_error_message()
}

/// The severity of a log message.
pub type eplb_log_level = i32;

/// An operator should know of it, such as missing ranks or lost counts.
pub const EPLB_LOG_LEVEL_WARNING: eplb_log_level = 1;
/// A file was written, or another step finished.
pub const EPLB_LOG_LEVEL_INFO: eplb_log_level = 2;

/// Receives log messages. It may run on several threads at once. It must not throw and must not call eplb:
/// the call that logs may hold a lock.
///
/// \param user_data  that of eplb_set_log_callback()
/// \param level      an eplb_log_level
/// \param message    valid until the callback returns
pub type eplb_log_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: eplb_log_level, message: *const c_char)>;

/// Sets the log callback of the process. Without one, messages are dropped. A thread that is already in the
/// old callback may finish there after this call has returned.
///
/// \param callback   runs on threads that call eplb and on recorders' own threads; NULL for none
/// \param user_data  passed to `callback`; must live until the callback is replaced
/// \return EPLB_STATUS_OK
#[unsafe(no_mangle)]
pub extern "C" fn eplb_set_log_callback(callback: eplb_log_callback, user_data: *mut c_void) -> eplb_status {
    static REGISTER: Once = Once::new();
    boundary(|| {
        *SINK.write().unwrap_or_else(PoisonError::into_inner) =
            callback.map(|callback| Sink { callback, user_data });
        REGISTER.call_once(|| {
            // Fails in a Rust program with a logger of its own, which then gets the messages.
            let _ = log::set_logger(&CallbackLogger).map(|()| log::set_max_level(log::LevelFilter::Info));
        });
        Ok(())
    })
}

#[derive(Clone, Copy)]
struct Sink {
    callback: unsafe extern "C" fn(*mut c_void, eplb_log_level, *const c_char),
    user_data: *mut c_void,
}

// SAFETY: the header requires a callback, and so user data, that any thread may use.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

struct CallbackLogger;

impl log::Log for CallbackLogger {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        // A copy, so that no lock is held while the callback runs.
        let sink = *SINK.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Sink { callback, user_data }) = sink else { return };
        let level = match record.level() {
            log::Level::Error | log::Level::Warn => EPLB_LOG_LEVEL_WARNING,
            _ => EPLB_LOG_LEVEL_INFO,
        };
        let text = record.args().to_string().replace('\0', "\u{fffd}");
        let message = CString::new(text).unwrap_or_default();
        // SAFETY: set together with its user data, and the message outlives the call.
        unsafe { callback(user_data, level, message.as_ptr()) }
    }

    fn flush(&self) {}
}
