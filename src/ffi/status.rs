//! How calls end: each kind of error is one number of the C interface.

use std::ffi::c_char;

use crate::error::Error;

/// How a call ended. A number never changes its meaning; later versions may add numbers.
pub type eplb_status = i32;

/// Success.
pub const EPLB_STATUS_OK: eplb_status = 0;
/// An argument is NULL, out of range or an unknown layer, or a struct was not initialised by its _INIT.
pub const EPLB_STATUS_INVALID_ARGUMENT: eplb_status = 1;
/// The progress callback cancelled the call.
pub const EPLB_STATUS_CANCELLED: eplb_status = 2;
/// An allocation failed.
pub const EPLB_STATUS_OUT_OF_MEMORY: eplb_status = 3;
/// The operating system refused something other than a file, such as a thread.
pub const EPLB_STATUS_SYSTEM: eplb_status = 4;
/// A defect of eplb. The process and other calls are unharmed; please report it.
pub const EPLB_STATUS_INTERNAL: eplb_status = 5;
/// Work that was started earlier has not finished.
pub const EPLB_STATUS_NOT_READY: eplb_status = 6;
/// A file could not be read.
pub const EPLB_STATUS_READ_FAILED: eplb_status = 10;
/// A file could not be written. A file that existed before is unchanged.
pub const EPLB_STATUS_WRITE_FAILED: eplb_status = 11;
/// A dump is damaged or contradicts itself.
pub const EPLB_STATUS_INVALID_DUMP: eplb_status = 20;
/// A dump lacks ranks, iterations or layers.
pub const EPLB_STATUS_INCOMPLETE_DUMP: eplb_status = 21;
/// The numbers of experts, slots and ranks, or of groups and nodes, do not fit together.
pub const EPLB_STATUS_INVALID_SHAPE: eplb_status = 30;
/// A load is negative or not finite.
pub const EPLB_STATUS_INVALID_LOADS: eplb_status = 31;
/// A placement or its configuration file cannot be served.
pub const EPLB_STATUS_INVALID_PLACEMENT: eplb_status = 40;
/// There is no CUDA driver, it is too old, or it has no device.
pub const EPLB_STATUS_NO_DRIVER: eplb_status = 50;
/// A call of the CUDA driver failed; the message has its code and name.
pub const EPLB_STATUS_CUDA: eplb_status = 51;
/// A CUDA graph is capturing the stream, and this call must not be captured.
pub const EPLB_STATUS_CAPTURING: eplb_status = 52;
/// A plan was made against another generation of the layer, or other slots: plan again.
pub const EPLB_STATUS_STALE: eplb_status = 60;
/// Experts would lose their last replica; the message names them.
pub const EPLB_STATUS_NO_REPLICA: eplb_status = 61;

/// The status of an error.
pub(super) fn status_of(error: &Error) -> eplb_status {
    match error {
        Error::InvalidArgument(_) => EPLB_STATUS_INVALID_ARGUMENT,
        Error::Cancelled => EPLB_STATUS_CANCELLED,
        Error::OutOfMemory { .. } => EPLB_STATUS_OUT_OF_MEMORY,
        Error::System(_) => EPLB_STATUS_SYSTEM,
        Error::Internal(_) => EPLB_STATUS_INTERNAL,
        Error::NotReady(_) => EPLB_STATUS_NOT_READY,
        Error::Read { .. } => EPLB_STATUS_READ_FAILED,
        Error::Write { .. } => EPLB_STATUS_WRITE_FAILED,
        Error::InvalidDump(_) => EPLB_STATUS_INVALID_DUMP,
        Error::IncompleteDump(_) => EPLB_STATUS_INCOMPLETE_DUMP,
        Error::InvalidShape(_) => EPLB_STATUS_INVALID_SHAPE,
        Error::InvalidLoads(_) => EPLB_STATUS_INVALID_LOADS,
        Error::InvalidPlacement(_) => EPLB_STATUS_INVALID_PLACEMENT,
        Error::NoDriver(_) => EPLB_STATUS_NO_DRIVER,
        Error::Cuda { .. } => EPLB_STATUS_CUDA,
        Error::Capturing(_) => EPLB_STATUS_CAPTURING,
        Error::Stale(_) => EPLB_STATUS_STALE,
        Error::NoReplica(_) => EPLB_STATUS_NO_REPLICA,
    }
}

/// The name of each constant, as a C string, with its value.
macro_rules! named {
    ($($status:ident),* $(,)?) => {
        [$(($status, concat!(stringify!($status), "\0"))),*]
    };
}

const NAMES: [(eplb_status, &str); 19] = named![
    EPLB_STATUS_OK,
    EPLB_STATUS_INVALID_ARGUMENT,
    EPLB_STATUS_CANCELLED,
    EPLB_STATUS_OUT_OF_MEMORY,
    EPLB_STATUS_SYSTEM,
    EPLB_STATUS_INTERNAL,
    EPLB_STATUS_NOT_READY,
    EPLB_STATUS_READ_FAILED,
    EPLB_STATUS_WRITE_FAILED,
    EPLB_STATUS_INVALID_DUMP,
    EPLB_STATUS_INCOMPLETE_DUMP,
    EPLB_STATUS_INVALID_SHAPE,
    EPLB_STATUS_INVALID_LOADS,
    EPLB_STATUS_INVALID_PLACEMENT,
    EPLB_STATUS_NO_DRIVER,
    EPLB_STATUS_CUDA,
    EPLB_STATUS_CAPTURING,
    EPLB_STATUS_STALE,
    EPLB_STATUS_NO_REPLICA,
];

/// Returns the name of a status, such as "EPLB_STATUS_INVALID_DUMP".
///
/// \param status  any number
/// \return a static string; "unknown status" for a number that is no eplb_status
#[unsafe(no_mangle)]
pub extern "C" fn eplb_status_string(status: eplb_status) -> *const c_char {
    let name = NAMES.iter().find(|(known, _)| *known == status).map_or("unknown status\0", |(_, name)| name);
    name.as_ptr().cast()
}
