//! Properties of the search for any instance.

use eplb::solve::Policy;

use crate::duplicate_free;
use crate::instance::{Instance, ROUNDING, Random};

/// Compares placements with both greedies and the bound. A rank may hold an expert twice only if no placement
/// without duplicates is found that is not above the greedies.
fn check_properties(instances: impl ExactSizeIterator<Item = Instance>) {
    let (all, mut with_duplicates, mut needless) = (instances.len(), 0, 0);
    for instance in instances {
        let slots = instance.place(Policy::Search);
        let (found, greedy, bound) = (instance.cost(&slots), instance.greedy(), instance.bound());
        assert!(found <= greedy * (1.0 + ROUNDING), "{found}, greedy {greedy}: {instance}");
        assert!(found >= bound * (1.0 - ROUNDING), "{found}, bound {bound}: {instance}");
        let duplicates = instance.duplicates(&slots);
        if duplicates == 0 || instance.shape.slots_per_rank() > instance.shape.num_experts() {
            continue;
        }
        with_duplicates += 1;
        if let Some(without) = duplicate_free::cost_at_most(&instance, greedy * (1.0 + ROUNDING)) {
            needless += 1;
            println!("{found} with {duplicates} duplicates, {without} without, greedy {greedy}: {instance}");
        }
    }
    println!("{with_duplicates} of {all} have duplicates, {needless} needlessly");
    assert_eq!(needless, 0, "of {all} instances have needless duplicates");
}

#[test]
fn search_is_between_the_bound_and_the_greedies_for_one_sample() {
    let mut random = Random(1);
    check_properties((0..7500).map(|_| random.instance(1)));
}

#[test]
fn search_is_between_the_bound_and_the_greedies_for_several_samples() {
    let mut random = Random(2);
    check_properties((0..2500).map(|case| random.instance(2 + case % 3)));
}
