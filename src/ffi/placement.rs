//! Placements: which expert each slot holds.

use std::ffi::c_char;

use super::boundary::{
    Growing, array, borrowed, boundary, choice, config, copy_out, destroy, growing_out, layer_numbers,
    number, optional_config, optional_of_ranks, or_default, out, path,
};
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::placement::{Duplicate, Expected, MissingLayers, Placement, Shape, replica_counts};

/// What eplb_placement_load() does about a layer that the engine has and the file lacks, such as one for
/// multi-token prediction.
pub type eplb_missing_layers = i32;

/// Refuse the file; the error names the layer.
pub const EPLB_MISSING_LAYERS_REFUSE: eplb_missing_layers = 0;
/// Use the experts of the file's last layer.
pub const EPLB_MISSING_LAYERS_COPY_LAST: eplb_missing_layers = 1;
/// Spread the experts in order, as TensorRT-LLM does without initial assignments: slot i of rank r holds
/// expert (r * E / R + i) mod E, with integer division. Slots that the file's last layer leaves empty stay
/// empty; i does not count them.
pub const EPLB_MISSING_LAYERS_SEQUENTIAL: eplb_missing_layers = 2;

/// What is wrong with a slot.
pub type eplb_issue_kind = i32;

/// The slot repeats an expert of its own rank. It is served, but the second copy balances nothing.
pub const EPLB_ISSUE_KIND_DUPLICATE_ON_RANK: eplb_issue_kind = 1;

/// The expert of every slot of every layer. Immutable and always servable: each slot holds an existing
/// expert or is empty, and each expert has a slot.
pub struct eplb_placement(pub(super) Placement);

/// The shape of a placement.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_config {
    /// Set by EPLB_PLACEMENT_CONFIG_INIT.
    pub struct_size: usize,
    /// Experts of a layer. Required.
    pub num_experts: u32,
    /// Ranks of the expert-parallel group. Required.
    pub num_ranks: u32,
    /// Slots of all ranks together: a multiple of num_ranks, at least num_experts; 0: num_experts.
    pub num_slots: u32,
    /// Layers that an engine with an online balancer updates per iteration; only written to the file.
    pub layer_updates_per_iter: u32,
    /// Slots of each rank: [num_ranks], each 1 to num_slots / num_ranks; NULL: num_slots / num_ranks. Slots
    /// that a rank lacks are its last and hold -1; num_slots 0: num_ranks times the largest rank.
    pub rank_num_slots: *const i32,
    /// 1: any slot may be empty and hold -1, not in all layers the same; 0: refused. Nothing is routed to an
    /// empty slot, so it may serve a fused shared expert. Only *.eplb.yaml files hold empty slots.
    /// eplb_solve() fills every slot; only rank_num_slots leaves slots empty there.
    pub allow_empty_slots: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and a pointer.
unsafe impl Growing for eplb_placement_config {}

impl eplb_placement_config {
    /// Slots of each rank, if they differ.
    ///
    /// # Safety
    /// rank_num_slots is NULL or of num_ranks values.
    pub(super) unsafe fn rank_num_slots<'a>(&self) -> Result<Option<&'a [u32]>> {
        // SAFETY: the caller's promise. A negative number becomes one that is too large.
        unsafe { optional_of_ranks(self.rank_num_slots.cast(), self.num_ranks, "config->rank_num_slots") }
    }

    /// Whether slots may be empty. Also checks the reserved field.
    pub(super) fn allow_empty_slots(&self) -> Result<bool> {
        if self.reserved != 0 {
            return Err(Error::InvalidArgument("config->reserved is not 0".into()));
        }
        match self.allow_empty_slots {
            0 => Ok(false),
            1 => Ok(true),
            other => {
                Err(Error::InvalidArgument(format!("config->allow_empty_slots is {other}; 0 or 1 expected")))
            }
        }
    }

    /// Columns of an array of all slots; 0 if the shape is bad, so that nothing is read.
    pub(super) fn num_slots_or_0(&self, rank_num_slots: Option<&[u32]>) -> usize {
        self.shape(rank_num_slots).map_or(0, |shape| shape.num_slots())
    }

    /// The shape. Without num_slots, every rank has as many slot numbers as the largest has slots.
    pub(super) fn shape(&self, rank_num_slots: Option<&[u32]>) -> Result<Shape> {
        let (num_experts, num_ranks) = (self.num_experts as usize, self.num_ranks as usize);
        let most = rank_num_slots.and_then(|slots| slots.iter().max()).map(|&most| most as usize);
        let default = most.map_or(num_experts, |most| most.saturating_mul(num_ranks));
        Shape::new(num_experts, or_default(self.num_slots).unwrap_or(default), num_ranks)
    }
}

