//! The load of each rank by a routing rule, to compare with measurements.

use crate::device::Id;
use crate::dispatch::least_loaded::{SplitPlan, Splitter};
use crate::dispatch::nearest;
use crate::dispatch::tables::LayerTables;
use crate::dispatch::{DispatchConfig, Rule, route_batches};
use crate::error::{Error, Result, try_zeroed};
use crate::placement::{Placement, Shape};

/// How tokens are routed.
#[derive(Debug, Clone, Copy)]
pub struct RoutingOptions<'a> {
    /// The rule.
    pub rule: Rule,
    /// The node of each rank, `[num_ranks]`. `None`: one node has all ranks.
    pub rank_to_node: Option<&'a [i32]>,
    /// Whether [`Rule::LeastLoaded`] uses the counts of all ranks.
    pub with_rank_counts: bool,
}

/// Computes the expected load of each rank in `layer` from the counts of all ranks, `rank_counts[num_ranks][num_experts]`.
///
/// For [`Rule::LeastLoaded`] it is exact if the counts are those of one batch a rank. For the other rules it uses the share of
/// tokens that each replica serves in the long run.
pub fn expected_load(
    placement: &Placement,
    layer: u32,
    options: RoutingOptions<'_>,
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
            "rank {}, expert {}: the count is {}; it must be below 2^31",
            index / num_experts,
            index % num_experts,
            rank_counts[index]
        ));
    }
    let one_node = vec![0; num_ranks];
    let nodes = options.rank_to_node.unwrap_or(&one_node);
    if nodes.len() != num_ranks {
        return refuse(format!("rank_to_node has {} ranks, the placement {num_ranks}", nodes.len()));
    }
    let tables = LayerTables::new(shape, placement.layer_experts(layer)?);
    let totals = || -> Vec<u64> {
        let total = |expert| rank_counts.iter().skip(expert).step_by(num_experts).sum();
        (0..num_experts).map(total).collect()
    };
    let mut loads = vec![0.0; num_ranks];
    match (options.rule, options.with_rank_counts) {
        (Rule::RoundRobin | Rule::TokenHash, _) => {
            for (expert, &tokens) in totals().iter().enumerate() {
                let slots = tables.slots_of(expert);
                let share = tokens as f64 / slots.len() as f64;
                slots.iter().for_each(|&slot| loads[shape.rank_of(slot as usize)] += share);
            }
        }
        (Rule::Nearest, _) => {
            for (rank, counts) in rank_counts.chunks_exact(num_experts).enumerate() {
                add_nearest(shape, &tables, (rank, nodes), counts, &mut loads);
            }
        }
        (Rule::LeastLoaded, with_rank_counts) => {
            let plan = SplitPlan::new(shape, &tables);
            let mut splitter = Splitter::new(&plan, num_ranks);
            let mut add = |totals: &[u64]| {
                splitter.split_totals(&plan, totals, !with_rank_counts);
                splitter.for_each_load(&plan, totals, |rank, tokens| loads[rank] += tokens as f64);
            };
            match with_rank_counts {
                true => add(&totals()),
                false => rank_counts.chunks_exact(num_experts).for_each(add),
            }
        }
    }
    Ok(loads)
}

/// Routes one batch of each rank in `layer` and returns the load of each rank.
///
/// `ids` has the ids of rank 0, `[rank_tokens[0]][experts_per_token]`, then those of rank 1, and so on. Invalid ids add no load.
/// Ignores the config's rank and place.
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
            "{} ids of {} ranks for a placement on {num_ranks} ranks, {} ids a token",
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
    let mut remaining = slots.as_mut_slice();
    let mut batches: Vec<&mut [I]> =
        lengths().map(|length| remaining.split_off_mut(..length).expect("checked above")).collect();
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

fn add_nearest(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Place;

    /// Rank 0 holds experts 0 1 2, rank 1 holds 3 0 1.
    fn placement() -> Placement {
        Placement::new(Shape::new(4, 6, 2).unwrap(), &[3], &[0, 1, 2, 3, 0, 1]).unwrap()
    }

    fn loads(rule: Rule, with_rank_counts: bool, counts: [u64; 8]) -> Vec<f64> {
        expected_load(&placement(), 3, RoutingOptions { rule, rank_to_node: None, with_rank_counts }, &counts)
            .unwrap()
    }

    #[test]
    fn expected_load_follows_the_rule() {
        // Rank 0 chose expert 0 six times and expert 2 twice; rank 1 chose expert 1 three times and expert 3 once.
        let counts = [6, 0, 2, 0, 0, 3, 0, 1];
        // Half of 6 and of 3, and 2 or 1.
        assert_eq!(loads(Rule::RoundRobin, false, counts), [6.5, 5.5]);
        assert_eq!(loads(Rule::TokenHash, false, counts), [6.5, 5.5]);
        // Experts 0 and 1 have a replica on each rank, so their tokens stay: 6 + 2, and 3 + 1.
        assert_eq!(loads(Rule::Nearest, false, counts), [8.0, 4.0]);
        // Rank 0 splits 6 over loads (2, 0): 4 and 4. Rank 1 splits 3 over (0, 1): 2 and 2.
        assert_eq!(loads(Rule::LeastLoaded, false, counts), [6.0, 6.0]);
        // All 9 tokens are split over loads (2, 1): 6 and 6.
        assert_eq!(loads(Rule::LeastLoaded, true, counts), [6.0, 6.0]);
    }

    #[test]
    fn routed_load_routes_each_id() {
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
                invalid_slot: 0,
                shared_slots: &[],
                live: false,
            };
            let rank_tokens = batches.map(|ids| ids.len() as u32);
            routed_load(&placement(), 3, &config, with_rank_counts, (&batches.concat(), &rank_tokens))
                .unwrap()
        };
        // Expert 0 three times on each rank. Both start with slot 0, which is on rank 0.
        assert_eq!(routed(Rule::RoundRobin, false, [&[0, 0, 0], &[0, 0, 0, -1, 4]]), [4.0, 2.0]);
        // Tokens 0, 1, 2 of each rank: even, odd, even.
        assert_eq!(routed(Rule::TokenHash, false, [&[0, 0, 0], &[0, 0, 0]]), [4.0, 2.0]);
        assert_eq!(routed(Rule::Nearest, false, [&[0, 0], &[0, 2, 1]]), [3.0, 2.0]);
        // Rank 0 splits 3 tokens of expert 0 into 2 and 1, and an even number of sweeps moves the odd token forth and back. So
        // does rank 1.
        assert_eq!(routed(Rule::LeastLoaded, false, [&[0, 0, 0], &[0, 0, 0]]), [4.0, 2.0]);
        // With the counts of all ranks, 6 tokens are split evenly.
        assert_eq!(routed(Rule::LeastLoaded, true, [&[0, 0, 0], &[0, 0, 0]]), [3.0, 3.0]);
    }

    #[test]
    fn expected_load_rejects_wrong_lengths_and_counts_above_the_limit() {
        let options = RoutingOptions { rule: Rule::Nearest, rank_to_node: None, with_rank_counts: false };
        let error = |counts: &[u64]| expected_load(&placement(), 3, options, counts).unwrap_err().to_string();
        assert_eq!(error(&[0; 7]), "7 counts for 2 ranks of 4 experts");
        assert_eq!(
            error(&[0, 0, 0, 0, 0, 1 << 31, 0, 0]),
            "rank 1, expert 1: the count is 2147483648; it must be below 2^31"
        );
    }
}
