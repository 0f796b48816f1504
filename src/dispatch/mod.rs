//! Step 3, run: a placement becomes tables on a device, and expert ids become slots.

mod host;
mod layout;
pub(crate) mod level;
pub(crate) mod nearest;
pub(crate) mod tables;

use std::sync::{Mutex, MutexGuard, PoisonError};

use self::host::{HostJob, HostLayer};
use self::layout::{LayerRoom, Layout};
use self::level::Levelling;
use self::tables::LayerTables;
use crate::device::{
    Access, Device, Id, Ids, Job, LevelTables, Memory, Part, Place, Route, Routing, Sizes, Stream, Tables,
};
pub use crate::device::{RankCounts, Rule};
use crate::error::{Error, Result, try_zeroed};
use crate::placement::{Placement, Shape};
use crate::stats::Recorder;

/// What the memory is for, in messages.
const TABLES: &str = "the dispatch tables";

/// How a placement is served.
#[derive(Debug, Clone, Copy)]
pub struct DispatchConfig<'a> {
    /// Which replica serves a token.
    pub rule: Rule,
    /// This rank of the expert-parallel group.
    pub rank: usize,
    /// Experts that each token chooses.
    pub experts_per_token: usize,
    /// Layers of this rank; `None` takes all of the placement.
    pub layers: Option<&'a [u32]>,
    /// The node of each rank; `None` says that all are on one.
    pub rank_to_node: Option<&'a [u32]>,
    /// Whether the round robin's turns begin with the rank's.
    pub offset_by_rank: bool,
    /// The width of the dense map; 0 makes none.
    pub max_replicas: usize,
    /// Where the ids are.
    pub place: Place,
}

/// The tables of a rank's layers on a device, and how to route by them. Nothing of it ever moves.
#[derive(Debug)]
pub struct Dispatch {
    device: Device,
    memory: Memory,
    memory_bytes: usize,
    placement_hash: u64,
    rule: Rule,
    shape: Shape,
    sizes: Sizes,
    experts_per_token: usize,
    max_replicas: usize,
    /// The layers' numbers, ascending, and what belongs to each.
    layers: Vec<(u32, Layer)>,
    /// The process that made it: in a copy that fork() made, the device is the parent's.
    process: u32,
}

#[derive(Debug)]
struct Layer {
    tables: Tables,
    dense: Option<Part>,
    /// All ranks' counts, where the host has them.
    rank_counts: Mutex<Option<RankCounts>>,
    /// Where ids are routed by the host; calls take turns.
    host: Option<Mutex<HostLayer>>,
}

/// Where a layer's tables are on the device, int32; see [`Dispatch::tables`].
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

impl DispatchConfig<'_> {
    fn layers<'a>(&'a self, placement: &'a Placement) -> &'a [u32] {
        self.layers.unwrap_or(placement.layers())
    }

    /// What the rule adds to a block's number.
    fn offset(&self) -> u32 {
        if self.rule == Rule::Nearest || self.offset_by_rank { self.rank as u32 } else { 0 }
    }
}

impl Dispatch {
    /// Bytes of the device's memory that [`Dispatch::create`] would take: as many for every placement of a shape and as many
    /// layers.
    pub fn memory_required(placement: &Placement, config: &DispatchConfig) -> Result<usize> {
        check(placement, config)?;
        Ok(Layout::of(placement.shape(), config, config.layers(placement).len())?.bytes())
    }

