//! Reads any bytes as each format of other systems. What is accepted is equal after writing and reading it.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use eplb::exchange::{
    CountsFormat, Load, Model, PlacementFormat, counts_from_bytes, placement_from_bytes, read_counts, read_placement,
    write_counts, write_loads, write_placement,
};
use libfuzzer_sys::fuzz_target;

/// A file of this process, in memory if possible.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let shared = PathBuf::from("/dev/shm");
    let base = if shared.is_dir() { shared } else { std::env::temp_dir() };
    let directory = base.join(format!("eplb-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory.join("file")
});

fuzz_target!(|bytes: &[u8]| {
    for format in [CountsFormat::SglangCount, CountsFormat::Lmdeploy, CountsFormat::Npy] {
        let Ok(read) = counts_from_bytes(bytes, format, &Model::default()) else { continue };
        let layers = &read.load.summary().layers;
        for (to, layers) in [(CountsFormat::SglangCount, None), (CountsFormat::Npy, Some(&layers[..]))] {
            // SGLang's format drops idle steps.
            if to == CountsFormat::SglangCount && format == CountsFormat::Npy {
                continue;
            }
            let model = Model { layers, ..Model::default() };
            match &read.load {
                Load::Counts(stats) => write_counts(stats, &FILE, to, &model).unwrap(),
                Load::Fractions(loads) => write_loads(loads, &FILE, to, &model).unwrap(),
            }
            assert_eq!(read_counts(&FILE, to, &model).unwrap().load, read.load);
        }
    }
    for format in PlacementFormat::ALL.into_iter().filter(|&format| format != PlacementFormat::Config) {
        let num_ranks = (format != PlacementFormat::ExpertMap).then_some(2);
        let Ok(read) = placement_from_bytes(bytes, format, &Model { num_ranks, ..Model::default() }) else { continue };
        let placement = read.placement;
        let (layers, num_ranks) = (Some(placement.layers()), Some(placement.shape().num_ranks()));
        let model = Model { layers, num_ranks, allow_lossy: true, ..Model::default() };
        for format in [PlacementFormat::ExpertMap, PlacementFormat::Phy2logNpy, PlacementFormat::Phy2logJson] {
            let written = write_placement(&placement, &FILE, format, &model);
            if format == PlacementFormat::ExpertMap && placement.num_empty_slots() > 0 {
                assert!(written.is_err());
                continue;
            }
            written.unwrap();
            // An array has no numbers of slots of ranks that differ.
            let again = read_placement(&FILE, format, &model).unwrap().placement;
            assert!(again.iter().eq(placement.iter()));
        }
    }
});
