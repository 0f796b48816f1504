//! A dump beside the placement that was, or is to be, in force: what each expert and each rank got, iteration by iteration.

use super::in_order;
use crate::error::{Error, Result};
use crate::placement::{Placement, held_slots};
use crate::stats::{Counted, Stats, Summary};

/// The counts of a dump, read as loads of experts whichever ids were counted.
#[derive(Debug, Clone, Copy)]
pub struct Recording<'a> {
    stats: &'a Stats,
    placement: Option<&'a Placement>,
    counts_slots: bool,
}

impl<'a> Recording<'a> {
    /// `placement` is the one to report about; where the dump counts slots, it is the one that was in force.
    ///
    /// TensorRT-LLM's dumps do not say that they count slots. One with as many ids as `placement` has slots, and not experts,
    /// does, since no expert is without a slot. Fails where the ids are neither, and where a layer has no placement.
    pub fn new(stats: &'a Stats, placement: Option<&'a Placement>) -> Result<Self> {
        let Summary { num_experts: ids, counted, .. } = *stats.summary();
        let mut counts_slots = counted == Counted::Slots;
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

    /// What the counts are of.
    pub fn summary(&self) -> &'a Summary {
        self.stats.summary()
    }

    /// The placement to report about.
    pub fn placement(&self) -> Option<&'a Placement> {
        self.placement
    }

    /// Whether slots were counted and not experts.
    pub fn counts_slots(&self) -> bool {
        self.counts_slots
    }

    /// Ranks as dumped; where slots were counted in a placement, its own.
    pub fn num_ranks(&self) -> usize {
        match self.placement.filter(|_| self.counts_slots) {
            Some(placement) => placement.shape().num_ranks(),
            None => self.summary().num_ranks,
        }
    }

    /// The counts of `layer` as dumped, `[iterations][num_experts]` of the summary: of slots where those were counted.
    pub fn dumped(&self, layer: u32) -> Result<Vec<f64>> {
        let Summary { iterations, num_experts, .. } = *self.summary();
        self.stats.layer_samples(layer, iterations.len() as usize, num_experts)
    }

    /// The loads of the experts of `layer`, `[iterations][experts]`. Slots that were counted are added up by expert; without
    /// a placement nothing tells which those are, and each is its own.
    pub fn expert_loads(&self, layer: u32) -> Result<Vec<f64>> {
        let dumped = self.dumped(layer)?;
        let Some(placement) = self.placement.filter(|_| self.counts_slots) else { return Ok(dumped) };
        let (shape, slot_experts) = (placement.shape(), placement.layer_experts(layer)?);
        let mut loads = vec![0.0; dumped.len() / shape.num_slots() * shape.num_experts()];
        for (loads, slots) in
            loads.chunks_exact_mut(shape.num_experts()).zip(dumped.chunks_exact(shape.num_slots()))
        {
            for (slot, expert) in held_slots(slot_experts) {
                loads[expert as usize] += slots[slot];
            }
        }
        Ok(loads)
    }

    /// What each rank got in `layer` as dumped, `[iterations][ranks]`: consecutive ids are on each.
    pub(super) fn measured(&self, dumped: &[f64]) -> Vec<Vec<f64>> {
        let rows = dumped.chunks_exact(self.summary().num_experts);
        rows.map(|row| in_order(self.num_ranks(), row)).collect()
    }
}
