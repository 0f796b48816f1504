//! Any placement, any ids, any rule: every id gets a slot that holds its expert, its shared slot, or the invalid slot.
#![no_main]

use eplb::device::{IdType, Ids, Place, Stream};
use eplb::dispatch::{Dispatch, DispatchConfig, Routing, Rule};
use eplb::placement::{Placement, Shape};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u8, u8, u8, bool, i8, Vec<u8>, Vec<i64>)| {
    let (experts, ranks, rule, choices, in_place, valid, spare, ids) = input;
    // Every expert somewhere, the spare slots anywhere, duplicates on a rank among them.
    let (experts, ranks) = (usize::from(experts % 64) + 1, usize::from(ranks % 12) + 1);
    // Layouts: slots without gaps or with one of a column, -1 or the default, and up to two shared experts.
    let (gap, invalid_slot) = (usize::from(choices / 64 % 2), -i32::from(choices / 128));
    let shared: Vec<i32> = (0..i32::from(rule / 64 % 3)).map(|place| 5000 + place).collect();
    let choices = u32::from(choices % 64) % experts as u32 + 1;
    let num_slots = (experts + spare.len()).next_multiple_of(ranks);
    let spare = spare.iter().map(|&slot| usize::from(slot) % experts);
    let mut experts_of: Vec<u32> = (0..experts).chain(spare).map(|expert| expert as u32).collect();
    experts_of.resize(num_slots, 0);
    experts_of.rotate_left(usize::from(rule) % num_slots);
    let shape = Shape::new(experts, num_slots, ranks).unwrap();
    let placement = Placement::new(shape, &[3], &experts_of).unwrap();
    let nodes: Vec<i32> = (0..ranks as i32).map(|rank| rank / 3 - 1).collect();
    let config = DispatchConfig {
        rule: [Rule::RoundRobin, Rule::TokenHash, Rule::Nearest, Rule::LeastLoaded][usize::from(rule % 4)],
        rank: usize::from(rule / 4) % shape.num_ranks(),
        experts_per_token: choices as usize,
        layers: None,
        rank_to_node: Some(&nodes),
        offset_by_rank: in_place,
        max_replicas: 0,
        place: Place::Host,
        invalid_slot,
        shared_slots: &shared,
        live: false,
    };
    let dispatch = Dispatch::create(&placement, &config, None).unwrap();
    let tokens = ids.len() / choices as usize;
    let ids = &ids[..tokens * choices as usize];
    let valid = i32::from(valid);
    let gap = if in_place { 0 } else { gap };
    let columns = choices as usize + gap;
    let mut routed = if in_place { ids.to_vec() } else { vec![-7; tokens * columns] };
    let to = routed.as_mut_ptr() as u64;
    let from = if in_place { to } else { ids.as_ptr() as u64 };
    // SAFETY: as many ids and slots, the same or apart, which live until the call returns.
    let routing = unsafe {
        let place = Ids::at(from, IdType::Int64, (&raw const valid) as u64);
        let slots = Ids::at(to, IdType::Int64, 0).with_row_stride(columns as u32);
        Routing::at(place, slots, tokens as u32, choices).unwrap()
    };
    dispatch.route(3, &routing, Stream::DEFAULT).unwrap();
    let valid = valid.max(0) as usize * choices as usize;
    let invalid = if invalid_slot == 0 { shape.num_slots() as i64 } else { i64::from(invalid_slot) };
    for (i, &id) in ids.iter().enumerate() {
        let slot = routed[i / choices as usize * columns + i % choices as usize];
        let place = usize::try_from(id).ok().filter(|_| i < valid);
        match place {
            Some(expert) if expert < shape.num_experts() => {
                assert_eq!(experts_of[slot as usize] as usize, expert);
            }
            Some(place) if place - shape.num_experts() < shared.len() => {
                assert_eq!(slot, i64::from(shared[place - shape.num_experts()]));
            }
            _ => assert_eq!(slot, invalid),
        }
    }
});
