//! What each rank would carry by a rule of routing: the number that people compare with what they measure.

use crate::device::Id;
use crate::dispatch::least_loaded::SplitPlan;
use crate::dispatch::nearest;
use crate::dispatch::tables::LayerTables;
use crate::dispatch::{DispatchConfig, Rule, route_batches};
use crate::error::{Error, Result, try_zeroed};
use crate::placement::{Placement, Shape};

/// By what tokens are routed.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'a> {
    /// The rule.
    pub rule: Rule,
    /// The node of each rank; `None` says that all are on one.
    pub rank_to_node: Option<&'a [i32]>,
    /// Whether [`Rule::LeastLoaded`] knows the counts of all ranks.
    pub with_rank_counts: bool,
}

/// The tokens that each rank gets in `layer`, where the ranks' routers chose its experts as often as `rank_counts` says,
/// `[num_ranks][num_experts]`. Exact for [`Rule::LeastLoaded`] of one batch a rank; of the others, the share that each replica
/// has in the long run.
pub fn expected_load(
    placement: &Placement,
    layer: u32,
    routed: Routed<'_>,
    rank_counts: &[u64],
) -> Result<Vec<f64>> {
    let shape = placement.shape();
    let (num_ranks, num_experts) = (shape.num_ranks(), shape.num_experts());
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    if num_ranks.checked_mul(num_experts) != Some(rank_counts.len()) {
        return refuse(format!(
            "{} counts for {num_ranks} ranks of {num_experts} experts",
            rank_counts.len()
        ));
    }
    if let Some(index) = rank_counts.iter().position(|&count| count >= 1 << 31) {
        return refuse(format!(
            "rank {}, expert {}: a batch has no {} tokens of one expert",
            index / num_experts,
            index % num_experts,
            rank_counts[index]
        ));
    }
    let one_node = vec![0; num_ranks];
    let nodes = routed.rank_to_node.unwrap_or(&one_node);
    if nodes.len() != num_ranks {
        return refuse(format!("rank_to_node has {} ranks, the placement {num_ranks}", nodes.len()));
    }
    let tables = LayerTables::new(shape, placement.layer_experts(layer)?);
    let sum = || -> Vec<u64> {
        let of = |expert| rank_counts.iter().skip(expert).step_by(num_experts).sum();
        (0..num_experts).map(of).collect()
    };
    let mut loads = vec![0.0; num_ranks];
    match (routed.rule, routed.with_rank_counts) {
        (Rule::RoundRobin | Rule::TokenHash, _) => {
            for (expert, &tokens) in sum().iter().enumerate() {
                let slots = tables.slots_of(expert);
                let share = tokens as f64 / slots.len() as f64;
                slots.iter().for_each(|&slot| loads[shape.rank_of(slot as usize)] += share);
            }
        }
        (Rule::Nearest, _) => {
            for (rank, counts) in rank_counts.chunks_exact(num_experts).enumerate() {
                nearest(shape, &tables, (rank, nodes), counts, &mut loads);
            }
        }
        (Rule::LeastLoaded, true) => level(shape, &tables, &sum(), &mut loads),
        (Rule::LeastLoaded, false) => {
            for counts in rank_counts.chunks_exact(num_experts) {
                level(shape, &tables, counts, &mut loads);
            }
        }
    }
    Ok(loads)
}

/// The tokens that each rank gets in `layer` of one batch a rank, whose ids the config's rule routes one by one: the ids of
/// rank 0, `[rank_tokens[0]][experts_per_token]`, then those of rank 1, and so on. Ids that name no expert go nowhere. The
/// config's rank and place are not looked at.
pub(crate) fn routed_load<I: Id>(
    placement: &Placement,
    layer: u32,
    config: &DispatchConfig,
    with_rank_counts: bool,
    (ids, rank_tokens): (&[I], &[u32]),
) -> Result<Vec<f64>> {
    let shape = placement.shape();
    let (num_ranks, num_experts) = (shape.num_ranks(), shape.num_experts());
    let lengths = || rank_tokens.iter().map(|&tokens| tokens as usize * config.experts_per_token);
    if rank_tokens.len() != num_ranks || lengths().sum::<usize>() != ids.len() {
        return Err(Error::InvalidArgument(format!(
            "{} ids of {} ranks for a placement of {num_ranks}, {} a token",
            ids.len(),
            rank_tokens.len(),
            config.experts_per_token
        )));
    }
    if let Some(rank) = lengths().position(|length| i32::try_from(length).is_err()) {
        return Err(Error::InvalidArgument(format!(
            "rank {rank} has {} tokens of {} ids, more than the {} ids of a batch",
            rank_tokens[rank],
            config.experts_per_token,
            i32::MAX
        )));
    }
    let mut slots: Vec<I> = try_zeroed(Some(ids.len()), "the slots")?;
    slots.copy_from_slice(ids);
    let mut rest = slots.as_mut_slice();
    let mut batches: Vec<&mut [I]> =
        lengths().map(|length| rest.split_off_mut(..length).expect("checked above")).collect();
    let rank_counts = match config.rule {
        Rule::LeastLoaded if with_rank_counts => {
            let mut counts = try_zeroed(num_ranks.checked_mul(num_experts), "the counts of all ranks")?;
            for (counts, ids) in counts.chunks_exact_mut(num_experts).zip(&batches) {
                let experts = ids.iter().map(|id| id.bin(num_experts)).filter(|&expert| expert < num_experts);
                experts.for_each(|expert| counts[expert] += 1);
            }
            Some(counts)
        }
        _ => None,
    };
    route_batches(placement, layer, config, &mut batches, rank_counts.as_deref())?;
    let mut loads = vec![0.0; num_ranks];
    let served =
        slots.iter().map(|slot| slot.bin(shape.num_slots())).filter(|&slot| slot < shape.num_slots());
    served.for_each(|slot| loads[shape.rank_of(slot)] += 1.0);
    Ok(loads)
}

