//! Reads any bytes as a configuration file. An accepted placement is equal after writing and reading it.
#![no_main]

use eplb::placement::{ConfigFile, Expected};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(config) = ConfigFile::parse(text) else { return };
    for (num_experts, num_ranks, layers) in [(None, Some(1), None), (Some(4), Some(2), Some(&[0, 3][..]))] {
        let expected = Expected { num_experts, num_ranks, layers, ..Default::default() };
        if let Ok(placement) = config.placement(expected) {
            let own = ConfigFile::parse(&placement.to_eplb_yaml()).unwrap().placement(expected).unwrap();
            assert_eq!(own, placement);
            // TensorRT-LLM's file holds no empty slots.
            let Ok(yaml) = placement.to_yaml() else { continue };
            let again = ConfigFile::parse(&yaml).unwrap().placement(expected).unwrap();
            assert_eq!(again, placement);
            assert_eq!(again.hash(), placement.hash());
            assert_eq!(again.is_planned(), placement.is_planned());
        }
    }
});
