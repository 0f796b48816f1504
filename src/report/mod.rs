//! How even a placement makes the ranks: everything that needs a load and a placement together.
//!
//! [`score`] turns a placement and loads into figures, for one layer; [`DumpScore`] holds those of a whole dump. [`Planner`]
//! places experts by a dump. All else here arranges their results: [`compare`] and [`sweep`] side by side, [`LoadReport`] and
//! [`Against`] by layer and iteration, [`Document`] as JSON.

mod against;
mod balance;
mod compare;
mod document;
mod expected;
mod load_report;
mod metrics;
mod plan;
mod recording;
mod score;
mod sweep;

pub use against::{Against, AverageAgainst, LayerAgainst};
pub use balance::{Balance, average};
pub use compare::{Candidate, Compared, compare, moved_slots};
pub use document::Document;
pub(crate) use expected::routed_load;
pub use expected::{Routed, expected_load};
pub use load_report::{AverageBalance, Imbalance, IterationReport, LayerReport, LoadReport, Views};
pub use metrics::Metrics;
pub(crate) use plan::refuse_slots;
pub use plan::{DEFAULT_NUM_SAMPLES, Planner};
pub use recording::{RecordedLoads, Recording, placement_of};
pub(crate) use score::Figures;
pub use score::{BestSplit, BoundGap, DumpScore, LayerScore, Score, score};
pub use sweep::{Fewest, Point, fewest_slots, sweep, usual_num_ranks, usual_num_slots};
