//! Metrics of rebalancers, for Prometheus.

use super::boundary::{borrowed, borrowed_mut, boundary};
use super::metrics::{eplb_metrics, eplb_metrics_label, labels};
use super::rebalancer::eplb_rebalancer;
use super::status::eplb_status;

/// Adds the metrics of a rebalancer: the balance in force, promised and measured, moves, generations,
/// windows, and decisions by reason.
///
/// \param metrics     the metrics
/// \param rebalancer  the rebalancer; not concurrent with its other calls
/// \param labels      copied: [num_labels]; may be NULL if num_labels is 0
/// \param num_labels  length of labels
/// \return EPLB_STATUS_INVALID_ARGUMENT also for a rebalancer with the labels of an earlier one
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_metrics_add_rebalancer(
    metrics: *mut eplb_metrics,
    rebalancer: *const eplb_rebalancer,
    labels: *const eplb_metrics_label,
    num_labels: usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (metrics, rebalancer, labels) = unsafe {
            let metrics = &mut borrowed_mut(metrics, "metrics")?.0;
            (metrics, &borrowed(rebalancer, "rebalancer")?.0, self::labels(labels, num_labels)?)
        };
        metrics.add_rebalancer(rebalancer, &labels)
    })
}
