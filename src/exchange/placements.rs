//! Reads and writes placements of other systems as [`Placement`].

use std::path::Path;

use super::array::{Array, MINUS_ONE, place};
use super::{
    Model, PlacementFormat, bytes_of, expert_map, json, npy, recording, sglang, torch, without_mark,
};
use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};
use crate::placement::{ConfigFile, Expected, MAX_COUNT, NO_EXPERT, Placement, Shape, held_slots};

/// A placement, and the parts of the file that were left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementRead {
    /// The placement.
    pub placement: Placement,
    /// Layers of the file that are not among those of the model, which were left out. Where row `i` is layer `i`, they may be
    /// dense.
    pub left_out: Vec<u32>,
}

/// Reads the placement of a file. In expert maps and `phy2log`, -1 is an empty slot.
///
/// Fails with [`Error::InvalidPlacement`], which names layer, rank and slot, with [`Error::InvalidShape`], with [`Error::Read`],
/// and with [`Error::InvalidArgument`] where neither the file nor `model` has the number of ranks.
pub fn read_placement(path: &Path, format: PlacementFormat, model: &Model) -> Result<PlacementRead> {
    match format {
        PlacementFormat::Config => of_config(Placement::load(path, expected(model))?, model),
        _ => placement_from_bytes(&bytes_of(path)?, format, model).map_err(|e| e.in_file(path)),
    }
}

/// Reads a placement from the bytes of a file.
pub fn placement_from_bytes(bytes: &[u8], format: PlacementFormat, model: &Model) -> Result<PlacementRead> {
    let bytes = without_mark(bytes);
    let array = match format {
        PlacementFormat::Config => {
            let text = str::from_utf8(bytes).map_err(|_| {
                Error::InvalidPlacement("it is not UTF-8 text, so it is not a configuration file".into())
            })?;
            return of_config(ConfigFile::parse(text)?.placement(expected(model))?, model);
        }
        PlacementFormat::ExpertMap => {
            return Ok(PlacementRead { placement: of_expert_map(bytes, model)?, left_out: Vec::new() });
        }
        PlacementFormat::SglangMap if torch::is_torch(bytes) => recording::read_map(bytes),
        PlacementFormat::SglangMap => sglang::read(bytes, sglang::PHYSICAL_TO_LOGICAL_MAP),
        PlacementFormat::Phy2logNpy => npy::read(bytes, true),
        PlacementFormat::Phy2logJson => json::read_lists(bytes, true),
    };
    of_rows(&array.map_err(Error::InvalidPlacement)?, format, model)
}

fn expected<'a>(model: &Model<'a>) -> Expected<'a> {
    let Model { layers, num_experts, num_ranks, num_slots, .. } = *model;
    Expected { layers, num_experts, num_ranks, num_slots, ..Expected::default() }
}

/// Selects the layers of a file that has more.
fn of_config(all: Placement, model: &Model) -> Result<PlacementRead> {
    let Some(layers) = model.layers else {
        return Ok(PlacementRead { placement: all, left_out: Vec::new() });
    };
    let left_out = all.layers().iter().copied().filter(|layer| !layers.contains(layer)).collect();
    Ok(PlacementRead { placement: all.with_layers(layers)?, left_out })
}

/// Converts an array whose rows are layers.
fn of_rows(array: &Array, format: PlacementFormat, model: &Model) -> Result<PlacementRead> {
    let ([num_rows, num_slots], values) = array.rows().map_err(Error::InvalidPlacement)?;
    let rows = model.layers_of_rows(num_rows).map_err(Error::InvalidPlacement)?;
    let num_ranks = model
        .num_ranks
        .ok_or_else(|| Error::InvalidArgument("the file has no ep_size; set num_ranks (--ep_size)".into()))?;
    let mut experts = Vec::with_capacity(rows.len() * num_slots);
    for &(_, row) in &rows {
        for (slot, &expert) in values[row * num_slots..][..num_slots].iter().enumerate() {
            if expert == MINUS_ONE && format == PlacementFormat::SglangMap {
                let message = format!(
                    "{} is -1: SGLang serves the last expert in such a slot; give the slot that expert, or read the rows \
                     as phy2log-json if the slot is empty",
                    place(&[row, slot])
                );
                return Err(Error::InvalidPlacement(message));
            }
            if expert == MINUS_ONE {
                experts.push(NO_EXPERT);
                continue;
            }
            if expert >= MAX_COUNT as u64 {
                let message =
                    format!("{} is {expert}: there are at most {MAX_COUNT} experts", place(&[row, slot]));
                return Err(Error::InvalidPlacement(message));
            }
            experts.push(expert as u32);
        }
    }
    let layers: Vec<u32> = rows.iter().map(|&(layer, _)| layer).collect();
    let shape = shape(model, &experts, num_slots, num_ranks)?;
    // Where the layers name the rows, each is read.
    let is_read = |row: &u32| rows.len() == num_rows || layers.contains(row);
    let left_out = (0..num_rows as u32).filter(|row| !is_read(row)).collect();
    Ok(PlacementRead { placement: with_any_empty_slots(shape, None, &layers, &experts)?, left_out })
}

