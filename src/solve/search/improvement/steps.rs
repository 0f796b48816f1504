//! The step with the best gain per changed slot, of those that are tried.

use super::costs::LayerCosts;
use super::exchanges::Exchanges;
use super::replacements::Wanted;
use super::rules::{Best, FoundStep, Rules};
use super::{LAST_SQUARINGS, LEAST_STEP_GAIN};
use crate::solve::search::lanes::{Kernel, LANES, Lanes, Vector, most_of};

/// Ranks are hot if their cost is at least this part of the most: for the exponent 8, for higher ones, and for higher
/// ones with one sample. A step must take load off a hot rank, where one gains. With higher exponents, the last change
/// of a layer is no exchange, and must take load off a hot rank.
const HOT: [f32; 3] = [0.5, 0.9, 1.0];

/// Finds the step with the best gain per changed slot, of those that take load off a hot rank. Exchanges of ranks whose last
/// score says that they gain less are left out until nothing else gains with the last exponent.
pub(super) struct BestStep<'s> {
    pub costs: &'s LayerCosts,
    pub rules: &'s Rules<'s>,
    pub exchanges: &'s mut Exchanges,
    pub wanted: &'s mut Wanted,
    /// Memory for the hot ranks.
    pub hot: &'s mut Vec<usize>,
    /// An expert without a replica, which gets one at any cost. `None`: all steps that gain.
    pub restored: Option<u32>,
}

impl Kernel for BestStep<'_> {
    type Output = Option<FoundStep>;

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) -> Self::Output {
        let BestStep { costs, rules, exchanges, wanted, hot, restored } = self;
        let exponent = (1 << SQUARINGS) as f32;
        let least_score = if restored.is_some() { f32::NEG_INFINITY } else { LEAST_STEP_GAIN * exponent };
        let mut best = Best { score: least_score, step: None };
        let hottest = most_of::<V>(&costs.costs);
        let is_sharp = SQUARINGS > 3;
        let may_exchange = restored.is_none() && (!is_sharp || rules.left() >= 2);
        let hot_part = HOT[usize::from(is_sharp) + usize::from(is_sharp && costs.num_samples == 1)];
        // The last exponent ends where no exchange of any ranks gains.
        let num_passes = if may_exchange && SQUARINGS == LAST_SQUARINGS { 3 } else { 1 };
        for (pass, part) in [hot_part, hot_part, 0.0].into_iter().take(num_passes).enumerate() {
            hot.clear();
            // No rank counts as hot where an expert is restored.
            let bound = if restored.is_some() { f32::INFINITY } else { (part * hottest).next_down() };
            for (block, of_block) in costs.costs.as_chunks().0.iter().enumerate() {
                let mut above = V::load(&Lanes(*of_block)).above(bound);
                while above != 0 {
                    hot.push(block * LANES + above.trailing_zeros() as usize);
                    above &= above - 1;
                }
            }
            hot.truncate(hot.partition_point(|&rank| rank < costs.num_ranks));
            // The second pass has the hot ranks of the first, and so its replacements.
            if pass != 1 {
                wanted.find::<V, SQUARINGS>(costs, rules, restored, hot, &mut best);
            }
            if may_exchange {
                exchanges.find::<V, SQUARINGS>(costs, rules, hot, pass == 0, &mut best);
            }
            if best.step.is_some() {
                break;
            }
        }
        best.step
    }
}
