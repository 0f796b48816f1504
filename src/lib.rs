//! Expert parallelism load balancer (EPLB) for mixture-of-experts inference.
//!
//! The C interface is `include/eplb.h`; this is the same library for Rust, and the map of its rooms:
//!
//! - [`stats`]: what was counted: the dump files and their counts
//! - [`solve`]: loads to placement: the policies
//! - [`placement`]: which expert each slot holds: the plan, its checks, its configuration file
//! - [`dispatch`]: which slot serves a token's expert: the tables, the rules, on a device
//! - [`report`]: how balanced a placement makes the ranks: scores, comparisons, reports
//! - [`exchange`]: counts and placements in the files of other systems
//! - [`mod@generate`]: the whole of step 2, a dump directory to a configuration file
//! - [`atomic_file`]: files that are there whole or not at all
//! - `ffi`: the C boundary

pub mod atomic_file;
pub mod device;
pub mod dispatch;
pub mod error;
pub mod exchange;
mod ffi;
pub mod generate;
pub mod placement;
pub mod report;
pub mod solve;
pub mod stats;
mod threads;

pub use error::{Error, Result};
