//! Ids of any stride and type get the slots of the same ids without gaps, by every rule.

use eplb::device::{IdType, Ids, Place, Stream};
use eplb::dispatch::{Dispatch, DispatchConfig, RankCounts, Routing, Rule};
use eplb::placement::{Placement, Shape};
use proptest::prelude::*;

/// What a gap holds before and after.
const GAP: i64 = 77;

/// An array of ids of 32 or 64 bits.
enum Array {
    Narrow(Vec<i32>),
    Wide(Vec<i64>),
}

impl Array {
    fn new(values: Vec<i64>, is_wide: bool) -> Self {
        match is_wide {
            true => Array::Wide(values),
            // Ids beyond 32 bits become others out of range.
            false => Array::Narrow(
                values.into_iter().map(|id| id.clamp(i32::MIN.into(), i32::MAX.into()) as i32).collect(),
            ),
        }
    }

    fn ids(&mut self, num_valid: &i32, stride: usize) -> Ids {
        let (address, kind) = match self {
            Array::Narrow(values) => (values.as_mut_ptr() as u64, IdType::Int32),
            Array::Wide(values) => (values.as_mut_ptr() as u64, IdType::Int64),
        };
        // SAFETY: the tests keep the values until the call that uses them returns.
        unsafe { Ids::at(address, kind, &raw const *num_valid as u64) }.with_row_stride(stride as u32)
    }

    fn values(self) -> Vec<i64> {
        match self {
            Array::Narrow(values) => values.into_iter().map(i64::from).collect(),
            Array::Wide(values) => values,
        }
    }
}

/// Rows with a gap behind each.
fn with_gaps(ids: &[i64], columns: usize, gap: usize) -> Vec<i64> {
    let row = |row: &[i64]| row.iter().copied().chain(std::iter::repeat_n(GAP, gap)).collect::<Vec<_>>();
    ids.chunks_exact(columns).flat_map(row).collect()
}

#[derive(Debug, Clone)]
struct Case {
    experts: usize,
    ranks: usize,
    spare: Vec<u8>,
    rule: Rule,
    rank: usize,
    columns: usize,
    ids: Vec<i64>,
    num_valid: i32,
    invalid_slot: i32,
    shared: Vec<i32>,
    ids_gap: usize,
    slots_gap: usize,
    wide: (bool, bool),
    in_place: bool,
    with_rank_counts: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let rule =
        prop::sample::select(vec![Rule::RoundRobin, Rule::TokenHash, Rule::Nearest, Rule::LeastLoaded]);
    let shape =
        (1..40usize, 1..9usize, prop::collection::vec(any::<u8>(), 0..40), rule, any::<u8>(), 1..9usize);
    let layout = (0..4usize, 0..4usize, any::<(bool, bool)>(), any::<bool>(), any::<bool>());
    // More ids than a block and than a small batch, now and then.
    let ids = prop_oneof![
        4 => prop::collection::vec(-3..45i64, 0..300),
        1 => prop::collection::vec(prop_oneof![-3..45i64, any::<i64>()], 3000..6000)
    ];
    let invalid = prop_oneof![Just(0), Just(-1), Just(i32::MIN), 1000..2000i32];
    (shape, layout, ids, -5..700i32, invalid, 0..4usize).prop_map(
        |((experts, ranks, spare, rule, rank, columns), layout, ids, num_valid, invalid_slot, num_shared)| {
            let (ids_gap, slots_gap, wide, in_place, with_rank_counts) = layout;
            Case {
                experts,
                ranks,
                spare,
                rule,
                rank: usize::from(rank) % ranks,
                columns: columns.min(experts + num_shared),
                ids,
                num_valid,
                invalid_slot,
                shared: (0..num_shared as i32).map(|number| 500 + number / 2).collect(),
                ids_gap,
                slots_gap,
                wide,
                in_place,
                with_rank_counts,
            }
        },
    )
}

