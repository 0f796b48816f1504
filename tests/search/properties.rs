//! What holds of the search whatever is to be placed.

use eplb::solve::Policy;

use crate::duplicate_free;
use crate::instance::{Instance, ROUNDING, Random};

/// Holds placements against both greedies and the bound. A rank may hold an expert twice only where no placement without is
/// found that is not above the greedies.
fn properties_hold(instances: impl ExactSizeIterator<Item = Instance>) {
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
        if let Some(without) = duplicate_free::not_above(&instance, greedy * (1.0 + ROUNDING)) {
            needless += 1;
            println!("{found} with {duplicates} duplicates, {without} without, greedy {greedy}: {instance}");
        }
    }
    println!("{with_duplicates} of {all} have duplicates, {needless} needlessly");
    assert_eq!(needless, 0, "of {all} have needless duplicates");
}

#[test]
fn random_instances_of_one_sample_are_between_the_bound_and_the_greedies() {
    let mut random = Random(1);
    properties_hold((0..7500).map(|_| random.instance(1)));
}

#[test]
fn random_instances_of_several_samples_are_between_the_bound_and_the_greedies() {
    let mut random = Random(2);
    properties_hold((0..2500).map(|case| random.instance(2 + case % 3)));
}
