//! A change of one layer's slots, as a plan commits it.

/// A change of one layer's slots. A dispatch takes it if it serves `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerUpdate<'a> {
    /// The layer's number.
    pub layer: u32,
    /// The generation of the layer that the change was planned against. 0: only `from` is compared.
    pub generation: u64,
    /// The expert of each slot before, or [`NO_EXPERT`](super::NO_EXPERT): `[num_slots]`.
    pub from: &'a [u32],
    /// The expert of each slot after: `[num_slots]`.
    pub to: &'a [u32],
}
