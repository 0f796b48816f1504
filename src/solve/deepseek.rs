//! DeepSeek's policies, as in its published `eplb.py`. Loads, quotients and totals are float32, as there.
//!
//! `eplb.py` leaves two things open, so its own results vary. Its sort does not define the order of equal
//! loads: here the lower index comes first. Its sum over a group does not define the order of addition: here
//! it is the order of the experts.

use std::cmp::Reverse;

use super::tournament::Tournament;
use super::{CheckedPolicy, Loads, Policy, SolveConfig, check_experts};
use crate::error::{Error, Result, try_zeroed};
use crate::placement::Shape;
use crate::threads;

/// The two levels of packing: groups of experts onto nodes, then replicas of a node's experts onto its ranks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hierarchy {
    shape: Shape,
    num_groups: usize,
    num_nodes: usize,
}

impl Hierarchy {
    /// The global policy: one group on one node.
    pub fn global(shape: Shape) -> Self {
        Hierarchy { shape, num_groups: 1, num_nodes: 1 }
    }

    /// Fails with [`Error::InvalidShape`] naming what cannot be split evenly. If ranks split evenly over
    /// nodes, slots do too.
    pub fn new(shape: Shape, num_groups: usize, num_nodes: usize) -> Result<Self> {
        if num_groups == 0 || num_nodes == 0 {
            let message =
                format!("{num_groups} groups on {num_nodes} nodes: there must be at least 1 of each");
            return Err(Error::InvalidShape(message));
        }
        for (count, what, parts) in [
            (shape.num_experts(), "experts", (num_groups, "groups")),
            (num_groups, "groups", (num_nodes, "nodes")),
            (shape.num_ranks(), "ranks", (num_nodes, "nodes")),
        ] {
            if !count.is_multiple_of(parts.0) {
                return Err(Error::InvalidShape(format!(
                    "{count} {what} cannot be split evenly over {} {}; policy {} needs an even split, {} does not",
                    parts.0,
                    parts.1,
                    Policy::DeepseekHierarchical,
                    Policy::DeepseekGlobal
                )));
            }
        }
        Ok(Hierarchy { shape, num_groups, num_nodes })
    }
}

/// Returns the expert of each slot: see [`place`].
pub(super) fn slot_experts(loads: &[f32], hierarchy: Hierarchy) -> Vec<u32> {
    place(loads, hierarchy).iter().map(|slot| slot.expert).collect()
}

/// The content of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replica {
    pub expert: u32,
    /// The replica's number among those of its expert, in order of creation.
    pub number: u32,
}

/// Returns the replica in each slot of a layer whose experts carry `loads`.
///
/// Groups are packed onto nodes by the sum of their loads. A node's slots are split among its experts, in the
/// order in which their groups were packed. The node's replicas are packed onto its ranks.
pub(super) fn place(loads: &[f32], hierarchy: Hierarchy) -> Vec<Replica> {
    let Hierarchy { shape, num_groups, num_nodes } = hierarchy;
    let group_size = shape.num_experts() / num_groups;
    let group_loads: Vec<f32> = loads.chunks_exact(group_size).map(|group| group.iter().sum()).collect();
    let mut slots = Vec::with_capacity(shape.num_slots());
    for groups in pack(&group_loads, num_nodes).chunks_exact(num_groups / num_nodes) {
        let first = |&group: &usize| group * group_size;
        let experts: Vec<usize> = groups.iter().map(first).flat_map(|e| e..e + group_size).collect();
        let node_loads: Vec<f32> = experts.iter().map(|&expert| loads[expert]).collect();
        let (replicas, replica_loads) = replicate(&node_loads, shape.num_slots() / num_nodes);
        let packed = pack(&replica_loads, shape.num_ranks() / num_nodes).into_iter().map(|i| replicas[i]);
        slots.extend(packed.map(|(index, number)| Replica { expert: experts[index] as u32, number }));
    }
    slots
}

