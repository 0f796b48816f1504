//! Exchange: files of other systems.

use std::ffi::c_char;
use std::path::Path;

use super::boundary::{
    Growing, array, borrowed, boundary, layer_numbers, optional_config, or_default, out, path,
};
use super::placement::eplb_placement;
use super::stats::eplb_stats;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::exchange::{
    CountsFormat, Format, Model, PlacementFormat, detect, read_counts, read_placement, write_counts,
    write_placement,
};

/// Formats of counts, below 100, and of placements. docs/exchange.md says what each one is and where it is from.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_file_format {
    /// What the file says it is. An array alone does not say it, and nothing can be written so.
    Detect = 0,
    /// A dump directory, eplb's own or TensorRT-LLM's.
    Dump = 1,
    /// SGLang's {"logical_count": [steps][layers][experts]} in JSON, or without steps.
    SglangCount = 2,
    /// What SGLang's recorder writes in its mode stat, the same as a PyTorch file. Only read, its pickle not executed.
    SglangPt = 3,
    /// LMDeploy's [layers][experts] in JSON. Of several iterations the sum is written.
    Lmdeploy = 4,
    /// A NumPy array, [layers][experts] or [iterations][layers][experts].
    Npy = 5,
    /// The configuration file, eplb's own and TensorRT-LLM's.
    Config = 100,
    /// SGLang's {"physical_to_logical_map": [layers][slots]} in JSON.
    SglangMap = 101,
    /// The expert map of vllm-ascend and MindIE.
    ExpertMap = 102,
    /// DeepSeek's phy2log as a NumPy array, [layers][slots].
    Phy2logNpy = 103,
    /// DeepSeek's phy2log in JSON.
    Phy2logJson = 104,
}

/// A file's format, and what is known of its model, since most files do not say it. Initialise with EPLB_FILE_OPTIONS_INIT; zero
/// is every field's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_file_options {
    /// sizeof(eplb_file_options)
    pub struct_size: usize,
    /// The layers with experts: int32 [num_layers]. Of a file that has as many rows they are the rows in this order; of one with
    /// more rows, row i is layer i, and other rows are dense layers. NULL: row i is layer i, and in counts rows that are all
    /// zero are dense layers.
    pub layer_ids: *const i32,
    /// Length of layer_ids.
    pub num_layers: usize,
    /// The format: an eplb_file_format.
    pub format: i32,
    /// Layers of the model, dense ones among them, for SGLang's and LMDeploy's formats, which are written with a row for each;
    /// 0: up to the last layer with experts.
    pub num_model_layers: u32,
    /// Experts of a layer, as a check; 0: as many as the file has.
    pub num_experts: u32,
    /// Ranks (the EP size) of a placement; 0: what the file says, which only expert maps and some configuration files do.
    pub num_ranks: u32,
    /// Slots of all ranks together of a placement, as a check; 0: as many as the file has.
    pub num_slots: u32,
    /// Experts that each token chooses, which only dumps say; needed where one is to be written.
    pub experts_per_token: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and a pointer.
unsafe impl Growing for eplb_file_options {}

/// [`eplb_file_options`] in the library's types.
struct Options {
    format: Option<Format>,
    layers: Vec<u32>,
    fields: eplb_file_options,
}

impl Options {
    /// # Safety
    /// `options` is NULL or as the header has it.
    unsafe fn read(options: *const eplb_file_options) -> Result<Self> {
        // SAFETY: the caller's promises for the struct, and for [num_layers] in it.
        let (fields, layer_ids) = unsafe {
            let fields: eplb_file_options = optional_config(options, "options")?;
            (fields, array(fields.layer_ids, Some(fields.num_layers), "options->layer_ids")?)
        };
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
        }
    }

    fn format_of(&self, path: &Path) -> Result<Format> {
        self.format.map_or_else(|| detect(path), Ok)
    }

    fn format_to_write(&self) -> Result<Format> {
        self.format.ok_or_else(|| Error::InvalidArgument("options->format says no format to write".into()))
    }
}

/// What came in from C; `None` for what the file says.
fn format(number: i32) -> Result<Option<Format>> {
    use eplb_file_format as c;
    const FORMATS: [(c, Format); 10] = [
        (c::Dump, Format::Counts(CountsFormat::Dump)),
        (c::SglangCount, Format::Counts(CountsFormat::SglangCount)),
        (c::SglangPt, Format::Counts(CountsFormat::SglangPt)),
        (c::Lmdeploy, Format::Counts(CountsFormat::Lmdeploy)),
        (c::Npy, Format::Counts(CountsFormat::Npy)),
        (c::Config, Format::Placement(PlacementFormat::Config)),
        (c::SglangMap, Format::Placement(PlacementFormat::SglangMap)),
        (c::ExpertMap, Format::Placement(PlacementFormat::ExpertMap)),
        (c::Phy2logNpy, Format::Placement(PlacementFormat::Phy2logNpy)),
        (c::Phy2logJson, Format::Placement(PlacementFormat::Phy2logJson)),
    ];
    if number == c::Detect as i32 {
        return Ok(None);
    }
    match FORMATS.into_iter().find(|&(named, _)| named as i32 == number) {
        Some((_, format)) => Ok(Some(format)),
        None => Err(Error::InvalidArgument(format!("format is {number}, which is no eplb_file_format"))),
    }
}

/// Reads counts from a file of another system, or from a dump. Steps become iterations from 0 on, of one rank.
///
/// \param path     the file, or the directory of a dump, UTF-8
/// \param options  may be NULL: the file says its format and its layers
/// \param stats    receives the handle, which goes back by eplb_stats_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_DUMP with a message naming the place; EPLB_STATUS_INCOMPLETE_DUMP;
///         EPLB_STATUS_READ_FAILED; EPLB_STATUS_INVALID_ARGUMENT, also for a format of placements, and for an array that does not
///         say what it holds
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
        stats.give(eplb_stats(read_counts(path, format, &options.model())?.stats));
        Ok(())
    })
}

/// Reads a placement from a file of another system, or from a configuration file.
///
/// \param path       the file, UTF-8
/// \param options    may be NULL where the file says it all
/// \param placement  receives the handle, which goes back by eplb_placement_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_PLACEMENT naming the place, or layer, rank and slot; EPLB_STATUS_INVALID_SHAPE;
///         EPLB_STATUS_READ_FAILED; EPLB_STATUS_INVALID_ARGUMENT, also for a format of counts, for an array that does not say what
///         it holds, and where the EP size is needed
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
        placement.give(eplb_placement(read_placement(path, format, &options.model())?));
        Ok(())
    })
}

/// Writes counts to a file of another system, or as a dump of one rank.
///
/// \param stats    the counts
/// \param path     the file, UTF-8; an existing one is replaced in one step. For a dump a directory, in which there is none yet
/// \param options  with the format filled in, any of counts but EPLB_FILE_FORMAT_SGLANG_PT
/// \return EPLB_STATUS_OK; EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_DUMP for counts of slots; EPLB_STATUS_INVALID_ARGUMENT,
///         also for a format of placements
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
        write_counts(&stats.0, path, options.format_to_write()?.of_counts()?, &options.model())
    })
}

/// Writes a placement to a file of another system, or as a configuration file.
///
/// \param placement  the placement
/// \param path       the file, UTF-8; an existing one is replaced in one step
/// \param options    with the format filled in, any of placements
/// \return EPLB_STATUS_OK; EPLB_STATUS_WRITE_FAILED; EPLB_STATUS_INVALID_ARGUMENT, also for a format of counts
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
