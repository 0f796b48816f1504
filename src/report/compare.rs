//! Scores several placements on one dump, and counts the experts to move from one placement to another.

use std::path::{Path, PathBuf};

use super::plan::require_expert_counts;
use super::{DumpScore, Planner, Recording};
use crate::error::{Error, Result};
use crate::placement::{ConfigFile, Expected, MissingLayers, NO_EXPERT, Placement, Shape, experts_in_order};
use crate::solve::{Policy, SolveConfig};
use crate::stats::{Stats, Summary};

/// The name of the placement without a load balancer.
const IN_ORDER: &str = "in-order";

/// A placement to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Candidate {
    /// The experts in order, as without a load balancer.
    InOrder,
    /// A policy's placement for the dump.
    Policy(Policy),
    /// A configuration file.
    File(PathBuf, ConfigFile),
}

impl Candidate {
    /// Parses `in-order`, the name of a policy, or the path of a configuration file, which it reads.
    pub fn from_name(name: &str) -> Result<Candidate> {
        let path = Path::new(name);
        match name.parse() {
            Ok(policy) => Ok(Candidate::Policy(policy)),
            Err(_) if name == IN_ORDER => Ok(Candidate::InOrder),
            Err(unknown) if !path.exists() => {
                Err(Error::InvalidArgument(format!("{name}: no such file, and {unknown}, and {IN_ORDER}")))
            }
            Err(_) => Ok(Candidate::File(path.to_owned(), ConfigFile::read(path)?)),
        }
    }

    fn config(&self) -> Option<&ConfigFile> {
        match self {
            Candidate::File(_, config) => Some(config),
            _ => None,
        }
    }
}

/// A candidate's placement and its score.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredCandidate {
    /// The placement.
    pub placement: Placement,
    /// Its score, including best splits and gaps.
    pub score: DumpScore,
    /// [`moved_slots`] from the first candidate to this one.
    pub moved_slots: Option<usize>,
}

/// Computes the candidates' placements and scores them on `stats`.
///
/// `num_ranks` is the number of ranks of all candidates; `None` takes that of the files, or of the dump. `num_slots` is the
/// number of slots of policies and in-order; `None` takes that of the first file, or one an expert. Where the first file has as many
/// slots and leaves the last ones of its ranks empty, they leave them empty too. Only [`Policy::Search`] can if ranks differ in
/// it. The planner's own policy is ignored.
pub fn compare(
    stats: &Stats,
    candidates: &[Candidate],
    num_ranks: Option<usize>,
    num_slots: Option<usize>,
    planner: &Planner<'_>,
) -> Result<Vec<ScoredCandidate>> {
    let summary = stats.summary();
    require_expert_counts(summary)?;
    let files = || candidates.iter().filter_map(Candidate::config);
    let num_ranks = num_ranks.or(files().find_map(|file| file.ep_size));
    let num_ranks = num_ranks.map_or_else(|| summary.ep_size(), Ok)?;
    let file_slots = files().next().and_then(|file| file.num_slots);
    let num_slots = num_slots.or(file_slots).unwrap_or(summary.num_experts);
    let expected = Expected {
        num_experts: Some(summary.num_experts),
        num_ranks: Some(num_ranks),
        layers: Some(&summary.layers),
        missing_layers: MissingLayers::Refuse,
        ..Default::default()
    };
    let first = candidates.iter().find(|candidate| candidate.config().is_some());
    let rank_num_slots = match first {
        Some(Candidate::File(path, file)) => {
            let placement = file.placement(expected).map_err(|e| e.in_file(path))?;
            let slots = placement.rank_num_slots().to_vec();
            Some(slots).filter(|_| placement.shape().num_slots() == num_slots)
        }
        _ => None,
    };
    let slots = Slots { num_ranks, num_slots, rank_num_slots: rank_num_slots.as_deref() };
    let place = |candidate| place(candidate, stats, expected, slots, planner);
    let placements = candidates.iter().map(place).collect::<Result<Vec<_>>>()?;
    let moved: Vec<_> = placements.iter().map(|placement| moved_slots(&placements[0], placement)).collect();
    let compared = placements.into_iter().zip(moved).map(|(placement, moved_slots)| {
        Recording::new(stats, Some(&placement))?;
        let score = DumpScore::of_placement(stats, &placement, planner.num_samples, planner.threads)?;
        Ok(ScoredCandidate { placement, score, moved_slots })
    });
    compared.collect()
}