/// Returns `num_slots` replicas in order of creation, and the load of each. A replica is its expert and its
/// number among the replicas of that expert.
///
/// Each expert gets one. Then each spare slot goes to the expert with the largest load per replica, ties to
/// the lower expert.
fn replicate(loads: &[f32], num_slots: usize) -> (Vec<(usize, u32)>, Vec<f32>) {
    let mut quotients = loads.to_vec();
    let mut counts = vec![1; loads.len()];
    let mut replicas = Vec::with_capacity(num_slots);
    replicas.extend((0..loads.len()).map(|expert| (expert, 0)));
    let keys = loads.iter().enumerate().map(|(expert, &load)| heaviest_first(load, expert));
    let mut heaviest = Tournament::new(keys, u64::MAX);
    for _ in loads.len()..num_slots {
        let expert = index(heaviest.next());
        replicas.push((expert, counts[expert]));
        counts[expert] += 1;
        quotients[expert] = loads[expert] / counts[expert] as f32;
        heaviest.set(expert, heaviest_first(quotients[expert], expert));
    }
    let replica_loads = replicas.iter().map(|&(expert, _)| quotients[expert]).collect();
    (replicas, replica_loads)
}

/// Returns the items of each pack in order of packing. All packs have the same length.
///
/// If there are as many packs as items, item i is pack i. Otherwise items are taken by load descending, ties
/// to the lower item. Each goes to the lightest pack with room, ties to the lower pack.
fn pack(loads: &[f32], num_packs: usize) -> Vec<usize> {
    let width = loads.len() / num_packs;
    if width == 1 {
        return (0..num_packs).collect();
    }
    let mut items: Vec<_> =
        loads.iter().enumerate().map(|(item, &load)| heaviest_first(load, item)).collect();
    items.sort_unstable();
    let mut packed = vec![0; loads.len()];
    let mut totals = vec![0.0; num_packs];
    let mut next: Vec<_> = (0..num_packs).map(|pack| pack * width).collect();
    let mut lightest = Tournament::new((0..num_packs).map(|pack| lightest_first(0.0, pack)), u64::MAX);
    for item in items.into_iter().map(index) {
        let pack = index(lightest.next());
        packed[next[pack]] = item;
        next[pack] += 1;
        totals[pack] += loads[item];
        let full = next[pack] == (pack + 1) * width;
        lightest.set(pack, if full { u64::MAX } else { lightest_first(totals[pack], pack) });
    }
    packed
}

/// A key that sorts by load ascending, then by index. The bits of non-negative floats order as the floats do.
fn lightest_first(load: f32, index: usize) -> u64 {
    u64::from(load.to_bits()) << 32 | index as u64
}

/// A key that sorts by load descending, then by index.
fn heaviest_first(load: f32, index: usize) -> u64 {
    u64::from(!load.to_bits()) << 32 | index as u64
}

/// The index in a key.
fn index(number: u64) -> usize {
    number as u32 as usize
}

/// A placement as the three arrays of DeepSeek's `rebalance_experts()`, for code that was written for them.
#[derive(Debug, Clone)]
pub struct DeepseekArrays {
    shape: Shape,
    layers: Vec<Vec<Replica>>,
}

impl DeepseekArrays {
    /// Solves by the policy of `config`, which must be a DeepSeek policy.
    ///
    /// `threads` and errors are those of [`solve`](super::solve()).
    pub fn solve(config: &SolveConfig<'_>, shape: Shape, loads: &Loads<'_>, threads: usize) -> Result<Self> {
        check_experts(shape, loads)?;
        if config.solved_shape(shape)? != shape {
            return Err(Error::InvalidArgument(
                "eplb.py's arrays have no empty slots; leave rank_num_slots unset".into(),
            ));
        }
        let CheckedPolicy::Deepseek(hierarchy) = CheckedPolicy::new(config, shape)? else {
            return Err(Error::InvalidArgument(format!(
                "policy {} is not a DeepSeek policy; use {} or {}",
                config.policy,
                Policy::DeepseekGlobal,
                Policy::DeepseekHierarchical
            )));
        };
        let layers = threads::map(loads.layers().len(), threads::resolve(threads), |layer| {
            Ok(place(&loads.layer_sums_f32(layer)?, hierarchy))
        })?;
        Ok(DeepseekArrays { shape, layers })
    }

