//! The balancedness of each routing rule on recorded routing: DeepSeek-V2-Lite, batches of 256 tokens, 72 slots on 8 ranks.
//! The placement is that of `trtllm` for the dump of the same tokens. `cargo bench --bench routing`
//!
//! EPLB_EXTRA_DATA, a folder with `dumps/dsv3-decode`, adds batches that are drawn from loads of DeepSeek-V3.

#[path = "routing/drawn.rs"]
mod drawn;
#[path = "routing/water_filling.rs"]
mod water_filling;

use std::fs;
use std::path::Path;

use eplb::device::{IdType, Ids, Place, Stream};
use eplb::dispatch::{Dispatch, DispatchConfig, RankCounts, Routing, Rule};
use eplb::placement::{Expected, Placement};

const LAYERS: usize = 26;
const ITERATIONS: usize = 31;
const RANKS: usize = 8;
const TOKENS: usize = 32;
const CHOICES: usize = 6;
const EXPERTS: usize = 64;
const RANK_IDS: usize = TOKENS * CHOICES;

fn main() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let trace = fs::read(data.join("traces/dsv2lite-translation.safetensors")).unwrap();
    // The file is the header's length, the header and one tensor.
    let header = u64::from_le_bytes(trace[..8].try_into().unwrap()) as usize;
    let ids: Vec<i32> = trace[8 + header..].iter().map(|&id| i32::from(id)).collect();
    assert_eq!(ids.len(), LAYERS * ITERATIONS * RANKS * RANK_IDS);
    let config = data.join("expected/dsv2lite-translation.ep8.slots72.yaml");
    let expected = Expected { num_ranks: Some(RANKS), ..Expected::default() };
    let placement = Placement::load(&config, expected).unwrap();

    println!("| rule | mean over layers and iterations of mean / max rank load |\n|---|---|");
    for (name, rule, all_counts) in [
        ("token hash", Rule::TokenHash, false),
        ("round robin", Rule::RoundRobin, false),
        ("round robin, offset by rank", Rule::RoundRobin, false),
        ("nearest, one node", Rule::Nearest, false),
        ("least loaded", Rule::LeastLoaded, false),
        ("least loaded, all ranks' counts", Rule::LeastLoaded, true),
    ] {
        let dispatches: Vec<Dispatch> = (0..RANKS)
            .map(|rank| {
                let config = DispatchConfig {
                    rule,
                    rank,
                    experts_per_token: CHOICES,
                    layers: None,
                    rank_to_node: None,
                    offset_by_rank: name.ends_with("by rank"),
                    max_replicas: 0,
                    place: Place::Host,
                    invalid_slot: 0,
                    shared_slots: &[],
                    live: false,
                };
                Dispatch::create(&placement, &config, None).unwrap()
            })
            .collect();
        let balance = mean(&ids, |layer, batch| {
            let counts = count(batch);
            let mut loads = [0.0; RANKS];
            for (dispatch, ids) in dispatches.iter().zip(batch.chunks_exact(RANK_IDS)) {
                for slot in route(dispatch, layer, ids, all_counts.then_some(&counts[..])) {
                    loads[placement.shape().rank_of(slot as usize)] += 1.0;
                }
            }
            loads.iter().sum::<f64>() / RANKS as f64 / loads.into_iter().fold(0.0, f64::max)
        });
        println!("| {name} | {balance:.4} |");
    }
    let [filled, filled_all] = [false, true].map(|all_counts| {
        mean(&ids, |layer, batch| water_filling_balancedness(&placement, layer, batch, all_counts))
    });
    println!("| water-filling | {filled:.4} |\n| water-filling, all ranks' counts | {filled_all:.4} |");
    let best =
        mean(&ids, |layer, batch| best_split_balancedness(placement.layer_experts(layer).unwrap(), batch));
    println!("| best split of all ranks' tokens | {best:.4} |");
    match std::env::var_os("EPLB_EXTRA_DATA") {
        Some(folder) => drawn::print(&Path::new(&folder).join("dumps/dsv3-decode")),
        None => println!("\nEPLB_EXTRA_DATA is not set: no batches drawn from loads of DeepSeek-V3."),
    }
}

/// The mean of a figure over layers and iterations. `figure` is called with the layer's number and the ids of all ranks.
fn mean(ids: &[i32], figure: impl Fn(u32, &[i32]) -> f64) -> f64 {
    let batches = ids.chunks_exact(RANKS * RANK_IDS).enumerate();
    batches.map(|(i, batch)| figure((i / ITERATIONS) as u32 + 1, batch)).sum::<f64>()
        / (LAYERS * ITERATIONS) as f64
}

/// The counts of all ranks, `[ranks][experts]`.
fn count(batch: &[i32]) -> Vec<i32> {
    let mut counts = vec![0; RANKS * EXPERTS];
    for (i, &id) in batch.iter().enumerate() {
        counts[i / RANK_IDS * EXPERTS + id as usize] += 1;
    }
    counts
}

fn route(dispatch: &Dispatch, layer: u32, ids: &[i32], rank_counts: Option<&[i32]>) -> Vec<i32> {
    let mut slots = ids.to_vec();
    // SAFETY: routing in place, in buffers that live until the call returns.
    unsafe {
        let counts = rank_counts.map(|counts| RankCounts::at(counts.as_ptr() as u64, IdType::Int32));
        if counts.is_some() {
            dispatch.register_rank_counts(layer, counts).unwrap();
        }
        let place = Ids::at(slots.as_mut_ptr() as u64, IdType::Int32, 0);
        let routing = Routing::at(place, place, TOKENS as u32, CHOICES as u32).unwrap();
        dispatch.route(layer, &routing, Stream::DEFAULT).unwrap();
    }
    slots
}

/// The balancedness of a batch by [`water_filling`].
fn water_filling_balancedness(placement: &Placement, layer: u32, batch: &[i32], all_counts: bool) -> f64 {
    let shape = placement.shape();
    let mut ranks = vec![vec![]; EXPERTS];
    for (slot, &expert) in placement.layer_experts(layer).unwrap().iter().enumerate() {
        ranks[expert as usize].push(shape.rank_of(slot));
    }
    ranks.iter_mut().for_each(Vec::dedup);
    let mut loads = [0; RANKS];
    let of_each = if all_counts { RANKS * RANK_IDS } else { RANK_IDS };
    for ids in batch.chunks_exact(of_each) {
        let mut totals = [0; EXPERTS];
        ids.iter().for_each(|&id| totals[id as usize] += 1);
        let split = water_filling::rank_loads(shape, &ranks, &totals);
        loads.iter_mut().zip(split).for_each(|(load, tokens)| *load += tokens);
    }
    batch.len() as f64 / RANKS as f64 / loads.into_iter().max().unwrap() as f64
}

/// The balancedness of the best split of a batch, by the duality of the linear program.
///
/// For each set of ranks, the max is at least the load that only these ranks can serve, over their number. For some set it is
/// equal.
fn best_split_balancedness(slot_experts: &[u32], batch: &[i32]) -> f64 {
    let slots_per_rank = slot_experts.len() / RANKS;
    let mut ranks_of = [0usize; EXPERTS];
    slot_experts
        .iter()
        .enumerate()
        .for_each(|(slot, &expert)| ranks_of[expert as usize] |= 1 << (slot / slots_per_rank));
    let largest = (1usize..1 << RANKS).map(|set| {
        let bound = batch.iter().filter(|&&id| ranks_of[id as usize] & !set == 0).count();
        bound as f64 / f64::from(set.count_ones())
    });
    batch.len() as f64 / RANKS as f64 / largest.fold(0.0, f64::max)
}
