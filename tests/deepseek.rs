//! Policies `deepseek-global` and `deepseek-hierarchical` against a second, literal implementation of the
//! specification.

use std::path::{Path, PathBuf};
use std::{env, fs};

use eplb::placement::Shape;
use eplb::solve::{DeepseekArrays, Loads, Policy, SolveConfig, solve};
use eplb::stats::{Dump, LoadOptions};
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
struct Sizes {
    experts: usize,
    slots: usize,
    ranks: usize,
    groups: usize,
    nodes: usize,
}

/// DeepSeek's arrays of one layer. The slots of each expert are not padded.
#[derive(Debug, Default, PartialEq)]
struct Arrays {
    phy2log: Vec<i32>,
    log2phy: Vec<Vec<i32>>,
    logcnt: Vec<i32>,
}

fn as_specified(load: &[f32], sizes: Sizes) -> Arrays {
    let Sizes { experts, slots, ranks, groups, nodes } = sizes;
    let size = experts / groups;

    // (a) Pack the G groups (summed load) onto N nodes. A group's load is the sequential float32 sum of its experts.
    let mut group_load = vec![0.0f32; groups];
    for expert in 0..experts {
        group_load[expert / size] += load[expert];
    }
    let mut phy2log = Vec::new();
    let mut created = Vec::new();
    for node in packs(&group_load, nodes) {
        // Inside a node experts are ordered by (rank of their group in the node's pack, expert).
        let members: Vec<usize> = node.iter().flat_map(|group| group * size..(group + 1) * size).collect();

        // (b) In each node replicate its experts to S/N: repeatedly the expert with the largest load/count, ties to the
        //     lower index, new replicas appended.
        let mut count = vec![1usize; members.len()];
        let mut replicas: Vec<(usize, usize)> = (0..members.len()).map(|member| (member, 0)).collect();
        while replicas.len() < slots / nodes {
            let mut hottest = 0;
            for member in 0..members.len() {
                let quotient = |member: usize| load[members[member]] / count[member] as f32;
                if quotient(member) > quotient(hottest) {
                    hottest = member;
                }
            }
            replicas.push((hottest, count[hottest]));
            count[hottest] += 1;
        }

        // (c) Pack the S/N replicas onto R/N ranks.
        let replica_load: Vec<f32> =
            replicas.iter().map(|&(member, _)| load[members[member]] / count[member] as f32).collect();
        for rank in packs(&replica_load, ranks / nodes) {
            for replica in rank {
                let (member, number) = replicas[replica];
                phy2log.push(members[member] as i32);
                created.push((members[member], number, phy2log.len() as i32 - 1));
            }
        }
    }

    // log2phy columns are in order of replica creation.
    created.sort_unstable();
    let of = |expert| created.iter().filter(move |replica| replica.0 == expert).map(|replica| replica.2);
    let log2phy: Vec<Vec<i32>> = (0..experts).map(|expert| of(expert).collect()).collect();
    let logcnt = log2phy.iter().map(|slots| slots.len() as i32).collect();
    Arrays { phy2log, log2phy, logcnt }
}

/// Packs `n` items into `m` packs of `n/m`. If n == m, item i goes to pack i. Otherwise items are taken by
/// load descending (stable), each to the least loaded pack with room, ties to the lower pack. Totals are
/// float32.
fn packs(load: &[f32], count: usize) -> Vec<Vec<usize>> {
    let mut packs = vec![Vec::new(); count];
    if load.len() == count {
        (0..count).for_each(|item| packs[item].push(item));
        return packs;
    }
    let mut items: Vec<usize> = (0..load.len()).collect();
    items.sort_by(|&a, &b| load[b].partial_cmp(&load[a]).unwrap());
    let mut total = vec![0.0f32; count];
    for item in items {
        let mut chosen: Option<usize> = None;
        for pack in 0..count {
            let room = packs[pack].len() < load.len() / count;
            if room && chosen.is_none_or(|best| total[pack] < total[best]) {
                chosen = Some(pack);
            }
        }
        packs[chosen.unwrap()].push(item);
        total[chosen.unwrap()] += load[item];
    }
    packs
}

/// Returns the library's arrays of each layer, and checks that `solve` returns the same placement.
fn found(values: &[f64], sizes: Sizes, policy: Policy, threads: usize) -> Vec<Arrays> {
    let Sizes { experts, slots, ranks, groups, nodes } = sizes;
    let layers: Vec<u32> = (0..(values.len() / experts) as u32).collect();
    let loads = Loads::new(values, &layers, 1, experts).unwrap();
    let shape = Shape::new(experts, slots, ranks).unwrap();
    let config = SolveConfig { policy, num_groups: groups, num_nodes: nodes, ..SolveConfig::default() };
    let arrays = DeepseekArrays::solve(&config, shape, &loads, threads).unwrap();

    let (phy2log, logcnt) = (arrays.phy2log(), arrays.logcnt());
    let max_replicas = slots - experts + 1;
    let log2phy = arrays.log2phy(max_replicas).unwrap();
    let needed = *logcnt.iter().max().unwrap() as usize;
    assert!(arrays.log2phy(needed).is_ok() && arrays.log2phy(needed - 1).is_err());

    let placement = solve(&config, shape, &loads, threads).unwrap();
    let placed = placement.iter().flat_map(|(_, experts)| experts).map(|&expert| expert as i32);
    assert!(placed.eq(phy2log.iter().copied()), "{sizes:?}");

    let unpadded = |expert_slots: &[i32]| {
        let (slots, padding) = expert_slots
            .split_at(expert_slots.iter().position(|&slot| slot == -1).unwrap_or(expert_slots.len()));
        assert!(padding.iter().all(|&slot| slot == -1), "{expert_slots:?}");
        slots.to_vec()
    };
    let layer = |layer: usize| Arrays {
        phy2log: phy2log[layer * slots..][..slots].to_vec(),
        log2phy: log2phy
            .chunks_exact(max_replicas)
            .skip(layer * experts)
            .take(experts)
            .map(unpadded)
            .collect(),
        logcnt: logcnt[layer * experts..][..experts].to_vec(),
    };
    (0..layers.len()).map(layer).collect()
}