    /// The expert of each slot, `[layers][slots]`.
    pub fn phy2log(&self) -> Vec<i32> {
        self.layers.iter().flatten().map(|replica| replica.expert as i32).collect()
    }

    /// The slots of each expert in order of replica creation, `[layers][experts][max_replicas]`, padded with
    /// -1.
    ///
    /// In `eplb.py`, `max_replicas` is the largest value of `logcnt`; `num_slots - num_experts + 1` is always
    /// enough. Fails with [`Error::InvalidArgument`] if an expert has more replicas, naming it and the needed
    /// number.
    pub fn log2phy(&self, max_replicas: usize) -> Result<Vec<i32>> {
        let fullest = self.layers.iter().enumerate().flat_map(|(layer, slots)| {
            slots.iter().map(move |replica| (replica.number as usize + 1, Reverse((layer, replica.expert))))
        });
        if let Some((needed, Reverse((layer, expert)))) = fullest.max().filter(|most| most.0 > max_replicas) {
            return Err(Error::InvalidArgument(format!(
                "max_replicas is {max_replicas}, but expert {expert} of layer {layer} has {needed} replicas; \
                 set it to {needed}"
            )));
        }
        let layer_len = self.shape.num_experts().checked_mul(max_replicas);
        let mut log2phy =
            try_zeroed(layer_len.and_then(|len| len.checked_mul(self.layers.len())), "log2phy")?;
        log2phy.fill(-1);
        for (layer, slots) in self.layers.iter().enumerate() {
            for (slot, replica) in slots.iter().enumerate() {
                let expert = layer * self.shape.num_experts() + replica.expert as usize;
                log2phy[expert * max_replicas + replica.number as usize] = slot as i32;
            }
        }
        Ok(log2phy)
    }

