//! Placements: which expert each slot holds.

use std::ffi::c_char;

use super::boundary::{
    Growing, array, borrowed, boundary, config, copy_out, destroy, growing_out, layer_numbers, number,
    optional_config, or_default, out, path,
};
use super::solve::{padded_shape, rank_slots};
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::placement::{Duplicate, Expected, MissingLayers, Placement, replica_counts};
use crate::report::score;

/// The expert of every slot of every layer. Rank r owns the consecutive slots r * S/R .. (r + 1) * S/R, of which it may lack the
/// last ones where slots_per_rank was given. Immutable, and
/// always servable: each slot holds an expert that exists and each expert has a slot. Any number of threads may use it
/// at once.
pub struct eplb_placement(pub(super) Placement);

/// The sizes of a placement made from arrays. Initialise with EPLB_PLACEMENT_CONFIG_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_config {
    /// sizeof(eplb_placement_config)
    pub struct_size: usize,
    /// Experts of a layer. Must be given.
    pub num_experts: u32,
    /// Ranks of the expert-parallel group. Must be given.
    pub num_ranks: u32,
    /// Slots of all ranks together; 0: one an expert.
    pub num_slots: u32,
    /// Layers that an engine with an online balancer moves an iteration; eplb_placement_save() writes it.
    pub layer_updates_per_iter: u32,
    /// As eplb_solve_config has it: the slots of each rank, int32 [num_ranks]; NULL: as many on each.
    pub slots_per_rank: *const i32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and a pointer.
unsafe impl Growing for eplb_placement_config {}

/// What the reader of a configuration file knows of its model. Initialise with EPLB_PLACEMENT_LOAD_OPTIONS_INIT; give
/// all that is known, so that a file for another model is refused here rather than at the first token.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_load_options {
    /// sizeof(eplb_placement_load_options)
    pub struct_size: usize,
    /// Experts of a layer; 0: as many as the file names.
    pub num_experts: u32,
    /// Ranks of the expert-parallel group; 0: the file's ep_size, which most files do not have.
    pub num_ranks: u32,
    /// Layers that must be there: int32 [num_layers]. Further layers of the file are kept, so that all pipeline stages
    /// have one placement and one hash. NULL: the layers of the file.
    pub layer_ids: *const i32,
    /// Length of layer_ids.
    pub num_layers: usize,
    /// Slots of all ranks together, as a check; 0: as many as the file says.
    pub num_slots: u32,
    /// What those of layer_ids get that the file lacks: an eplb_missing_layers.
    pub missing_layers: i32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and a pointer.
unsafe impl Growing for eplb_placement_load_options {}

/// What a layer gets that the engine has and the file lacks, such as one for multi-token prediction. It then is a layer of the
/// placement like any other: its weights go by it, and so does its dispatch.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_missing_layers {
    /// The file is refused, and the error names the layer.
    Refused = 0,
    /// The experts of the file's last layer.
    LikeLast = 1,
    /// The experts spread in order, as TensorRT-LLM does where a file has no assignments: slot i of rank r holds expert
    /// (r x E / R + i) mod E, the product first and the quotient rounded down.
    InOrder = 2,
}

/// The sizes of a placement. Initialise with EPLB_PLACEMENT_INFO_INIT. Arrays belong to the handle and live as long as
/// it does.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_info {
    /// sizeof(eplb_placement_info)
    pub struct_size: usize,
    /// Experts of a layer.
    pub num_experts: u32,
    /// Ranks.
    pub num_ranks: u32,
    /// Slots of all ranks together.
    pub num_slots: u32,
    /// Slots of one rank; of the one with the most, where the config gave slots_per_rank.
    pub slots_per_rank: u32,
    /// The layers' numbers, ascending: int32 [num_layers].
    pub layer_ids: *const i32,
    /// Layers.
    pub num_layers: usize,
    /// The largest number of slots that an expert has in any layer.
    pub max_replicas: u32,
    /// Layers that an engine with an online balancer moves an iteration.
    pub layer_updates_per_iter: u32,
    /// Slots that repeat an expert of their own rank, over all layers; see eplb_placement_validate().
    pub num_duplicates: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and a pointer.
unsafe impl Growing for eplb_placement_info {}

/// What is wrong with a slot.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_issue_kind {
    /// The slot repeats an expert that another slot of its rank holds already. It is served, but one of the two is
    /// wasted.
    DuplicateOnRank = 1,
}