fn expected(values: &[f64], sizes: Sizes) -> Vec<Arrays> {
    let layer = |layer: &[f64]| {
        let load: Vec<f32> = layer.iter().map(|&load| load as f32).collect();
        as_specified(&load, sizes)
    };
    values.chunks_exact(sizes.experts).map(layer).collect()
}

/// Checks both policies with several numbers of threads.
fn check(values: &[f64], sizes: Sizes) {
    let global = Sizes { groups: 1, nodes: 1, ..sizes };
    for (policy, sizes_used) in [(Policy::DeepseekHierarchical, sizes), (Policy::DeepseekGlobal, global)] {
        let expected = expected(values, sizes_used);
        for threads in [1, 3] {
            // The global policy ignores groups and nodes.
            assert_eq!(found(values, sizes, policy, threads), expected, "{policy}, {sizes:?}, {values:?}");
        }
    }
}

#[test]
fn hierarchical_policy_reproduces_the_published_example() {
    let loads: Vec<f64> = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    .concat()
    .into_iter()
    .map(f64::from)
    .collect();
    let sizes = Sizes { experts: 12, slots: 16, ranks: 8, groups: 4, nodes: 2 };
    let arrays = found(&loads, sizes, Policy::DeepseekHierarchical, 2);
    assert_eq!(arrays[0].phy2log, [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]);
    assert_eq!(arrays[1].phy2log, [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]);
    check(&loads, sizes);
}

/// A layer's loads: many ties, equal, zero, a single hot expert, wide ranges, fractions that float32 rounds.
fn layer(experts: usize) -> impl Strategy<Value = Vec<f64>> {
    let each = |load: BoxedStrategy<f64>| proptest::collection::vec(load, experts);
    prop_oneof![
        3 => each((0u32..4).prop_map(f64::from).boxed()),
        3 => each((0u32..1_000_000).prop_map(f64::from).boxed()),
        2 => each((1u64..1 << 40).prop_map(|n| 1.0 / n as f64).boxed()),
        1 => each(prop_oneof![Just(0.0), Just(-0.0), 0.0..1e38f64, Just(1e-45)].boxed()),
        1 => (0.0..1e6f64).prop_map(move |load| vec![load; experts]),
        1 => Just(vec![0.0; experts]),
        1 => (0..experts).prop_map(move |hot| (0..experts).map(|e| f64::from(u8::from(e == hot)) * 7.0).collect()),
    ]
}

fn case() -> impl Strategy<Value = (Vec<f64>, Sizes)> {
    // Nodes, groups of each, experts of each group, ranks of each node, spare slots of each rank, layers.
    (1usize..=4, 1usize..=4, 1usize..=8, 1usize..=9, 0usize..=5, 1usize..=3).prop_flat_map(
        |(nodes, groups, size, ranks, spare, layers)| {
            let (groups, ranks) = (groups * nodes, ranks * nodes);
            let experts = groups * size;
            let slots = (experts.div_ceil(ranks) + spare) * ranks;
            let sizes = Sizes { experts, slots, ranks, groups, nodes };
            (proptest::collection::vec(layer(experts), layers), Just(sizes))
                .prop_map(|(layers, sizes)| (layers.concat(), sizes))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn policies_match_the_specification_on_any_shape((values, sizes) in case()) {
        check(&values, sizes);
    }
}

/// The shipped recordings, and those of the directory `EPLB_EXTRA_DATA`.
fn dumps() -> Vec<PathBuf> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let dirs = [Some(shipped), env::var_os("EPLB_EXTRA_DATA").map(PathBuf::from)];
    let dumps = dirs.into_iter().flatten().flat_map(|dir| fs::read_dir(dir.join("dumps")).unwrap());
    dumps.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn policies_match_the_specification_on_every_recording() {
    let dumps = dumps();
    assert!(dumps.len() >= 4, "{dumps:?}");
    for path in dumps {
        let stats = Dump::open(&path, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap();
        let experts = stats.summary().num_experts;
        // The sum over iterations of each layer, then each iteration alone.
        let mut values = Vec::new();
        for &layer in &stats.summary().layers {
            values.extend(stats.layer_totals(layer).unwrap().iter().map(|&total| total as f64));
        }
        for &layer in &stats.summary().layers {
            values.extend(stats.layer_counts(layer).unwrap().iter().map(|&count| count as f64));
        }
        let shapes: &[(usize, usize, usize, usize)] = match experts {
            256 => &[(288, 32, 8, 4), (288, 36, 8, 2), (288, 72, 8, 8), (320, 8, 8, 4), (256, 256, 8, 4)],
            64 => &[(72, 8, 8, 4), (80, 16, 4, 2), (64, 64, 8, 8), (96, 8, 1, 1)],
            other => panic!("{}: no shapes for {other} experts", path.display()),
        };
        for &(slots, ranks, groups, nodes) in shapes {
            check(&values, Sizes { experts, slots, ranks, groups, nodes });
        }
    }
}