fn of_expert_map(text: &[u8], model: &Model) -> Result<Placement> {
    let map = expert_map::read(text).map_err(Error::InvalidPlacement)?;
    let refuse = |what: String| Err(Error::InvalidPlacement(what));
    if let Some(expected) = model.num_ranks.filter(|&expected| expected != map.num_devices) {
        return refuse(format!("it has {} devices, {expected} ranks expected", map.num_devices));
    }
    let layers = model.layers.unwrap_or(&map.layer_ids);
    if layers.len() != map.layer_ids.len() {
        return refuse(format!("it has {} layers, {} expected", map.layer_ids.len(), layers.len()));
    }
    let num_slots = map.num_devices.saturating_mul(map.slots_per_device);
    let shape = shape(model, &map.experts, num_slots, map.num_devices)?;
    with_any_empty_slots(shape, Some(&map.device_num_slots), layers, &map.experts)
}

fn with_any_empty_slots(
    shape: Shape,
    rank_num_slots: Option<&[u32]>,
    layers: &[u32],
    experts: &[u32],
) -> Result<Placement> {
    let placement = Placement::with_empty_slots(shape, rank_num_slots, layers, experts)?;
    if placement.num_empty_slots() > 0 {
        log::warn!(
            "{} slots over all layers are read as empty: those with -1, and those that a rank has fewer than another",
            placement.num_empty_slots()
        );
    }
    Ok(placement)
}

/// The shape of a file's placement. The number of experts is the model's, or the highest expert plus 1.
fn shape(model: &Model, experts: &[u32], num_slots: usize, num_ranks: usize) -> Result<Shape> {
    if let Some(expected) = model.num_slots.filter(|&expected| expected != num_slots) {
        return Err(Error::InvalidPlacement(format!("it has {num_slots} slots, {expected} expected")));
    }
    let named = || held_slots(experts).map(|(_, expert)| expert as usize + 1).max().unwrap_or(0);
    Shape::new(model.num_experts.unwrap_or_else(named), num_slots, num_ranks)
}

/// Writes `placement` to a file, which is replaced in one step: the layers of `model`, or all.
///
/// Fails with [`Error::InvalidPlacement`] if the format cannot hold an empty slot, and, unless [`Model::allow_lossy`] is set, for
/// an expert map with an expert twice on a first device.
///
/// SGLang's format gets a row for each of [`Model::num_layers`]. In dense layers, slot `s` holds expert `s % E`, SGLang's trivial
/// location. Only the configuration file's suffix `.eplb.yaml` and `phy2log`, as -1, hold empty slots. Other formats have a row for each layer of the placement, without its number, but for the configuration file.
pub fn write_placement(
    placement: &Placement,
    path: &Path,
    format: PlacementFormat,
    model: &Model,
) -> Result<()> {
    let selected = model.layers.map(|layers| placement.with_layers(layers)).transpose()?;
    let placement = selected.as_ref().unwrap_or(placement);
    // SGLang serves the last expert in a slot of -1. The readers of expert maps do not define it.
    match format {
        PlacementFormat::SglangMap | PlacementFormat::ExpertMap => {
            placement.check_no_empty_slot(format.name()).map_err(|error| error.in_file(path))?;
        }
        PlacementFormat::Config | PlacementFormat::Phy2logNpy | PlacementFormat::Phy2logJson => {}
    }
    let shape = placement.shape();
    let all = [placement.layers().len(), shape.num_slots()];
    let mut slots = placement.iter().flat_map(|(_, experts)| experts).map(|&expert| match expert {
        NO_EXPERT => MINUS_ONE,
        expert => u64::from(expert),
    });
    match format {
        PlacementFormat::Config => placement.save(path),
        PlacementFormat::SglangMap => {
            let num_rows = model.num_rows(placement.layers())?;
            let trivial: Vec<u32> =
                (0..shape.num_slots()).map(|slot| (slot % shape.num_experts()) as u32).collect();
            let row = |layer| placement.layer_experts(layer).unwrap_or(&trivial);
            let mut slots = (0..num_rows as u32).flat_map(row).map(|&expert| u64::from(expert));
            AtomicFile::create(path)?.replace(|out| {
                write!(out, "{{\"{}\": ", sglang::PHYSICAL_TO_LOGICAL_MAP)?;
                json::write_lists(out, &[num_rows, shape.num_slots()], &mut slots)?;
                writeln!(out, "}}")
            })
        }
        PlacementFormat::ExpertMap => {
            if let Some(warning) =
                expert_map::check_duplicates(placement, model.allow_lossy).map_err(|e| e.in_file(path))?
            {
                log::warn!("{}: {warning}", path.display());
            }
            AtomicFile::create(path)?.replace(|out| expert_map::write(out, placement))
        }
        PlacementFormat::Phy2logNpy => {
            AtomicFile::create(path)?.replace(|out| npy::write(out, &all, &mut slots))
        }
        PlacementFormat::Phy2logJson => AtomicFile::create(path)?.replace(|out| {
            json::write_lists(out, &all, &mut slots)?;
            writeln!(out)
        }),
    }
}
