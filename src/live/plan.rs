//! A plan: the layers to change, in order of gain a move, and the words that all ranks compare.

use std::ffi::{CStr, CString};
use std::sync::Arc;

use super::agreement::Hash;
use super::keep_slots::keep_slots;
use super::layer_plan::{LayerPlan, PlannedBalance};
use super::sources::Memory;
use super::transfer::Transfer;
use super::{Buffering, Fabric};
use crate::error::{Error, Result};
use crate::placement::{LayerUpdate, Placement, Shape};

/// Why a plan moves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeepReason {
    /// The two placements are the same.
    Same,
    /// Another plan of the rebalancer is in flight.
    InFlight,
    /// No window with counts was observed.
    NoCounts,
    /// Fewer than `min_tokens` were observed.
    FewTokens,
    /// The last plan ended less than `cooldown` windows ago.
    Cooldown,
    /// The placement is as even as the gates require.
    Balanced,
    /// What a plan would gain is no more than sampling noise.
    Noise,
    /// What a plan would gain is below `min_gain`.
    SmallGain,
    /// No move within the limits gains more than its price.
    NoMove,
}

impl KeepReason {
    /// Every reason, by its number.
    pub const ALL: [KeepReason; 9] = [
        KeepReason::Same,
        KeepReason::InFlight,
        KeepReason::NoCounts,
        KeepReason::FewTokens,
        KeepReason::Cooldown,
        KeepReason::Balanced,
        KeepReason::Noise,
        KeepReason::SmallGain,
        KeepReason::NoMove,
    ];

    /// The reason as a label.
    pub fn name(self) -> &'static str {
        match self {
            KeepReason::Same => "same",
            KeepReason::InFlight => "in_flight",
            KeepReason::NoCounts => "no_counts",
            KeepReason::FewTokens => "few_tokens",
            KeepReason::Cooldown => "cooldown",
            KeepReason::Balanced => "balanced",
            KeepReason::Noise => "noise",
            KeepReason::SmallGain => "small_gain",
            KeepReason::NoMove => "no_move",
        }
    }

    /// The reason in words.
    pub fn text(self) -> &'static str {
        match self {
            KeepReason::Same => "both placements are the same",
            KeepReason::InFlight => "a plan is in flight",
            KeepReason::NoCounts => "no window with counts was observed",
            KeepReason::FewTokens => "too few tokens were observed",
            KeepReason::Cooldown => "the last plan ended just before",
            KeepReason::Balanced => "the placement is even enough",
            KeepReason::Noise => "no layer would gain more than sampling noise",
            KeepReason::SmallGain => "no layer would gain min_gain and min_relative_gain",
            KeepReason::NoMove => "no move within the limits gains more than its price",
        }
    }
}

/// Options of [`Plan::between`].
#[derive(Debug, Clone, Copy, Default)]
pub struct PlanOptions<'a> {
    /// How slots are buffered.
    pub buffering: Buffering,
    /// The node of each rank, `[num_ranks]`. `None`: all are on one.
    pub rank_to_node: Option<&'a [i32]>,
    /// Ranks that may send, `[num_ranks]`. `None`: all.
    pub active: Option<&'a [bool]>,
}

/// The moves from one placement to another. A plan never changes, so threads may share it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) shape: Shape,
    pub(super) keep: Option<KeepReason>,
    /// By falling gain a move; by number where no gain is known.
    pub(super) layers: Vec<LayerPlan>,
    pub(super) balance: PlannedBalance,
    pub(super) hash: u64,
    /// The layers' numbers, in the same order.
    layer_ids: Vec<u32>,
    message: CString,
    /// Of a rebalancer's plan: the rebalancer, and the plan.
    tickets: Option<(Arc<()>, Arc<()>)>,
}

impl Plan {
    /// Plans the moves from a placement to another of the same experts, slots, ranks and layers. Experts that stay on a rank keep
    /// their slots, so the slots of `to` may change places within a rank.
    ///
    /// Fails with [`Error::InvalidShape`] for other placements, and with [`Error::InvalidPlacement`] if `to` uses an inactive
    /// rank.
    pub fn between(from: &Placement, to: &Placement, options: PlanOptions) -> Result<Self> {
        let shape = from.shape();
        check_same_shape(from, to)?;
        let fabric = Fabric { shape, nodes: options.rank_to_node, active: options.active };
        fabric.check(to)?;
        let (mut layers, mut memory) = (Vec::new(), Memory::default());
        for ((layer, from), (_, to)) in from.iter().zip(to.iter()) {
            let to = keep_slots(shape, from, to.to_vec(), |_| false);
            if to != from {
                layers.extend(LayerPlan::new(
                    &fabric,
                    options.buffering,
                    (layer, 0),
                    (from, to),
                    None,
                    &mut memory,
                ));
            }
        }
        let keep = layers.is_empty().then(|| (KeepReason::Same, KeepReason::Same.text().to_owned()));
        let mut hash = Hash::new();
        hash.add(from.hash());
        Ok(Plan::new(shape, keep, layers, PlannedBalance::default(), hash))
    }

    /// A plan, or the reason why there is none. `hash` is of what it was made from.
    pub(super) fn new(
        shape: Shape,
        keep: Option<(KeepReason, String)>,
        layers: Vec<LayerPlan>,
        balance: PlannedBalance,
        hash: Hash,
    ) -> Self {
        let layer_ids = layers.iter().map(LayerPlan::layer).collect();
        let moves: usize = layers.iter().map(LayerPlan::num_moves).sum();
        let (keep, message) = match keep {
            Some((reason, message)) => (Some(reason), message),
            None => (None, format!("{moves} slots of {} layers receive an expert", layers.len())),
        };
        let message = CString::new(message).unwrap_or_default();
        Plan { shape, keep, layers, balance, hash: 0, layer_ids, message, tickets: None }.with_hash(hash)
    }

