//! How evenly a placement loads the ranks: everything that needs both a load and a placement.
//!
//! - [`score`] computes the figures of one layer, [`DumpScore`] has those of a whole dump.
//! - [`Planner`] computes placements from a dump.
//! - [`compare`] and [`sweep`] score several placements on one dump.
//! - [`replay()`] shows what live plans would have brought on a recording.
//! - [`LoadReport`] and [`PredictionReport`] report by layer, [`Document`] formats them as JSON.
//! - [`Metrics`] formats the state of recorders, placements and dispatches for Prometheus.

mod balance;
mod balancedness;
mod compare;
mod document;
mod expected;
mod idle;
mod load_report;
mod metrics;
mod plan;
mod prediction;
mod recording;
mod replay;
mod score;
mod sweep;

pub use balance::{Balance, average};
pub use balancedness::Balancedness;
pub use compare::{Candidate, ScoredCandidate, compare, moved_slots};
pub use document::Document;
pub(crate) use expected::routed_load;
pub use expected::{RoutingOptions, expected_load};
pub use idle::Idle;
pub use load_report::{AverageBalance, IterationImbalance, IterationReport, LayerReport, LoadReport, Views};
pub use metrics::Metrics;
pub(crate) use plan::require_expert_counts;
pub use plan::{DEFAULT_NUM_SAMPLES, Planner};
pub use prediction::{AveragePrediction, LayerPrediction, PredictionReport};
pub use recording::{RecordedLoads, Recording, placement_for_dump};
pub use replay::{
    ReplayConfig, ReplayGrid, ReplayPoint, Replayed, ReplayedPlan, Strategy, default_grid, replay,
    sweep_replay,
};
pub(crate) use score::ScoreOptions;
pub use score::{BestSplit, BoundGap, DumpScore, LayerScore, Score, score};
pub use sweep::{FewestSlots, SweepPoint, default_num_ranks, default_num_slots, fewest_slots, sweep};
