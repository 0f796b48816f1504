//! How a placement is served.

use super::rule::Rule;
use super::tables::LayerTables;
use crate::device::Place;
use crate::error::{Error, Result};
use crate::placement::{NO_EXPERT, Placement, Shape};

/// How a placement is served.
#[derive(Debug, Clone, Copy)]
pub struct DispatchConfig<'a> {
    /// Which replica serves a token.
    pub rule: Rule,
    /// This rank of the expert-parallel group.
    pub rank: usize,
    /// Experts that each token chooses.
    pub experts_per_token: usize,
    /// Layers of this rank, maybe none. `None`: all of the placement.
    pub layers: Option<&'a [u32]>,
    /// The node of each rank. `None`: all are on one.
    pub rank_to_node: Option<&'a [i32]>,
    /// Whether round robin adds the rank to a block's index.
    pub offset_by_rank: bool,
    /// The width of the dense map. 0: no dense map.
    pub max_replicas: usize,
    /// The device of ids, slots and tables.
    pub place: Place,
    /// The slot of padding and invalid ids. 0: the number of slots.
    pub invalid_slot: i32,
    /// The slots of the fused shared experts, whose ids follow those of the placement's experts.
    pub shared_slots: &'a [i32],
    /// Whether tables may change: takes the buffers for it.
    pub live: bool,
}

/// A config that lives as long as its dispatch.
#[derive(Debug)]
pub(super) struct OwnedConfig {
    /// Without the arrays.
    sizes: DispatchConfig<'static>,
    rank_to_node: Option<Vec<i32>>,
    shared_slots: Vec<i32>,
}

impl OwnedConfig {
    /// Copies a config, except its layers.
    pub fn of(config: &DispatchConfig) -> Self {
        OwnedConfig {
            sizes: DispatchConfig {
                rule: config.rule,
                rank: config.rank,
                experts_per_token: config.experts_per_token,
                layers: None,
                rank_to_node: None,
                offset_by_rank: config.offset_by_rank,
                max_replicas: config.max_replicas,
                place: config.place,
                invalid_slot: config.invalid_slot,
                shared_slots: &[],
                live: config.live,
            },
            rank_to_node: config.rank_to_node.map(<[i32]>::to_vec),
            shared_slots: config.shared_slots.to_vec(),
        }
    }

    /// The config, of all layers.
    pub fn borrow(&self) -> DispatchConfig<'_> {
        DispatchConfig {
            rank_to_node: self.rank_to_node.as_deref(),
            shared_slots: &self.shared_slots,
            ..self.sizes
        }
    }
}

impl DispatchConfig<'_> {
    /// The layers to route.
    pub(super) fn layers<'a>(&'a self, placement: &'a Placement) -> &'a [u32] {
        self.layers.unwrap_or(placement.layers())
    }

    /// The slot of padding and invalid ids.
    pub(super) fn invalid_slot(&self, shape: Shape) -> i32 {
        if self.invalid_slot == 0 { shape.num_slots() as i32 } else { self.invalid_slot }
    }

    /// What the rule adds to a block's index.
    pub(super) fn block_offset(&self) -> u32 {
        if self.rule == Rule::Nearest || self.offset_by_rank { self.rank as u32 } else { 0 }
    }
}

/// Checks that the config fits the placement.
pub(super) fn check(placement: &Placement, config: &DispatchConfig) -> Result<()> {
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    let shape = placement.shape();
    let (num_ranks, num_experts) = (shape.num_ranks(), shape.num_experts());
    if config.rank >= num_ranks {
        return refuse(format!("rank is {}, the placement has {num_ranks} ranks", config.rank));
    }
    let num_shared = config.shared_slots.len();
    if config.experts_per_token == 0 || config.experts_per_token > num_experts + num_shared {
        let shared =
            if num_shared == 0 { String::new() } else { format!(" and the {num_shared} shared ones") };
        return refuse(format!(
            "experts_per_token is {}, 1 to the {num_experts} experts of the placement{shared} expected",
            config.experts_per_token
        ));
    }
    if (1..shape.num_slots() as i32).contains(&config.invalid_slot) {
        return refuse(format!(
            "invalid_slot is {0}, and slot {0} is one of rank {1}: a negative one, 0 for the default, or one from {2} on expected",
            config.invalid_slot,
            shape.rank_of(config.invalid_slot as usize),
            shape.num_slots()
        ));
    }
    let invalid = config.invalid_slot(shape);
    for (place, &slot) in config.shared_slots.iter().enumerate() {
        if slot < 0 {
            return refuse(format!("shared_slot_ids[{place}] is {slot}: a slot expected"));
        }
        if slot == invalid {
            return refuse(format!(
                "shared_slot_ids[{place}] is {slot}, the slot of ids without an expert: set invalid_slot to another one"
            ));
        }
    }
    if let Some(nodes) = config.rank_to_node.filter(|nodes| nodes.len() != num_ranks) {
        return refuse(format!("rank_to_node has {} ranks, the placement {num_ranks}", nodes.len()));
    }
    if config.max_replicas > shape.num_slots() {
        return refuse(format!(
            "max_replicas is {}, and no expert can have more than the {} slots of the placement",
            config.max_replicas,
            shape.num_slots()
        ));
    }
    let layers = config.layers(placement);
    let mut sorted = layers.to_vec();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return refuse(format!("layer_ids names layer {} twice", pair[0]));
    }
    for &layer in layers {
        check_layer(shape, layer, placement.layer_experts(layer)?, config)?;
    }
    Ok(())
}

/// Checks that the config fits a layer whose slots hold `experts`.
pub(super) fn check_layer(shape: Shape, layer: u32, experts: &[u32], config: &DispatchConfig) -> Result<()> {
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    for (place, &slot) in config.shared_slots.iter().enumerate() {
        let held = experts.get(slot as usize).filter(|&&expert| expert != NO_EXPERT);
        if let Some(expert) = held {
            return refuse(format!(
                "shared_slot_ids[{place}] is {slot}, and slot {slot} of layer {layer} holds expert {expert}: an empty slot, or \
                 one that the placement does not have, expected"
            ));
        }
    }
    if config.max_replicas != 0 {
        let counts = LayerTables::new(shape, experts).replica_count;
        if let Some(expert) = counts.iter().position(|&count| count as usize > config.max_replicas) {
            return refuse(format!(
                "max_replicas is {}, and expert {expert} of layer {layer} has {} slots",
                config.max_replicas, counts[expert]
            ));
        }
    }
    Ok(())
}
