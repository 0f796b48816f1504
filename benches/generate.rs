//! `eplb generate` as a process, on a dump of 32 ranks x 100 iterations x 58 layers x 256 experts (380 MB).
//! `cargo bench --features cli --bench generate`
//!
//! Writes the dump once, under target/, and expects it in the page cache afterwards. Prints the median time of the runs, the
//! dump's bytes a second, and the process's peak memory.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use eplb::stats::{Counts, IdKind, IterationRange, RankDump, Rows};

const RANKS: u32 = 32;
const ITERATIONS: IterationRange = IterationRange { start: 100, stop: 200 };
const LAYERS: std::ops::Range<u32> = 3..61;
const EXPERTS: usize = 256;
const RUNS: usize = 15;

fn main() -> io::Result<()> {
    let dump = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-dump");
    if !dump.join(format!("rank{}.safetensors", RANKS - 1)).exists() {
        write_dump(&dump);
    }
    let sizes = std::fs::read_dir(&dump)?.map(|entry| Ok(entry?.metadata()?.len()));
    let bytes: u64 = sizes.sum::<io::Result<u64>>()?;

    println!("generate, {:.0} MB in {RANKS} files, 288 slots, page cache", bytes as f64 / 1e6);
    println!("threads  median ms  GB/s  peak MB");
    for threads in [1, 2] {
        let mut runs = (0..RUNS).map(|_| run(&dump, threads)).collect::<io::Result<Vec<_>>>()?;
        runs.sort();
        let (time, _) = runs[RUNS / 2];
        let peak = runs.iter().map(|&(_, peak)| peak).max().unwrap_or(0);
        let seconds = time.as_secs_f64();
        println!(
            "{threads:7}  {:9.1}  {:4.2}  {:7.1}",
            seconds * 1e3,
            bytes as f64 / 1e9 / seconds,
            peak as f64 / 1e6
        );
    }
    Ok(())
}

/// Writes counts with a few hot experts, different in each layer, and noise.
fn write_dump(directory: &Path) {
    let layers: Vec<u32> = LAYERS.collect();
    let mut state = 1u64;
    for rank in 0..RANKS {
        let num_rows = ITERATIONS.len() as usize * layers.len();
        let counts: Vec<u64> = (0..num_rows * EXPERTS)
            .map(|index| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (layer, expert) = (index / EXPERTS % layers.len(), index % EXPERTS);
                (state >> 58) + 2000 / (1 + (expert * 37 + layer * 11) % EXPERTS) as u64
            })
            .collect();
        let dump = RankDump {
            rank,
            num_ranks: RANKS as usize,
            file: None,
            rows: Rows::default(),
            num_experts: EXPERTS,
            experts_per_token: 8,
            id_kind: IdKind::Expert,
            iterations: ITERATIONS,
            held: ITERATIONS,
            layers: &layers,
            counts: Counts::U64(&counts),
            run_id: None,
        };
        dump.write(directory).unwrap();
    }
}

/// Runs the program once. Returns its duration and its peak resident memory in bytes.
fn run(dump: &Path, threads: usize) -> io::Result<(Duration, i64)> {
    let output: PathBuf = dump.with_file_name("bench.yaml");
    let start = Instant::now();
    let child = Command::new(env!("CARGO_BIN_EXE_eplb"))
        .arg("generate")
        .arg("--expert_statistic_path")
        .arg(dump)
        .arg("--output_path")
        .arg(&output)
        .args(["--ep_size", "32", "--num_slots", "288", "--threads", &threads.to_string()])
        .stdout(Stdio::null())
        .spawn()?;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the process is a child that nothing else waits for, and both pointers are valid for writes.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr()) };
    let time = start.elapsed();
    if waited < 0 || status != 0 {
        return Err(io::Error::other(format!("eplb generate ended with {status}")));
    }
    // SAFETY: zeroed, and then filled in by wait4; all bit patterns are valid.
    Ok((time, unsafe { usage.assume_init() }.ru_maxrss * 1024))
}
