//! The rules, and the tables that each needs beside the dispatch tables.

use super::DispatchConfig;
use super::least_loaded::SplitPlan;
use super::nearest;
use super::tables::LayerTables;
use crate::placement::Shape;

/// Ids of a block, the unit of round robin and nearest: `EPLB_ROUTE_BLOCK` of the kernels.
pub(super) const BLOCK_IDS: usize = 1024;

/// 2^32 over the golden ratio. Multiples of it, mod 2^32, are spread evenly.
pub(super) const GOLDEN_RATIO: u32 = 2_654_435_769;

/// Which replica of an expert serves a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// TensorRT-LLM's: an expert's replicas in turn within each block of 1024 ids.
    RoundRobin,
    /// vLLM's: by a hash of the token's index.
    TokenHash,
    /// Own rank first, then own node, each replica with its fair share.
    Nearest,
    /// The one that makes the ranks' loads most even.
    LeastLoaded,
}

/// The tables of a rule for one layer, beside the dispatch tables.
#[derive(Debug)]
pub(super) enum RuleTables {
    /// Round robin needs none.
    RoundRobin,
    /// Token hash needs none.
    TokenHash,
    /// The shares of the nearest rule.
    Nearest(Vec<u32>),
    /// How the tokens of experts with several slots are split.
    LeastLoaded(SplitPlan),
}

impl RuleTables {
    /// The tables of the config's rule.
    pub fn new(shape: Shape, tables: &LayerTables, config: &DispatchConfig) -> Self {
        match config.rule {
            Rule::RoundRobin => RuleTables::RoundRobin,
            Rule::TokenHash => RuleTables::TokenHash,
            Rule::Nearest => {
                let one_node = vec![0; shape.num_ranks()];
                let nodes = config.rank_to_node.unwrap_or(&one_node);
                RuleTables::Nearest(nearest::shares(shape, tables, config.rank, nodes))
            }
            Rule::LeastLoaded => RuleTables::LeastLoaded(SplitPlan::new(shape, tables)),
        }
    }
}
