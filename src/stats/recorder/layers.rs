//! The layers of a recorder: their places in the window, and the registered buffers of their ids.

use crate::device::{Access, Device, Ids, Stream};
use crate::error::{Error, Result};

/// The layers by number, and their registered buffers.
#[derive(Debug)]
pub(super) struct Layers {
    /// Each layer's number and its index in the window, by number.
    numbers: Vec<(u32, usize)>,
    /// Of each layer of the window.
    buffers: Vec<Option<Buffer>>,
}

/// The registered buffer of a layer's ids.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    ids: Ids,
    max_tokens: u32,
}

impl Layers {
    /// Layers in the order of the window.
    pub fn new(layers: &[u32]) -> Self {
        let mut numbers: Vec<(u32, usize)> =
            layers.iter().enumerate().map(|(index, &layer)| (layer, index)).collect();
        numbers.sort_unstable();
        Layers { buffers: vec![None; numbers.len()], numbers }
    }

    /// Layers with a buffer.
    pub fn num_registered(&self) -> usize {
        self.buffers.iter().flatten().count()
    }

    /// The index of a layer in the window.
    pub fn index_of(&self, layer: u32) -> Result<usize> {
        match self.numbers.binary_search_by_key(&layer, |&(number, _)| number) {
            Ok(place) => Ok(self.numbers[place].1),
            Err(_) => Err(Error::InvalidArgument(match &self.numbers[..] {
                [] => format!("layer {layer}: the recorder was created without layers"),
                layers @ [(first, _), ..] => format!(
                    "layer {layer} is not one of the {} that the recorder was created with, from {first} to {}",
                    layers.len(),
                    layers[layers.len() - 1].0
                ),
            })),
        }
    }

    /// Registers the buffer of a layer.
    pub fn register(
        &mut self,
        layer: u32,
        (ids, max_tokens): (Ids, u32),
        device: &Device,
        stream: Stream,
    ) -> Result<()> {
        let index = self.index_of(layer)?;
        device.check_stream(stream)?;
        device.check_address(ids.address(), "expert_ids", Access::Read)?;
        if ids.num_valid() != 0 {
            device.check_address(ids.num_valid(), "num_valid", Access::Read)?;
        }
        self.buffers[index] = Some(Buffer { ids, max_tokens });
        Ok(())
    }

    /// The index of a layer in the window, and its registered ids.
    pub fn registered(&self, layer: u32, num_tokens: u32) -> Result<(usize, Ids)> {
        let index = self.index_of(layer)?;
        let Some(buffer) = self.buffers[index] else {
            return Err(Error::InvalidArgument(format!(
                "layer {layer} has no registered buffer: eplb_recorder_register_buffer() names one, and \
                 eplb_recorder_count_ids() takes any"
            )));
        };
        if num_tokens > buffer.max_tokens {
            return Err(Error::InvalidArgument(format!(
                "layer {layer}: {num_tokens} tokens, its buffer was registered with {}",
                buffer.max_tokens
            )));
        }
        Ok((index, buffer.ids))
    }
}
