//! Metrics: what objects tell of themselves, for Prometheus.

use std::ffi::{CString, c_char};

use super::boundary::{array, borrowed, borrowed_mut, boundary, destroy, out, text};
use super::dispatch::eplb_dispatch;
use super::placement::eplb_placement;
use super::recorder::eplb_recorder;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::report::Metrics;

/// What recorders, placements and dispatches tell of themselves, as text that Prometheus scrapes; docs/metrics.md lists the metrics.
/// The numbers are those of eplb_recorder_get_info(), eplb_placement_get_info() and eplb_dispatch_get_info(), some of them layer by
/// layer.
///
/// The format has all samples of a metric stand together. So the objects of a process, of one kind or several, are added to one
/// handle, which makes one text of them, and labels tell them apart:
///
/// ```c
/// const eplb_metrics_label rank = { "rank", "3" };
/// eplb_metrics *metrics = NULL;
/// eplb_metrics_create(&metrics);
/// eplb_metrics_add_recorder(metrics, recorder, &rank, 1);
/// eplb_metrics_add_dispatch(metrics, dispatch, &rank, 1);
/// const char *text = NULL;
/// size_t length = 0;
/// eplb_metrics_text(metrics, &text, &length); // the answer to a scrape: Content-Type: text/plain; version=0.0.4
/// eplb_metrics_destroy(metrics);
/// ```
///
/// Each object is looked at when it is added, and is not needed afterwards: make a handle for each scrape. Adding takes `const`
/// objects, so it may run while other threads count and route; the handle itself is for one thread at a time.
pub struct eplb_metrics(Metrics, CString);

/// A label of the host's: what tells one object from another, and which process this is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_metrics_label {
    /// Letters, digits and underscores, but neither a digit nor two underscores first; none of the metrics' own, which are hash, layer,
    /// result, rule and state. UTF-8.
    pub name: *const c_char,
    /// Any UTF-8 that is not empty. It is escaped as the format wants it.
    pub value: *const c_char,
}

/// Makes an empty collection of metrics.
///
/// \param metrics  receives the handle, which goes back by eplb_metrics_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_create(metrics: *mut *mut eplb_metrics) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the pointer.
        let metrics = unsafe { out(metrics, "metrics") }?;
        metrics.give(eplb_metrics(Metrics::default(), CString::default()));
        Ok(())
    })
}

/// Adds what a recorder tells, as it is now: it is asked as by eplb_recorder_get_info(), with what that says of the device.
///
/// \param metrics     the metrics
/// \param recorder    the recorder
/// \param labels      labels of its own, [num_labels], copied; may be NULL where num_labels is 0
/// \param num_labels  how many
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for a recorder with the labels of one that was added before
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_add_recorder(
    metrics: *mut eplb_metrics,
    recorder: *const eplb_recorder,
    labels: *const eplb_metrics_label,
    num_labels: usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (metrics, recorder, labels) = unsafe {
            (
                &mut borrowed_mut(metrics, "metrics")?.0,
                &borrowed(recorder, "recorder")?.0,
                self::labels(labels, num_labels)?,
            )
        };
        metrics.add_recorder(&recorder.info()?, &labels)
    })
}

/// Adds what a placement tells.
///
/// \param metrics     the metrics
/// \param placement   the placement
/// \param labels      labels of its own, [num_labels], copied; may be NULL where num_labels is 0
/// \param num_labels  how many
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for a placement with the labels of one that was added before
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_add_placement(
    metrics: *mut eplb_metrics,
    placement: *const eplb_placement,
    labels: *const eplb_metrics_label,
    num_labels: usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (metrics, placement, labels) = unsafe {
            (
                &mut borrowed_mut(metrics, "metrics")?.0,
                &borrowed(placement, "placement")?.0,
                self::labels(labels, num_labels)?,
            )
        };
        metrics.add_placement(placement, &labels)
    })
}

/// Adds what a dispatch tells, as it is now.
///
/// \param metrics     the metrics
/// \param dispatch    the dispatch
/// \param labels      labels of its own, [num_labels], copied; may be NULL where num_labels is 0
/// \param num_labels  how many
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for a dispatch with the labels of one that was added before
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_add_dispatch(
    metrics: *mut eplb_metrics,
    dispatch: *const eplb_dispatch,
    labels: *const eplb_metrics_label,
    num_labels: usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (metrics, dispatch, labels) = unsafe {
            (
                &mut borrowed_mut(metrics, "metrics")?.0,
                &borrowed(dispatch, "dispatch")?.0,
                self::labels(labels, num_labels)?,
            )
        };
        metrics.add_dispatch(dispatch, &labels)
    })
}

/// Lends the text: Prometheus' text format, version 0.0.4, each line ended by a line feed; empty where nothing was added.
///
/// \param metrics  the metrics
/// \param text     receives the text, which ends in NUL and lives until the next eplb_metrics_text() or eplb_metrics_destroy()
/// \param length   receives its length in bytes, without the NUL; may be NULL
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_text(
    metrics: *mut eplb_metrics,
    text: *mut *const c_char,
    length: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (metrics, text, length) = unsafe {
            let length = (!length.is_null()).then(|| out(length, "length")).transpose()?;
            (borrowed_mut(metrics, "metrics")?, out(text, "text")?, length)
        };
        let eplb_metrics(metrics, lent) = metrics;
        *lent = CString::new(metrics.text()).map_err(|e| Error::Internal(e.to_string()))?;
        text.set(lent.as_ptr());
        if let Some(length) = length {
            length.set(lent.as_bytes().len());
        }
        Ok(())
    })
}

/// Gives the handle back.
///
/// \param metrics  not to be used again, nor the text that it lent; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_destroy(metrics: *mut eplb_metrics) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(metrics) }
}

/// # Safety
/// `labels` is NULL or of `num_labels` labels, whose strings are NULL or end in NUL, and which nobody changes meanwhile.
unsafe fn labels<'a>(
    labels: *const eplb_metrics_label,
    num_labels: usize,
) -> Result<Vec<(&'a str, &'a str)>> {
    // SAFETY: the caller's promise.
    let labels = unsafe { array(labels, Some(num_labels), "labels") }?;
    // SAFETY: the caller's promise.
    let pair = |label: &eplb_metrics_label| unsafe {
        Ok((text(label.name, "a label's name")?, text(label.value, "a label's value")?))
    };
    labels.iter().map(pair).collect()
}