/// What the engine knows of its model. Set all that is known, so that a file for another model is refused.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_load_options {
    /// Set by EPLB_PLACEMENT_LOAD_OPTIONS_INIT.
    pub struct_size: usize,
    /// Experts of a layer; 0: as in the file.
    pub num_experts: u32,
    /// Ranks; 0: as in the file. Must be the number there, if it has one.
    pub num_ranks: u32,
    /// Layers that the engine needs: [num_layers]. Other layers of the file are kept, so that all pipeline
    /// stages have the same placement and hash. NULL: the layers of the file.
    pub layer_ids: *const i32,
    /// Length of layer_ids.
    pub num_layers: usize,
    /// Slots of all ranks together; 0: as in the file.
    pub num_slots: u32,
    /// Layers of layer_ids that the file lacks.
    pub missing_layers: eplb_missing_layers,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and a pointer.
unsafe impl Growing for eplb_placement_load_options {}

/// The sizes of a placement. Arrays live as long as the handle.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_info {
    /// Set by EPLB_PLACEMENT_INFO_INIT.
    pub struct_size: usize,
    /// Experts of a layer.
    pub num_experts: u32,
    /// Ranks.
    pub num_ranks: u32,
    /// Slots of all ranks together.
    pub num_slots: u32,
    /// num_slots / num_ranks.
    pub slots_per_rank: u32,
    /// Layer numbers, ascending: [num_layers].
    pub layer_ids: *const i32,
    /// Length of layer_ids.
    pub num_layers: usize,
    /// Most slots of any expert in any layer.
    pub max_replicas: u32,
    /// As in eplb_placement_config.
    pub layer_updates_per_iter: u32,
    /// Slots that repeat an expert of their own rank, over all layers.
    pub num_duplicates: u64,
    /// Empty slots over all layers, those that a rank lacks included.
    pub num_empty_slots: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and a pointer.
unsafe impl Growing for eplb_placement_info {}

/// One issue of a placement.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_issue {
    /// What is wrong.
    pub kind: eplb_issue_kind,
    /// The layer's number.
    pub layer: i32,
    /// The rank that owns the slot.
    pub rank: i32,
    /// The slot, counted over all ranks.
    pub slot: i32,
    /// The expert in the slot.
    pub expert: i32,
    /// The first slot of the rank with that expert.
    pub other_slot: i32,
}

/// Creates a placement from arrays.
///
/// \param config        the shape
/// \param layer_ids     layer numbers, each once: [num_layers]
/// \param num_layers    at least 1
/// \param slot_experts  the expert of each slot, rows in the order of layer_ids: [num_layers][num_slots];
///                      -1 in empty slots
/// \param placement     receives the handle
/// \return EPLB_STATUS_INVALID_SHAPE; EPLB_STATUS_INVALID_PLACEMENT
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
        let slots = unsafe { config.rank_num_slots() }?;
        let shape = config.shape(slots)?;
        let num_slots = num_layers.checked_mul(shape.num_slots());
        // SAFETY: the caller's promise of [num_layers][num_slots]. A negative expert becomes one that does not exist.
        let slot_experts: &[u32] = unsafe { array(slot_experts.cast(), num_slots, "slot_experts") }?;
        let layers = layer_numbers(layer_ids)?;
        let made = match (slots, config.allow_empty_slots()?) {
            (slots, true) => Placement::with_empty_slots(shape, slots, &layers, slot_experts)?,
            (None, false) => Placement::new(shape, &layers, slot_experts)?,
            (Some(slots), false) => Placement::with_rank_num_slots(shape, slots, &layers, slot_experts)?,
        };
        placement.give(eplb_placement(made.with_layer_updates_per_iter(config.layer_updates_per_iter)));
        Ok(())
    })
}

/// Loads TensorRT-LLM's configuration file (moe_load_balancer.yaml) or eplb's own file (*.eplb.yaml).
///
/// \param path       the file
/// \param options    NULL if the file has everything
/// \param placement  receives the handle
/// \return EPLB_STATUS_INVALID_PLACEMENT; EPLB_STATUS_INVALID_SHAPE; EPLB_STATUS_READ_FAILED;
///         EPLB_STATUS_INVALID_ARGUMENT also if the options lack what the file lacks
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
            missing_layers: choice!(options.missing_layers, "options->missing_layers", {
                EPLB_MISSING_LAYERS_REFUSE => MissingLayers::Refuse,
                EPLB_MISSING_LAYERS_COPY_LAST => MissingLayers::CopyLast,
                EPLB_MISSING_LAYERS_SEQUENTIAL => MissingLayers::Sequential,
            })?,
        };
        placement.give(eplb_placement(Placement::load(path, expected)?));
        Ok(())
    })
}