fn nearest(
    shape: Shape,
    tables: &LayerTables,
    (rank, nodes): (usize, &[i32]),
    counts: &[u64],
    loads: &mut [f64],
) {
    for (expert, &tokens) in counts.iter().enumerate().filter(|&(_, &tokens)| tokens != 0) {
        let slots = tables.slots_of(expert);
        let parts = match slots.len() {
            1 => vec![1],
            _ => nearest::parts(shape, tables, expert, rank, nodes),
        };
        let all: u128 = parts.iter().sum();
        for (&slot, &part) in slots.iter().zip(&parts) {
            loads[shape.rank_of(slot as usize)] += tokens as f64 * (part as f64 / all as f64);
        }
    }
}

fn level(shape: Shape, tables: &LayerTables, totals: &[u64], loads: &mut [f64]) {
    let plan = SplitPlan::new(shape, tables);
    let (mut quotas, mut rank_loads) = (vec![0; plan.holders.len()], vec![0; loads.len()]);
    plan.split(shape, tables, totals, &mut quotas, &mut rank_loads);
    loads.iter_mut().zip(&rank_loads).for_each(|(load, &tokens)| *load += tokens as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Place;

    /// Slots 0 1 2 | 3 4 5 hold experts 0 1 2 | 3 0 1.
    fn placement() -> Placement {
        Placement::new(Shape::new(4, 6, 2).unwrap(), &[3], &[0, 1, 2, 3, 0, 1]).unwrap()
    }

    fn loads(rule: Rule, with_rank_counts: bool, counts: [u64; 8]) -> Vec<f64> {
        expected_load(&placement(), 3, Routed { rule, rank_to_node: None, with_rank_counts }, &counts)
            .unwrap()
    }

    #[test]
    fn each_rule_has_its_own() {
        // Rank 0 chose expert 0 six times and expert 2 twice; rank 1 chose expert 1 three times and expert 3 once.
        let counts = [6, 0, 2, 0, 0, 3, 0, 1];
        // Half of 6 and of 3, and 2 or 1.
        assert_eq!(loads(Rule::RoundRobin, false, counts), [6.5, 5.5]);
        assert_eq!(loads(Rule::TokenHash, false, counts), [6.5, 5.5]);
        // All but the experts with one slot stay: 6 + 2, and 3 + 1.
        assert_eq!(loads(Rule::Nearest, false, counts), [8.0, 4.0]);
        // Rank 0 deals 6 over (2, 0): 4 and 4. Rank 1 deals 3 over (0, 1): 2 and 2.
        assert_eq!(loads(Rule::LeastLoaded, false, counts), [6.0, 6.0]);
        // All 9 over (2, 1): 6 and 6.
        assert_eq!(loads(Rule::LeastLoaded, true, counts), [6.0, 6.0]);
    }

    #[test]
    fn ids_are_routed_one_by_one() {
        let routed = |rule, with_rank_counts, batches: [&[i64]; 2]| {
            let config = DispatchConfig {
                rule,
                rank: 0,
                experts_per_token: 1,
                layers: None,
                rank_to_node: None,
                offset_by_rank: false,
                max_replicas: 0,
                place: Place::Host,
            };
            let rank_tokens = batches.map(|ids| ids.len() as u32);
            routed_load(&placement(), 3, &config, with_rank_counts, (&batches.concat(), &rank_tokens))
                .unwrap()
        };
        // Expert 0 three times on each rank: both begin with slot 0, of rank 0.
        assert_eq!(routed(Rule::RoundRobin, false, [&[0, 0, 0], &[0, 0, 0, -1, 4]]), [4.0, 2.0]);
        // Rows 0, 1, 2 of each: even, odd, even.
        assert_eq!(routed(Rule::TokenHash, false, [&[0, 0, 0], &[0, 0, 0]]), [4.0, 2.0]);
        assert_eq!(routed(Rule::Nearest, false, [&[0, 0], &[0, 2, 1]]), [3.0, 2.0]);
        // Rank 0 deals 3 tokens of expert 0: 2 to the replica at place 3 mod 2, on rank 1. So does rank 1.
        assert_eq!(routed(Rule::LeastLoaded, false, [&[0, 0, 0], &[0, 0, 0]]), [2.0, 4.0]);
        // With all counts they are 6, and level.
        assert_eq!(routed(Rule::LeastLoaded, true, [&[0, 0, 0], &[0, 0, 0]]), [3.0, 3.0]);
    }

    #[test]
    fn counts_that_no_batch_has_are_refused_by_name() {
        let routed = Routed { rule: Rule::Nearest, rank_to_node: None, with_rank_counts: false };
        let refused =
            |counts: &[u64]| expected_load(&placement(), 3, routed, counts).unwrap_err().to_string();
        assert_eq!(refused(&[0; 7]), "7 counts for 2 ranks of 4 experts");
        assert_eq!(
            refused(&[0, 0, 0, 0, 0, 1 << 31, 0, 0]),
            "rank 1, expert 1: a batch has no 2147483648 tokens of one expert"
        );
    }
}
