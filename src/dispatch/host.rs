//! Routing on the host, with the same slots as the kernels.

use super::config::{DispatchConfig, check};
use super::least_loaded::LeastLoaded;
use super::nearest::Nearest;
use super::round_robin::RoundRobin;
use super::routing::Routing;
use super::rule_tables::RuleTables;
use super::tables::LayerTables;
use super::token_hash::TokenHash;
use crate::device::{Id, IdType, Place};
use crate::error::Result;
use crate::placement::{Placement, Shape};

/// A layer's tables as the host routes by them, and its working memory.
#[derive(Debug)]
pub(super) struct HostRouter {
    /// The slot of invalid ids and padding.
    invalid_slot: u32,
    tables: LayerTables,
    rule: HostRule,
}

#[derive(Debug)]
enum HostRule {
    RoundRobin(RoundRobin),
    TokenHash(TokenHash),
    Nearest(Nearest),
    LeastLoaded(Box<LeastLoaded>),
}

impl HostRouter {
    /// Routes by the tables of a layer.
    pub fn new(shape: Shape, tables: LayerTables, rule: RuleTables, config: &DispatchConfig) -> Self {
        let rule = match rule {
            RuleTables::RoundRobin => {
                HostRule::RoundRobin(RoundRobin::new(shape, &tables, config.block_offset()))
            }
            RuleTables::TokenHash => HostRule::TokenHash(TokenHash::new(shape, &tables)),
            RuleTables::Nearest(shares) => {
                HostRule::Nearest(Nearest::new(shape, &tables, shares, config.block_offset()))
            }
            RuleTables::LeastLoaded(plan) => {
                HostRule::LeastLoaded(Box::new(LeastLoaded::new(shape, &tables, plan, config.rank)))
            }
        };
        HostRouter { invalid_slot: shape.num_slots() as u32, tables, rule }
    }

    /// Routes a batch. `rank_counts`, for [`Rule::LeastLoaded`](super::Rule::LeastLoaded), returns the counts of all ranks, each
    /// below 2^31, by index in `[num_ranks][num_experts]`.
    ///
    /// # Safety
    /// Ids and slots are in host memory.
    pub unsafe fn run(&mut self, routing: &Routing, rank_counts: Option<impl Fn(usize) -> u64>) {
        if routing.num_ids() == 0 {
            return;
        }
        let choices = routing.experts_per_token() as usize;
        match routing.ids().kind() {
            IdType::Int32 => {
                // SAFETY: the caller's promise, and the ids are of this type.
                let (ids, valid) = unsafe { routing.copied_ids_on_host::<i32>() };
                self.route(ids, valid, choices, rank_counts);
            }
            IdType::Int64 => {
                // SAFETY: as above.
                let (ids, valid) = unsafe { routing.copied_ids_on_host::<i64>() };
                self.route(ids, valid, choices, rank_counts);
            }
        }
    }

    /// Replaces ids by their slots. The first `valid` ids are of valid tokens.
    fn route<I: Id>(
        &mut self,
        ids: &mut [I],
        valid: usize,
        experts_per_token: usize,
        rank_counts: Option<impl Fn(usize) -> u64>,
    ) {
        let (ids, padding) = ids.split_at_mut(valid);
        padding.fill(I::of_slot(self.invalid_slot));
        match &mut self.rule {
            HostRule::RoundRobin(rule) => rule.route(ids, &self.tables),
            HostRule::TokenHash(rule) => rule.route(ids, experts_per_token),
            HostRule::Nearest(rule) => rule.route(ids, &self.tables),
            HostRule::LeastLoaded(rule) => rule.route(ids, &self.tables, rank_counts.as_ref()),
        }
    }
}

/// Replaces the ids of one batch for each rank by slots, as that rank would. `batches` is `[num_ranks]` of
/// `[tokens][experts_per_token]`. The config's rank and place are ignored. With `rank_counts`, `[num_ranks][num_experts]`,
/// [`Rule::LeastLoaded`](super::Rule::LeastLoaded) evens out the totals of all ranks.
pub(crate) fn route_batches<I: Id>(
    placement: &Placement,
    layer: u32,
    config: &DispatchConfig,
    batches: &mut [&mut [I]],
    rank_counts: Option<&[u64]>,
) -> Result<()> {
    let shape = placement.shape();
    let only = [layer];
    let of_rank = |rank| DispatchConfig { rank, layers: Some(&only), place: Place::Host, ..*config };
    check(placement, &of_rank(0))?;
    let tables = LayerTables::new(shape, placement.layer_experts(layer)?);
    for (rank, ids) in batches.iter_mut().enumerate().filter(|(_, ids)| !ids.is_empty()) {
        let config = of_rank(rank);
        let rule = RuleTables::new(shape, &tables, &config);
        let mut router = HostRouter::new(shape, tables.clone(), rule, &config);
        let valid = ids.len();
        let rank_counts = rank_counts.map(|counts| |index: usize| counts[index]);
        router.route(ids, valid, config.experts_per_token, rank_counts);
    }
    Ok(())
}
