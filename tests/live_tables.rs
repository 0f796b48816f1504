//! Tables change at the same addresses: commits, generations and active ranks, on the host.

use std::sync::atomic::{AtomicBool, Ordering};

use eplb::device::{IdType, Ids, Place, Stream};
use eplb::dispatch::{Dispatch, DispatchConfig, Routing, Rule};
use eplb::error::{Error, Result};
use eplb::placement::{LayerUpdate, NO_EXPERT, Placement, Shape};

const RULES: [Rule; 4] = [Rule::RoundRobin, Rule::TokenHash, Rule::Nearest, Rule::LeastLoaded];

/// Slots 0 1 2 | 3 4 5 of the first table, and of one where experts 0 and 2 have changed places.
const FIRST: [u32; 6] = [0, 1, 2, 3, 0, 1];
const SECOND: [u32; 6] = [2, 1, 0, 3, 2, 1];

fn config(rule: Rule) -> DispatchConfig<'static> {
    DispatchConfig {
        rule,
        rank: 0,
        experts_per_token: 2,
        layers: None,
        rank_to_node: None,
        offset_by_rank: false,
        max_replicas: 2,
        place: Place::Host,
        invalid_slot: 0,
        shared_slots: &[],
        live: true,
    }
}

fn dispatch(rule: Rule, slots: &[u32]) -> Dispatch {
    let shape = Shape::new(4, 6, 2).unwrap();
    let layers = [slots, slots].concat();
    let placement = Placement::with_empty_slots(shape, None, &[3, 5], &layers).unwrap();
    Dispatch::create(&placement, &config(rule), None).unwrap()
}

/// 500 tokens of two of the four experts.
fn ids() -> Vec<i32> {
    (0..1000).map(|i| (i * 5 + i / 7) % 4).collect()
}

fn route(dispatch: &Dispatch, layer: u32) -> Vec<i32> {
    let mut ids = ids();
    // SAFETY: the ids live until the call returns.
    let routing = unsafe {
        let place = Ids::at(ids.as_mut_ptr() as u64, IdType::Int32, 0);
        Routing::at(place, place, 500, 2).unwrap()
    };
    dispatch.route(layer, &routing, Stream::DEFAULT).unwrap();
    ids
}

fn update<'a>(layer: u32, generation: u64, from: &'a [u32], to: &'a [u32]) -> LayerUpdate<'a> {
    LayerUpdate { layer, generation, from, to }
}