    /// The plan as one of a rebalancer.
    pub(super) fn of(self, rebalancer: Arc<()>, ticket: Arc<()>) -> Self {
        Plan { tickets: Some((rebalancer, ticket)), ..self }
    }

    pub(super) fn is_owned_by(&self, rebalancer: &Arc<()>) -> bool {
        self.tickets.as_ref().is_some_and(|(owner, _)| Arc::ptr_eq(owner, rebalancer))
    }

    pub(super) fn has_ticket(&self, ticket: &Arc<()>) -> bool {
        self.tickets.as_ref().is_some_and(|(_, own)| Arc::ptr_eq(own, ticket))
    }

    /// Adds the decision, the tables and the transfers to the hash of what the plan was made from.
    fn with_hash(self, mut hash: Hash) -> Self {
        hash.add(self.keep.map_or(0, |reason| 1 + reason as u64));
        for plan in &self.layers {
            hash.add_all([u64::from(plan.layer), plan.generation, plan.buffering as u64]);
            for table in &plan.tables {
                let mut num_changed = 0;
                for (slot, (&to, &from)) in table.iter().zip(&plan.from).enumerate() {
                    if to != from {
                        hash.add((slot as u64) << 32 | u64::from(to));
                        num_changed += 1;
                    }
                }
                hash.add(num_changed);
            }
            for transfer in &plan.transfers {
                let values = [
                    transfer.round,
                    transfer.expert,
                    transfer.src_slot.unwrap_or(u32::MAX),
                    transfer.dst_slot,
                    transfer.kind as u32,
                ];
                hash.add_values(&values);
            }
        }
        Plan { hash: hash.word(), ..self }
    }

    /// Experts, slots and ranks.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Why the plan moves nothing. `None` if it changes a layer.
    pub fn keep_reason(&self) -> Option<KeepReason> {
        self.keep
    }

    /// The layers that change. The first ones gain most a move, so a plan that ends early is the best of its length.
    pub fn layers(&self) -> &[LayerPlan] {
        &self.layers
    }

    /// The numbers of [`Plan::layers`].
    pub fn layer_ids(&self) -> &[u32] {
        &self.layer_ids
    }

    /// What the plan does, or why it keeps the placement.
    pub fn message(&self) -> &CStr {
        &self.message
    }

    /// The transfers of a layer in which a rank takes part, all for -1.
    pub fn transfers_of(&self, layer: u32, rank: i32) -> Result<Vec<Transfer>> {
        let (plan, shape) = (self.layer(layer)?, self.shape);
        if rank == -1 {
            return Ok(plan.transfers.clone());
        }
        let rank = usize::try_from(rank).ok().filter(|&rank| rank < shape.num_ranks()).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "rank {rank} is not one of {} ranks, nor -1 for all",
                shape.num_ranks()
            ))
        })?;
        let takes_part =
            |transfer: &&Transfer| transfer.dst_rank(shape) == rank || transfer.src_rank(shape) == Some(rank);
        Ok(plan.transfers.iter().filter(takes_part).copied().collect())
    }

    /// What the plan changes in a layer. Fails with [`Error::InvalidArgument`] for a layer that it does not change.
    pub fn layer(&self, layer: u32) -> Result<&LayerPlan> {
        self.layers.iter().find(|plan| plan.layer == layer).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "the plan does not change layer {layer}; eplb_plan_get_info() lists the {} layers that it does",
                self.layers.len()
            ))
        })
    }

    /// The mean over the layers that were planned.
    pub fn balance(&self) -> PlannedBalance {
        self.balance
    }

    /// The number of slots that receive an expert.
    pub fn num_moves(&self) -> usize {
        self.layers.iter().map(LayerPlan::num_moves).sum()
    }

    /// A hash of the placement in force, the limits, the decision and the transfers, and its complement. Ranks reduce both by
    /// maximum: all have the same plan if the first result is the complement of the second.
    pub fn agreement_words(&self) -> [u64; 2] {
        [self.hash, !self.hash]
    }

    /// Calls `take` with the change of each commit of a layer in order, until one is not [stale](Error::Stale) for the receiver:
    /// a layer that drains has two.
    pub fn apply(&self, layer: u32, mut take: impl FnMut(&LayerUpdate) -> Result<()>) -> Result<()> {
        let plan = self.layer(layer)?;
        let mut result = take(&plan.update(0));
        for commit in 1..plan.num_commits() {
            if matches!(result, Err(Error::Stale(_))) {
                result = take(&plan.update(commit));
            }
        }
        result
    }
}

fn check_same_shape(from: &Placement, to: &Placement) -> Result<()> {
    let sizes = |placement: &Placement| {
        let shape = placement.shape();
        format!(
            "{} experts, {} slots, {} ranks and {} layers",
            shape.num_experts(),
            shape.num_slots(),
            shape.num_ranks(),
            placement.layers().len()
        )
    };
    let same = from.shape() == to.shape()
        && from.layers() == to.layers()
        && from.rank_num_slots() == to.rank_num_slots();
    match same {
        true => Ok(()),
        false => Err(Error::InvalidShape(format!(
            "a plan needs placements of the same experts, slots, ranks, slots of each rank and layers; from has {}, to {}; \
             another scale needs a new dispatch",
            sizes(from),
            sizes(to)
        ))),
    }
}