fn placement(case: &Case) -> Placement {
    let num_slots = (case.experts + case.spare.len()).next_multiple_of(case.ranks);
    let spare = case.spare.iter().map(|&slot| usize::from(slot) % case.experts);
    let mut slots: Vec<u32> = (0..case.experts).chain(spare).map(|expert| expert as u32).collect();
    slots.resize(num_slots, 0);
    Placement::new(Shape::new(case.experts, num_slots, case.ranks).unwrap(), &[3], &slots).unwrap()
}

fn dispatch(
    case: &Case,
    placement: &Placement,
    invalid_slot: i32,
    shared: &[i32],
    rank_counts: &[i32],
) -> Dispatch {
    let config = DispatchConfig {
        rule: case.rule,
        rank: case.rank,
        experts_per_token: case.columns,
        layers: None,
        rank_to_node: None,
        offset_by_rank: true,
        max_replicas: 0,
        place: Place::Host,
        invalid_slot,
        shared_slots: shared,
        live: false,
    };
    let dispatch = Dispatch::create(placement, &config, None).unwrap();
    if case.with_rank_counts && case.rule == Rule::LeastLoaded {
        // SAFETY: the counts live as long as the dispatch is used.
        let counts = unsafe { RankCounts::at(rank_counts.as_ptr() as u64, IdType::Int32) };
        dispatch.register_rank_counts(3, Some(counts)).unwrap();
    }
    dispatch
}

/// The slots of `given`, in an array like `wanted`.
fn route(dispatch: &Dispatch, case: &Case, given: Ids, wanted: Ids) {
    let tokens = (case.ids.len() / case.columns) as u32;
    // SAFETY: the arrays are on the host and live until the call returns.
    let routing = unsafe { Routing::at(given, wanted, tokens, case.columns as u32) }.unwrap();
    dispatch.route(3, &routing, Stream::DEFAULT).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_layout_gets_the_slots_of_ids_without_gaps(case in case()) {
        let placement = placement(&case);
        let num_slots = placement.shape().num_slots() as i64;
        let tokens = case.ids.len() / case.columns;
        let ids = &case.ids[..tokens * case.columns];
        let counts: Vec<i32> = (0..(case.ranks * case.experts) as i32).map(|n| n * 7 % 50).collect();
        let columns = case.columns;

        // Without gaps, of one type, and without shared experts: their ids are out of range.
        let plain = Case { columns: columns.min(case.experts), ..case.clone() };
        prop_assume!(plain.columns == columns);
        let mut slots = Array::new(ids.to_vec(), true);
        let place = slots.ids(&case.num_valid, 0);
        route(&dispatch(&plain, &placement, 0, &[], &counts), &plain, place, place);
        let valid = (case.num_valid.max(0) as usize).min(tokens) * columns;
        let expected: Vec<i64> = std::iter::zip(ids, slots.values()).enumerate().map(|(i, (&id, slot))| {
            let shared = usize::try_from(id - case.experts as i64).ok().and_then(|place| case.shared.get(place));
            match shared {
                _ if slot != num_slots => slot,
                Some(&slot) if i < valid => i64::from(slot),
                _ if case.invalid_slot == 0 => num_slots,
                _ => i64::from(case.invalid_slot),
            }
        }).collect();

        let dispatch = dispatch(&case, &placement, case.invalid_slot, &case.shared, &counts);
        let is_wide = case.wide.0;
        let mut given = Array::new(with_gaps(ids, columns, case.ids_gap), is_wide);
        let place = given.ids(&case.num_valid, columns + case.ids_gap);
        if case.in_place {
            route(&dispatch, &case, place, place);
            prop_assert_eq!(given.values(), with_gaps(&expected, columns, case.ids_gap));
            return Ok(());
        }
        let garbage = with_gaps(&vec![GAP; ids.len()], columns, case.slots_gap);
        let mut wanted = Array::new(garbage, case.wide.1);
        let to = wanted.ids(&case.num_valid, columns + case.slots_gap);
        route(&dispatch, &case, place, to);
        prop_assert_eq!(wanted.values(), with_gaps(&expected, columns, case.slots_gap));
    }
}
