//! The routing rules, and constants that several of them share.

/// Ids of a block, the unit of round robin and nearest: `EPLB_ROUTE_BLOCK` of the kernels.
pub(super) const BLOCK_IDS: usize = 1024;

/// 2^32 over the golden ratio. Multiples of it, mod 2^32, are spread evenly.
pub(super) const GOLDEN_RATIO: u32 = 2_654_435_769;

/// Which replica of an expert serves a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// TensorRT-LLM's: an expert's replicas in turn within each block of 1024 ids.
    RoundRobin,
    /// vLLM's: by a hash of the token's index.
    TokenHash,
    /// Own rank first, then own node, each replica with its fair share.
    Nearest,
    /// The replicas that make the ranks' loads most even.
    LeastLoaded,
}
