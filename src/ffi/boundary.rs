//! Crossing the boundary: panics and errors become statuses, pointers become references.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::slice;

use super::status::{EPLB_STATUS_OK, eplb_status, status_of};
use crate::error::{Error, Result};
use crate::placement::MAX_COUNT;

/// Far above every struct of the interface: a larger `struct_size` is uninitialised memory.
const MAX_STRUCT_SIZE: usize = 4096;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the body of a boundary function. An error or a panic becomes a status, and its text this thread's last error
/// message.
pub(super) fn boundary(body: impl FnOnce() -> Result<()>) -> eplb_status {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return EPLB_STATUS_OK,
        Ok(Err(error)) => error,
        Err(panic) => Error::of_panic(&*panic),
    };
    let text = error.to_string().replace('\0', "\u{fffd}");
    // Fails while the thread is being torn down, when no call can read the message.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = CString::new(text).unwrap_or_default());
    status_of(&error)
}

/// This thread's last error message; never NULL.
pub(super) fn last_error_message() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Borrows a handle or struct of the caller.
///
/// # Safety
/// `pointer` is NULL or points to a live `T` that does not change while the reference is used.
#[inline]
pub(super) unsafe fn borrowed<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    check_pointer(pointer, name)?;
    // SAFETY: not NULL and aligned as just checked, live by the caller's promise.
    Ok(unsafe { &*pointer })
}

/// Borrows a handle that no other call uses at the same time.
///
/// # Safety
/// `pointer` is NULL or points to a live `T` that nothing else uses while the reference lives.
pub(super) unsafe fn borrowed_mut<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T> {
    check_pointer(pointer, name)?;
    // SAFETY: not NULL and aligned as just checked, live and not shared by the caller's promise.
    Ok(unsafe { &mut *pointer })
}

/// Borrows an array of the caller; NULL is an empty one when `len` is 0.
///
/// # Safety
/// `pointer` is NULL or points to `len` values that do not change while the slice is used.
pub(super) unsafe fn array<'a, T>(pointer: *const T, len: Option<usize>, name: &str) -> Result<&'a [T]> {
    let len = checked_len::<T>(len, name)?;
    if len == 0 {
        return Ok(&[]);
    }
    check_pointer(pointer, name)?;
    // SAFETY: not NULL, aligned and of a possible length as just checked, live by the caller's promise.
    Ok(unsafe { slice::from_raw_parts(pointer, len) })
}

/// As [`array`], with `None` for NULL.
///
/// # Safety
/// As for [`array`].
pub(super) unsafe fn optional_array<'a, T>(
    pointer: *const T,
    len: usize,
    name: &str,
) -> Result<Option<&'a [T]>> {
    // SAFETY: the caller's promise.
    (!pointer.is_null()).then(|| unsafe { array(pointer, Some(len), name) }).transpose()
}

/// A number of samples of counts. Nobody keeps more than [`MAX_COUNT`] apart: a larger one is uninitialised memory.
pub(super) fn num_samples(num_samples: u32) -> Result<u32> {
    match num_samples as usize {
        0..=MAX_COUNT => Ok(num_samples),
        _ => {
            Err(Error::InvalidArgument(format!("num_samples is {num_samples}, at most {MAX_COUNT} expected")))
        }
    }
}

/// A number of shared experts. No model has more than [`MAX_COUNT`]: a larger one is uninitialised memory.
pub(super) fn num_shared(num_shared_experts: u32) -> Result<usize> {
    match num_shared_experts as usize {
        number if number <= MAX_COUNT => Ok(number),
        number => Err(Error::InvalidArgument(format!(
            "config->num_shared_experts is {number}; at most {MAX_COUNT} expected"
        ))),
    }
}

/// Borrows one value a rank, `None` for NULL. No placement has more than [`MAX_COUNT`] ranks: a larger `num_ranks` is
/// refused before anything is read.
///
/// # Safety
/// As for [`array`], of `num_ranks` values where that is no more than [`MAX_COUNT`].
pub(super) unsafe fn optional_of_ranks<'a, T>(
    pointer: *const T,
    num_ranks: u32,
    name: &str,
) -> Result<Option<&'a [T]>> {
    let num_ranks = num_ranks as usize;
    if !pointer.is_null() && num_ranks > MAX_COUNT {
        let message = format!(
            "{name} has num_ranks values, and num_ranks is {num_ranks}; at most {MAX_COUNT} expected"
        );
        return Err(Error::InvalidArgument(message));
    }
    // SAFETY: the caller's promise.
    unsafe { optional_array(pointer, num_ranks, name) }
}