    /// Makes the tables and puts them on the device. `workspace` is the host's memory to use instead of memory of our own, on
    /// the device and as large as [`Dispatch::memory_required`] says.
    pub fn create(placement: &Placement, config: &DispatchConfig, workspace: Option<Memory>) -> Result<Self> {
        check(placement, config)?;
        let shape = placement.shape();
        let mut layers = config.layers(placement).to_vec();
        layers.sort_unstable();
        let layout = Layout::of(shape, config, layers.len())?;
        let device = Device::open(config.place)?;
        let memory = device.take(layout.bytes(), workspace, TABLES)?;
        let mut image = Image { words: try_zeroed(Some(layout.bytes() / 4), TABLES)? };
        let mut made = Vec::new();
        for (index, layer) in layers.into_iter().enumerate() {
            let tables = LayerTables::new(shape, placement.layer_experts(layer)?);
            made.push((layer, image.put_layer(layout.layer(index)?, shape, &tables, config)));
        }
        device.write(&memory, Part { start: 0, bytes: layout.bytes() }, &image.words)?;
        Ok(Dispatch {
            device,
            memory,
            memory_bytes: layout.bytes(),
            placement_hash: placement.hash(),
            rule: config.rule,
            shape,
            sizes: Sizes {
                num_experts: shape.num_experts() as u32,
                num_slots: shape.num_slots() as u32,
                num_ranks: shape.num_ranks() as u32,
                rank: config.rank as u32,
                offset: config.offset(),
            },
            experts_per_token: config.experts_per_token,
            max_replicas: config.max_replicas,
            layers: made,
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

    /// Which replica serves a token.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// This rank of the expert-parallel group.
    pub fn rank(&self) -> usize {
        self.sizes.rank as usize
    }

    /// [`Placement::hash`] of the placement whose tables these are.
    pub fn placement_hash(&self) -> u64 {
        self.placement_hash
    }

    /// Layers that are routed.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Layers for which [`Dispatch::register_rank_counts`] has named all ranks' counts.
    pub fn num_layers_with_rank_counts(&self) -> usize {
        self.layers.iter().filter(|(_, layer)| lock(&layer.rank_counts).is_some()).count()
    }

    /// Bytes held on the device.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Where a layer's tables are.
    pub fn tables(&self, layer: u32) -> Result<TableAddresses> {
        let Layer { tables, dense, .. } = self.layer(layer)?;
        Ok(TableAddresses {
            replica_count: self.memory.at(tables.replica_count),
            replica_start: self.memory.at(tables.replica_start),
            slot_ids: self.memory.at(tables.replica_slots),
            dense: dense.map_or(0, |dense| self.memory.at(dense)),
        })
    }

    /// Names the place of all ranks' counts of a layer, or takes it back.
    pub fn register_rank_counts(&self, layer: u32, counts: Option<RankCounts>) -> Result<()> {
        let place = &self.layer(layer)?.rank_counts;
        if self.rule != Rule::LeastLoaded {
            return Err(Error::InvalidArgument(
                "only EPLB_ROUTE_LEAST_LOADED goes by the counts of all ranks".into(),
            ));
        }
        if let Some(counts) = &counts {
            self.device.check_address(counts.address(), "rank_counts", Access::Read)?;
        }
        *lock(place) = counts;
        Ok(())
    }

    /// Hot: turns the ids of a layer into slots, in the order of `stream`.
    pub fn route(&self, layer: u32, routing: &Routing, stream: Stream) -> Result<()> {
        let layer = self.layer(layer)?;
        match &layer.host {
            Some(host) => self.route_on_host(layer, host, routing),
            None => self.device.route(&self.launch(layer, routing), stream),
        }
    }

    /// Hot: as [`Dispatch::route`], and counts for the recorder what it is there to count.
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
        let counted: Ids = if counts_slots { routing.slots() } else { *routing.ids() };
        let cells = if counts_slots { self.shape.num_slots() } else { self.shape.num_experts() };
        let sizes = (&self.device, cells, self.experts_per_token);
        recorder.count_with(number, (&counted, routing.num_tokens()), sizes, stream, |count| {
            match (&layer.host, count) {
                (Some(host), None) => self.route_on_host(layer, host, routing),
                (Some(host), Some(count)) if counts_slots => {
                    self.route_on_host(layer, host, routing)?;
                    self.device.count(count, stream)
                }
                // Routing in place leaves no experts to count.
                (Some(host), Some(count)) => {
                    self.device.count(count, stream)?;
                    self.route_on_host(layer, host, routing)
                }
                (None, None) => self.device.route(&self.launch(layer, routing), stream),
                (None, Some(count)) => {
                    self.device.route(&self.launch(layer, routing).with_count(count, counts_slots), stream)
                }
            }
        })
    }

    fn route_on_host(&self, layer: &Layer, host: &Mutex<HostLayer>, routing: &Routing) -> Result<()> {
        let rank_counts = *lock(&layer.rank_counts);
        // SAFETY: the maker of the counts promised that they are of all ranks and experts, on the device, which is the host.
        let rank_counts = rank_counts.map(|counts| move |place| unsafe { counts.get(place) });
        let job = HostJob { layer: &mut lock(host), rank_counts };
        // SAFETY: the device is the host, whose memory the maker of `routing` promised.
        unsafe { routing.on_host(job) };
        Ok(())
    }

    fn launch(&self, layer: &Layer, routing: &Routing) -> Route {
        let route = Route::new(self.rule, routing, self.sizes, &self.memory, &layer.tables);
        match &*lock(&layer.rank_counts) {
            Some(counts) => route.with_rank_counts(counts),
            None => route,
        }
    }

    fn layer(&self, layer: u32) -> Result<&Layer> {
        match self.layers.binary_search_by_key(&layer, |&(number, _)| number) {
            Ok(place) => Ok(&self.layers[place].1),
            Err(_) => Err(Error::InvalidArgument(format!(
                "layer {layer} is not one of the {} that the dispatch was created with, from {} to {}",
                self.layers.len(),
                self.layers[0].0,
                self.layers[self.layers.len() - 1].0
            ))),
        }
    }
}

impl Drop for Dispatch {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            self.memory.leave();
            std::mem::forget(self.device.clone());
        }
    }
}

