//! The C boundary: one file per C object, each function converts, calls and is done.
//!
//! Types carry their C names, and their documentation is the header's: `include/eplb.h` is generated from these files.
//! This module holds the only `unsafe` of the library. Its functions trust what the header makes the caller promise:
//! that pointers which are not NULL point to what their type says, for as long as the call runs.
#![allow(non_camel_case_types, reason = "types carry the names of the C interface")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the documentation is the header's, whose conventions say it once"
)]

mod boundary;
mod generate;
mod library;
mod placement;
mod solve;
mod stats;
mod status;
