//! How much of the load a placement leaves outside the node of its group.

use super::replica_counts;
use crate::error::{Error, Result};
use crate::placement::{Placement, held_slots};
use crate::solve::{Loads, Nodes};

/// The share of a layer's load that is not at home: of replicas on another node than their group's, an expert's load split
/// evenly over its replicas. A group's home is the node that carries most of its load, of equal ones the lower id.
///
/// Loads are `[num_samples][num_experts]`, and come with these numbers, the last as a check. The share is taken per sample and averaged over samples; homes are those of all samples
/// together. `num_groups` groups have equally many consecutive experts, and `rank_to_node` is the node of each rank,
/// `[num_ranks]`, any ids. `None` where a sample has no load at all.
///
/// Fails with [`crate::Error::InvalidShape`] where the groups are not equally large, [`crate::Error::InvalidLoads`], and
/// [`crate::Error::InvalidArgument`] for lengths that do not fit and an unknown layer.
pub fn off_node_share(
    placement: &Placement,
    layer: u32,
    (loads, num_samples, num_experts): (&[f64], usize, usize),
    num_groups: usize,
    rank_to_node: &[u32],
) -> Result<Option<f64>> {
    let (shape, slot_experts) = (placement.shape(), placement.layer_experts(layer)?);
    let nodes = Nodes::new(shape, num_groups, 1, Some(rank_to_node))?;
    if num_experts != shape.num_experts() {
        let held = shape.num_experts();
        let message = format!("num_experts is {num_experts}, the placement has {held}");
        return Err(Error::InvalidArgument(message));
    }
    let layers = [layer];
    let loads = Loads::new(loads, &layers, num_samples, num_experts)?;
    let (num_nodes, size) = (nodes.num_ranks.len(), shape.num_experts() / num_groups);
    let replicas = replica_counts(shape, slot_experts);
    // Of each sample, the share of all load that each node carries of each group: [groups][nodes].
    let shares = |loads: &[f64]| {
        let total: f64 = loads.iter().map(|load| load / loads.len() as f64).sum();
        let mut shares = vec![0.0; num_groups * num_nodes];
        for (slot, expert) in held_slots(slot_experts) {
            let node = nodes.of_rank[shape.rank_of(slot)] as usize;
            let part = loads[expert as usize] / loads.len() as f64 / f64::from(replicas[expert as usize]);
            shares[expert as usize / size * num_nodes + node] += part / total;
        }
        shares
    };
    let mut sums = vec![0.0; num_groups * num_nodes];
    for sample in loads.layer(0) {
        sums.iter_mut().zip(shares(sample)).for_each(|(sum, share)| *sum += share);
    }
    let at_home: f64 = sums.chunks_exact(num_nodes).map(|of| of.iter().copied().fold(0.0, f64::max)).sum();
    let share = 1.0 - at_home / num_samples as f64;
    Ok(Some(share.max(0.0)).filter(|_| sums.iter().all(|sum| sum.is_finite())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Shape;

    fn share(loads: &[f64], num_samples: usize, rank_to_node: &[u32]) -> Option<f64> {
        // Ranks hold 0 1 | 2 0 | 3 3; groups are 0 1 and 2 3.
        let placement = Placement::new(Shape::new(4, 6, 3).unwrap(), &[5], &[0, 1, 2, 0, 3, 3]).unwrap();
        off_node_share(&placement, 5, (loads, num_samples, 4), 2, rank_to_node).unwrap()
    }

    #[test]
    fn what_is_not_on_the_node_of_most_of_its_group_is_away() {
        // Nodes are rank 0, and ranks 1 and 2. Group 0: 3 + 2 on the first, 3 on the other; group 1: all 4 on the other.
        assert_eq!(share(&[6.0, 2.0, 1.0, 3.0], 1, &[7, 2, 2]), Some(1.0 - 9.0 / 12.0));
        // In the other sample, 1 + 0 and 1; 2 and 0. Homes are the same: 1 of 4.
        let both = share(&[6.0, 2.0, 1.0, 3.0, 2.0, 0.0, 2.0, 0.0], 2, &[7, 2, 2]);
        assert_eq!(both, Some(0.25));
        assert_eq!(share(&[6.0, 2.0, 1.0, 3.0], 1, &[4, 4, 4]), Some(0.0));
        assert_eq!(share(&[0.0; 4], 1, &[7, 2, 2]), None);
    }
}
