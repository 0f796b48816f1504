//! Step 3, run: a placement becomes tables on a device, and expert ids become slot ids.
//!
//! Each rule has a module with its host implementation, its kernels' names and its tables: `round_robin`, `token_hash`,
//! `nearest` and `least_loaded`.

mod batch;
mod config;
mod host;
mod image;
mod kernel;
mod layout;
pub(crate) mod least_loaded;
mod live;
pub(crate) mod nearest;
mod round_robin;
mod routing;
mod rule;
mod rule_tables;
pub(crate) mod tables;
mod token_hash;
mod water_filling;

pub use config::DispatchConfig;
pub(crate) use host::route_batches;
pub use routing::{RankCounts, Routing};
pub use rule::Rule;

use std::sync::{Mutex, MutexGuard, PoisonError};

use self::config::check;
use self::host::HostRouter;
use self::image::Image;
use self::kernel::KernelRouter;
use self::layout::Layout;
use self::live::Live;
use self::rule_tables::RuleTables;
use self::tables::LayerTables;
use crate::device::{Access, Device, Memory, Stream};
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape};
use crate::stats::{BatchCount, Flips, Recorder, Source};

/// The purpose of the memory, in errors.
const TABLES: &str = "the dispatch tables";

/// The tables of a rank's layers on a device, and the rule that routes by them. Tables never move, and change
/// by commits only.
#[derive(Debug)]
pub struct Dispatch {
    device: Device,
    memory: Memory,
    workspace_bytes: usize,
    placement_hash: u64,
    rule: Rule,
    shape: Shape,
    rank: usize,
    experts_per_token: usize,
    max_replicas: usize,
    invalid_slot: i32,
    num_shared: usize,
    /// The layers by number, ascending.
    layers: Vec<(u32, Layer)>,
    /// `None` where tables do not change.
    live: Option<Live>,
    /// The process that created the dispatch. After fork(), the device is the parent's.
    process: u32,
}

#[derive(Debug)]
struct Layer {
    tables: TableAddresses,
    router: Router,
}

/// What routes a layer's ids, by the kind of the device, and the registered counts of all ranks.
#[derive(Debug)]
enum Router {
    /// The calling thread. Calls take turns.
    Host(Mutex<HostLayer>),
    /// Kernels.
    Cuda(KernelRouter, Mutex<Option<RankCounts>>),
}

#[derive(Debug)]
struct HostLayer {
    router: HostRouter,
    rank_counts: Option<RankCounts>,
}

impl Router {
    /// Calls `with` with the registered counts of all ranks.
    fn with_rank_counts<T>(&self, with: impl FnOnce(&mut Option<RankCounts>) -> T) -> T {
        match self {
            Router::Host(layer) => with(&mut lock(layer).rank_counts),
            Router::Cuda(_, rank_counts) => with(&mut lock(rank_counts)),
        }
    }
}

/// The addresses of a layer's tables on the device, int32: [`Dispatch::tables`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableAddresses {
    /// `[num_experts]`
    pub replica_count: u64,
    /// `[num_experts]`
    pub replica_start: u64,
    /// `[num_slots]`
    pub slot_ids: u64,
    /// `[num_experts][max_replicas]`, or 0.
    pub dense: u64,
}

impl Dispatch {
    /// Bytes of the device's memory that [`Dispatch::create`] takes: the same for all placements of a shape and as many layers.
    pub fn memory_required(placement: &Placement, config: &DispatchConfig) -> Result<usize> {
        check(placement, config)?;
        Ok(Layout::of(placement.shape(), config, config.layers(placement).len())?.bytes())
    }