fn refusal(result: Result<()>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn commit_gives_the_slots_of_a_new_dispatch_at_the_same_addresses() {
    for rule in RULES {
        let (changing, fresh) = (dispatch(rule, &FIRST), dispatch(rule, &SECOND));
        let before = route(&changing, 3);
        let addresses = changing.tables(3).unwrap();
        changing.stage_layer(&update(3, 1, &FIRST, &SECOND), Stream::DEFAULT).unwrap();
        assert_eq!(route(&changing, 3), before, "{rule:?}: staging changes nothing");
        assert_eq!(changing.generation(3).unwrap(), 1);
        changing.commit_layer(3, Stream::DEFAULT).unwrap();
        assert_eq!(route(&changing, 3), route(&fresh, 3), "{rule:?}");
        assert_ne!(route(&changing, 3), before);
        assert_eq!(route(&changing, 5), before, "the other layer is as it was");
        assert_eq!((changing.generation(3).unwrap(), changing.generation(5).unwrap()), (2, 1));
        assert_eq!(changing.tables(3).unwrap(), addresses);
        changing.update_layer(&update(3, 2, &SECOND, &FIRST), Stream::DEFAULT).unwrap();
        assert_eq!(route(&changing, 3), before, "{rule:?}");
        assert_eq!(changing.generation(3).unwrap(), 3);
    }
}

#[test]
fn stale_plan_and_invalid_tables_change_nothing() {
    let changing = dispatch(Rule::LeastLoaded, &FIRST);
    let before = route(&changing, 3);
    let stage = |update| changing.stage_layer(&update, Stream::DEFAULT);
    let stale = |result: Result<()>| assert!(matches!(result, Err(Error::Stale(_))), "{result:?}");
    stale(stage(update(3, 2, &FIRST, &SECOND)));
    stale(stage(update(3, 1, &SECOND, &FIRST)));
    stale(changing.update_layer(&update(3, 0, &SECOND, &FIRST), Stream::DEFAULT));
    let message = refusal(stage(update(3, 1, &SECOND, &FIRST)));
    assert_eq!(
        message,
        "layer 3: the plan was made with expert 2 in slot 0, which has expert 0; plan again from the placement in force"
    );
    let lost = stage(update(3, 1, &FIRST, &[0, 1, 1, 0, 0, 1]));
    assert!(matches!(lost, Err(Error::NoReplica(_))));
    assert_eq!(refusal(lost), "layer 3: the plan leaves experts 2, 3 without a slot");
    let many = refusal(stage(update(3, 1, &FIRST, &[0, 1, 2, 3, 3, 3])));
    assert_eq!(many, "max_replicas is 2, and expert 3 of layer 3 has 3 slots");
    assert!(matches!(stage(update(3, 1, &FIRST, &FIRST[..5])), Err(Error::InvalidShape(_))));
    assert!(matches!(stage(update(3, 1, &FIRST, &[0, 1, 2, 3, 4, 1])), Err(Error::InvalidPlacement(_))));
    assert!(refusal(stage(update(4, 1, &FIRST, &SECOND))).starts_with("layer 4 is not one of the 2"));
    let nothing = refusal(changing.commit_layer(3, Stream::DEFAULT));
    assert_eq!(nothing, "layer 3 has no staged tables: call eplb_dispatch_stage_layer() first");
    assert_eq!((route(&changing, 3), changing.generation(3).unwrap()), (before, 1));
}

#[test]
fn staged_tables_are_stale_after_another_update() {
    let changing = dispatch(Rule::RoundRobin, &FIRST);
    changing.stage_layer(&update(3, 1, &FIRST, &SECOND), Stream::DEFAULT).unwrap();
    changing.update_layer(&update(3, 1, &FIRST, &SECOND), Stream::DEFAULT).unwrap();
    let after = route(&changing, 3);
    assert!(matches!(changing.commit_layer(3, Stream::DEFAULT), Err(Error::Stale(_))));
    assert_eq!((route(&changing, 3), changing.generation(3).unwrap()), (after, 2));
    // A new plan replaces them.
    changing.stage_layer(&update(3, 2, &SECOND, &FIRST), Stream::DEFAULT).unwrap();
    changing.commit_layer(3, Stream::DEFAULT).unwrap();
    assert_eq!(changing.generation(3).unwrap(), 3);
}

#[test]
fn dispatch_that_is_not_live_has_generation_1_and_refuses_changes() {
    let shape = Shape::new(4, 6, 2).unwrap();
    let placement = Placement::new(shape, &[3], &FIRST).unwrap();
    let fixed = DispatchConfig { live: false, ..config(Rule::Nearest) };
    let dispatch = Dispatch::create(&placement, &fixed, None).unwrap();
    assert_eq!(dispatch.generation(3).unwrap(), 1);
    let message = refusal(dispatch.update_layer(&update(3, 1, &FIRST, &SECOND), Stream::DEFAULT));
    assert_eq!(message, "the tables of this dispatch do not change: create it with live set");
    assert_eq!(refusal(dispatch.set_active_ranks(&[true, false], Stream::DEFAULT)), message);
}

#[test]
fn dead_ranks_get_no_tokens_until_a_plan_fills_their_slots() {
    // Rank 1 has nothing alone of `whole`, and expert 3 alone of `both`.
    let both = [0, 1, 2, 3, 0, 1];
    let whole = [0, 1, 2, 3, 0, 1, 2, 3];
    let shape = Shape::new(4, 8, 2).unwrap();
    for rule in RULES {
        let dispatch = Dispatch::create(
            &Placement::new(shape, &[3], &whole).unwrap(),
            &DispatchConfig { max_replicas: 8, ..config(rule) },
            None,
        )
        .unwrap();
        let before = route(&dispatch, 3);
        // Nearest keeps all on this rank anyway.
        assert_eq!(before.iter().any(|&slot| slot >= 4), rule != Rule::Nearest, "{rule:?}");
        dispatch.stage_layer(&update(3, 1, &whole, &whole), Stream::DEFAULT).unwrap();
        dispatch.set_active_ranks(&[true, false], Stream::DEFAULT).unwrap();
        assert_eq!(route(&dispatch, 3), ids(), "{rule:?}: slot e of rank 0 has expert e");
        assert_eq!(dispatch.generation(3).unwrap(), 1);
        assert!(matches!(dispatch.commit_layer(3, Stream::DEFAULT), Err(Error::Stale(_))));
        let added = refusal(dispatch.set_active_ranks(&[true, true], Stream::DEFAULT));
        assert_eq!(
            added,
            "rank 1 is not active, and its slots are empty: it becomes active when a plan that fills them is committed"
        );
        let none = refusal(dispatch.set_active_ranks(&[false, false], Stream::DEFAULT));
        assert!(none.contains("(layer 3: experts 0, 1, 2, 3)"), "{none}");
        // A plan from before the rank died is stale, one from what is in force brings it back.
        assert!(matches!(
            dispatch.stage_layer(&update(3, 0, &whole, &whole), Stream::DEFAULT),
            Err(Error::Stale(_))
        ));
        let half = [0, 1, 2, 3, NO_EXPERT, NO_EXPERT, NO_EXPERT, NO_EXPERT];
        dispatch.update_layer(&update(3, 1, &half, &whole), Stream::DEFAULT).unwrap();
        assert_eq!(route(&dispatch, 3), before, "{rule:?}");
        dispatch.set_active_ranks(&[true, true], Stream::DEFAULT).unwrap();
    }
    let two = dispatch(Rule::LeastLoaded, &both);
    let lost = two.set_active_ranks(&[true, false], Stream::DEFAULT);
    assert!(matches!(lost, Err(Error::NoReplica(_))));
    let message = refusal(lost);
    assert!(message.contains("(layer 3: expert 3; layer 5: expert 3)"), "{message}");
    assert_eq!(route(&two, 3), route(&dispatch(Rule::LeastLoaded, &both), 3));
    assert_eq!(
        refusal(two.set_active_ranks(&[true], Stream::DEFAULT)),
        "num_ranks is 1, the dispatch has 2 ranks"
    );
}

#[test]
fn update_and_route_of_a_layer_take_turns() {
    // 100,000 over the rules.
    const FLIPS: u64 = 25_000;
    for rule in RULES {
        let changing = dispatch(rule, &FIRST);
        let tables = [route(&changing, 3), route(&dispatch(rule, &SECOND), 3)];
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    while !ends.load(Ordering::Relaxed) {
                        assert!(tables.contains(&route(&changing, 3)), "{rule:?}: slots of two tables");
                        let generation = changing.generation(3).unwrap();
                        assert!(generation >= last);
                        last = generation;
                    }
                });
            }
            for flip in 0..FLIPS {
                let (from, to) = if flip % 2 == 0 { (&FIRST, &SECOND) } else { (&SECOND, &FIRST) };
                changing.stage_layer(&update(3, flip + 1, from, to), Stream::DEFAULT).unwrap();
                changing.commit_layer(3, Stream::DEFAULT).unwrap();
            }
            ends.store(true, Ordering::Relaxed);
        });
        assert_eq!((changing.generation(3).unwrap(), route(&changing, 3)), (FLIPS + 1, tables[0].clone()));
    }
}
