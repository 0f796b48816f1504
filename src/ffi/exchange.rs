//! Exchange: counts and placements in files of other systems.

use std::ffi::c_char;
use std::path::Path;

use super::boundary::{
    Growing, array, borrowed, boundary, choice, layer_numbers, optional_config, or_default, out, path,
};
use super::placement::eplb_placement;
use super::stats::eplb_stats;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::exchange::{
    CountsFormat, Format, Model, PlacementFormat, detect, read_counts, read_placement, write_placement,
};

/// File formats: of counts below 100, of placements from 100 on. docs/exchange.md describes each.
pub type eplb_file_format = i32;

/// Detect the format from the contents. Not for bare arrays, and not for writing.
pub const EPLB_FILE_FORMAT_DETECT: eplb_file_format = 0;
/// A dump directory of eplb or TensorRT-LLM.
pub const EPLB_FILE_FORMAT_DUMP: eplb_file_format = 1;
/// SGLang: JSON {"logical_count": [steps][layers][experts]}, or without steps.
pub const EPLB_FILE_FORMAT_SGLANG_COUNT: eplb_file_format = 2;
/// SGLang: a .pt file of its recorder, or a directory with one a rank for the modes per_pass and
/// per_token. Read only; its pickle is not executed.
pub const EPLB_FILE_FORMAT_SGLANG_PT: eplb_file_format = 3;
/// LMDeploy: JSON [layers][experts]. Written as the sum of all iterations.
pub const EPLB_FILE_FORMAT_LMDEPLOY: eplb_file_format = 4;
/// NumPy: [layers][experts], with [iterations] before if several.
pub const EPLB_FILE_FORMAT_NPY: eplb_file_format = 5;
/// The configuration file of eplb or TensorRT-LLM.
pub const EPLB_FILE_FORMAT_CONFIG: eplb_file_format = 100;
/// SGLang: {"physical_to_logical_map": [layers][slots]}, read as JSON or .pt, written as JSON.
pub const EPLB_FILE_FORMAT_SGLANG_MAP: eplb_file_format = 101;
/// vllm-ascend and MindIE: the expert map.
pub const EPLB_FILE_FORMAT_EXPERT_MAP: eplb_file_format = 102;
/// DeepSeek: phy2log as a NumPy array, [layers][slots].
pub const EPLB_FILE_FORMAT_PHY2LOG_NPY: eplb_file_format = 103;
/// DeepSeek: phy2log in JSON.
pub const EPLB_FILE_FORMAT_PHY2LOG_JSON: eplb_file_format = 104;

/// The format of a file, and what the file does not say of its model. Zero is the default of every field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_file_options {
    /// Set by EPLB_FILE_OPTIONS_INIT.
    pub struct_size: usize,
    /// The format.
    pub format: eplb_file_format,
    /// Layers of the model including dense ones, for SGLang's and LMDeploy's formats, which have a row for
    /// each; 0: up to the last layer with experts.
    pub num_model_layers: u32,
    /// Layers to read or write: [num_layers]; others are left out. They name the rows of a file with as many.
    /// In a file with more rows, row i is layer i. NULL: all; row i is layer i, and all-zero rows of counts
    /// are dense layers.
    pub layer_ids: *const i32,
    /// Length of layer_ids.
    pub num_layers: usize,
    /// Experts of a layer; 0: as in the file.
    pub num_experts: u32,
    /// Ranks of a placement; 0: as in the file, which only expert maps and some configuration files say.
    pub num_ranks: u32,
    /// Slots of all ranks together; 0: as in the file.
    pub num_slots: u32,
    /// Experts per token. Required to write a dump of counts without it.
    pub experts_per_token: u32,
    /// 1: write the counts summed over all iterations.
    pub sum_iterations: u32,
    /// 1: write an expert map that vllm-ascend serves wrongly; 0: refuse.
    pub allow_lossy: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and a pointer.
unsafe impl Growing for eplb_file_options {}

/// [`eplb_file_options`], converted.
struct Options {
    format: Option<Format>,
    layers: Vec<u32>,
    fields: eplb_file_options,
}

impl Options {
    /// # Safety
    /// `options` is NULL or a live struct, whose layer_ids is of num_layers values.
    unsafe fn read(options: *const eplb_file_options) -> Result<Self> {
        // SAFETY: the caller's promises.
        let (fields, layer_ids) = unsafe {
            let fields: eplb_file_options = optional_config(options, "options")?;
            (fields, array(fields.layer_ids, Some(fields.num_layers), "options->layer_ids")?)
        };
        let flags = [(fields.sum_iterations, "sum_iterations"), (fields.allow_lossy, "allow_lossy")];
        if let Some((value, name)) = flags.into_iter().find(|&(value, _)| value > 1) {
            return Err(Error::InvalidArgument(format!("options->{name} is {value}; 0 or 1 expected")));
        }
        Ok(Options { format: format(fields.format)?, layers: layer_numbers(layer_ids)?, fields })
    }