    /// Writes the tables to the device. `workspace` is caller-provided memory of the device, at least as large as
    /// [`Dispatch::memory_required`] returns. Without it, the library allocates.
    pub fn create(placement: &Placement, config: &DispatchConfig, workspace: Option<Memory>) -> Result<Self> {
        check(placement, config)?;
        let shape = placement.shape();
        let mut numbers = config.layers(placement).to_vec();
        numbers.sort_unstable();
        let layout = Layout::of(shape, config, numbers.len())?;
        let device = Device::open(config.place)?;
        let memory = device.provided_or_allocated(workspace, layout.bytes(), TABLES)?;
        let mut image = Image::new(layout.written().bytes)?;
        let (mut layers, mut slots) = (Vec::new(), Vec::new());
        for (index, number) in numbers.into_iter().enumerate() {
            slots.push(placement.layer_experts(number)?);
            let tables = LayerTables::new(shape, slots[index]);
            let rule = RuleTables::new(shape, &tables, config);
            let space = layout.layer(index)?;
            let parts = image.write_layer(&space, &tables, &rule);
            let layer = Layer {
                tables: TableAddresses {
                    replica_count: memory.at(parts.replica_count),
                    replica_start: memory.at(parts.replica_start),
                    slot_ids: memory.at(parts.replica_slots),
                    dense: space.dense.map_or(0, |dense| memory.at(dense)),
                },
                router: match &device {
                    Device::Host => {
                        let router = HostRouter::new(shape, tables, rule, config);
                        Router::Host(Mutex::new(HostLayer { router, rank_counts: None }))
                    }
                    Device::Cuda(cuda) => {
                        let parts = (&parts, layout.shared());
                        let router = KernelRouter::new(cuda, shape, config, &memory, parts);
                        Router::Cuda(router, Mutex::new(None))
                    }
                },
            };
            layers.push((number, layer));
        }
        image.write(layout.shared(), config.shared_slots.iter().map(|&slot| slot as u32));
        device.write(&memory, layout.written(), image.words())?;
        let live = config.live.then(|| Live::create(&device, &memory, shape, config, (&layout, &slots)));
        Ok(Dispatch {
            device,
            memory,
            workspace_bytes: layout.bytes(),
            placement_hash: placement.hash(),
            rule: config.rule,
            shape,
            rank: config.rank,
            experts_per_token: config.experts_per_token,
            max_replicas: config.max_replicas,
            invalid_slot: config.invalid_slot(shape),
            num_shared: config.shared_slots.len(),
            layers,
            live: live.transpose()?,
            process: std::process::id(),
        })
    }

    /// Experts, slots and ranks.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Experts that each token chooses.
    pub fn experts_per_token(&self) -> usize {
        self.experts_per_token
    }

    /// The width of the dense map.
    pub fn max_replicas(&self) -> usize {
        self.max_replicas
    }

    /// The slot of padding and invalid ids.
    pub fn invalid_slot(&self) -> i32 {
        self.invalid_slot
    }

    /// Fused shared experts.
    pub fn num_shared(&self) -> usize {
        self.num_shared
    }

    /// Which replica serves a token.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// This rank of the expert-parallel group.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// [`Placement::hash`] of the placement at create.
    pub fn placement_hash(&self) -> u64 {
        self.placement_hash
    }

    /// Layers that are routed.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Layers with registered counts of all ranks: [`Dispatch::register_rank_counts`].
    pub fn num_layers_with_rank_counts(&self) -> usize {
        let is_some = |counts: &mut Option<_>| counts.is_some();
        self.layers.iter().filter(|(_, layer)| layer.router.with_rank_counts(is_some)).count()
    }

    /// Bytes held on the device.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }

    /// Bytes of page-locked host memory held.
    pub fn host_bytes(&self) -> usize {
        self.live.as_ref().map_or(0, Live::host_bytes)
    }

    /// The addresses of a layer's tables.
    pub fn tables(&self, layer: u32) -> Result<TableAddresses> {
        Ok(self.layer(layer)?.tables)
    }

    /// Registers the counts of all ranks for a layer, or removes them.
    pub fn register_rank_counts(&self, layer: u32, counts: Option<RankCounts>) -> Result<()> {
        let router = &self.layer(layer)?.router;
        if self.rule != Rule::LeastLoaded {
            return Err(Error::InvalidArgument(
                "only EPLB_RULE_LEAST_LOADED uses the counts of all ranks".into(),
            ));
        }
        let (num_ranks, num_experts) = (self.shape.num_ranks(), self.shape.num_experts());
        if counts.is_some() && u32::try_from(num_ranks as u64 * num_experts as u64).is_err() {
            return Err(Error::InvalidArgument(format!(
                "layer {layer}: {num_ranks} ranks of {num_experts} experts have 2^32 counts or more; register none"
            )));
        }
        if let Some(counts) = &counts {
            self.device.check_address(counts.address(), "rank_counts", Access::Read)?;
        }
        router.with_rank_counts(|registered| *registered = counts);
        Ok(())
    }

