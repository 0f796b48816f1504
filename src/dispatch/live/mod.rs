//! Tables that change under a running engine, at the same addresses: staging, commits, generations and active ranks.
//!
//! A commit is one kernel in the order of a stream. On the host it takes turns with routing of the layer.

mod copy;

use std::ops::DerefMut;
use std::sync::{Mutex, MutexGuard};

use self::copy::LayerCopies;
use super::config::{OwnedConfig, check, check_layer};
use super::host::HostRouter;
use super::image::Image;
use super::layout::Layout;
use super::rule_tables::RuleTables;
use super::tables::LayerTables;
use super::{Dispatch, DispatchConfig, Flips, Router, lock};
use crate::device::{Device, Memory, Place, Stream};
use crate::error::{Error, Result};
use crate::placement::{LayerUpdate, NO_EXPERT, Placement, Shape};

/// The purpose of the page-locked memory, in errors.
const COPIES: &str = "copies of the dispatch tables";

/// What a dispatch needs to change its tables.
#[derive(Debug)]
pub(super) struct Live {
    config: OwnedConfig,
    layout: Layout,
    /// The ranks that tokens are routed to.
    active: Mutex<Vec<bool>>,
    flips: Flips,
    /// Bytes of page-locked host memory.
    host_bytes: usize,
    /// In the order of the dispatch's layers.
    layers: Vec<Mutex<LayerState>>,
}

/// A layer's slots, and buffers for the next ones.
#[derive(Debug)]
struct LayerState {
    /// 1 at create, and one more with each commit.
    generation: u64,
    /// The experts of the slots in force.
    slots: Vec<u32>,
    /// Those of the staged tables.
    next: Vec<u32>,
    staged: Staged,
    buffers: Buffers,
}

/// The staged tables of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Staged {
    Nothing,
    Tables,
    /// The layer has changed since.
    Stale,
}

#[derive(Debug)]
enum Buffers {
    Host { words: Vec<u32>, router: Option<Box<HostRouter>> },
    Cuda(LayerCopies),
}

/// The tables of a layer that are to be in force.
struct NextTables {
    words: Vec<u32>,
    tables: LayerTables,
    rule: RuleTables,
}

impl Live {
    /// Takes the buffers for layers whose slots hold `slots`.
    pub fn create(
        device: &Device,
        memory: &Memory,
        shape: Shape,
        config: &DispatchConfig,
        (layout, slots): (&Layout, &[&[u32]]),
    ) -> Result<Self> {
        let table_words = layout.layer(0)?.all_tables().bytes / 4;
        let buffers: Vec<Buffers> = match device {
            Device::Host => {
                slots.iter().map(|_| Buffers::Host { words: vec![0; table_words], router: None }).collect()
            }
            Device::Cuda(cuda) => {
                copy::allocate(cuda, memory, layout, slots.len())?.into_iter().map(Buffers::Cuda).collect()
            }
        };
        let state = |(slots, buffers): (&&[u32], Buffers)| {
            let (slots, next) = (slots.to_vec(), slots.to_vec());
            Mutex::new(LayerState { generation: 1, slots, next, staged: Staged::Nothing, buffers })
        };
        Ok(Live {
            config: OwnedConfig::of(config),
            layout: *layout,
            active: Mutex::new(vec![true; shape.num_ranks()]),
            flips: Flips::default(),
            host_bytes: host_bytes(layout, config, slots.len())?,
            layers: slots.iter().zip(buffers).map(state).collect(),
        })
    }

    /// Bytes of page-locked host memory.
    pub fn host_bytes(&self) -> usize {
        self.host_bytes
    }

    /// How often tables have changed.
    pub fn flips(&self) -> &Flips {
        &self.flips
    }

    fn tables_of(&self, shape: Shape, slots: &[u32]) -> Result<NextTables> {
        let config = self.config.borrow();
        let tables = LayerTables::new(shape, slots);
        let rule = RuleTables::new(shape, &tables, &config);
        let mut image = Image::new(self.layout.stride())?;
        let parts = self.layout.layer(0)?;
        image.write_layer(&parts, &tables, &rule);
        let all = parts.all_tables();
        let words = image.words()[all.start / 4..][..all.bytes / 4].to_vec();
        Ok(NextTables { words, tables, rule })
    }
}

/// Bytes of page-locked host memory that a dispatch takes.
fn host_bytes(layout: &Layout, config: &DispatchConfig, num_layers: usize) -> Result<usize> {
    if config.live && config.place != Place::Host { copy::pinned_bytes(layout, num_layers) } else { Ok(0) }
}