/// One thing that is wrong with a placement, and its place.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_issue {
    /// An eplb_issue_kind.
    pub kind: i32,
    /// The layer's number.
    pub layer: i32,
    /// The rank that owns the slot.
    pub rank: i32,
    /// The slot, counted over all ranks.
    pub slot: i32,
    /// The expert that the slot holds.
    pub expert: i32,
    /// The first slot of the rank with that expert.
    pub other_slot: i32,
}

/// How evenly a placement loads the ranks in one layer. Initialise with EPLB_PLACEMENT_EVALUATION_INIT. Figures are
/// taken per sample and averaged over samples; but for the best split, an expert's load is split evenly over its replicas.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_evaluation {
    /// sizeof(eplb_placement_evaluation)
    pub struct_size: usize,
    /// Mean load of a rank.
    pub mean_load: f64,
    /// Load of the most loaded rank.
    pub max_load: f64,
    /// (max - mean) / mean: 0 is even. NaN where a sample has no load.
    pub imbalance_ratio: f64,
    /// mean / max: 1 is even. NaN where a sample has no load.
    pub balancedness: f64,
    /// The rank with the largest load over all samples.
    pub worst_rank: u32,
    /// The largest number of slots that an expert has.
    pub max_replicas: u32,
    /// Slots that repeat an expert of their own rank.
    pub num_duplicates: u64,
    /// What the most loaded rank carries at least, whatever the placement of this many slots on this many ranks. It is the
    /// least maximum that none of these refutes: one rank carries the mean or more; an expert needs as many replicas as keep
    /// each below the maximum, together with the lightest that fill their ranks, and all needs must fit in the slots; of
    /// replicas that are too heavy to share a rank there must be no more than the ranks hold. Not every bound is reached.
    pub lower_bound: f64,
    /// (max - lower bound) / lower bound: how far the placement may be from the best one at most; 0 is proof that none is
    /// better. NaN where a sample has no load.
    pub gap: f64,
    /// Load of the most loaded rank if each expert's load were split over its replicas in the best fractions: what a rule
    /// that splits by need, as EPLB_ROUTE_LEAST_LOADED, can reach with this placement.
    pub best_split_max_load: f64,
    /// mean / max of the best split: 1 is even. NaN where a sample has no load.
    pub best_split_balancedness: f64,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers only.
unsafe impl Growing for eplb_placement_evaluation {}

/// Makes a placement from arrays.
///
/// \param config        from EPLB_PLACEMENT_CONFIG_INIT, with the experts and ranks filled in
/// \param layer_ids     int32 [num_layers], the model's own layer numbers, each once
/// \param num_layers    at least 1
/// \param slot_experts  int32 [num_layers][num_slots]: the expert of each slot, rows in the order of layer_ids; -1 in slots
///                      that a rank lacks, where slots_per_rank is given
/// \param placement     receives the handle, which goes back by eplb_placement_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_SHAPE; EPLB_STATUS_INVALID_PLACEMENT naming layer, rank and slot;
///         EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_create(
    config: *const eplb_placement_config,
    layer_ids: *const i32,
    num_layers: usize,
    slot_experts: *const i32,
    placement: *mut *mut eplb_placement,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, layer_ids, placement) = unsafe {
            let layer_ids = array(layer_ids, Some(num_layers), "layer_ids")?;
            (self::config(config, "config")?, layer_ids, out(placement, "placement")?)
        };
        // SAFETY: the caller's promise of [num_ranks].
        let slots = unsafe { rank_slots(config.slots_per_rank, config.num_ranks) }?;
        let shape = padded_shape((config.num_experts as usize, config.num_slots, config.num_ranks), slots)?;
        let num_experts = num_layers.checked_mul(shape.num_slots());
        // SAFETY: the caller's promise of [num_layers][num_slots]. A negative expert becomes one that does not exist.
        let slot_experts: &[u32] = unsafe { array(slot_experts.cast(), num_experts, "slot_experts") }?;
        let layers = layer_numbers(layer_ids)?;
        let made = match slots {
            None => Placement::new(shape, &layers, slot_experts)?,
            Some(slots) => Placement::uneven(shape, slots, &layers, slot_experts)?,
        };
        placement.give(eplb_placement(made.with_layer_updates_per_iter(config.layer_updates_per_iter)));
        Ok(())
    })
}

