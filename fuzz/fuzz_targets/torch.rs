//! Reads any bytes as a file of PyTorch, without checksums: a recording, and a map. Accepted layers have counts or loads, and each
//! expert of an accepted map a slot.
#![no_main]

use eplb::exchange::{CountsFormat, Load, Model, PlacementFormat, counts_from_bytes, placement_from_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let model = Model { num_ranks: Some(1), ..Model::default() };
    if let Ok(read) = placement_from_bytes(bytes, PlacementFormat::SglangMap, &model) {
        let placement = read.placement;
        for &layer in placement.layers() {
            let experts = placement.layer_experts(layer).unwrap();
            assert!((0..placement.shape().num_experts() as u32).all(|expert| experts.contains(&expert)));
        }
    }
    let Ok(read) = counts_from_bytes(bytes, CountsFormat::SglangPt, &Model::default()) else { return };
    let summary = read.load.summary();
    let len = summary.rows.len() as usize * summary.num_experts;
    for &layer in &summary.layers {
        match &read.load {
            Load::Counts(stats) => {
                let counts = stats.layer_counts(layer).unwrap();
                assert!(counts.len() == len && counts.iter().any(|&count| count > 0));
                assert!(counts.iter().all(|&count| count <= i64::MAX as u64));
            }
            Load::Fractions(loads) => {
                let loads = loads.layer(layer).unwrap();
                assert!(loads.len() == len && loads.iter().any(|&load| load > 0.0));
                assert!(loads.iter().all(|load| load.is_finite() && *load >= 0.0));
            }
        }
    }
});
