//! How calls end: every kind of error as a number of the C interface.

use std::ffi::c_char;

use crate::error::Error;

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
    /// Something that was started earlier has not ended yet.
    NotReady = 6,
    /// A file could not be read.
    ReadFailed = 10,
    /// A file could not be written. What was there before is untouched.
    WriteFailed = 11,
    /// A statistic dump is damaged or contradicts itself.
    InvalidDump = 20,
    /// Ranks, iterations or layers are missing from a statistic dump.
    IncompleteDump = 21,
    /// Experts, slots and ranks, or groups and nodes, do not fit together; the message names the nearest valid numbers of
    /// slots where those are at fault.
    InvalidShape = 30,
    /// A load is not a finite, non-negative number.
    InvalidLoads = 31,
    /// A placement or its configuration file cannot be served.
    InvalidPlacement = 40,
    /// No CUDA driver, none that is new enough, or no device. Everything but CUDA devices works.
    NoDriver = 50,
    /// The CUDA driver refused a call; the message has its code and name.
    Cuda = 51,
    /// A CUDA graph is capturing the stream, and the call must not become part of the graph.
    Capturing = 52,
}

impl eplb_status {
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::InvalidArgument(_) => Self::InvalidArgument,
            Error::Cancelled => Self::Cancelled,
            Error::OutOfMemory { .. } => Self::OutOfMemory,
            Error::System(_) => Self::System,
            Error::Internal(_) => Self::Internal,
            Error::NotReady(_) => Self::NotReady,
            Error::Read { .. } => Self::ReadFailed,
            Error::Write { .. } => Self::WriteFailed,
            Error::InvalidDump(_) => Self::InvalidDump,
            Error::IncompleteDump(_) => Self::IncompleteDump,
            Error::InvalidShape(_) => Self::InvalidShape,
            Error::InvalidLoads(_) => Self::InvalidLoads,
            Error::InvalidPlacement(_) => Self::InvalidPlacement,
            Error::NoDriver(_) => Self::NoDriver,
            Error::Cuda { .. } => Self::Cuda,
            Error::Capturing(_) => Self::Capturing,
        }
    }
}

/// The name of a status.
///
/// \param status  an eplb_status, or any other number
/// \return a string such as "EPLB_STATUS_INVALID_DUMP", or "unknown status"; it lives for ever
#[unsafe(no_mangle)]
pub extern "C" fn eplb_status_string(status: i32) -> *const c_char {
    let name = match status {
        0 => c"EPLB_STATUS_OK",
        1 => c"EPLB_STATUS_INVALID_ARGUMENT",
        2 => c"EPLB_STATUS_CANCELLED",
        3 => c"EPLB_STATUS_OUT_OF_MEMORY",
        4 => c"EPLB_STATUS_SYSTEM",
        5 => c"EPLB_STATUS_INTERNAL",
        6 => c"EPLB_STATUS_NOT_READY",
        10 => c"EPLB_STATUS_READ_FAILED",
        11 => c"EPLB_STATUS_WRITE_FAILED",
        20 => c"EPLB_STATUS_INVALID_DUMP",
        21 => c"EPLB_STATUS_INCOMPLETE_DUMP",
        30 => c"EPLB_STATUS_INVALID_SHAPE",
        31 => c"EPLB_STATUS_INVALID_LOADS",
        40 => c"EPLB_STATUS_INVALID_PLACEMENT",
        50 => c"EPLB_STATUS_NO_DRIVER",
        51 => c"EPLB_STATUS_CUDA",
        52 => c"EPLB_STATUS_CAPTURING",
        _ => c"unknown status",
    };
    name.as_ptr()
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
            NotReady,
            NoDriver,
            Cuda,
            Capturing,
        ] {
            // SAFETY: a string that lives for ever.
            let name = unsafe { CStr::from_ptr(eplb_status_string(status as i32)) }.to_str().unwrap();
            let words = format!("{status:?}").to_uppercase();
            assert_eq!(name.replace('_', ""), format!("EPLBSTATUS{words}"));
        }
    }
}
