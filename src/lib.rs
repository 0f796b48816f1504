//! Expert parallelism load balancer (EPLB) for mixture-of-experts inference.
//!
//! The C interface is `include/eplb.h`, which engines call, `include/eplb_live.h`, live rebalancing, and `include/eplb_tools.h`, all
//! else. This crate is the same library for Rust. A module uses only modules below it:
//!
//! - `ffi`: the C boundary, one file for each C object
//! - [`mod@generate`]: step 2, from a dump directory to a configuration file
//! - [`exchange`]: reads and writes counts and placements of other systems
//! - [`report`]: scores, reports and comparisons of placements, and metrics
//! - [`live`]: plans that move few experts while an engine runs
//! - [`dispatch`]: step 3, routes expert ids to slot ids on a device
//! - [`stats`]: step 1, the recorder, and dumps with their counts
//! - [`solve`]: computes placements from loads, by policy
//! - [`device`]: memory, streams and kernel launches, on the host or a CUDA device
//! - [`placement`]: which expert each slot holds, and the configuration file
//! - [`atomic_file`]: replaces files in one step
//! - `threads`: runs work on several threads
//! - `page_buffer`: memory for large reads
//! - [`error`]: the error type

pub mod atomic_file;
pub mod device;
pub mod dispatch;
pub mod error;
pub mod exchange;
mod ffi;
pub mod generate;
pub mod live;
mod page_buffer;
pub mod placement;
pub mod report;
pub mod solve;
pub mod stats;
mod threads;

pub use error::{Error, Result};
