//! What a plan may cost, and what it has to gain.

use super::Buffering;
use crate::error::{Error, Result};

/// Limits of one plan. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Slots of a layer that receive an expert.
    pub max_layer_moves: Option<u32>,
    /// Slots of all layers that receive an expert.
    pub max_moves: Option<u32>,
    /// Slots of a rank that receive an expert, over all layers.
    pub max_rank_moves: Option<u32>,
    /// Transfers from a rank to another one, over all layers.
    pub max_pair_moves: Option<u32>,
    /// Layers that change. `None`: the placement's `layer_updates_per_iter`, or all if that is 0.
    pub max_layers: Option<u32>,
    /// Load of the most loaded rank that a move within a node must save.
    pub node_price: f64,
    /// As `node_price`, for a move between nodes.
    pub remote_price: f64,
    /// For how many samples as large as those observed the plan is made. The prices are shared by them.
    pub horizon: f64,
    /// How slots are buffered.
    pub buffering: Buffering,
}

impl Limits {
    /// The limits as words of a hash.
    pub(super) fn words(&self) -> [u64; 9] {
        let of = |limit: Option<u32>| limit.map_or(u64::MAX, u64::from);
        [
            of(self.max_layer_moves),
            of(self.max_moves),
            of(self.max_rank_moves),
            of(self.max_pair_moves),
            of(self.max_layers),
            self.node_price.to_bits(),
            self.remote_price.to_bits(),
            self.horizon.to_bits(),
            self.buffering as u64,
        ]
    }

    pub(super) fn check(&self) -> Result<()> {
        for (name, price) in [("node_price", self.node_price), ("remote_price", self.remote_price)] {
            if !(price.is_finite() && price >= 0.0) {
                return Err(refuse(name, price, "a finite number from 0 on"));
            }
        }
        if !(self.horizon.is_finite() && self.horizon > 0.0) {
            return Err(refuse("horizon", self.horizon, "a finite number above 0"));
        }
        Ok(())
    }

    /// Whether no slot may change.
    pub(super) fn forbid_moves(&self) -> bool {
        [self.max_layer_moves, self.max_moves, self.max_rank_moves, self.max_layers].contains(&Some(0))
    }

    /// Whether layers depend on each other.
    pub(super) fn are_shared(&self) -> bool {
        let shared = [self.max_moves, self.max_rank_moves, self.max_pair_moves, self.max_layers];
        shared.iter().any(Option::is_some)
    }
}

/// When a rebalancer plans at all. Every gate can hold a plan back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gates {
    /// Plans start where the balancedness is below this.
    pub trigger: f64,
    /// Plans end where it has reached this.
    pub release: f64,
    /// Observations between the end of a plan and the next plan.
    pub cooldown: u64,
    /// Tokens that all windows must have together.
    pub min_tokens: u64,
    /// What a layer must gain in max / mean.
    pub min_gain: f64,
    /// What a layer must gain, as a share of its max / mean - 1.
    pub min_relative_gain: f64,
    /// By how many standard deviations a layer's gain must exceed what sampling noise gains. Negative: noise counts.
    pub noise: f64,
}

impl Gates {
    /// No gate holds a plan back.
    pub const OFF: Gates = Gates {
        trigger: 1.0,
        release: 1.0,
        cooldown: 0,
        min_tokens: 0,
        min_gain: 0.0,
        min_relative_gain: 0.0,
        noise: -1.0,
    };

    /// The defaults of a model with so many experts a layer and a token.
    pub fn of_model(num_experts: usize, experts_per_token: usize) -> Self {
        Gates {
            trigger: 0.95,
            release: 0.98,
            cooldown: 1,
            min_tokens: (100 * num_experts as u64).div_ceil(experts_per_token.max(1) as u64),
            min_gain: 0.005,
            min_relative_gain: 0.05,
            noise: 3.0,
        }
    }

    pub(super) fn words(&self) -> [u64; 7] {
        [
            self.trigger.to_bits(),
            self.release.to_bits(),
            self.cooldown,
            self.min_tokens,
            self.min_gain.to_bits(),
            self.min_relative_gain.to_bits(),
            self.noise.to_bits(),
        ]
    }

    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("trigger", self.trigger), ("release", self.release)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(refuse(name, value, "a balancedness from 0 to 1"));
            }
        }
        if self.release < self.trigger {
            return Err(refuse("release", self.release, &format!("at least trigger, {}", self.trigger)));
        }
        for (name, value) in [("min_gain", self.min_gain), ("min_relative_gain", self.min_relative_gain)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(refuse(name, value, "a finite number from 0 on"));
            }
        }
        if !self.noise.is_finite() {
            return Err(refuse("noise", self.noise, "a finite number"));
        }
        Ok(())
    }
}

fn refuse(name: &str, value: f64, expected: &str) -> Error {
    Error::InvalidArgument(format!("{name} is {value}; {expected} expected"))
}