/// Reads a configuration file (moe_load_balancer.yaml).
///
/// \param path       the file, UTF-8
/// \param options    what is known of the model; NULL where the file says it all
/// \param placement  receives the handle, which goes back by eplb_placement_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_PLACEMENT naming the key, or layer, rank and slot; EPLB_STATUS_INVALID_SHAPE;
///         EPLB_STATUS_INVALID_ARGUMENT where something is needed that the file does not say; EPLB_STATUS_READ_FAILED
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_load(
    path: *const c_char,
    options: *const eplb_placement_load_options,
    placement: *mut *mut eplb_placement,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (path, options, placement) = unsafe {
            (self::path(path, "path")?, optional_config(options, "options")?, out(placement, "placement")?)
        };
        // SAFETY: the caller's promise of [num_layers].
        let layer_ids = unsafe { array(options.layer_ids, Some(options.num_layers), "options->layer_ids") }?;
        let layers = layer_numbers(layer_ids)?;
        let expected = Expected {
            num_experts: or_default(options.num_experts),
            num_ranks: or_default(options.num_ranks),
            layers: (!layers.is_empty()).then_some(&layers[..]),
            num_slots: or_default(options.num_slots),
            missing_layers: missing_layers(options.missing_layers)?,
        };
        placement.give(eplb_placement(Placement::load(path, expected)?));
        Ok(())
    })
}

fn missing_layers(choice: i32) -> Result<MissingLayers> {
    const REFUSED: i32 = eplb_missing_layers::Refused as i32;
    const LIKE_LAST: i32 = eplb_missing_layers::LikeLast as i32;
    const IN_ORDER: i32 = eplb_missing_layers::InOrder as i32;
    match choice {
        REFUSED => Ok(MissingLayers::Refused),
        LIKE_LAST => Ok(MissingLayers::LikeLast),
        IN_ORDER => Ok(MissingLayers::InOrder),
        unknown => Err(Error::InvalidArgument(format!(
            "missing_layers is {unknown}, which is no eplb_missing_layers"
        ))),
    }
}

/// Writes the configuration file, to the byte as TensorRT-LLM's own script does.
///
/// \param placement  the placement
/// \param path       the file, UTF-8; an existing one is replaced in one step: whenever the process dies, the old or the
///                   new file is there, whole
/// \return EPLB_STATUS_OK; EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_save(
    placement: *const eplb_placement,
    path: *const c_char,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, path) = unsafe { (borrowed(placement, "placement")?, self::path(path, "path")?) };
        placement.0.save(path)
    })
}

/// Lists what is wrong with a placement, by layer and slot. What would make it unusable (an expert that does not exist or
/// has no slot) was refused, with its place in the message, when the placement was made or loaded; what is listed here is
/// served, at a cost.
///
/// \param placement   the placement
/// \param issues      receives the first `capacity` issues; may be NULL when capacity is 0
/// \param capacity    how many there is room for
/// \param num_issues  receives how many there are, which may be more than capacity
/// \return EPLB_STATUS_OK, however many issues there are; EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_validate(
    placement: *const eplb_placement,
    issues: *mut eplb_placement_issue,
    capacity: usize,
    num_issues: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, num_issues) =
            unsafe { (borrowed(placement, "placement")?, out(num_issues, "num_issues")?) };
        let found = issues_of(&placement.0);
        let listed = &found[..found.len().min(capacity)];
        if capacity > 0 {
            // SAFETY: the caller's promise of room for `capacity` issues.
            unsafe { copy_out(listed, issues, "issues") }?;
        }
        num_issues.set(found.len());
        Ok(())
    })
}

fn issues_of(placement: &Placement) -> Vec<eplb_placement_issue> {
    let issue = |duplicate: Duplicate| eplb_placement_issue {
        kind: eplb_issue_kind::DuplicateOnRank as i32,
        layer: duplicate.layer as i32,
        rank: duplicate.rank as i32,
        slot: duplicate.slot as i32,
        expert: duplicate.expert as i32,
        other_slot: duplicate.first_slot as i32,
    };
    placement.duplicates().into_iter().map(issue).collect()
}

