//! Metrics of recorders, placements and dispatches, for Prometheus.

use std::ffi::{CString, c_char};

use super::boundary::{array, borrowed, borrowed_mut, boundary, destroy, out, text};
use super::dispatch::eplb_dispatch;
use super::placement::eplb_placement;
use super::recorder::eplb_recorder;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::report::Metrics;

/// Metrics of the objects of a process, as one text that Prometheus scrapes; docs/metrics.md lists them.
/// Create a handle for each scrape. Each object is read when it is added, while other threads may count and
/// route, and is not needed afterwards. Labels tell objects apart.
pub struct eplb_metrics(pub(super) Metrics, CString);

/// A label of the engine.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_metrics_label {
    /// Letters, digits and underscores, starting with a letter or one underscore. Not hash, layer, reason,
    /// result, rule or state, which the metrics use.
    pub name: *const c_char,
    /// Not empty. It is escaped as the format requires.
    pub value: *const c_char,
}

/// Creates an empty set of metrics.
///
/// \param metrics  receives the handle
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_create(metrics: *mut *mut eplb_metrics) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the pointer.
        let metrics = unsafe { out(metrics, "metrics") }?;
        metrics.give(eplb_metrics(Metrics::default(), CString::default()));
        Ok(())
    })
}

/// Sets whether objects that are added from here on have series by layer, as by default. Without them, each
/// such metric has one series: the sum over layers, or the largest value of replica counts and generations.
///
/// \param metrics       the metrics
/// \param layer_series  0: without
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_set_layer_series(
    metrics: *mut eplb_metrics,
    layer_series: u32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let metrics = unsafe { &mut borrowed_mut(metrics, "metrics")?.0 };
        metrics.set_layer_series(layer_series != 0);
        Ok(())
    })
}

/// Adds the metrics of a recorder, as eplb_recorder_get_info() reads it.
///
/// \param metrics     the metrics
/// \param recorder    the recorder
/// \param labels      copied: [num_labels]; may be NULL if num_labels is 0
/// \param num_labels  length of labels
/// \return EPLB_STATUS_INVALID_ARGUMENT also for a recorder with the labels of an earlier one
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

/// Adds the metrics of a placement.
///
/// \param metrics     the metrics
/// \param placement   the placement
/// \param labels      copied: [num_labels]; may be NULL if num_labels is 0
/// \param num_labels  length of labels
/// \return EPLB_STATUS_INVALID_ARGUMENT also for a placement with the labels of an earlier one
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

/// Adds the metrics of a dispatch.
///
/// \param metrics     the metrics
/// \param dispatch    the dispatch
/// \param labels      copied: [num_labels]; may be NULL if num_labels is 0
/// \param num_labels  length of labels
/// \return EPLB_STATUS_INVALID_ARGUMENT also for a dispatch with the labels of an earlier one
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

/// Returns the text, in Prometheus' text format 0.0.4; empty if nothing was added.
///
/// \param metrics  the metrics
/// \param text     receives the text, which lives until the next call of this function or
///                 eplb_metrics_destroy()
/// \param length   receives the length in bytes without the NUL; may be NULL
/// \return a status
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
        let eplb_metrics(metrics, stored) = metrics;
        *stored = CString::new(metrics.text()).map_err(|e| Error::Internal(e.to_string()))?;
        text.set(stored.as_ptr());
        if let Some(length) = length {
            length.set(stored.as_bytes().len());
        }
        Ok(())
    })
}

/// Destroys metrics and their text.
///
/// \param metrics  may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_destroy(metrics: *mut eplb_metrics) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(metrics) }
}

/// # Safety
/// `labels` is NULL or of `num_labels` labels, whose strings are NULL or end in NUL, and which
/// nobody changes meanwhile.
pub(super) unsafe fn labels<'a>(
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
