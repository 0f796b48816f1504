//! Times a planner on loads that the standard input has: `eplb-bench-peers PLANNER LAYERS SAMPLES EXPERTS SLOTS RANKS RUNS`, with
//! the planner `tokenspeed` or a policy of eplb. The loads are little-endian doubles, `[layers][samples][experts]`. One thread.
//!
//! Prints the seconds of each run in a line, and then the expert of each slot, a line for each layer.

use std::hint::black_box;
use std::io::{Read, stdin};
use std::time::Instant;

use eplb::placement::Shape;
use eplb::solve::{Loads, Policy, SolveConfig, solve};

#[allow(dead_code)]
#[path = "../../../build/peers/tokenspeed-control-0.1.0/src/eplb/algorithm.rs"]
mod tokenspeed;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| args[index].parse::<usize>().expect("a number");
    let (num_layers, num_samples, num_experts) = (number(1), number(2), number(3));
    let (num_slots, num_ranks, num_runs) = (number(4), number(5), number(6));
    let mut bytes = Vec::new();
    stdin().read_to_end(&mut bytes).expect("loads");
    let (loads, rest) = bytes.as_chunks::<8>();
    assert!(rest.is_empty() && loads.len() == num_layers * num_samples * num_experts);
    let loads: Vec<f64> = loads.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();

    let mut plan: Box<dyn FnMut() -> Vec<Vec<usize>>> = if args[0] == "tokenspeed" {
        // It plans for one window: the sum over samples.
        let sum = |layer: &[f64]| {
            (0..num_experts).map(|expert| layer[expert..].iter().step_by(num_experts).sum()).collect()
        };
        let window: Vec<Vec<f64>> = loads.chunks_exact(num_samples * num_experts).map(sum).collect();
        Box::new(move || {
            tokenspeed::rebalance_experts(
                &window,
                num_slots,
                None,
                1,
                num_ranks,
                tokenspeed::Algorithm::Deepseek,
            )
            .expect("a placement")
        })
    } else {
        let policy: Policy = args[0].parse().expect("a policy");
        let shape = Shape::new(num_experts, num_slots, num_ranks).expect("a shape");
        let layers: Vec<u32> = (0..num_layers as u32).collect();
        Box::new(move || {
            let loads = Loads::new(&loads, &layers, num_samples, num_experts).expect("loads");
            let config = SolveConfig { policy, ..SolveConfig::default() };
            let placement = solve(&config, shape, &loads, 1).expect("a placement");
            placement.iter().map(|(_, slots)| slots.iter().map(|&expert| expert as usize).collect()).collect()
        })
    };
    let placement = plan();
    for _ in 0..num_runs {
        let start = Instant::now();
        black_box(plan());
        println!("{}", start.elapsed().as_secs_f64());
    }
    for layer in placement {
        println!("{}", layer.iter().map(usize::to_string).collect::<Vec<_>>().join(" "));
    }
}