    fn model(&self) -> Model<'_> {
        Model {
            layers: (!self.layers.is_empty()).then_some(&self.layers[..]),
            num_layers: or_default(self.fields.num_model_layers),
            num_experts: or_default(self.fields.num_experts),
            num_ranks: or_default(self.fields.num_ranks),
            num_slots: or_default(self.fields.num_slots),
            experts_per_token: or_default(self.fields.experts_per_token),
            allow_lossy: self.fields.allow_lossy == 1,
        }
    }

    fn format_of(&self, path: &Path) -> Result<Format> {
        self.format.map_or_else(|| detect(path), Ok)
    }

    fn format_to_write(&self) -> Result<Format> {
        self.format.ok_or_else(|| {
            Error::InvalidArgument(
                "options->format is EPLB_FILE_FORMAT_DETECT; set the format to write".into(),
            )
        })
    }
}

fn format(format: eplb_file_format) -> Result<Option<Format>> {
    choice!(format, "options->format", {
        EPLB_FILE_FORMAT_DETECT => None,
        EPLB_FILE_FORMAT_DUMP => Some(Format::Counts(CountsFormat::Dump)),
        EPLB_FILE_FORMAT_SGLANG_COUNT => Some(Format::Counts(CountsFormat::SglangCount)),
        EPLB_FILE_FORMAT_SGLANG_PT => Some(Format::Counts(CountsFormat::SglangPt)),
        EPLB_FILE_FORMAT_LMDEPLOY => Some(Format::Counts(CountsFormat::Lmdeploy)),
        EPLB_FILE_FORMAT_NPY => Some(Format::Counts(CountsFormat::Npy)),
        EPLB_FILE_FORMAT_CONFIG => Some(Format::Placement(PlacementFormat::Config)),
        EPLB_FILE_FORMAT_SGLANG_MAP => Some(Format::Placement(PlacementFormat::SglangMap)),
        EPLB_FILE_FORMAT_EXPERT_MAP => Some(Format::Placement(PlacementFormat::ExpertMap)),
        EPLB_FILE_FORMAT_PHY2LOG_NPY => Some(Format::Placement(PlacementFormat::Phy2logNpy)),
        EPLB_FILE_FORMAT_PHY2LOG_JSON => Some(Format::Placement(PlacementFormat::Phy2logJson)),
    })
}

/// Loads counts from a file of another system, or from a dump. Steps become iterations from 0 on, of one
/// rank. Fractions, as of averages, are kept exactly, and a dump cannot hold them.
///
/// \param path     the file, or the directory of a dump or of a recording with a file a rank
/// \param options  NULL to detect format and layers
/// \param stats    receives the handle
/// \return EPLB_STATUS_INVALID_DUMP; EPLB_STATUS_INCOMPLETE_DUMP; EPLB_STATUS_READ_FAILED;
///         EPLB_STATUS_INVALID_ARGUMENT also for a format of placements, and for an array without format
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_stats_load_file(
    path: *const c_char,
    options: *const eplb_file_options,
    stats: *mut *mut eplb_stats,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (path, options, stats) =
            unsafe { (self::path(path, "path")?, Options::read(options)?, out(stats, "stats")?) };
        let format = options.format_of(path)?.of_counts()?;
        stats.give(eplb_stats(read_counts(path, format, &options.model())?.load));
        Ok(())
    })
}

/// Loads a placement from a file of another system, or from a configuration file.
///
/// \param path       the file
/// \param options    NULL if the file has everything
/// \param placement  receives the handle
/// \return EPLB_STATUS_INVALID_PLACEMENT; EPLB_STATUS_INVALID_SHAPE; EPLB_STATUS_READ_FAILED;
///         EPLB_STATUS_INVALID_DUMP for contents of no format; EPLB_STATUS_INVALID_ARGUMENT also for a format
///         of counts, an array without format, and without num_ranks
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_load_file(
    path: *const c_char,
    options: *const eplb_file_options,
    placement: *mut *mut eplb_placement,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (path, options, placement) =
            unsafe { (self::path(path, "path")?, Options::read(options)?, out(placement, "placement")?) };
        let format = options.format_of(path)?.of_placement()?;
        placement.give(eplb_placement(read_placement(path, format, &options.model())?.placement));
        Ok(())
    })
}

/// Saves counts to a file of another system, or as a dump of one rank. An existing file is replaced
/// atomically; a pipe, a device or /dev/fd/N is written and stays.
///
/// \param stats    the counts
/// \param path     the file; for a dump a directory without one
/// \param options  with a format of counts other than EPLB_FILE_FORMAT_SGLANG_PT
/// \return EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_DUMP for counts of slots, or a dump of fractions
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_stats_save_file(
    stats: *const eplb_stats,
    path: *const c_char,
    options: *const eplb_file_options,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (stats, path, options) =
            unsafe { (borrowed(stats, "stats")?, self::path(path, "path")?, Options::read(options)?) };
        let (format, model) = (options.format_to_write()?.of_counts()?, options.model());
        match options.fields.sum_iterations {
            1 => stats.0.sum_iterations()?.write(path, format, &model),
            _ => stats.0.write(path, format, &model),
        }
    })
}

/// Saves a placement to a file of another system, or as a configuration file. An existing file is replaced
/// atomically; a pipe, a device or /dev/fd/N is written and stays.
///
/// \param placement  the placement
/// \param path       the file
/// \param options    with a format of placements
/// \return EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_PLACEMENT for what the format cannot hold
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_save_file(
    placement: *const eplb_placement,
    path: *const c_char,
    options: *const eplb_file_options,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, path, options) = unsafe {
            (borrowed(placement, "placement")?, self::path(path, "path")?, Options::read(options)?)
        };
        write_placement(&placement.0, path, options.format_to_write()?.of_placement()?, &options.model())
    })
}