/// The calls that change tables. A failed one leaves them as they were.
impl Dispatch {
    /// Bytes of page-locked host memory that [`Dispatch::create`] takes.
    pub fn host_memory_required(placement: &Placement, config: &DispatchConfig) -> Result<usize> {
        check(placement, config)?;
        let num_layers = config.layers(placement).len();
        host_bytes(&Layout::of(placement.shape(), config, num_layers)?, config, num_layers)
    }

    /// A layer's generation: 1 at create, and one more with each commit.
    pub fn generation(&self, layer: u32) -> Result<u64> {
        let index = self.index_of(layer)?;
        Ok(self.live.as_ref().map_or(1, |live| lock(&live.layers[index]).generation))
    }

    /// Makes the tables of an update and copies them to the layer's shadow, in the order of `stream`.
    pub fn stage_layer(&self, update: &LayerUpdate, stream: Stream) -> Result<()> {
        let (live, index) = (self.live()?, self.index_of(update.layer)?);
        self.device.check_not_capturing(stream, "eplb_dispatch_stage_layer")?;
        let mut state = lock(&live.layers[index]);
        let next = self.next_tables(live, &state, update)?;
        match &mut state.buffers {
            Buffers::Cuda(buffers) => buffers.upload(&next.words, stream)?,
            Buffers::Host { words, router } => {
                *router = Some(self.host_router(live, next.tables, next.rule));
                *words = next.words;
            }
        }
        state.next.copy_from_slice(update.to);
        state.staged = Staged::Tables;
        Ok(())
    }

    /// Puts the staged tables of a layer in force, in the order of `stream`.
    pub fn commit_layer(&self, layer: u32, stream: Stream) -> Result<()> {
        let (live, index) = (self.live()?, self.index_of(layer)?);
        self.device.check_not_capturing(stream, "eplb_dispatch_commit_layer")?;
        let mut state = lock(&live.layers[index]);
        match state.staged {
            Staged::Tables => {}
            Staged::Nothing => {
                return Err(Error::InvalidArgument(format!(
                    "layer {layer} has no staged tables: call eplb_dispatch_stage_layer() first"
                )));
            }
            Staged::Stale => {
                return Err(Error::Stale(format!(
                    "layer {layer} has changed since its tables were staged: plan again, and stage the new plan"
                )));
            }
        }
        match &mut state.buffers {
            Buffers::Cuda(buffers) => buffers.commit(stream)?,
            Buffers::Host { words, router } => self.swap_on_host(index, words, router)?,
        }
        let state = &mut *state;
        std::mem::swap(&mut state.slots, &mut state.next);
        state.staged = Staged::Nothing;
        self.committed(live, state);
        Ok(())
    }

    /// Puts the tables of an update in force, in the order of `stream`.
    pub fn update_layer(&self, update: &LayerUpdate, stream: Stream) -> Result<()> {
        let (live, index) = (self.live()?, self.index_of(update.layer)?);
        self.device.check_not_capturing(stream, "eplb_dispatch_update_layer")?;
        let mut state = lock(&live.layers[index]);
        let next = self.next_tables(live, &state, update)?;
        self.replace(live, index, &mut state, update.to, next, stream)?;
        self.committed(live, &mut state);
        Ok(())
    }