/// Tells the sizes of a placement.
///
/// \param placement  the placement
/// \param info       from EPLB_PLACEMENT_INFO_INIT; receives the sizes, and an array that lives as long as the handle
/// \return EPLB_STATUS_OK or EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_get_info(
    placement: *const eplb_placement,
    info: *mut eplb_placement_info,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, info) = unsafe { (&borrowed(placement, "placement")?.0, growing_out(info, "info")?) };
        let shape = placement.shape();
        let max_replicas = placement.iter().flat_map(|(_, experts)| replica_counts(shape, experts)).max();
        info.set(eplb_placement_info {
            struct_size: 0,
            num_experts: number(shape.num_experts(), "num_experts")?,
            num_ranks: number(shape.num_ranks(), "num_ranks")?,
            num_slots: number(shape.num_slots(), "num_slots")?,
            slots_per_rank: number(shape.slots_per_rank(), "slots_per_rank")?,
            layer_ids: placement.layers().as_ptr().cast(),
            num_layers: placement.layers().len(),
            max_replicas: max_replicas.unwrap_or(0),
            layer_updates_per_iter: placement.layer_updates_per_iter(),
            num_duplicates: placement.duplicates().len() as u64,
        });
        Ok(())
    })
}

/// Lends the expert of each slot of a layer.
///
/// \param placement  the placement
/// \param layer      the layer's number
/// \param experts    receives int32 [num_slots], the handle's own, which lives as long as it does; -1 in slots that a rank
///                   lacks, where slots_per_rank was given
/// \param num_slots  receives the length; may be NULL
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_layer_experts(
    placement: *const eplb_placement,
    layer: i32,
    experts: *mut *const i32,
    num_slots: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let placement = unsafe { borrowed(placement, "placement") }?;
        // SAFETY: the caller's promises for the results.
        unsafe { lend(placement.0.layer_experts(number(layer, "layer")?)?, experts, num_slots, "num_slots") }
    })
}

/// Lends the experts whose weights a rank must hold in a layer, in the order of its slots. An expert that stands twice
/// needs one copy of its weights only where the engine can serve two slots from it.
///
/// \param placement       the placement
/// \param layer           the layer's number
/// \param rank            0 to num_ranks - 1
/// \param experts         receives int32 [slots_per_rank], the handle's own, which lives as long as it does
/// \param slots_per_rank  receives the length, this rank's own number of slots; may be NULL
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer or rank
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_rank_experts(
    placement: *const eplb_placement,
    layer: i32,
    rank: u32,
    experts: *mut *const i32,
    slots_per_rank: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let placement = unsafe { borrowed(placement, "placement") }?;
        let held = placement.0.rank_experts(number(layer, "layer")?, rank as usize)?;
        // SAFETY: the caller's promises for the results.
        unsafe { lend(held, experts, slots_per_rank, "slots_per_rank") }
    })
}

/// Lists the experts whose weights a rank must load for a layer, ascending and each once: those of
/// eplb_placement_rank_experts(), without the copies that an engine can serve from the same weights.
///
/// \param placement    the placement
/// \param layer        the layer's number
/// \param rank         0 to num_ranks - 1
/// \param experts      receives the first `capacity` of them, int32; may be NULL where capacity is 0
/// \param capacity     room in experts; slots_per_rank is always enough
/// \param num_experts  receives how many there are
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer or rank
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_distinct_experts(
    placement: *const eplb_placement,
    layer: i32,
    rank: u32,
    experts: *mut i32,
    capacity: usize,
    num_experts: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, num_experts) =
            unsafe { (&borrowed(placement, "placement")?.0, out(num_experts, "num_experts")?) };
        let distinct = placement.distinct_experts(number(layer, "layer")?, rank as usize)?;
        let listed = &distinct[..distinct.len().min(capacity)];
        // SAFETY: the caller's promise of room for `capacity` experts, which are int32 as long as there are fewer than 2^31.
        unsafe { copy_out(listed, experts.cast(), "experts") }?;
        num_experts.set(distinct.len());
        Ok(())
    })
}

/// # Safety
/// `to` and `len` are NULL or may be written.
unsafe fn lend(experts: &[u32], to: *mut *const i32, len: *mut usize, len_name: &str) -> Result<()> {
    // SAFETY: the caller's promises.
    let (to, len) = unsafe {
        let len = (!len.is_null()).then(|| out(len, len_name)).transpose()?;
        (out(to, "experts")?, len)
    };
    to.set(experts.as_ptr().cast());
    if let Some(len) = len {
        len.set(experts.len());
    }
    Ok(())
}

