//! Devices and streams.

use std::ffi::c_void;

use super::boundary::boundary;
use super::status::eplb_status;
use crate::device::{IdType, Ids, Place, Stream, cuda_available};
use crate::error::{Error, Result};

/// Host memory, and no CUDA: calls take host pointers, ignore the stream and have done their work when they return. Needs no
/// driver; the default of every config.
pub const EPLB_DEVICE_HOST: i32 = -1;

/// The CUDA context that is current on the thread that creates the handle. It must outlive the handle, and be no green context,
/// which only one thread may use at a time.
pub const EPLB_DEVICE_CURRENT: i32 = -2;

/// The type of expert ids.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_dtype {
    /// int32_t
    Int32 = 0,
    /// int64_t
    Int64 = 1,
}

/// CUDA's stream, which the header only declares.
#[repr(C)]
pub struct CUstream_st([u8; 0]);

/// Whether handles can be created on a CUDA device: there is a driver, 525 or newer, with a device.
///
/// \return 1 if so; 0 if not, and eplb_last_error_message() says why
#[unsafe(no_mangle)]
pub extern "C" fn eplb_cuda_available() -> i32 {
    i32::from(boundary(cuda_available) == eplb_status::Ok)
}

/// A device that came in from C.
pub(super) fn place(device: i32) -> Result<Place> {
    match device {
        EPLB_DEVICE_HOST => Ok(Place::Host),
        EPLB_DEVICE_CURRENT => Ok(Place::Current),
        ordinal => u32::try_from(ordinal).map(Place::Ordinal).map_err(|_| {
            Error::InvalidArgument(format!(
                "device is {device}; EPLB_DEVICE_HOST, EPLB_DEVICE_CURRENT or a CUDA device's ordinal expected"
            ))
        }),
    }
}

/// Expert ids that came in from C; where there are no tokens, their address may be NULL.
///
/// # Safety
/// As for [`Ids::at`].
pub(super) unsafe fn ids(
    expert_ids: *const c_void,
    dtype: i32,
    num_tokens: u32,
    num_valid: *const i32,
) -> Result<Ids> {
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    let kind = id_type(expert_ids, dtype, "expert_ids")?;
    if expert_ids.is_null() && num_tokens != 0 {
        return refuse("expert_ids is NULL".to_owned());
    }
    if !num_valid.is_aligned() {
        return refuse("num_valid is not aligned".to_owned());
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { Ids::at(expert_ids as u64, kind, num_valid as u64) })
}

/// The type of what is in an array that came in from C, which must be aligned to it.
pub(super) fn id_type(array: *const c_void, dtype: i32, name: &str) -> Result<IdType> {
    const INT32: i32 = eplb_dtype::Int32 as i32;
    const INT64: i32 = eplb_dtype::Int64 as i32;
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    let kind = match dtype {
        INT32 => IdType::Int32,
        INT64 => IdType::Int64,
        unknown => return refuse(format!("dtype is {unknown}, which is no eplb_dtype")),
    };
    if !(array as usize).is_multiple_of(kind.size()) {
        return refuse(format!("{name} is not aligned to its {} bytes", kind.size()));
    }
    Ok(kind)
}

/// A stream that came in from C.
///
/// # Safety
/// NULL, or a live stream for as long as the call runs.
pub(super) unsafe fn stream(stream: *mut CUstream_st) -> Stream {
    // SAFETY: the caller's promise.
    unsafe { Stream::borrow(stream.cast()) }
}
