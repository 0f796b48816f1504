//! Reads any bytes as a rank file in a dump of 2 experts. The totals of accepted counts are their sums.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use eplb::stats::{Dump, LoadOptions, RankFile};
use libfuzzer_sys::fuzz_target;

/// Meta files: of another program, and of eplb in rows of 3 iterations, one in 2 counted.
const METAS: [&str; 2] = [
    r#"{"num_experts": 2, "num_experts_per_token": 1}"#,
    r#"{"num_experts": 2, "num_experts_per_token": 1, "eplb": {"version": "0.1.0", "num_ranks": 2, "num_files": 1,
        "iter_start": 5, "iter_stop": 12, "iter_bucket": 3, "iter_stride": 2, "layers": [], "counts": "experts"}}"#,
];

/// Dump directories of this process, in memory if possible, one for each meta file.
static DIRECTORIES: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let shared = PathBuf::from("/dev/shm");
    let base = if shared.is_dir() { shared } else { std::env::temp_dir() };
    let directory = |(index, meta): (usize, &&str)| {
        let directory = base.join(format!("eplb-fuzz-{}-{index}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("meta_info.json"), meta).unwrap();
        directory
    };
    METAS.iter().enumerate().map(directory).collect()
});

fuzz_target!(|bytes: &[u8]| {
    for directory in DIRECTORIES.iter() {
        let path = directory.join("rank0.safetensors");
        fs::write(&path, bytes).unwrap();
        let _ = RankFile::open(&path, None);
        let options = LoadOptions { threads: 1, ..Default::default() };
        let Ok(stats) = Dump::open(directory, &options).and_then(|dump| dump.read(&mut |_, _| Ok(()))) else { continue };
        let summary = stats.summary().clone();
        for &layer in &summary.layers {
            let counts = stats.layer_counts(layer).unwrap();
            assert_eq!(counts.len() as u64, summary.rows.len() * 2);
            if let Ok(totals) = stats.layer_totals(layer) {
                let sum = |counts: &[u64]| counts.iter().map(|&count| u128::from(count)).sum::<u128>();
                assert_eq!(sum(&totals), sum(counts));
            }
        }
    }
});
