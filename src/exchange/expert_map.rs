//! The expert map of vllm-ascend (`expert_map_path`) and MindIE (`ep_balance_file`).
//!
//! Rules: `expert_file_to_tensor` of vllm_ascend/eplb/core/eplb_utils.py, `_export_tensor_to_file` of
//! vllm_ascend/eplb/adaptor/vllm_adaptor.py, `is_ep_file_valid` and `parse_ep_file` of MindIE's atb_llm/utils/moe_utils.py.
//! Layers are those with experts, by position. Both systems read layers and devices in the order of the file.

use std::io::{self, Write};

use serde::Deserialize;

use super::json::bad;
use crate::error::{Error, Result as Checked};
use crate::placement::{Duplicate, NO_EXPERT, Placement};

/// The most slots of all layers, padding included: 100 layers of 8,192 slots are a fifth of it.
const MAX_SLOTS: usize = 4 << 20;

/// The checked contents of a file.
pub struct ExpertMap {
    /// The `layer_id` of each layer, ascending.
    pub layer_ids: Vec<u32>,
    /// Ranks.
    pub num_devices: usize,
    /// Slots of the largest rank.
    pub slots_per_device: usize,
    /// Slots of each rank: the most that it has in any layer.
    pub device_num_slots: Vec<u32>,
    /// `[layers][devices][slots of the largest]`, [`NO_EXPERT`] for -1 and for slots that a device lacks.
    pub experts: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    moe_layer_count: usize,
    layer_list: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    layer_id: u32,
    device_count: usize,
    device_list: Vec<Device>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    device_id: usize,
    device_expert: Vec<i64>,
}

/// Reads a file.
pub fn read(text: &[u8]) -> Result<ExpertMap, String> {
    let file: File = serde_json::from_slice(text).map_err(bad)?;
    let layers = &file.layer_list;
    if file.moe_layer_count != layers.len() {
        return Err(format!(
            "moe_layer_count is {}, layer_list has {} layers",
            file.moe_layer_count,
            layers.len()
        ));
    }
    let first = layers.first().ok_or("it has no layers")?;
    let num_devices = first.device_list.len();
    // MindIE has devices with fewer experts.
    let mut device_num_slots = vec![0; num_devices];
    for layer in layers {
        for (most, device) in device_num_slots.iter_mut().zip(&layer.device_list) {
            *most = device.device_expert.len().max(*most);
        }
    }
    let slots_per_device = device_num_slots.iter().copied().max().unwrap_or_default();
    // Of a file of one long list, the padding of all others.
    let all = slots_per_device.checked_mul(num_devices).and_then(|slots| slots.checked_mul(layers.len()));
    if all.is_none_or(|all| all > MAX_SLOTS) {
        return Err(format!(
            "its longest device_expert has {slots_per_device} experts, too many for each device of each layer"
        ));
    }
    let mut experts = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let at = format!("layer_list[{index}]");
        if index > 0 && layer.layer_id <= layers[index - 1].layer_id {
            return Err(format!("{at}: layer_id {} does not ascend", layer.layer_id));
        }
        let devices = layer.device_list.len();
        if layer.device_count != devices {
            return Err(format!(
                "{at}: device_count is {}, device_list has {devices} devices",
                layer.device_count
            ));
        }
        if devices != num_devices {
            return Err(format!("{at} has {devices} devices, {num_devices} expected as in the first layer"));
        }
        for (rank, device) in layer.device_list.iter().enumerate() {
            if device.device_id != rank {
                return Err(format!(
                    "{at}, device_list[{rank}]: device_id is {}, {rank} expected",
                    device.device_id
                ));
            }
            for (index, &expert) in device.device_expert.iter().enumerate() {
                experts.push(match i32::try_from(expert) {
                    Ok(-1) => NO_EXPERT,
                    Ok(expert @ 0..) => expert as u32,
                    _ => {
                        return Err(format!(
                            "{at}, device_list[{rank}], device_expert[{index}] is {expert}, which is no expert"
                        ));
                    }
                });
            }
            experts.resize(experts.len() + slots_per_device - device.device_expert.len(), NO_EXPERT);
        }
    }
    let device_num_slots = device_num_slots.into_iter().map(|slots| slots as u32).collect();
    let layer_ids = layers.iter().map(|layer| layer.layer_id).collect();
    Ok(ExpertMap { layer_ids, num_devices, slots_per_device, device_num_slots, experts })
}

