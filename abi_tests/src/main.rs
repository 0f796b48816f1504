//! Compares what Rust and C make of the interface; see build.rs.
#![allow(bad_style, unused_imports, clippy::all)]

// The functions are the library's own.
extern crate eplb as _;

mod interface {
    include!(concat!(env!("OUT_DIR"), "/interface.rs"));
}

use interface::*;

include!(concat!(env!("OUT_DIR"), "/all.rs"));
