//! Planning all layers of a rebalancer.

use super::Fabric;
use super::candidates::{Candidates, Layer};
use super::config::RebalancerConfig;
use super::history::{History, Sample};
use super::layer_loads::mean_balance;
use super::layer_plan::{LayerPlan, PlannedBalance};
use super::limits::Limits;
use super::plan::KeepReason;
use super::select::{Choice, select};
use crate::error::Result;
use crate::placement::Placement;
use crate::solve::lower_bound_of_unequal_ranks;
use crate::threads;

/// What is planned from.
pub(super) struct Planning<'a> {
    pub config: &'a RebalancerConfig,
    pub fabric: &'a Fabric<'a>,
    /// Its layers, shape and slots of ranks.
    pub placement: &'a Placement,
    /// The expert of each slot in force, by layer.
    pub slots: &'a [Vec<u32>],
    pub generations: &'a [u64],
    /// Slots that keep what they hold.
    pub is_fixed: &'a [Vec<bool>],
    pub history: &'a History,
    pub limits: &'a Limits,
}

/// The layers that change, by falling gain a move, and the balance of all.
pub(super) struct Planned {
    pub layers: Vec<LayerPlan>,
    pub balance: PlannedBalance,
}

impl Planning<'_> {
    /// Plans all layers. Returns the reason if none is worth a change.
    pub fn run(&self) -> Result<std::result::Result<Planned, KeepReason>> {
        let (num_layers, threads) = (self.slots.len(), threads::resolve(self.config.num_threads));
        let candidates = threads::map(num_layers, threads, |layer| Ok(self.candidates(layer)))?;
        let reasons = candidates.iter().map(|candidates| candidates.reason);
        // That of the layer that came closest to a move.
        let reason = reasons.max_by_key(|&reason| match reason {
            KeepReason::NoMove => 2,
            KeepReason::SmallGain => 1,
            _ => 0,
        });
        let choice = |(index, candidates): (usize, Candidates)| Choice {
            layer: self.placement.layers()[index],
            generation: self.generations[index],
            slots: &self.slots[index],
            is_fixed: &self.is_fixed[index],
            candidates,
        };
        let choices: Vec<Choice> = candidates.into_iter().enumerate().map(choice).collect();
        let selected = select(self.fabric, self.limits, &choices);
        if selected.is_empty() {
            return Ok(Err(reason.unwrap_or(KeepReason::NoMove)));
        }
        let mut planned: Vec<Option<&[u32]>> = vec![None; num_layers];
        selected.iter().for_each(|(index, plan)| planned[*index] = Some(plan.slot_experts()));
        let balance = |layer: usize| Ok(self.balance(layer, planned[layer]));
        let balances = threads::map(num_layers, threads, balance)?;
        let layers = selected.into_iter().map(|(index, plan)| LayerPlan { balance: balances[index], ..plan });
        let mean = |value: fn(&PlannedBalance) -> f64| {
            balances.iter().map(value).sum::<f64>() / balances.len() as f64
        };
        let balance = PlannedBalance {
            before: mean(|balance| balance.before),
            after: mean(|balance| balance.after),
            bound: mean(|balance| balance.bound),
        };
        Ok(Ok(Planned { layers: layers.collect(), balance }))
    }

    fn candidates(&self, layer: usize) -> Candidates {
        let even = self.even_loads();
        let layer = Layer {
            fabric: self.fabric,
            rank_num_slots: self.placement.rank_num_slots(),
            slots: &self.slots[layer],
            is_fixed: &self.is_fixed[layer],
            samples: &self.samples(layer, &even),
            max_replicas: self.config.max_replicas.map_or(usize::MAX, |most| most as usize),
            gates: &self.config.gates,
            limits: self.limits,
        };
        layer.candidates()
    }

    /// The loads of a layer that was not observed. Experts that were lost are planned from them.
    fn even_loads(&self) -> Vec<f64> {
        vec![1.0; self.fabric.shape.num_experts()]
    }

    fn samples<'s>(&'s self, layer: usize, even: &'s [f64]) -> Vec<Sample<'s>> {
        match self.history.samples(layer) {
            samples if samples.is_empty() => vec![Sample { loads: even, weight: 1.0 }],
            samples => samples,
        }
    }

    /// The balance of a layer in the slots in force and in the planned ones, and the best that there is.
    fn balance(&self, layer: usize, planned: Option<&[u32]>) -> PlannedBalance {
        let even = self.even_loads();
        let samples = self.samples(layer, &even);
        let before = mean_balance(self.fabric, &self.slots[layer], &samples);
        let after = planned.map_or(before, |slots| mean_balance(self.fabric, slots, &samples));
        let num_active = self.fabric.num_active();
        let of_ranks = self.placement.rank_num_slots().iter().enumerate();
        let num_slots =
            of_ranks.filter(|&(rank, _)| self.fabric.is_active(rank)).map(|(_, &slots)| slots as usize);
        let num_slots = num_slots.sum();
        let bound = |sample: &Sample| {
            let mean = sample.loads.iter().sum::<f64>() / num_active as f64;
            let max = lower_bound_of_unequal_ranks(sample.loads, num_slots, num_active).max(mean);
            sample.weight * if max > 0.0 { mean / max } else { 1.0 }
        };
        PlannedBalance { before, after, bound: samples.iter().map(bound).sum() }
    }
}
