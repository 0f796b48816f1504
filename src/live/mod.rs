//! Live rebalancing: which experts to move while an engine runs, and how. Host only: no device, no file.

mod agreement;
mod candidates;
#[cfg(test)]
mod cluster_tests;
mod config;
mod history;
mod in_place;
mod keep_slots;
mod layer_loads;
mod layer_plan;
mod limits;
mod plan;
mod planning;
#[cfg(test)]
mod planning_tests;
mod rebalancer;
#[cfg(test)]
mod rebalancer_tests;
mod rounds;
mod searched;
mod select;
mod sources;
mod transfer;

pub use agreement::DISAGREE;
pub use config::RebalancerConfig;
pub use layer_plan::{LayerPlan, PlannedBalance};
pub use limits::{Gates, Limits};
pub use plan::{KeepReason, Plan, PlanOptions};
pub use rebalancer::{Rebalancer, RebalancerInfo};
pub use transfer::{Transfer, TransferKind};

use crate::error::{Error, Result};
use crate::placement::{Placement, Shape, held_slots};

/// Where arriving experts go before their layer changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Buffering {
    /// Into staging slots, which become the slots when the table changes.
    #[default]
    Staged,
    /// Into the slots, in an order in which no slot is overwritten before its last read. The layer must not run until its table
    /// has changed.
    InPlace,
    /// Into slots that a first change of the table has emptied, while the layer runs.
    Drain,
}

/// The ranks, their nodes, and which of them are active.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fabric<'a> {
    pub shape: Shape,
    pub nodes: Option<&'a [i32]>,
    pub active: Option<&'a [bool]>,
}

impl Fabric<'_> {
    fn num_active(&self) -> usize {
        let all = self.shape.num_ranks();
        self.active.map_or(all, |active| active.iter().filter(|&&active| active).count())
    }

    /// The slots of active ranks.
    fn num_slots(&self, rank_num_slots: &[u32]) -> usize {
        let of_ranks = rank_num_slots.iter().enumerate();
        of_ranks.filter(|&(rank, _)| self.is_active(rank)).map(|(_, &slots)| slots as usize).sum()
    }

    fn is_active(&self, rank: usize) -> bool {
        self.active.is_none_or(|active| active[rank])
    }

    fn kind(&self, from: usize, to: usize) -> TransferKind {
        match from == to {
            true => TransferKind::Local,
            false if self.nodes.is_none_or(|nodes| nodes[from] == nodes[to]) => TransferKind::Node,
            false => TransferKind::Remote,
        }
    }

    /// Fails if an inactive rank is to hold an expert.
    fn check(&self, to: &Placement) -> Result<()> {
        for (layer, experts) in to.iter() {
            let used = held_slots(experts).find(|&(slot, _)| !self.is_active(self.shape.rank_of(slot)));
            if let Some((slot, expert)) = used {
                return Err(Error::InvalidPlacement(format!(
                    "layer {layer}, rank {}, slot {slot} is to hold expert {expert}, but the rank is not active",
                    self.shape.rank_of(slot)
                )));
            }
        }
        Ok(())
    }
}