/// Copies `values` to an array of the caller, which may be NULL if there are none.
///
/// # Safety
/// `pointer` is NULL or points to `values.len()` values that nothing else uses meanwhile.
pub(super) unsafe fn copy_out<T: Copy>(values: &[T], pointer: *mut T, name: &str) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    check_pointer(pointer, name)?;
    // SAFETY: not NULL and aligned as just checked; large enough and not shared by the caller's promise.
    unsafe { pointer.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    Ok(())
}

/// Checks where a result goes, before the work that computes it.
///
/// # Safety
/// `pointer` is NULL or valid for writing a `T`.
pub(super) unsafe fn out<'a, T>(pointer: *mut T, name: &str) -> Result<Out<'a, T>> {
    check_pointer(pointer, name)?;
    Ok(Out { pointer, _caller: std::marker::PhantomData })
}

/// A checked pointer to one result.
pub(super) struct Out<'a, T> {
    pointer: *mut T,
    _caller: std::marker::PhantomData<&'a mut T>,
}

impl<T> Out<'_, T> {
    pub fn set(self, value: T) {
        // SAFETY: `out` checked the pointer, and its caller promised that it may be written.
        unsafe { self.pointer.write(value) }
    }
}

impl<T> Out<'_, *mut T> {
    /// Passes a handle to the caller, who returns it by the handle's `_destroy`.
    pub fn give(self, handle: T) {
        self.set(Box::into_raw(Box::new(handle)));
    }
}

/// Destroys a handle that [`Out::give`] passed out. NULL is allowed.
///
/// # Safety
/// `handle` is NULL or was passed out and not destroyed.
pub(super) unsafe fn destroy<T>(handle: *mut T) {
    if !handle.is_null() {
        let drop_handle = || {
            // SAFETY: made by `Box::into_raw` in `give`, and the caller's last use of it.
            drop(unsafe { Box::from_raw(handle) });
            Ok(())
        };
        boundary(drop_handle);
    }
}

/// Borrows a non-empty UTF-8 string.
///
/// # Safety
/// `pointer` is NULL or points to a string that ends in NUL.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str> {
    check_pointer(pointer, name)?;
    // SAFETY: not NULL, and NUL-terminated by the caller's promise.
    match unsafe { CStr::from_ptr(pointer) }.to_str() {
        Ok("") => Err(Error::InvalidArgument(format!("{name} is empty"))),
        Ok(text) => Ok(text),
        Err(_) => Err(Error::InvalidArgument(format!("{name} is not UTF-8"))),
    }
}

/// As [`text`], for a path.
///
/// # Safety
/// As for [`text`].
pub(super) unsafe fn path<'a>(pointer: *const c_char, name: &str) -> Result<&'a Path> {
    // SAFETY: the caller's promise.
    unsafe { text(pointer, name) }.map(Path::new)
}

/// A struct that grows: it begins with `struct_size`, new fields are only appended, and zero is every field's default.
///
/// # Safety
/// `#[repr(C)]`, the first field is `struct_size: usize`, and every bit pattern the header allows its callers, zeros
/// among them, is a value.
pub(super) unsafe trait Growing: Copy {}

/// Copies a config struct, whichever version of the header the caller was compiled with. Fields that the caller lacks are
/// zero; fields that this version does not know must be zero.
///
/// # Safety
/// `pointer` is NULL or points to as many readable bytes as its `struct_size` says.
pub(super) unsafe fn config<T: Growing>(pointer: *const T, name: &str) -> Result<T> {
    // SAFETY: the caller's promise covers reading its size field.
    let size = unsafe { struct_size(pointer, name) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are readable by the caller's promise; the rest of `value` stays zero, which is a value.
    let (value, unknown) = unsafe {
        let bytes = pointer.cast::<u8>();
        let mut value = std::mem::zeroed::<T>();
        (&raw mut value).cast::<u8>().copy_from_nonoverlapping(bytes, known);
        (value, slice::from_raw_parts(bytes.add(known), size - known))
    };
    if unknown.iter().any(|&byte| byte != 0) {
        return Err(Error::InvalidArgument(format!(
            "{name} sets fields that eplb {} does not know; the header is newer than the library",
            env!("CARGO_PKG_VERSION")
        )));
    }
    Ok(value)
}

/// As [`config`], with NULL for all defaults.
///
/// # Safety
/// As for [`config`].
pub(super) unsafe fn optional_config<T: Growing>(pointer: *const T, name: &str) -> Result<T> {
    if pointer.is_null() {
        // SAFETY: zeros are a value of every growing struct.
        return Ok(unsafe { std::mem::zeroed() });
    }
    // SAFETY: the caller's promise.
    unsafe { config(pointer, name) }
}

/// Checks where a struct of results goes, as large as in the caller's version of the header.
///
/// # Safety
/// `pointer` is NULL or points to as many writable bytes as its `struct_size` says.
pub(super) unsafe fn growing_out<'a, T: Growing>(pointer: *mut T, name: &str) -> Result<GrowingOut<'a, T>> {
    // SAFETY: the caller's promise covers reading its size field.
    let size = unsafe { struct_size(pointer, name) }?;
    Ok(GrowingOut { pointer, size, _caller: std::marker::PhantomData })
}

/// A checked pointer to a struct of results.
pub(super) struct GrowingOut<'a, T> {
    pointer: *mut T,
    size: usize,
    _caller: std::marker::PhantomData<&'a mut T>,
}