/// A fingerprint of a placement that is equal on every rank and architecture; compare it over all ranks before the first
/// token. It is FNV-1a (64 bits) over little-endian 32-bit words: the numbers of experts, slots, ranks and layers, then
/// each layer's number and the experts of its slots.
///
/// \param placement  the placement
/// \param hash       receives the fingerprint
/// \return EPLB_STATUS_OK or EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_hash(
    placement: *const eplb_placement,
    hash: *mut u64,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, hash) = unsafe { (borrowed(placement, "placement")?, out(hash, "hash")?) };
        hash.set(placement.0.hash());
        Ok(())
    })
}

/// Tells how evenly a placement would load the ranks in one layer, and how far that is from the best possible.
///
/// \param placement    the placement
/// \param loads        [num_samples][num_experts], finite and not negative, in any unit
/// \param layer        the layer's number
/// \param num_samples  situations to average over, at least 1; see eplb_solve()
/// \param num_experts  that of the placement, as a check
/// \param evaluation   from EPLB_PLACEMENT_EVALUATION_INIT; receives the figures, in the unit of the loads
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_LOADS naming sample and expert; EPLB_STATUS_INVALID_ARGUMENT, also for an
///         unknown layer
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_evaluate(
    placement: *const eplb_placement,
    loads: *const f64,
    layer: i32,
    num_samples: usize,
    num_experts: usize,
    evaluation: *mut eplb_placement_evaluation,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, loads, evaluation) = unsafe {
            (
                &borrowed(placement, "placement")?.0,
                array(loads, num_samples.checked_mul(num_experts), "loads")?,
                growing_out(evaluation, "evaluation")?,
            )
        };
        let score = score(placement, number(layer, "layer")?, loads, num_samples, num_experts)?;
        let (balance, bound, best) = (score.balance(), score.bound_gap(), score.best_split());
        evaluation.set(eplb_placement_evaluation {
            struct_size: 0,
            mean_load: balance.mean,
            max_load: balance.max,
            imbalance_ratio: balance.imbalance_ratio.unwrap_or(f64::NAN),
            balancedness: balance.balancedness.unwrap_or(f64::NAN),
            worst_rank: number(balance.worst_rank, "worst_rank")?,
            max_replicas: score.max_replicas(),
            num_duplicates: score.num_duplicates() as u64,
            lower_bound: bound.lower_bound,
            gap: bound.gap.unwrap_or(f64::NAN),
            best_split_max_load: best.max,
            best_split_balancedness: best.balancedness.unwrap_or(f64::NAN),
        });
        Ok(())
    })
}

/// Tells which share of a layer's load a placement leaves outside its home: the load of replicas on another node than their
/// group's, over all load, an expert's split evenly over its replicas. A group's home is the node that carries most of its
/// load, of equal ones the lower.
///
/// \param placement     the placement
/// \param loads         [num_samples][num_experts], finite and not negative, in any unit
/// \param layer         the layer's number
/// \param num_samples   situations to average over, at least 1; homes are those of all together
/// \param num_experts   that of the placement, as a check
/// \param num_groups    groups of consecutive experts, equally many in each
/// \param rank_to_node  the node of each rank, int32 [num_ranks], any ids
/// \param share         receives the share, 0 to 1; NaN where a sample has no load at all
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_SHAPE where the groups are not equally large; EPLB_STATUS_INVALID_LOADS naming
///         sample and expert; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_off_node_share(
    placement: *const eplb_placement,
    loads: *const f64,
    layer: i32,
    num_samples: usize,
    num_experts: usize,
    num_groups: u32,
    rank_to_node: *const i32,
    share: *mut f64,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, loads, share) = unsafe {
            (
                &borrowed(placement, "placement")?.0,
                array(loads, num_samples.checked_mul(num_experts), "loads")?,
                out(share, "share")?,
            )
        };
        // SAFETY: the caller's promise of [num_ranks].
        let nodes = unsafe { array(rank_to_node, Some(placement.shape().num_ranks()), "rank_to_node") }?;
        let score = score(placement, number(layer, "layer")?, loads, num_samples, num_experts)?;
        share.set(score.off_node_share(num_groups as usize, nodes)?.unwrap_or(f64::NAN));
        Ok(())
    })
}

/// Gives the handle back.
///
/// \param placement  not to be used again, nor what it lent; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_destroy(placement: *mut eplb_placement) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(placement) }
}
