//! Compares the interface as Rust and as C compile it; see build.rs.
#![allow(bad_style, unused_imports, clippy::all)]

// The functions are defined by the library.
extern crate eplb as _;

mod interface {
    include!(concat!(env!("OUT_DIR"), "/interface.rs"));
}

use interface::*;

include!(concat!(env!("OUT_DIR"), "/all.rs"));
