//! Devices, streams and arrays of ids.

use std::ffi::c_void;

use super::boundary::{borrowed, boundary, choice};
use super::status::EPLB_STATUS_OK;
use crate::device::{IdType, Ids, Place, Stream, cuda_available};
use crate::error::{Error, Result};

/// Device: host memory. Calls take host pointers, ignore the stream, and are done when they return. No CUDA
/// driver is needed. The default of every config.
pub const EPLB_DEVICE_HOST: i32 = -1;

/// Device: the CUDA context that is current on the thread that creates the handle. It must outlive the
/// handle. Not a green context, which only one thread may use at a time.
pub const EPLB_DEVICE_CURRENT: i32 = -2;

/// The integer type of an array.
pub type eplb_dtype = i32;

/// int32_t
pub const EPLB_DTYPE_INT32: eplb_dtype = 0;
/// int64_t
pub const EPLB_DTYPE_INT64: eplb_dtype = 1;

/// Expert ids, as the router chose them: [num_tokens][experts_per_token] on the handle's device. Ids from
/// num_experts on are those of shared experts, if there are any. -1 is padding. Other ids outside of
/// [0, num_experts) are out of range. Neither is counted, and both are routed to invalid_slot. The ids must
/// not change until the call has returned, on a device until its kernel has run: slots would be wrong. This
/// struct and eplb_slot_ids have no struct_size: they never grow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_expert_ids {
    /// Aligned to its type. May be NULL if there are no tokens.
    pub data: *const c_void,
    /// The type of an id.
    pub dtype: eplb_dtype,
    /// Ids from one row to the next, at least experts_per_token; 0: experts_per_token. Ids of a row after
    /// the first experts_per_token are neither read nor written.
    pub row_stride: u32,
}

/// Slot ids, to be written: [num_tokens][experts_per_token] on the handle's device. A slot id counts over
/// all ranks.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_slot_ids {
    /// Aligned to its type. May be the expert ids' data with the same dtype and stride, but must not overlap
    /// it otherwise.
    pub data: *mut c_void,
    /// The type of an id, that of the expert ids or another.
    pub dtype: eplb_dtype,
    /// As in eplb_expert_ids.
    pub row_stride: u32,
}

/// CUDA's stream, which the header only declares.
#[repr(C)]
pub struct CUstream_st([u8; 0]);

/// Returns whether handles can be created on a CUDA device: a driver, 525 or newer, with a device.
///
/// \return 1 if so; otherwise 0, and eplb_last_error_message() has the reason
#[unsafe(no_mangle)]
pub extern "C" fn eplb_cuda_available() -> i32 {
    i32::from(boundary(cuda_available) == EPLB_STATUS_OK)
}

/// The device of a config.
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

/// Expert ids of the caller.
///
/// # Safety
/// `expert_ids` is NULL or a live struct; what it points to is as [`Ids::at`] requires.
// Inlined, the result stays in registers. A copy of it through memory would wait for its parts.
#[inline(always)]
pub(super) unsafe fn ids(
    expert_ids: *const eplb_expert_ids,
    num_tokens: u32,
    num_valid: *const i32,
    experts_per_token: Option<usize>,
) -> Result<Ids> {
    // SAFETY: the caller's promise.
    let expert_ids = unsafe { borrowed(expert_ids, "expert_ids") }?;
    let data = expert_ids.data;
    let refuse = |what: &'static str| Err(Error::invalid_argument(move || what.to_owned()));
    let kind = id_type(data, expert_ids.dtype, ("expert_ids->data", "expert_ids->dtype"))?;
    if data.is_null() && num_tokens != 0 {
        return refuse("expert_ids->data is NULL");
    }
    if !num_valid.is_aligned() {
        return refuse("num_valid is not aligned");
    }
    // SAFETY: the caller's promise.
    let ids = unsafe { Ids::at(data as u64, kind, num_valid as u64) }.with_row_stride(expert_ids.row_stride);
    if let Some(columns) = experts_per_token {
        ids.check_stride(columns as u32, "expert_ids")?;
    }
    Ok(ids)
}

/// Slot ids of the caller, to be written.
///
/// # Safety
/// `slot_ids` is NULL or a live struct; what it points to is as [`Ids::at`] requires.
// As above.
#[inline(always)]
pub(super) unsafe fn slot_ids(slot_ids: *const eplb_slot_ids) -> Result<Ids> {
    // SAFETY: the caller's promise.
    let &eplb_slot_ids { data, dtype, row_stride } = unsafe { borrowed(slot_ids, "slot_ids") }?;
    let kind = id_type(data, dtype, ("slot_ids->data", "slot_ids->dtype"))?;
    // SAFETY: the caller's promise.
    Ok(unsafe { Ids::at(data as u64, kind, 0) }.with_row_stride(row_stride))
}

/// The type of an array's elements, to which it must be aligned. The names are for errors.
#[inline(always)]
pub(super) fn id_type(
    array: *const c_void,
    dtype: eplb_dtype,
    (name, dtype_name): (&str, &str),
) -> Result<IdType> {
    let kind = choice!(dtype, dtype_name, {
        EPLB_DTYPE_INT32 => IdType::Int32,
        EPLB_DTYPE_INT64 => IdType::Int64,
    })?;
    if !(array as usize).is_multiple_of(kind.size()) {
        return Err(Error::invalid_argument(move || {
            format!("{name} is not aligned to its {} bytes", kind.size())
        }));
    }
    Ok(kind)
}

/// A stream of the caller.
///
/// # Safety
/// NULL, or a live stream for as long as the call runs.
pub(super) unsafe fn stream(stream: *mut CUstream_st) -> Stream {
    // SAFETY: the caller's promise.
    unsafe { Stream::borrow(stream.cast()) }
}
