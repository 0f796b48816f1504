//! `eplb generate` as a process, on a dump of 32 ranks x 100 iterations x 58 layers x 256 experts (380 MB), beside a plain C loop
//! that reads the same files: `plain_sum.c`. `cargo bench --features cli --bench generate`
//!
//! Writes the dump once, under target/, and expects it in the page cache afterwards. Prints the median time of the runs, the
//! dump's bytes a second, the process's peak memory, and the time as a multiple of the loop's. The runs take turns, so that a
//! change of the machine's speed changes all medians.

use std::io;
use std::path::Path;
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

    let name = |policy, threads| format!("{policy}, {threads} thread{}", if threads > 1 { "s" } else { "" });
    let mut programs = vec![("plain C loop".to_owned(), plain_sum(&dump)?)];
    for policy in ["trtllm", "search"] {
        programs.extend([1, 2].map(|threads| (name(policy, threads), generate(&dump, policy, threads))));
    }
    let mut runs = vec![Vec::new(); programs.len()];
    for _ in 0..RUNS {
        for ((_, program), runs) in programs.iter_mut().zip(&mut runs) {
            runs.push(run(program)?);
        }
    }
    println!("generate, {:.0} MB in {RANKS} files, 288 slots, page cache", bytes as f64 / 1e6);
    println!("program            median ms   GB/s  peak MB  x loop");
    let mut of_loop = None;
    for ((name, _), runs) in programs.iter().zip(&mut runs) {
        runs.sort();
        let seconds = runs[RUNS / 2].0.as_secs_f64();
        let peak = runs.iter().map(|&(_, peak)| peak).max().unwrap_or(0);
        println!(
            "{name:17}  {:9.1}  {:5.2}  {:7.1}  {:6.2}",
            seconds * 1e3,
            bytes as f64 / 1e9 / seconds,
            peak as f64 / 1e6,
            seconds / *of_loop.get_or_insert(seconds)
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

/// Compiles the plain loop, to be run on `dump`.
fn plain_sum(dump: &Path) -> io::Result<Command> {
    let (source, program) = ("benches/plain_sum.c", dump.with_file_name("plain_sum"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let compiled = Command::new("cc").args(["-std=c11", "-O2", "-o"]).arg(&program).arg(source).status()?;
    if !compiled.success() {
        return Err(io::Error::other(format!("cc ended with {compiled}")));
    }
    let num_counts = ITERATIONS.len() as usize * LAYERS.len() * EXPERTS;
    let mut command = Command::new(program);
    command.arg(dump).args([RANKS.to_string(), num_counts.to_string()]);
    Ok(command)
}

fn generate(dump: &Path, policy: &str, threads: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eplb"));
    command.arg("generate").arg("--expert_statistic_path").arg(dump);
    command.arg("--output_path").arg(dump.with_file_name("bench.yaml"));
    command.args(["--ep_size", "32", "--num_slots", "288", "--policy", policy]);
    command.args(["--threads", &threads.to_string()]);
    command
}

/// Runs a program once. Returns its duration and its peak resident memory in bytes.
fn run(program: &mut Command) -> io::Result<(Duration, i64)> {
    let start = Instant::now();
    let child = program.stdout(Stdio::null()).spawn()?;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the process is a child that nothing else waits for, and both pointers are valid for writes.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr()) };
    let time = start.elapsed();
    if waited < 0 || status != 0 {
        return Err(io::Error::other(format!("{:?} ended with {status}", program.get_program())));
    }
    // SAFETY: zeroed, and then filled in by wait4; all bit patterns are valid.
    Ok((time, unsafe { usage.assume_init() }.ru_maxrss * 1024))
}