/// Saves the configuration file as TensorRT-LLM's script writes it. If another policy than
/// EPLB_POLICY_TRTLLM planned it, a comment with ranks and hash is its last line. A file is replaced
/// atomically; a pipe, device or /dev/fd/N is written and stays.
///
/// \param placement  the placement
/// \param path       the file; *.eplb.yaml for eplb's own, which also holds empty slots
/// \return EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_PLACEMENT for empty slots in another file
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

/// Returns the sizes of a placement.
///
/// \param placement  the placement
/// \param info       receives the sizes
/// \return a status
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
            num_empty_slots: placement.num_empty_slots() as u64,
        });
        Ok(())
    })
}

/// Returns the expert of each slot that a rank owns in a layer: the weights that it must hold, in slot
/// order, -1 in empty slots. Slot i of the array is slot rank * slots_per_rank + i of all ranks.
///
/// \param placement  the placement
/// \param layer      the layer's number
/// \param rank       0 to num_ranks - 1
/// \param experts    receives [num_slots], which lives as long as the handle
/// \param num_slots  receives the number of this rank's slots; may be NULL
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_rank_experts(
    placement: *const eplb_placement,
    layer: i32,
    rank: u32,
    experts: *mut *const i32,
    num_slots: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let placement = unsafe { borrowed(placement, "placement") }?;
        let held = placement.0.rank_experts(number(layer, "layer")?, rank as usize)?;
        // SAFETY: the caller's promises for the results.
        unsafe { set_array(held, experts, num_slots) }
    })
}

/// Returns the experts of eplb_placement_rank_experts() without repetition, ascending: the weights to load
/// from disk.
///
/// \param placement    the placement
/// \param layer        the layer's number
/// \param rank         0 to num_ranks - 1
/// \param experts      receives the first `capacity` experts; may be NULL if capacity is 0
/// \param capacity     length of experts; slots_per_rank is enough
/// \param num_experts  receives the number of experts, which may exceed capacity
/// \return a status
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

/// Returns the expert of each slot of a layer, over all ranks.
///
/// \param placement  the placement
/// \param layer      the layer's number
/// \param experts    receives [num_slots], which lives as long as the handle; -1 in empty slots
/// \param num_slots  receives the length; may be NULL
/// \return a status
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
        unsafe { set_array(placement.0.layer_experts(number(layer, "layer")?)?, experts, num_slots) }
    })
}

/// Lists the issues of a placement, by layer and slot. All of them are served, at a cost; what cannot be
/// served is refused when a placement is created or loaded.
///
/// \param placement   the placement
/// \param issues      receives the first `capacity` issues; may be NULL if capacity is 0
/// \param capacity    length of issues
/// \param num_issues  receives the number of issues, which may exceed capacity
/// \return EPLB_STATUS_OK, however many issues there are
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
        kind: EPLB_ISSUE_KIND_DUPLICATE_ON_RANK,
        layer: duplicate.layer as i32,
        rank: duplicate.rank as i32,
        slot: duplicate.slot as i32,
        expert: duplicate.expert as i32,
        other_slot: duplicate.first_slot as i32,
    };
    placement.duplicates().into_iter().map(issue).collect()
}

/// Returns a hash of a placement that is equal on every machine. Compare it over all ranks before the first
/// token. It is FNV-1a (64 bits) over little-endian 32-bit words: the numbers of experts, slots, ranks and
/// layers, then each layer's number and the experts of its slots, -1 in empty ones.
///
/// \param placement  the placement
/// \param hash       receives the hash
/// \return a status
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

/// Destroys a placement and the arrays that it returned.
///
/// \param placement  may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_destroy(placement: *mut eplb_placement) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(placement) }
}

/// # Safety
/// `to` and `len` are NULL or may be written.
pub(super) unsafe fn set_array(experts: &[u32], to: *mut *const i32, len: *mut usize) -> Result<()> {
    // SAFETY: the caller's promises.
    let (to, len) = unsafe {
        let len = (!len.is_null()).then(|| out(len, "num_slots")).transpose()?;
        (out(to, "experts")?, len)
    };
    to.set(experts.as_ptr().cast());
    if let Some(len) = len {
        len.set(experts.len());
    }
    Ok(())
}
