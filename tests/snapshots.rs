//! A rolling recorder gives the counts since the last snapshot, by groups of iterations.

use std::path::Path;

use eplb::Result;
use eplb::device::{IdType, Ids, Memory, Place, Stream};
use eplb::stats::{
    AddedCounts, CountsAt, IdKind, IterationRange, Recorder, RecorderConfig, Rows, SnapshotAt, State,
};

/// A ring of four iterations of two layers with three experts.
const CONFIG: RecorderConfig = RecorderConfig {
    path: None,
    name: None,
    iterations: None,
    rows: Rows::ITERATIONS,
    rank: 0,
    num_ranks: 1,
    file: None,
    num_experts: 3,
    experts_per_token: 1,
    layers: &[7, 5],
    id_kind: IdKind::Expert,
    place: Place::Host,
    max_tokens_per_iteration: 0,
    run_id: None,
    num_shared: 0,
    added_counts: AddedCounts { cumulative: false, by_local_slot: false },
    rolling: 4,
};

/// Counts `times` ids of an expert.
fn count(recorder: &Recorder, layer: u32, expert: i32, times: usize) {
    let ids = vec![expert; times];
    // SAFETY: the ids live until the call returns.
    let place = unsafe { Ids::at(ids.as_ptr() as u64, IdType::Int32, 0) };
    recorder.count_ids(layer, &place, times as u32, Stream::DEFAULT).unwrap();
}

/// Iterations in which expert 1 of layer 5 has as many ids as the iteration's number.
fn run(recorder: &Recorder, iterations: std::ops::Range<u64>) {
    for iteration in iterations {
        recorder.begin_iteration(iteration, Stream::DEFAULT).unwrap();
        count(recorder, 5, 1, iteration as usize);
    }
}

fn try_snapshot(recorder: &Recorder, num_samples: usize) -> Result<Vec<i64>> {
    let mut counts = vec![-1i64; num_samples * 6];
    // SAFETY: the counts live until the call returns.
    let place = unsafe { SnapshotAt::at(counts.as_mut_ptr() as u64) };
    recorder.snapshot(&place, num_samples as u32, Stream::DEFAULT)?;
    Ok(counts)
}

/// The count of expert 1 of layer 5, the second layer, in each sample. All others are 0.
fn snapshot(recorder: &Recorder, num_samples: usize) -> Vec<i64> {
    let counts = try_snapshot(recorder, num_samples).unwrap();
    let samples: Vec<i64> = counts.chunks(6).map(|sample| sample[4]).collect();
    assert_eq!(counts.iter().sum::<i64>(), samples.iter().sum::<i64>(), "{counts:?}");
    samples
}

#[test]
fn samples_are_even_consecutive_groups_of_the_iterations_since_the_last_snapshot() {
    let recorder = Recorder::create(&CONFIG, None).unwrap();
    assert_eq!(snapshot(&recorder, 2), [0, 0], "nothing has begun");
    run(&recorder, 1..5);
    assert_eq!(snapshot(&recorder, 2), [1 + 2, 3 + 4]);
    assert_eq!(snapshot(&recorder, 2), [0, 0], "nothing since");
    run(&recorder, 10..13);
    // Three iterations in two groups: [0, 3/2) and [3/2, 3).
    assert_eq!(snapshot(&recorder, 2), [10, 11 + 12]);
    run(&recorder, 20..22);
    assert_eq!(snapshot(&recorder, 5), [20, 21, 0, 0, 0], "fewer iterations than samples");
    run(&recorder, 30..34);
    assert_eq!(snapshot(&recorder, 3), [30, 31, 32 + 33]);
    assert_eq!(recorder.info().unwrap().merged, 0);
}

#[test]
fn iterations_beyond_the_ring_are_added_into_the_first_sample_and_counted() {
    let recorder = Recorder::create(&CONFIG, None).unwrap();
    run(&recorder, 1..10);
    // The ring holds 6 to 9, so 1 to 5 are added into the first sample.
    assert_eq!(snapshot(&recorder, 4), [1 + 2 + 3 + 4 + 5 + 6, 7, 8, 9]);
    assert_eq!(recorder.info().unwrap().merged, 5);
    run(&recorder, 10..16);
    assert_eq!(snapshot(&recorder, 1), [10 + 11 + 12 + 13 + 14 + 15]);
    assert_eq!(recorder.info().unwrap().merged, 7);
    let one = Recorder::create(&RecorderConfig { rolling: 1, ..CONFIG }, None).unwrap();
    run(&one, 1..4);
    assert_eq!(snapshot(&one, 2), [1 + 2 + 3, 0]);
}

#[test]
fn counts_after_a_snapshot_in_the_same_iteration_are_in_the_next_one() {
    let recorder = Recorder::create(&CONFIG, None).unwrap();
    run(&recorder, 1..3);
    assert_eq!(snapshot(&recorder, 2), [1, 2]);
    count(&recorder, 5, 1, 100);
    assert_eq!(snapshot(&recorder, 2), [100, 0]);
    count(&recorder, 5, 1, 1000);
    run(&recorder, 3..5);
    assert_eq!(snapshot(&recorder, 2), [1000 + 3, 4]);
    // The iteration's number goes up, or stays.
    recorder.begin_iteration(4, Stream::DEFAULT).unwrap();
    assert!(recorder.begin_iteration(3, Stream::DEFAULT).is_err());
}

