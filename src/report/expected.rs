//! What each rank would carry by a rule of routing: the number that people compare with what they measure.

use crate::dispatch::Rule;
use crate::dispatch::level::Levelling;
use crate::dispatch::nearest;
use crate::dispatch::tables::LayerTables;
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape};

/// By what tokens are routed.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'a> {
    /// The rule.
    pub rule: Rule,
    /// The node of each rank; `None` says that all are on one.
    pub rank_to_node: Option<&'a [u32]>,
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

fn nearest(
    shape: Shape,
    tables: &LayerTables,
    (rank, nodes): (usize, &[u32]),
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
    let levelling = Levelling::new(shape, tables);
    let (mut quotas, mut dealt) = (vec![0; levelling.groups.len()], vec![0; loads.len()]);
    levelling.deal(shape, tables, totals, &mut quotas, &mut dealt);
    loads.iter_mut().zip(&dealt).for_each(|(load, &tokens)| *load += tokens as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

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