/// The slots of policies and in-order.
#[derive(Debug, Clone, Copy)]
struct Slots<'a> {
    num_ranks: usize,
    num_slots: usize,
    /// Those of each rank that are not left empty.
    rank_num_slots: Option<&'a [u32]>,
}

fn place(
    candidate: &Candidate,
    stats: &Stats,
    expected: Expected<'_>,
    slots: Slots<'_>,
    planner: &Planner<'_>,
) -> Result<Placement> {
    let Slots { num_ranks, num_slots, rank_num_slots } = slots;
    let Summary { num_experts, ref layers, .. } = *stats.summary();
    match candidate {
        Candidate::File(path, file) => file.placement(expected).map_err(|e| e.in_file(path)),
        Candidate::Policy(policy) => {
            let all_equal = |slots: &&[u32]| slots.iter().all(|&of_rank| of_rank == slots[0]);
            let rank_num_slots = rank_num_slots.filter(|slots| *policy == Policy::Search || all_equal(slots));
            let rank_num_slots = rank_num_slots.or(planner.solve.rank_num_slots);
            let solve = SolveConfig { policy: *policy, rank_num_slots, ..planner.solve };
            Planner { solve, ..*planner }.place(stats, Shape::new(num_experts, num_slots, num_ranks)?)
        }
        Candidate::InOrder => {
            let shape = Shape::new(num_experts, num_slots, num_ranks)?;
            let width = shape.slots_per_rank();
            let mut experts = experts_in_order(shape);
            for (rank, slots) in rank_num_slots.unwrap_or_default().iter().enumerate() {
                experts[rank * width + *slots as usize..(rank + 1) * width].fill(NO_EXPERT);
            }
            let experts = experts.repeat(layers.len());
            match rank_num_slots {
                Some(slots) => Placement::with_rank_num_slots(shape, slots, layers, &experts),
                None => Placement::new(shape, layers, &experts),
            }
        }
    }
}

/// Counts the experts whose weights must move to replace `from` by `to`, in the layers of `to`.
///
/// An expert moves to each rank that holds it in `to` and not in `from`, once a rank. A change of slot within a rank is no move.
/// Returns `None` if the numbers of experts or ranks differ, or `from` lacks a layer.
pub fn moved_slots(from: &Placement, to: &Placement) -> Option<usize> {
    let same = |size: fn(Shape) -> usize| size(from.shape()) == size(to.shape());
    if !same(|shape| shape.num_experts()) || !same(|shape| shape.num_ranks()) {
        return None;
    }
    let mut moved = 0;
    for &layer in to.layers() {
        for rank in 0..to.shape().num_ranks() {
            let held = from.distinct_experts(layer, rank).ok()?;
            let wanted = to.distinct_experts(layer, rank).ok()?;
            moved += wanted.iter().filter(|expert| held.binary_search(expert).is_err()).count();
        }
    }
    Some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_slots_skips_experts_that_the_rank_already_holds() {
        let placement = |slots: usize, ranks: usize, experts: &[u32]| {
            let num_layers = experts.len() / slots;
            let layers: Vec<u32> = (0..num_layers as u32).collect();
            Placement::new(Shape::new(3, slots, ranks).unwrap(), &layers, experts).unwrap()
        };
        let from = placement(4, 2, &[0, 1, 0, 2]);
        // The same on each rank, in other slots.
        assert_eq!(moved_slots(&from, &placement(4, 2, &[1, 0, 2, 0])), Some(0));
        // Rank 0 gets expert 2, rank 1 expert 1.
        assert_eq!(moved_slots(&from, &placement(4, 2, &[0, 2, 1, 0])), Some(2));
        // With one more slot each, rank 0 gets expert 2. Rank 1 gets expert 1 twice, which counts once.
        assert_eq!(moved_slots(&from, &placement(6, 2, &[0, 1, 2, 1, 2, 1])), Some(2));
        assert_eq!(moved_slots(&from, &placement(4, 1, &[0, 1, 0, 2])), None);
        assert_eq!(moved_slots(&from, &placement(4, 2, &[0, 1, 0, 2, 0, 1, 0, 2])), None);
    }

    #[test]
    fn candidate_from_name_accepts_in_order_policies_and_files() {
        assert_eq!(Candidate::from_name("in-order").unwrap(), Candidate::InOrder);
        assert_eq!(Candidate::from_name("trtllm").unwrap(), Candidate::Policy(Policy::Trtllm));
        let message = Candidate::from_name("no such thing").unwrap_err().to_string();
        assert!(message.starts_with("no such thing: no such file, and unknown policy"), "{message}");
        assert!(message.ends_with("search, and in-order"), "{message}");
    }
}