#[test]
fn paused_iterations_have_no_row() {
    let recorder = Recorder::create(&CONFIG, None).unwrap();
    run(&recorder, 1..2);
    recorder.set_paused(true, Stream::DEFAULT).unwrap();
    run(&recorder, 2..5);
    recorder.set_paused(false, Stream::DEFAULT).unwrap();
    count(&recorder, 5, 1, 50);
    run(&recorder, 5..6);
    assert_eq!(snapshot(&recorder, 4), [1, 50, 5, 0]);
    recorder.reset(Stream::DEFAULT).unwrap();
    run(&recorder, 1..2);
    assert_eq!(snapshot(&recorder, 1), [1]);
}

#[test]
fn added_counts_are_in_the_snapshot_also_from_counters_that_only_grow() {
    for cumulative in [false, true] {
        let added = AddedCounts { cumulative, by_local_slot: false };
        let recorder = Recorder::create(&RecorderConfig { added_counts: added, ..CONFIG }, None).unwrap();
        for (iteration, counts) in [[0i64, 5, 0], [0, 12, 0]].into_iter().enumerate() {
            recorder.begin_iteration(iteration as u64, Stream::DEFAULT).unwrap();
            // SAFETY: the counts live until the call returns.
            let place = unsafe { CountsAt::at(counts.as_ptr() as u64, IdType::Int64) };
            recorder.add_counts(5, &place, Stream::DEFAULT).unwrap();
        }
        assert_eq!(snapshot(&recorder, 2), [5, if cumulative { 7 } else { 12 }]);
    }
}

#[test]
fn one_recorder_serves_snapshots_and_a_dump() {
    let dir = tempfile::tempdir().unwrap();
    let config = RecorderConfig {
        path: Some(dir.path()),
        iterations: Some(IterationRange { start: 2, stop: 4 }),
        ..CONFIG
    };
    let required = config.memory_required().unwrap();
    let mut workspace = vec![0u128; required.workspace_bytes.div_ceil(16)];
    let provided = |bytes| {
        // SAFETY: the workspace lives longer than the recorder, and nobody else uses it.
        unsafe { Memory::caller_provided(workspace.as_mut_ptr() as u64, bytes) }
    };
    let mut provided = provided;
    let refused = Recorder::create(&config, Some(provided(required.workspace_bytes - 1))).unwrap_err();
    assert!(refused.to_string().contains(&format!("{} are required", required.workspace_bytes)), "{refused}");
    let recorder = Recorder::create(&config, Some(provided(required.workspace_bytes))).unwrap();
    run(&recorder, 1..6);
    assert_eq!(snapshot(&recorder, 4), [1 + 2, 3, 4, 5]);
    recorder.flush(None).unwrap();
    let info = recorder.info().unwrap();
    assert_eq!((info.state, info.held.start, info.held.stop), (State::Dumped, 2, 4));
    assert_eq!(info.sum().counted(), 2 + 3, "of the range");
    assert_eq!(info.memory, required);
    assert!(Path::new(&dir.path().join("rank0.safetensors")).exists());
}

#[test]
fn recorder_without_a_range_shows_its_iterations_and_never_dumps() {
    let recorder = Recorder::create(&CONFIG, None).unwrap();
    assert_eq!(recorder.info().unwrap().state, State::Waiting);
    run(&recorder, 3..6);
    let info = recorder.info().unwrap();
    assert_eq!((info.state, info.iteration, info.sum().counted()), (State::Counting, Some(5), 3 + 4 + 5));
    assert_eq!(info.memory, CONFIG.memory_required().unwrap());
    recorder.dump(Stream::DEFAULT).unwrap();
    recorder.flush(None).unwrap();
    assert_eq!(snapshot(&recorder, 1), [3 + 4 + 5]);
}

#[test]
fn snapshots_need_a_ring_and_counts_by_expert() {
    let slots = RecorderConfig { id_kind: IdKind::Slot, ..CONFIG };
    let message = Recorder::create(&slots, None).unwrap_err().to_string();
    assert!(message.starts_with("rolling_iterations needs id_kind EPLB_ID_KIND_EXPERT"), "{message}");
    let off = Recorder::create(&RecorderConfig { rolling: 0, ..CONFIG }, None).unwrap();
    let message = try_snapshot(&off, 1).unwrap_err().to_string();
    assert!(message.ends_with("create it with rolling_iterations"), "{message}");
    let recorder = Recorder::create(&CONFIG, None).unwrap();
    assert_eq!(try_snapshot(&recorder, 0).unwrap_err().to_string(), "num_samples is 0, at least 1 expected");
    let huge = RecorderConfig { rolling: u64::from(u32::MAX) - 1, ..CONFIG };
    assert!(huge.memory_required().unwrap_err().to_string().contains("at most 4294967293"));
}