    /// Hot: turns the ids of a layer into slots, in the order of `stream`.
    pub fn route(&self, layer: u32, routing: &Routing, stream: Stream) -> Result<()> {
        self.route_layer(self.layer(layer)?, routing, None, stream)
    }

    /// Hot: as [`Dispatch::route`], and adds to the recorder's counts in the same pass.
    pub fn route_and_count(
        &self,
        recorder: &Recorder,
        layer: u32,
        routing: &Routing,
        stream: Stream,
    ) -> Result<()> {
        let number = layer;
        let layer = self.layer(layer)?;
        let counts_slots = recorder.counts_slots();
        let counted_ids = if counts_slots { routing.slots() } else { routing.ids() };
        let cells = if counts_slots { self.shape.num_slots() } else { self.shape.num_experts() };
        let source = Source {
            device: &self.device,
            num_experts: cells,
            experts_per_token: self.experts_per_token,
            num_shared: self.num_shared,
            flips: self.live.as_ref().map(Live::flips),
        };
        recorder.count_fused(number, (counted_ids, routing.num_tokens()), &source, stream, |count| {
            self.route_layer(layer, routing, count.map(|count| (count, counts_slots)), stream)
        })
    }

    /// Routes, and counts experts or, if the flag of `count` is set, slots.
    fn route_layer(
        &self,
        layer: &Layer,
        routing: &Routing,
        count: Option<(&BatchCount, bool)>,
        stream: Stream,
    ) -> Result<()> {
        match &layer.router {
            Router::Cuda(router, rank_counts) => {
                let rank_counts = match self.rule {
                    Rule::LeastLoaded => *lock(rank_counts),
                    _ => None,
                };
                router.route(routing, rank_counts.as_ref(), count, stream)
            }
            Router::Host(layer) => {
                // Routing in place overwrites the experts, so they are counted before.
                if let Some((count, false)) = count {
                    count.run(&self.device, stream)?;
                }
                let slot_count = count.filter(|&(_, counts_slots)| counts_slots).map(|(count, _)| count);
                let mut layer = lock(layer);
                let HostLayer { router, rank_counts } = &mut *layer;
                // SAFETY: counts of all ranks and experts, on the host, by the promise of the value's maker.
                let rank_counts = rank_counts.map(|counts| move |index| unsafe { counts.get_on_host(index) });
                // SAFETY: ids and slots are on the host, by the promise of the value's maker. The recorder's lock keeps calls apart.
                unsafe { router.run(routing, rank_counts, slot_count) };
                Ok(())
            }
        }
    }

    #[inline]
    fn layer(&self, layer: u32) -> Result<&Layer> {
        // Where the numbers have no gaps, a search would be slower.
        let first = self.layers.first().map_or(0, |&(first, _)| first);
        match self.layers.get(layer.wrapping_sub(first) as usize) {
            Some((number, found)) if *number == layer => Ok(found),
            _ => Ok(&self.layers[self.index_of(layer)?].1),
        }
    }

    #[inline(never)]
    fn index_of(&self, layer: u32) -> Result<usize> {
        match self.layers.binary_search_by_key(&layer, |&(number, _)| number) {
            Ok(place) => Ok(place),
            Err(_) => Err(Error::InvalidArgument(match &self.layers[..] {
                [] => format!("layer {layer}: the dispatch was created without layers"),
                layers @ [(first, _), ..] => format!(
                    "layer {layer} is not one of the {} that the dispatch was created with, from {first} to {}",
                    layers.len(),
                    layers[layers.len() - 1].0
                ),
            })),
        }
    }
}

impl Drop for Dispatch {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            self.memory.forget();
            std::mem::forget(self.live.take());
            std::mem::forget(self.device.clone());
        }
    }
}

/// Locks whether or not a call panicked: each batch starts from scratch.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