/// Checks the slots that repeat an expert of their device, which vllm-ascend does not serve. Returns what is odd about them.
///
/// vllm-ascend 0.23 takes the number of distinct experts on a layer's first device for the slots of each device, so one twice
/// there shifts the slot ids of all other devices. Of one twice elsewhere it leaves the first slot without tokens.
pub fn check_duplicates(placement: &Placement, allow_lossy: bool) -> Checked<Option<String>> {
    let duplicates = placement.duplicates();
    let Some(&first) = duplicates.first() else { return Ok(None) };
    let at = |found: &Duplicate| {
        let Duplicate { layer, rank, slot, first_slot, expert } = found;
        format!("layer {layer}, device {rank}: slot {slot} repeats expert {expert} of slot {first_slot}")
    };
    let Some(on_first_device) = duplicates.iter().find(|duplicate| duplicate.rank == 0) else {
        return Ok(Some(format!(
            "{} slots over all layers repeat an expert of their device, the first at {}; MindIE serves them, vllm-ascend sends \
             no tokens to one of two",
            duplicates.len(),
            at(&first)
        )));
    };
    let what = format!(
        "{}; vllm-ascend counts the distinct experts of the first device, and then sends the tokens of all other devices to wrong \
         experts",
        at(on_first_device)
    );
    if allow_lossy {
        return Ok(Some(format!(
            "{what}; MindIE serves the {} repeated slots over all layers",
            duplicates.len()
        )));
    }
    let way_out = match placement.shape().slots_per_rank() > placement.shape().num_experts() {
        true => "use at most as many slots for each rank as there are experts",
        false => "plan with the policy search, which avoids that",
    };
    Err(Error::InvalidPlacement(format!(
        "{what}: {way_out}; --force, in C allow_lossy, writes the map for MindIE, which serves it"
    )))
}

/// Writes `placement` with layers numbered from 0, as both systems do.
pub fn write(out: &mut dyn Write, placement: &Placement) -> io::Result<()> {
    let shape = placement.shape();
    write!(out, "{{\"moe_layer_count\": {}, \"layer_list\": [", placement.layers().len())?;
    for (index, (_, experts)) in placement.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        let devices = shape.num_ranks();
        write!(out, "{separator}{{\"layer_id\": {index}, \"device_count\": {devices}, \"device_list\": [")?;
        for (rank, experts) in experts.chunks_exact(shape.slots_per_rank()).enumerate() {
            let separator = if rank == 0 { "" } else { ", " };
            // A list of integers is the same in JSON.
            write!(out, "{separator}{{\"device_id\": {rank}, \"device_expert\": {experts:?}}}")?;
        }
        write!(out, "]}}")?;
    }
    writeln!(out, "]}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_names_each_contradiction() {
        let device = |id: usize| format!("{{\"device_id\": {id}, \"device_expert\": [0, 1]}}");
        let layer = |id: u32| {
            let devices = [device(0), device(1)].join(", ");
            format!("{{\"layer_id\": {id}, \"device_count\": 2, \"device_list\": [{devices}]}}")
        };
        let good = format!("{{\"moe_layer_count\": 2, \"layer_list\": [{}, {}]}}", layer(0), layer(1));
        let map = read(good.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((map.layer_ids, map.num_devices, map.slots_per_device), (vec![0, 1], 2, 2));
        assert_eq!(map.experts, [0, 1, 0, 1, 0, 1, 0, 1]);
        for (was, is, expected) in [
            ("count\": 2", "count\": 3", "moe_layer_count is 3, layer_list has 2 layers"),
            (
                "device_count\": 2",
                "device_count\": 4",
                "layer_list[0]: device_count is 4, device_list has 2 devices",
            ),
            ("layer_id\": 1", "layer_id\": 0", "layer_list[1]: layer_id 0 does not ascend"),
            ("device_id\": 1", "device_id\": 0", "layer_list[0], device_list[1]: device_id is 0, 1 expected"),
            (
                "[0, 1]",
                "[0, -2]",
                "layer_list[0], device_list[0], device_expert[1] is -2, which is no expert",
            ),
            (
                "device_expert",
                "experts",
                "bad JSON: unknown field `experts`, expected `device_id` or `device_expert` at ",
            ),
        ] {
            let message = read(good.replacen(was, is, 1).as_bytes()).err().unwrap();
            assert!(message.starts_with(expected), "{was}: {message}");
        }
        // Another device may have fewer slots, in all layers or in one.
        let uneven =
            read(good.replace("1, \"device_expert\": [0, 1]", "1, \"device_expert\": [1]").as_bytes());
        let uneven = uneven.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((uneven.slots_per_device, &uneven.device_num_slots[..]), (2, &[2, 1][..]));
        assert_eq!(uneven.experts, [0, 1, 1, NO_EXPERT, 0, 1, 1, NO_EXPERT]);
        let fewer = good.replacen("\"device_count\": 2", "\"device_count\": 1", 1);
        let fewer = fewer.replacen(&format!(", {}", device(1)), "", 1);
        assert_eq!(
            read(fewer.as_bytes()).err().unwrap(),
            "layer_list[1] has 2 devices, 1 expected as in the first layer"
        );
    }
}