impl<T: Growing> GrowingOut<'_, T> {
    /// Writes all but `struct_size`, which is the caller's. Fields that this version does not know become zero.
    pub fn set(self, value: T) {
        let (start, known) = (size_of::<usize>(), self.size.min(size_of::<T>()));
        // SAFETY: `growing_out` checked the pointer and its caller promised `size` writable bytes; `known` and `start`
        // lie within both structs.
        unsafe {
            let (to, from) = (self.pointer.cast::<u8>(), (&raw const value).cast::<u8>());
            to.add(start).copy_from_nonoverlapping(from.add(start), known - start);
            to.add(known).write_bytes(0, self.size - known);
        }
    }
}

/// The checked size of a growing struct.
///
/// # Safety
/// `pointer` is NULL or its first field is readable.
unsafe fn struct_size<T: Growing>(pointer: *const T, name: &str) -> Result<usize> {
    check_pointer(pointer, name)?;
    // SAFETY: not NULL and aligned as just checked; the first field is its size.
    let size = unsafe { *pointer.cast::<usize>() };
    if !(size_of::<usize>()..=MAX_STRUCT_SIZE).contains(&size) {
        return Err(Error::InvalidArgument(format!(
            "{name}->struct_size is {size}; initialise the struct with its EPLB_..._INIT"
        )));
    }
    Ok(size)
}

/// Matches a number from C against the constants of its enumeration. An unknown number is an error that lists them.
macro_rules! choice {
    ($value:expr, $name:expr, { $($constant:path => $meaning:expr),* $(,)? }) => {
        match $value {
            $($constant => Ok($meaning),)*
            unknown => Err(crate::error::Error::invalid_argument(move || {
                let choices = [$(format!("{} ({})", stringify!($constant), $constant)),*].join(", ");
                format!("{} is {unknown}; expected {choices}", $name)
            })),
        }
    };
}
pub(super) use choice;

#[inline]
fn check_pointer<T>(pointer: *const T, name: &str) -> Result<()> {
    if pointer.is_null() {
        return Err(refused(name, "NULL"));
    }
    if !pointer.is_aligned() {
        return Err(refused(name, "not aligned"));
    }
    Ok(())
}

fn checked_len<T>(len: Option<usize>, name: &str) -> Result<usize> {
    let fits =
        |&len: &usize| len.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= isize::MAX as usize);
    len.filter(fits).ok_or_else(|| Error::InvalidArgument(format!("{name} would be larger than memory")))
}

/// Converts `value` to another integer type.
#[inline]
pub(super) fn number<A: Copy + std::fmt::Display, B: TryFrom<A>>(value: A, name: &str) -> Result<B> {
    B::try_from(value).map_err(|_| refused_number(name, &value))
}

#[cold]
#[inline(never)]
fn refused(name: &str, what: &str) -> Error {
    Error::InvalidArgument(format!("{name} is {what}"))
}

#[cold]
#[inline(never)]
fn refused_number(name: &str, value: &dyn std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("{name} is {value}"))
}

/// Layer numbers as the library stores them.
pub(super) fn layer_numbers(layer_ids: &[i32]) -> Result<Vec<u32>> {
    layer_ids.iter().map(|&layer| number(layer, "a layer id")).collect()
}

/// A count, `None` for 0, the default.
pub(super) fn or_default(count: u32) -> Option<usize> {
    (count != 0).then_some(count as usize)
}

