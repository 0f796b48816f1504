//! Planning all layers of a rebalancer.

use std::sync::{Mutex, PoisonError};

use super::Fabric;
use super::candidates::{Candidates, Layer, must_change};
use super::config::RebalancerConfig;
use super::history::{History, Weighted};
use super::layer_loads::{Measure, Sample, mean_balance};
use super::layer_plan::{LayerPlan, PlannedBalance};
use super::limits::Limits;
use super::plan::KeepReason;
use super::searched::Searched;
use super::select::{Choice, Selected, select};
use crate::error::Result;
use crate::placement::Placement;
use crate::solve::Workspace;
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
    /// Whether a rank was inactive. Otherwise no layer must change.
    pub had_inactive: bool,
    pub history: &'a History,
    pub limits: &'a Limits,
}

/// The layers that change, by falling gain a move, and the balance of all.
pub(super) struct Planned {
    pub layers: Vec<LayerPlan>,
    pub balance: PlannedBalance,
}

/// A layer to search, with its samples.
struct Search<'a> {
    index: usize,
    layer: Layer<'a>,
    samples: Vec<Sample<'a>>,
}

impl Planning<'_> {
    /// Plans all layers. Returns the reason if none is worth a change. `searched` has the last search of each layer that moved
    /// nothing.
    pub fn run(&self, searched: &mut [Option<Searched>]) -> Result<std::result::Result<Planned, KeepReason>> {
        let (num_layers, threads) = (self.slots.len(), threads::resolve(self.config.num_threads));
        // The loads of layers that were not observed. Experts that were lost are planned from them.
        let even = vec![1.0; self.fabric.shape.num_experts()];
        let (weighted, num_slots) = (self.history.weighted(), self.num_slots());
        let measure_even = |layer: usize| Measure::new(self.fabric, num_slots, &self.slots[layer], &even);
        let measures: Vec<Measure> = (0..num_layers)
            .map(|layer| weighted.measure(layer).unwrap_or_else(|| measure_even(layer)))
            .collect();
        let mut candidates: Vec<Option<Candidates>> = Vec::with_capacity(num_layers);
        let mut searches = Vec::new();
        for index in 0..num_layers {
            let layer = self.layer(index, measures[index]);
            let (cost, must_change) = (layer.measure.cost, layer.must_change);
            let by_bound = layer.reason(layer.measure.least_cost);
            let by_bound = if self.limits.forbid_moves() { Some(KeepReason::NoMove) } else { by_bound };
            let by_search = || {
                let before = searched[index].as_ref()?;
                if !before.is_of(self.limits, &weighted.hashes(index)) {
                    return None;
                }
                let gains = before.lowest_cost < cost;
                if gains { layer.reason(before.lowest_cost) } else { Some(KeepReason::NoMove) }
            };
            let reason = if must_change { None } else { by_bound.or_else(by_search) };
            candidates.push(reason.map(|reason| Candidates::none(cost, reason)));
            if reason.is_none() {
                searches.push(Search { index, layer, samples: self.samples(&weighted, index, &even) });
            }
        }
        let workspaces = Mutex::new(Vec::new());
        let workspaces = || workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let found = threads::map(searches.len(), threads, |index| {
            let mut workspace = workspaces().pop().unwrap_or_else(|| Box::new(Workspace::default()));
            let Search { layer, samples, .. } = &searches[index];
            let found = layer.search(samples, &mut workspace);
            workspaces().push(workspace);
            Ok(found)
        })?;
        for (&Search { index, .. }, found) in searches.iter().zip(found) {
            let of_samples = || Searched::new(self.limits, weighted.hashes(index), found.lowest_cost);
            searched[index] = found.list.is_empty().then(of_samples);
            candidates[index] = Some(found);
        }
        let candidates: Vec<Candidates> = candidates.into_iter().flatten().collect();
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
        let after = threads::map(selected.len(), threads, |place| {
            let Selected { index, plan, cost } = &selected[place];
            if weighted.is_one_sample(*index) {
                return Ok(1.0 / cost);
            }
            let samples = self.samples(&weighted, *index, &even);
            Ok(mean_balance(self.fabric, plan.slot_experts(), &samples))
        })?;
        let mut balances: Vec<PlannedBalance> = measures
            .iter()
            .map(|measure| PlannedBalance {
                before: measure.balance,
                after: measure.balance,
                bound: measure.bound,
            })
            .collect();
        selected.iter().zip(after).for_each(|(selected, after)| balances[selected.index].after = after);
        let layers = selected
            .into_iter()
            .map(|Selected { index, plan, .. }| LayerPlan { balance: balances[index], ..plan });
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

    fn layer(&self, index: usize, measure: Measure) -> Layer<'_> {
        Layer {
            fabric: self.fabric,
            rank_num_slots: self.placement.rank_num_slots(),
            slots: &self.slots[index],
            is_fixed: &self.is_fixed[index],
            measure,
            must_change: self.had_inactive && must_change(self.fabric, &self.slots[index]),
            max_replicas: self.config.max_replicas.map_or(usize::MAX, |most| most as usize),
            gates: &self.config.gates,
            limits: self.limits,
        }
    }

    fn samples<'s>(&self, weighted: &Weighted<'s>, layer: usize, even: &'s [f64]) -> Vec<Sample<'s>> {
        match weighted.samples(layer) {
            samples if samples.is_empty() => vec![Sample { loads: even, weight: 1.0, hash: 0 }],
            samples => samples,
        }
    }

    /// The slots of active ranks.
    fn num_slots(&self) -> usize {
        self.fabric.num_slots(self.placement.rank_num_slots())
    }
}