    /// Routes nothing to ranks that are not `active`, `[num_ranks]`, in the order of `stream`. Their slots become empty, and
    /// generations stay. Fails with [`Error::NoReplica`] where an expert would have no slot.
    pub fn set_active_ranks(&self, active: &[bool], stream: Stream) -> Result<()> {
        let live = self.live()?;
        let num_ranks = self.shape.num_ranks();
        if active.len() != num_ranks {
            return Err(Error::InvalidArgument(format!(
                "num_ranks is {}, the dispatch has {num_ranks} ranks",
                active.len()
            )));
        }
        self.device.check_not_capturing(stream, "eplb_dispatch_set_active_ranks")?;
        // All layers at once, in the order of their numbers.
        let mut states: Vec<_> = live.layers.iter().map(lock).collect();
        let mut before = lock(&live.active);
        if let Some(rank) = (0..num_ranks).find(|&rank| active[rank] && !before[rank]) {
            return Err(Error::InvalidArgument(format!(
                "rank {rank} is not active, and its slots are empty: it becomes active when a plan that fills them is committed"
            )));
        }
        self.check_shared_slots(live, active)?;
        let mut lost = Vec::new();
        let mut next = Vec::new();
        for (index, state) in states.iter().enumerate() {
            let is_on_active = |slot: usize| active[self.shape.rank_of(slot)];
            let of_active = |(slot, &expert)| if is_on_active(slot) { expert } else { NO_EXPERT };
            let slots: Vec<u32> = state.slots.iter().enumerate().map(of_active).collect();
            let missing = experts_without_slot(self.shape, &slots);
            if !missing.is_empty() {
                lost.push(format!("layer {}: {}", self.layers[index].0, list(&missing)));
            }
            next.push(slots);
        }
        if !lost.is_empty() {
            return Err(Error::NoReplica(format!(
                "without these ranks, experts have no slot ({}): keep a rank that holds them, or commit a plan that places them \
                 elsewhere first",
                lost.join("; ")
            )));
        }
        if states.iter().zip(&next).any(|(state, slots)| state.slots != *slots) {
            self.replace_all(live, &mut states, &next, stream)?;
        }
        for (state, slots) in states.iter_mut().zip(&next) {
            if state.slots != *slots {
                state.take_slots(slots);
                live.flips.add();
            }
            let is_dead = |(slot, &expert)| expert != NO_EXPERT && !active[self.shape.rank_of(slot)];
            if state.staged == Staged::Tables && state.next.iter().enumerate().any(is_dead) {
                state.staged = Staged::Stale;
            }
        }
        before.copy_from_slice(active);
        Ok(())
    }

    fn live(&self) -> Result<&Live> {
        self.live.as_ref().ok_or_else(|| {
            Error::InvalidArgument(
                "the tables of this dispatch do not change: create it with live set".into(),
            )
        })
    }

    /// Checks an update of a layer, and that its buffers are free. Returns its tables.
    fn next_tables(&self, live: &Live, state: &LayerState, update: &LayerUpdate) -> Result<NextTables> {
        let LayerUpdate { layer, generation, from, to } = *update;
        let num_slots = self.shape.num_slots();
        if from.len() != num_slots || to.len() != num_slots {
            return Err(Error::InvalidShape(format!(
                "layer {layer}: the plan has {} slots, the dispatch {num_slots}",
                to.len()
            )));
        }
        let stale = |what: String| {
            Err(Error::Stale(format!("layer {layer}: {what}; plan again from the placement in force")))
        };
        if generation != 0 && generation != state.generation {
            return stale(format!(
                "the plan was made against generation {generation}, and {} is in force",
                state.generation
            ));
        }
        if let Some(slot) = (0..num_slots).find(|&slot| from[slot] != state.slots[slot]) {
            return stale(format!(
                "the plan was made with {} in slot {slot}, which has {}",
                named(from[slot]),
                named(state.slots[slot])
            ));
        }
        let num_experts = self.shape.num_experts();
        if let Some(slot) = (0..num_slots).find(|&s| to[s] != NO_EXPERT && to[s] as usize >= num_experts) {
            return Err(Error::InvalidPlacement(format!(
                "layer {layer}: slot {slot} gets expert {}, the dispatch has {num_experts}",
                to[slot]
            )));
        }
        let missing = experts_without_slot(self.shape, to);
        if !missing.is_empty() {
            return Err(Error::NoReplica(format!(
                "layer {layer}: the plan leaves {} without a slot",
                list(&missing)
            )));
        }
        check_layer(self.shape, layer, to, &live.config.borrow())?;
        state.check_read(layer)?;
        live.tables_of(self.shape, to)
    }

    fn host_router(&self, live: &Live, tables: LayerTables, rule: RuleTables) -> Box<HostRouter> {
        Box::new(HostRouter::new(self.shape, tables, rule, &live.config.borrow()))
    }

    /// Fails where a shared expert's only slot, which no plan changes, is on a rank that is not active.
    fn check_shared_slots(&self, live: &Live, active: &[bool]) -> Result<()> {
        let slots = live.config.borrow().shared_slots;
        let is_dead = |&(_, &slot): &(usize, &i32)| {
            (slot as usize) < self.shape.num_slots() && !active[self.shape.rank_of(slot as usize)]
        };
        match slots.iter().enumerate().find(is_dead) {
            None => Ok(()),
            Some((place, &slot)) => Err(Error::NoReplica(format!(
                "shared expert {place} has its only slot, {slot}, on rank {}, which is not active: create a dispatch with another \
                 shared_slot_ids[{place}]",
                self.shape.rank_of(slot as usize)
            ))),
        }
    }