/// Turns the ids of one batch a rank into slots, each batch as its rank would: `batches` is `[num_ranks]` of
/// `[tokens][experts_per_token]`. The config's rank and place are not looked at. With `rank_counts`,
/// `[num_ranks][num_experts]`, [`Rule::LeastLoaded`] levels the totals of all ranks.
pub(crate) fn route_batches<I: Id>(
    placement: &Placement,
    layer: u32,
    config: &DispatchConfig,
    batches: &mut [&mut [I]],
    rank_counts: Option<&[u64]>,
) -> Result<()> {
    let shape = placement.shape();
    let only = [layer];
    let of_rank = |rank| DispatchConfig { rank, layers: Some(&only), place: Place::Host, ..*config };
    check(placement, &of_rank(0))?;
    let tables = LayerTables::new(shape, placement.layer_experts(layer)?);
    for (rank, ids) in batches.iter_mut().enumerate().filter(|(_, ids)| !ids.is_empty()) {
        let config = of_rank(rank);
        let mut host = Needs::of(shape, &tables, &config).host_layer(shape, &tables, &config);
        let valid = ids.len();
        let rank_counts = rank_counts.map(|counts| |place: usize| counts[place]);
        HostJob { layer: &mut host, rank_counts }.run(ids, valid, config.experts_per_token);
    }
    Ok(())
}

/// What a panic left is as good as before: each batch begins anew.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(placement: &Placement, config: &DispatchConfig) -> Result<()> {
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    let shape = placement.shape();
    let (num_ranks, num_experts) = (shape.num_ranks(), shape.num_experts());
    if config.rank >= num_ranks {
        return refuse(format!("rank is {}, the placement has {num_ranks} ranks", config.rank));
    }
    if config.experts_per_token == 0 || config.experts_per_token > num_experts {
        return refuse(format!(
            "experts_per_token is {}, 1 to the {num_experts} experts of the placement expected",
            config.experts_per_token
        ));
    }
    if let Some(nodes) = config.rank_to_node.filter(|nodes| nodes.len() != num_ranks) {
        return refuse(format!("rank_to_node has {} ranks, the placement {num_ranks}", nodes.len()));
    }
    if config.max_replicas > shape.num_slots() {
        return refuse(format!(
            "max_replicas is {}, and no expert can have more than the {} slots of the placement",
            config.max_replicas,
            shape.num_slots()
        ));
    }
    let layers = config.layers(placement);
    if layers.is_empty() {
        return refuse("layer_ids names no layer".to_owned());
    }
    let mut sorted = layers.to_vec();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return refuse(format!("layer_ids names layer {} twice", pair[0]));
    }
    for &layer in layers {
        let experts = placement.layer_experts(layer)?;
        if config.max_replicas != 0 {
            let counts = LayerTables::new(shape, experts).replica_count;
            if let Some(expert) = counts.iter().position(|&count| count as usize > config.max_replicas) {
                return refuse(format!(
                    "max_replicas is {}, and expert {expert} of layer {layer} has {} slots",
                    config.max_replicas, counts[expert]
                ));
            }
        }
    }
    Ok(())
}