#[cfg(test)]
mod tests {
    use super::super::status::EPLB_STATUS_INTERNAL;
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Config {
        struct_size: usize,
        old: u64,
        new: u64,
    }

    // SAFETY: `repr(C)`, `struct_size` first, integers only.
    unsafe impl Growing for Config {}

    fn message() -> String {
        // SAFETY: the message of this thread, which makes no other call meanwhile.
        unsafe { CStr::from_ptr(last_error_message()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status_and_the_next_call_works() {
        assert_eq!(boundary(|| panic!("slot {} on fire", 7)), EPLB_STATUS_INTERNAL);
        assert_eq!(message(), "internal error, please report it: slot 7 on fire");
        assert_eq!(boundary(|| Ok(())), EPLB_STATUS_OK);
    }

    #[test]
    fn an_older_callers_config_has_zeros_where_it_has_no_fields() {
        let older = Config { struct_size: 16, old: 5, new: 99 };
        // SAFETY: 16 bytes are readable.
        let read = unsafe { config(&older, "config") }.unwrap();
        assert_eq!((read.old, read.new), (5, 0));
    }

    #[test]
    fn a_newer_callers_config_is_taken_if_what_we_do_not_know_is_zero() {
        let mut newer = [32usize, 5, 6, 0];
        let read = |newer: &[usize; 4]| {
            // SAFETY: 32 bytes are readable.
            unsafe { config(newer.as_ptr().cast::<Config>(), "config") }
        };
        let known = read(&newer).unwrap();
        assert_eq!((known.old, known.new), (5, 6));
        newer[3] = 1 << 40;
        let refused = read(&newer).map(|_| ()).unwrap_err().to_string();
        assert!(refused.starts_with("config sets fields that eplb"), "{refused}");
    }

    #[test]
    fn a_config_whose_size_was_never_set_is_refused() {
        for size in [0, 7, MAX_STRUCT_SIZE + 1, usize::MAX] {
            let wild = Config { struct_size: size, old: 0, new: 0 };
            // SAFETY: the first field is readable, and no more is read.
            let refused = unsafe { config(&wild, "config") }.map(|_| ()).unwrap_err().to_string();
            assert_eq!(
                refused,
                format!("config->struct_size is {size}; initialise the struct with its EPLB_..._INIT")
            );
        }
    }

    #[test]
    fn results_fill_as_much_of_a_struct_as_the_caller_has() {
        let value = Config { struct_size: 0, old: 5, new: 6 };
        let mut older = Config { struct_size: 16, old: 0, new: 99 };
        // SAFETY: 16 bytes are writable.
        unsafe { growing_out(&mut older, "info") }.unwrap().set(value);
        assert_eq!((older.struct_size, older.old, older.new), (16, 5, 99));

        let mut newer = [32usize, 1, 1, 1];
        // SAFETY: 32 bytes are writable.
        unsafe { growing_out(newer.as_mut_ptr().cast::<Config>(), "info") }.unwrap().set(value);
        assert_eq!(newer, [32, 5, 6, 0]);
    }

    #[test]
    fn pointers_and_lengths_that_cannot_be_are_refused() {
        // SAFETY: none of the pointers is followed.
        unsafe {
            assert_eq!(borrowed::<u64>(std::ptr::null(), "stats").unwrap_err().to_string(), "stats is NULL");
            let odd = std::ptr::without_provenance::<u64>(9);
            assert_eq!(borrowed(odd, "stats").unwrap_err().to_string(), "stats is not aligned");
            let huge = array(std::ptr::without_provenance::<u64>(8), Some(usize::MAX), "loads");
            assert_eq!(huge.unwrap_err().to_string(), "loads would be larger than memory");
            assert!(array::<u64>(std::ptr::null(), Some(0), "loads").unwrap().is_empty());
        }
    }

    #[test]
    fn values_of_more_ranks_than_any_placement_has_are_not_read() {
        let of = |values: *const i32, num_ranks| {
            // SAFETY: no more is read than one value where there is one rank.
            unsafe { optional_of_ranks(values, num_ranks, "config->rank_to_node") }
        };
        for num_ranks in [MAX_COUNT as u32 + 1, u32::MAX] {
            assert_eq!(
                of(&7, num_ranks).unwrap_err().to_string(),
                format!(
                    "config->rank_to_node has num_ranks values, and num_ranks is {num_ranks}; at most 1048576 expected"
                )
            );
            assert_eq!(of(std::ptr::null(), num_ranks).unwrap(), None);
        }
        assert_eq!(of(&7, 1).unwrap(), Some(&[7][..]));
    }
}
