//! Reads any bytes as a meta file. Accepted sizes are valid.
#![no_main]

use eplb::stats::MetaInfo;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(meta) = MetaInfo::parse(text) {
        assert!((1..=meta.num_experts).contains(&meta.num_experts_per_token));
        assert!(meta.eplb.is_none_or(|info| info.num_ranks > 0 && !info.rows().unwrap().is_empty()));
    }
});
