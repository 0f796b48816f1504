//! Reads any bytes as a file of PyTorch, without checksums. Accepted layers have counts.
#![no_main]

use eplb::exchange::{CountsFormat, Model, counts_from_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(read) = counts_from_bytes(bytes, CountsFormat::SglangPt, &Model::default()) else { return };
    let summary = read.stats.summary();
    for &layer in &summary.layers {
        let counts = read.stats.layer_counts(layer).unwrap();
        assert_eq!(counts.len() as u64, summary.rows.len() * summary.num_experts as u64);
        assert!(counts.iter().any(|&count| count > 0) && counts.iter().all(|&count| count <= i64::MAX as u64));
    }
});