    /// The number of replicas of each expert, `[layers][experts]`.
    pub fn logcnt(&self) -> Vec<i32> {
        let mut logcnt = vec![0; self.layers.len() * self.shape.num_experts()];
        for (counts, slots) in logcnt.chunks_exact_mut(self.shape.num_experts()).zip(&self.layers) {
            slots.iter().for_each(|replica| counts[replica.expert as usize] += 1);
        }
        logcnt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(num_experts: usize, num_slots: usize, num_ranks: usize) -> Shape {
        Shape::new(num_experts, num_slots, num_ranks).unwrap()
    }

    fn experts(slots: Vec<Replica>) -> Vec<u32> {
        slots.into_iter().map(|replica| replica.expert).collect()
    }

    #[test]
    fn place_matches_the_hierarchical_case_worked_out_by_hand() {
        // Groups 0 1 | 2 3 | 4 5 | 6 7 carry 5, 9, 10, 6. By load: group 2 to node 0, group 1 to node 1, group 3 to node 1
        // (9 < 10), group 0 to node 0, so that both carry 15. Node 0 holds experts 4 5 0 1, node 1 experts 2 3 6 7.
        // Node 0, 6 slots: 8 2 4 1, two more to 4 (8 -> 4, then 4 ties with expert 0's 4 and is first -> 8/3):
        // 4 5 0 1 4 4 with 8/3 2 4 1 8/3 8/3. By load: 0 (4) to rank 0, 4 4 4 (8/3 each) to ranks 1, 1 (2.7 < 4), 0
        // (4 < 5.3): 6.7 and 5.3. 5 (2) to rank 1, which is full now, 1 to rank 0.
        // Node 1: 3 6 1 5, one more to 3 (6 -> 3), one to 7 (5 -> 2.5): 2 3 6 7 3 7 with 3 3 1 2.5 3 2.5. By load:
        // 2 3 3 (3 each) to ranks 2 3 2, 7 7 (2.5) to ranks 3 (3 < 6) and 3 (5.5 < 6), 6 to rank 2.
        let loads = [4.0, 1.0, 3.0, 6.0, 8.0, 2.0, 1.0, 5.0];
        let slots = place(&loads, Hierarchy::new(shape(8, 12, 4), 4, 2).unwrap());
        assert_eq!(experts(slots.clone()), [0, 4, 1, 4, 4, 5, 2, 3, 6, 3, 7, 7]);
        let numbers: Vec<u32> = slots.iter().map(|replica| replica.number).collect();
        assert_eq!(numbers, [0, 2, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn one_slot_per_rank_keeps_the_order_of_creation() {
        // The first spare slot goes to expert 1 (6). It then ties with expert 0 at 3, and the lower one is
        // next.
        assert_eq!(experts(place(&[3.0, 6.0, 1.0], Hierarchy::global(shape(3, 5, 5)))), [0, 1, 2, 1, 0]);
    }

    #[test]
    fn place_without_load_gives_all_spare_slots_to_the_first_expert_of_a_node() {
        // All totals stay 0, so ranks fill one after the other.
        assert_eq!(experts(place(&[0.0; 4], Hierarchy::global(shape(4, 6, 2)))), [0, 1, 2, 3, 0, 0]);
        let by_node = Hierarchy::new(shape(4, 8, 4), 2, 2).unwrap();
        assert_eq!(experts(place(&[0.0; 4], by_node)), [0, 1, 0, 0, 2, 3, 2, 2]);
    }

    #[test]
    fn new_names_what_cannot_be_split_evenly() {
        let message = |num_groups, num_nodes| {
            let error = Hierarchy::new(shape(256, 288, 32), num_groups, num_nodes).unwrap_err().to_string();
            error.replace("; policy deepseek-hierarchical needs an even split, deepseek-global does not", "")
        };
        assert_eq!(message(7, 1), "256 experts cannot be split evenly over 7 groups");
        assert_eq!(message(8, 3), "8 groups cannot be split evenly over 3 nodes");
        assert_eq!(message(64, 64), "32 ranks cannot be split evenly over 64 nodes");
        assert_eq!(message(8, 0), "8 groups on 0 nodes: there must be at least 1 of each");
        assert_eq!(message(0, 1), "0 groups on 1 nodes: there must be at least 1 of each");
    }

    #[test]
    fn log2phy_lists_slots_in_order_of_replica_creation() {
        // One layer as above: replicas 0 1 2 | 1 | 0, by load 0 1 0 1 2 with 1.5 3 1 3 1.5: 1 1 0 0 2 on one rank.
        let loads = [3.0, 6.0, 1.0];
        let loads = Loads::new(&loads, &[0], 1, 3).unwrap();
        let config = SolveConfig { policy: Policy::DeepseekGlobal, ..Default::default() };
        let arrays = DeepseekArrays::solve(&config, shape(3, 5, 1), &loads, 1).unwrap();
        assert_eq!(arrays.phy2log(), [1, 1, 0, 0, 2]);
        assert_eq!(arrays.logcnt(), [2, 2, 1]);
        assert_eq!(arrays.log2phy(3).unwrap(), [2, 3, -1, 0, 1, -1, 4, -1, -1]);
        assert_eq!(
            arrays.log2phy(1).unwrap_err().to_string(),
            "max_replicas is 1, but expert 0 of layer 0 has 2 replicas; set it to 2"
        );
        let trtllm = SolveConfig { policy: Policy::Trtllm, ..config };
        assert_eq!(
            DeepseekArrays::solve(&trtllm, shape(3, 5, 1), &loads, 1).unwrap_err().to_string(),
            "policy trtllm is not a DeepSeek policy; use deepseek-global or deepseek-hierarchical"
        );
    }
}
