//! The tables that each rule needs beside the dispatch tables.

use super::DispatchConfig;
use super::least_loaded::SplitPlan;
use super::nearest;
use super::rule::Rule;
use super::tables::LayerTables;
use crate::placement::Shape;

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
    LeastLoaded(Box<SplitPlan>),
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
            Rule::LeastLoaded => RuleTables::LeastLoaded(Box::new(SplitPlan::new(shape, tables))),
        }
    }
}
