//! The loads of experts and ranks in each row of a dump, with or without a placement.

use super::Idle;
use super::balance::in_order_rank_loads;
use crate::error::{Error, Result};
use crate::placement::{ConfigFile, Expected, Placement, held_slots};
use crate::stats::{IdKind, Stats, Summary};

/// A dump's counts as loads of experts, whether experts or slots were counted.
#[derive(Debug, Clone, Copy)]
pub struct Recording<'a> {
    stats: &'a Stats,
    placement: Option<&'a Placement>,
    counts_slots: bool,
}

impl<'a> Recording<'a> {
    /// `placement` is the placement to report on. If the dump counts slots, it is the placement that was in use.
    ///
    /// TensorRT-LLM's dumps do not record whether they count slots. Slots are assumed if the number of ids equals the number of
    /// slots and differs from the number of experts, and else experts: see [`Recording::is_ambiguous`].
    ///
    /// Fails if the number of ids equals neither, or if `placement` lacks a layer of the dump.
    pub fn new(stats: &'a Stats, placement: Option<&'a Placement>) -> Result<Self> {
        let Summary { num_experts: ids, id_kind, .. } = *stats.summary();
        let mut counts_slots = id_kind == Some(IdKind::Slot);
        if let Some(placement) = placement {
            let (experts, slots) = (placement.shape().num_experts(), placement.shape().num_slots());
            counts_slots |= ids == slots && ids != experts;
            if counts_slots && ids != slots {
                return Err(Error::InvalidDump(format!(
                    "it counts {ids} slots, the placement has {slots}: it was recorded with another placement"
                )));
            }
            if !counts_slots && ids != experts {
                return Err(Error::InvalidDump(format!(
                    "it counts {ids} ids, and the placement has {experts} experts in {slots} slots: it is of another model"
                )));
            }
            for &layer in &stats.summary().layers {
                placement.layer_experts(layer)?;
            }
        }
        Ok(Recording { stats, placement, counts_slots })
    }

    /// The dump's sizes.
    pub fn summary(&self) -> &'a Summary {
        self.stats.summary()
    }

    /// The placement to report on.
    pub fn placement(&self) -> Option<&'a Placement> {
        self.placement
    }

    /// Whether the counts are of slots, not of experts.
    pub fn counts_slots(&self) -> bool {
        self.counts_slots
    }

    /// Whether experts were assumed, but slots would give other figures: the dump does not say what it counts, and the placement has
    /// as many slots as experts, in another order. See [`LoadOptions::counts`](crate::stats::LoadOptions::counts).
    pub fn is_ambiguous(&self) -> bool {
        let in_order = |experts: &[u32]| (0..).zip(experts).all(|(slot, &expert)| slot == expert);
        let differs = |placement: &Placement| {
            let shape = placement.shape();
            shape.num_slots() == shape.num_experts()
                && !placement.iter().all(|(_, experts)| in_order(experts))
        };
        self.summary().id_kind.is_none() && self.placement.is_some_and(differs)
    }

    /// The ranks of the dump. If it counts the slots of a placement, the placement's ranks. Fails as [`Summary::ep_size`] does.
    pub fn num_ranks(&self) -> Result<usize> {
        match self.placement.filter(|_| self.counts_slots) {
            Some(placement) => Ok(placement.shape().num_ranks()),
            None => self.summary().ep_size(),
        }
    }

    /// Where the dump has no load.
    pub fn idle(&self) -> Result<Idle> {
        Idle::of(self.stats)
    }

    /// Returns the loads of `layer` in each row.
    pub fn loads(&self, layer: u32) -> Result<RecordedLoads> {
        let dumped = self.stats.layer_rows(layer)?;
        let Some(placement) = self.placement.filter(|_| self.counts_slots) else {
            return Ok(RecordedLoads { dumped, experts: None });
        };
        let (shape, slot_experts) = (placement.shape(), placement.layer_experts(layer)?);
        let mut experts = vec![0.0; dumped.len() / shape.num_slots() * shape.num_experts()];
        for (loads, slots) in
            experts.chunks_exact_mut(shape.num_experts()).zip(dumped.chunks_exact(shape.num_slots()))
        {
            for (slot, expert) in held_slots(slot_experts) {
                loads[expert as usize] += slots[slot];
            }
        }
        Ok(RecordedLoads { dumped, experts: Some(experts) })
    }

    /// The load of each of `num_ranks` as dumped, `[rows][ranks]`. Each rank has consecutive ids.
    pub(super) fn measured(&self, loads: &RecordedLoads, num_ranks: usize) -> Vec<Vec<f64>> {
        let rows = loads.dumped.chunks_exact(self.summary().num_experts);
        rows.map(|row| in_order_rank_loads(num_ranks, row)).collect()
    }
}

/// The loads of one layer of a [`Recording`].
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedLoads {
    dumped: Vec<f64>,
    /// `None` if they equal `dumped`.
    experts: Option<Vec<f64>>,
}

impl RecordedLoads {
    /// The loads of the counted ids, `[rows][num_experts]` of the summary.
    pub fn dumped(&self) -> &[f64] {
        &self.dumped
    }

    /// The loads of experts, `[rows][experts]`. An expert's load is the sum over its slots if slots were counted. Without a
    /// placement the expert of a slot is unknown, and these are the slots' loads.
    pub fn experts(&self) -> &[f64] {
        self.experts.as_ref().unwrap_or(&self.dumped)
    }
}

/// Resolves a configuration file for the model of a dump, on `num_ranks` ranks. `None` takes the file's number of ranks, or the
/// dump's if the file has none.
///
/// TensorRT-LLM's dumps do not record whether they count slots. Slots are assumed if the number of ids equals the file's number
/// of slots and exceeds its number of experts.
pub fn placement_for_dump(
    config: &ConfigFile,
    summary: &Summary,
    num_ranks: Option<usize>,
) -> Result<Placement> {
    let num_ids = summary.num_experts;
    let has_fewer_experts = config.num_experts().is_some_and(|num_experts| num_experts < num_ids);
    let counts_slots =
        summary.id_kind == Some(IdKind::Slot) || (config.num_slots == Some(num_ids) && has_fewer_experts);
    let num_ranks = num_ranks.or(config.ep_size).map_or_else(|| summary.ep_size(), Ok)?;
    config.placement(Expected {
        // If slots were counted, only the file has the number of experts.
        num_experts: (!counts_slots).then_some(num_ids),
        num_ranks: Some(num_ranks),
        layers: Some(&summary.layers),
        ..Default::default()
    })
}