    /// Puts the tables of slots in force, past the shadow.
    fn replace(
        &self,
        live: &Live,
        index: usize,
        state: &mut LayerState,
        slots: &[u32],
        next: NextTables,
        stream: Stream,
    ) -> Result<()> {
        match &mut state.buffers {
            Buffers::Cuda(copies) => copies.update(&next.words, stream)?,
            Buffers::Host { .. } => self.replace_on_host(live, index, next)?,
        }
        state.take_slots(slots);
        Ok(())
    }

    /// Puts the tables of all layers' slots in force: of all layers or, where the call fails, of none.
    fn replace_all(
        &self,
        live: &Live,
        states: &mut [MutexGuard<'_, LayerState>],
        slots: &[Vec<u32>],
        stream: Stream,
    ) -> Result<()> {
        let numbers = self.layers.iter().map(|&(number, _)| number);
        states.iter().zip(numbers).try_for_each(|(state, layer)| state.check_read(layer))?;
        let tables =
            slots.iter().map(|slots| live.tables_of(self.shape, slots)).collect::<Result<Vec<_>>>()?;
        let all = |state| match &mut MutexGuard::<LayerState>::deref_mut(state).buffers {
            Buffers::Cuda(copies) => Some(copies),
            Buffers::Host { .. } => None,
        };
        let mut on_device: Vec<&mut LayerCopies> = states.iter_mut().filter_map(all).collect();
        if !on_device.is_empty() {
            return copy::update_all(&mut on_device, tables.iter().map(|next| &next.words[..]), stream);
        }
        (0..).zip(tables).try_for_each(|(index, next)| self.replace_on_host(live, index, next))
    }

    fn replace_on_host(&self, live: &Live, index: usize, next: NextTables) -> Result<()> {
        let mut router = Some(self.host_router(live, next.tables, next.rule));
        self.swap_on_host(index, &next.words, &mut router)
    }

    /// Exchanges the router of a layer and writes its tables. Takes turns with routing.
    fn swap_on_host(&self, index: usize, words: &[u32], router: &mut Option<Box<HostRouter>>) -> Result<()> {
        let (Router::Host(routing), Some(next)) = (&self.layers[index].1.router, router) else {
            return Err(Error::Internal("staged tables without a router".into()));
        };
        let part = self.live()?.layout.layer(index)?.all_tables();
        let routing = &mut lock(routing).router;
        self.device.write(&self.memory, part, words)?;
        // The old one is freed by the next update, not here.
        std::mem::swap(routing, &mut **next);
        Ok(())
    }

    /// Notes a commit. Ranks with routes are active.
    fn committed(&self, live: &Live, state: &mut LayerState) {
        state.generation += 1;
        live.flips.add();
        let mut active = lock(&live.active);
        for (slot, _) in state.slots.iter().enumerate().filter(|(_, expert)| **expert != NO_EXPERT) {
            active[self.shape.rank_of(slot)] = true;
        }
    }
}

impl LayerState {
    /// Takes slots that are in force now. Tables that were staged before are stale.
    fn take_slots(&mut self, slots: &[u32]) {
        self.slots.copy_from_slice(slots);
        if self.staged == Staged::Tables {
            self.staged = Staged::Stale;
        }
    }

    /// Fails until the device has read what was staged or put in force last.
    fn check_read(&self, layer: u32) -> Result<()> {
        match &self.buffers {
            Buffers::Host { .. } => Ok(()),
            Buffers::Cuda(buffers) => buffers.check_read(layer),
        }
    }
}

/// The experts that no slot holds.
fn experts_without_slot(shape: Shape, slots: &[u32]) -> Vec<usize> {
    let mut held = vec![false; shape.num_experts()];
    slots.iter().filter(|&&expert| expert != NO_EXPERT).for_each(|&expert| held[expert as usize] = true);
    (0..held.len()).filter(|&expert| !held[expert]).collect()
}

/// Experts in a message.
fn list(experts: &[usize]) -> String {
    const MOST: usize = 8;
    let shown: Vec<String> = experts.iter().take(MOST).map(ToString::to_string).collect();
    let more = experts.len().saturating_sub(MOST);
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    let noun = if experts.len() == 1 { "expert" } else { "experts" };
    format!("{noun} {}{rest}", shown.join(", "))
}

/// What a slot holds, in a message.
fn named(expert: u32) -> String {
    if expert == NO_EXPERT { "no expert".to_owned() } else { format!("expert {expert}") }
}