/// What the config's rule needs of a layer beside the tables.
struct Needs {
    shares: Option<Vec<u32>>,
    levelling: Option<Levelling>,
}

impl Needs {
    fn of(shape: Shape, tables: &LayerTables, config: &DispatchConfig) -> Self {
        let shares = || {
            let one_node = vec![0; shape.num_ranks()];
            nearest::shares(shape, tables, config.rank, config.rank_to_node.unwrap_or(&one_node))
        };
        Needs {
            shares: (config.rule == Rule::Nearest).then(shares),
            levelling: (config.rule == Rule::LeastLoaded).then(|| Levelling::new(shape, tables)),
        }
    }

    fn host_layer(&self, shape: Shape, tables: &LayerTables, config: &DispatchConfig) -> HostLayer {
        let (rank, shares) = ((config.rank, config.offset()), self.shares.as_deref());
        HostLayer::new(shape, config.rule, rank, tables, shares, self.levelling.as_ref())
    }
}

/// What the device's memory will hold.
struct Image {
    words: Vec<u32>,
}

impl Image {
    /// Writes what the config's rule needs of a layer, and makes of it what stays.
    fn put_layer(
        &mut self,
        room: LayerRoom,
        shape: Shape,
        tables: &LayerTables,
        config: &DispatchConfig,
    ) -> Layer {
        let needs = Needs::of(shape, tables, config);
        let shares = room
            .tables
            .shares
            .zip(needs.shares.as_ref())
            .map(|(room, shares)| self.put(room, shares.iter().copied()));
        let level = room.tables.level.zip(needs.levelling.as_ref());
        let level = level.map(|(room, levelling)| self.put_levelling(room, levelling, shape.num_ranks()));
        let host = (config.place == Place::Host).then(|| Mutex::new(needs.host_layer(shape, tables, config)));
        if let Some(room) = room.dense {
            tables.fill_dense(self.part(room), config.max_replicas);
        }
        let tables = Tables {
            replica_count: self.put(room.tables.replica_count, tables.replica_count.iter().copied()),
            replica_start: self.put(room.tables.replica_start, tables.replica_start.iter().copied()),
            replica_slots: self.put(room.tables.replica_slots, tables.replica_slots.iter().copied()),
            shares,
            level,
        };
        Layer { tables, dense: room.dense, rank_counts: Mutex::new(None), host }
    }

    fn put_levelling(&mut self, room: LevelTables, levelling: &Levelling, num_ranks: usize) -> LevelTables {
        let Levelling { experts, group_start, groups, step_start } = levelling;
        let places: Vec<u32> = (0..)
            .zip(group_start.windows(2))
            .flat_map(|(place, ends)| (ends[0]..ends[1]).map(move |_| place))
            .collect();
        let lanes = levelling.lanes(num_ranks);
        LevelTables {
            group_rank: self.put(room.group_rank, groups.iter().map(|group| group.rank)),
            group_place: self.put(room.group_place, places.into_iter()),
            group_first: self.put(room.group_first, groups.iter().map(|group| group.first)),
            group_size: self.put(room.group_size, groups.iter().map(|group| group.size)),
            experts: self.put(room.experts, experts.iter().copied()),
            group_start: self.put(room.group_start, group_start.iter().copied()),
            step_start: self.put(room.step_start, step_start.iter().copied()),
            group_ranks: self.put(room.group_ranks, lanes.group_ranks.into_iter()),
            rank_groups: self.put(room.rank_groups, lanes.rank_groups.into_iter()),
            ..room
        }
    }

    /// Writes a table to where there is room for it, and tells which part of the room it takes.
    fn put(&mut self, room: Part, table: impl ExactSizeIterator<Item = u32>) -> Part {
        let part = Part { start: room.start, bytes: table.len() * 4 };
        assert!(part.bytes <= room.bytes, "{part:?} of {room:?}");
        self.part(part).iter_mut().zip(table).for_each(|(word, value)| *word = value);
        part
    }

    fn part(&mut self, part: Part) -> &mut [u32] {
        &mut self.words[part.start / 4..][..part.bytes / 4]
    }
}
