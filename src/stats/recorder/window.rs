//! The recorder's memory on the device: the window of counts, the row to count into, and each layer's totals.

use super::RecorderConfig;
use super::added::{AddedCounts, Addition, CountsAt};
use super::count::{BatchCount, CellType, LayerCells, OFF, Totals};
use super::ring::{self, SnapshotAt};
use crate::device::{Device, Fence, Ids, Memory, Part, Staging, Stream};
use crate::error::{Error, Result};
use crate::stats::{Counts, IdKind, IterationRange, Rows};

/// Enough for vector loads.
const ALIGNMENT: usize = 64;

/// Where the parts of the workspace are: the row to count into, each layer's totals, the cells `[iterations][layers][experts]`, and
/// the last values of cumulative counters, `[layers][counters]`, if there are any. Totals and cells are copied back together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    rows: usize,
    layers: usize,
    num_experts: usize,
    experts_per_token: usize,
    /// Shared experts. 0 where slots are counted: only a dispatch knows theirs.
    num_shared: u32,
    cell_type: CellType,
    cells: Part,
    /// The cells of a row of a layer that added counts belong to: the first, and how many.
    added: (usize, usize),
    last_counts: Part,
}

impl Layout {
    pub fn of(config: &RecorderConfig, iterations: IterationRange) -> Result<Self> {
        // Every choice of a row's iterations may be the same expert.
        let choices = config.max_tokens_per_iteration.saturating_mul(config.experts_per_token as u64);
        let most = choices.saturating_mul(config.rows.bucket());
        let cell_type = if most > u64::from(u32::MAX) { CellType::U64 } else { CellType::U32 };
        let rows = u32::try_from(config.rows.count(iterations)).ok().filter(|&rows| rows < OFF);
        let Some(rows) = rows else {
            return Err(Error::InvalidArgument(format!(
                "iterations {iterations} are more than 2^32 - 2 rows of counts; raise iter_bucket or iter_stride"
            )));
        };
        let (rows, layers, num_experts) = (rows as usize, config.layers.len(), config.num_experts);
        let start = (ALIGNMENT + layers * size_of::<Totals>()).next_multiple_of(ALIGNMENT);
        let bytes = rows
            .checked_mul(layers)
            .and_then(|cells| cells.checked_mul(num_experts))
            .and_then(|cells| cells.checked_mul(cell_type.size()))
            .filter(|bytes| bytes.checked_add(start).is_some_and(|all| all <= isize::MAX as usize))
            .ok_or_else(|| Error::out_of_memory(usize::MAX, "the window of counts"))?;
        let cells = Part { start, bytes };
        let AddedCounts { cumulative, by_local_slot } = config.added_counts;
        let local = num_experts / config.num_ranks;
        let added = if by_local_slot { (config.rank as usize * local, local) } else { (0, num_experts) };
        let last_counts = match cumulative {
            // No overflow: there are at most 2^31 layers of 2^20 counters.
            true => Part { start: (start + bytes).next_multiple_of(ALIGNMENT), bytes: layers * added.1 * 8 },
            false => Part { start: start + bytes, bytes: 0 },
        };
        if last_counts.start + last_counts.bytes > isize::MAX as usize {
            return Err(Error::out_of_memory(usize::MAX, "the window of counts"));
        }
        Ok(Layout {
            rows,
            layers,
            num_experts,
            experts_per_token: config.experts_per_token,
            num_shared: if config.id_kind == IdKind::Expert { config.num_shared as u32 } else { 0 },
            cell_type,
            cells,
            added,
            last_counts,
        })
    }

    /// The layout of a ring, with another row for the iterations that it holds no more. Counts have 64 bits, since nothing
    /// limits how many iterations are before a snapshot.
    pub fn of_ring(config: &RecorderConfig) -> Result<Self> {
        if config.rolling >= u64::from(OFF) - 1 {
            return Err(Error::InvalidArgument(format!(
                "rolling_iterations is {}, at most {} expected",
                config.rolling,
                OFF - 2
            )));
        }
        let wide = RecorderConfig { rows: Rows::ITERATIONS, max_tokens_per_iteration: u64::MAX, ..*config };
        Layout::of(&wide, IterationRange { start: 0, stop: config.rolling + 1 })
    }

    /// The memory of a ring, which is never copied back.
    pub fn ring_memory(&self) -> MemoryRequired {
        MemoryRequired { workspace_bytes: self.workspace_bytes(), host_bytes: self.totals().bytes }
    }

    /// Whether the workspace has the last values of counters.
    pub fn keeps_last_counts(&self) -> bool {
        self.last_counts.bytes != 0
    }

    /// Rows of counts.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn row(&self) -> Part {
        Part { start: 0, bytes: 4 }
    }

    fn totals(&self) -> Part {
        Part { start: ALIGNMENT, bytes: self.layers * size_of::<Totals>() }
    }

    /// The parts that are copied back: totals and cells.
    fn copied(&self) -> Part {
        Part { start: ALIGNMENT, bytes: self.cells.start + self.cells.bytes - ALIGNMENT }
    }

    /// Bytes on the device.
    pub fn workspace_bytes(&self) -> usize {
        self.last_counts.start + self.last_counts.bytes
    }

    /// Host memory for a copy of the window, and for one of the totals.
    pub fn host_bytes(&self) -> usize {
        self.copied().bytes + self.totals().bytes
    }
}

/// The memory that a recorder takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryRequired {
    /// Bytes on the device.
    pub workspace_bytes: usize,
    /// Bytes of host memory, page-locked for a CUDA device.
    pub host_bytes: usize,
}

impl RecorderConfig<'_> {
    /// The memory that [`Recorder::create`](super::Recorder::create) would take.
    pub fn memory_required(&self) -> Result<MemoryRequired> {
        let mut required = MemoryRequired::default();
        if self.iterations.is_some() || self.rolling != 0 {
            self.checked_run()?;
        }
        if let Some(iterations) = self.iterations {
            let layout = Layout::of(self, iterations)?;
            required =
                MemoryRequired { workspace_bytes: layout.workspace_bytes(), host_bytes: layout.host_bytes() };
        }
        if self.rolling != 0 {
            required = required.followed_by(Layout::of_ring(self)?.ring_memory());
        }
        Ok(required)
    }
}

impl MemoryRequired {
    /// The memory of a window with another one behind.
    pub(super) fn followed_by(self, other: MemoryRequired) -> Self {
        MemoryRequired {
            workspace_bytes: self.ring_start().saturating_add(other.workspace_bytes),
            host_bytes: self.host_bytes.saturating_add(other.host_bytes),
        }
    }

    /// Where a window behind begins.
    pub(super) fn ring_start(&self) -> usize {
        self.workspace_bytes.next_multiple_of(ALIGNMENT)
    }
}

/// The memory itself. Callers order their changes.
#[derive(Debug)]
pub(super) struct Window {
    device: Device,
    layout: Layout,
    memory: Memory,
}

impl Window {
    /// Uses the caller-provided memory or allocates it, sets all counts to zero and counts into no row.
    pub fn create(device: &Device, layout: Layout, provided: Option<Memory>) -> Result<Self> {
        let memory = device.provided_or_allocated(
            provided,
            layout.workspace_bytes(),
            "the window of counts: count fewer iterations, raise iter_bucket, or provide a workspace",
        )?;
        device.initialize(&memory, layout.copied(), 0)?;
        if layout.keeps_last_counts() {
            device.initialize(&memory, layout.last_counts, 0)?;
        }
        device.initialize(&memory, layout.row(), OFF)?;
        Ok(Window { device: device.clone(), layout, memory })
    }

    /// The device that the memory is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Sets the row to count into, in the order of `stream`.
    pub fn set_row(&self, row: u32, stream: Stream) -> Result<()> {
        self.device.fill(&self.memory, self.layout.row(), row, stream)
    }

    /// Sets all counts to zero, in the order of `stream`.
    pub fn clear(&self, stream: Stream) -> Result<()> {
        self.device.fill(&self.memory, self.layout.copied(), 0, stream)
    }

    /// The cells of the layer with this index.
    fn layer_cells(&self, layer: usize) -> LayerCells {
        let Layout { num_experts, cell_type, cells, layers, .. } = self.layout;
        let (totals, size) = (self.layout.totals(), size_of::<Totals>());
        let skipped = layer * num_experts * cell_type.size();
        LayerCells {
            row: self.layout.row(),
            cells: Part { start: cells.start + skipped, bytes: cells.bytes - skipped },
            cell_type,
            row_stride: layers * num_experts,
            totals: Part { start: totals.start + layer * size, bytes: size },
            num_experts: num_experts as u32,
            num_shared: self.layout.num_shared,
        }
    }

    /// The count of a batch of the layer with this index.
    pub fn batch_count(&self, layer: usize, ids: &Ids, num_tokens: u32) -> BatchCount {
        let choices = self.layout.experts_per_token as u32;
        BatchCount::new(ids, num_tokens, choices, &self.memory, &self.layer_cells(layer))
    }

    /// The addition of counts to the layer with this index.
    pub fn addition(&self, layer: usize, counts: &CountsAt) -> Addition {
        let Layout { added, last_counts, .. } = self.layout;
        let bytes = added.1 * 8;
        let last =
            self.layout.keeps_last_counts().then(|| Part { start: last_counts.start + layer * bytes, bytes });
        Addition::new(counts, &self.memory, &self.layer_cells(layer), added, last)
    }

    /// Adds the oldest row of a ring to the row behind the ring, and clears it, in the order of `stream`.
    pub fn merge_oldest(&self, oldest: u32, stream: Stream) -> Result<()> {
        // SAFETY: this window's cells.
        unsafe { self.ring_arguments(0, (oldest, 1), 0).run(&self.device, stream) }
    }

    /// Writes the counts of `num_rows` rows of a ring from `first` on to `counts`, `[num_samples][layers][experts]`, and clears
    /// them, in the order of `stream`. The rows go into the samples in even consecutive groups, the row behind the ring into
    /// the first one.
    pub fn read_ring(
        &self,
        counts: &SnapshotAt,
        rows: (u32, u32),
        num_samples: u32,
        stream: Stream,
    ) -> Result<()> {
        // SAFETY: this window's cells, and the promise of the counts' maker.
        unsafe { self.ring_arguments(counts.address(), rows, num_samples).run(&self.device, stream) }
    }

    fn ring_arguments(
        &self,
        counts: u64,
        (first, num_rows): (u32, u32),
        num_samples: u32,
    ) -> ring::Arguments {
        let Layout { rows, layers, num_experts, cells, .. } = self.layout;
        ring::Arguments {
            cells: self.memory.at(cells),
            counts,
            num_cells: (layers * num_experts) as u64,
            ring_rows: rows as u32 - 1,
            first,
            num_rows,
            num_samples,
        }
    }

    /// Host memory for [`Window::copy_back`].
    pub fn staging(&self) -> Result<Staging> {
        self.device.staging(
            self.layout.copied().bytes,
            "a copy of the counts: count fewer iterations, or raise iter_bucket",
        )
    }

    /// Host memory for [`Window::totals`].
    pub fn totals_staging(&self) -> Result<Staging> {
        self.device
            .staging(self.layout.totals().bytes, "a copy of the sums: count fewer iterations or layers")
    }

    /// Each layer's totals as they are now.
    pub fn totals<'a>(&self, staging: &'a mut Staging) -> Result<&'a [Totals]> {
        self.device.copy_back(&self.memory, self.layout.totals(), None, staging)?;
        Ok(staging.numbers(0, self.layout.layers))
    }

    /// The counts of `rows` rows from `start` on, as they are after `fence`. Fails where they contradict the totals.
    pub fn copy_back<'a>(
        &self,
        fence: &Fence,
        (start, rows): (usize, usize),
        layers: &[u32],
        staging: &'a mut Staging,
    ) -> Result<Counts<'a>> {
        self.device.copy_back(&self.memory, self.layout.copied(), Some(fence), staging)?;
        let Layout { num_experts, .. } = self.layout;
        let cells = self.layout.cells.start - ALIGNMENT;
        let row = layers.len() * num_experts;
        let all = self.layout.rows * row;
        let counts = match self.layout.cell_type {
            CellType::U32 => Counts::U32(staging.numbers(cells, all)),
            CellType::U64 => Counts::U64(staging.numbers(cells, all)),
        };
        for (index, totals) in staging.numbers::<Totals>(0, layers.len()).iter().enumerate() {
            let experts = (0..self.layout.rows).map(|r| r * row + index * num_experts);
            let found: u64 = experts.map(|first| sum(counts, first..first + num_experts)).sum();
            let counted = totals.ids.wrapping_sub(totals.not_counted());
            if found != counted {
                return Err(contradiction(layers[index], counted, found));
            }
        }
        let selected = start * row..(start + rows) * row;
        Ok(match counts {
            Counts::U32(counts) => Counts::U32(&counts[selected]),
            Counts::U64(counts) => Counts::U64(&counts[selected]),
        })
    }
}

fn sum(counts: Counts, range: std::ops::Range<usize>) -> u64 {
    match counts {
        Counts::U32(counts) => counts[range].iter().map(|&count| u64::from(count)).sum(),
        Counts::U64(counts) => counts[range].iter().sum(),
    }
}

/// Every kernel adds to the cells and to the totals. They agree unless a cell overflowed or counting continued.
fn contradiction(layer: u32, counted: u64, found: u64) -> Error {
    let why = if found < counted {
        "a count overflowed 32 bits, so max_tokens_per_iteration must be at least the number of tokens of an iteration, or ids were still \
         being counted, so every counting stream must be ordered before the stream of this call"
    } else {
        "ids were still being counted, so every counting stream must be ordered before the stream of this call"
    };
    Error::InvalidDump(format!(
        "layer {layer}: {counted} ids were counted and the window has {found}: {why}; nothing was written"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{IdType, Place};
    use crate::stats::{IdKind, Rows};

    const CONFIG: RecorderConfig = RecorderConfig {
        path: None,
        name: None,
        iterations: None,
        rows: Rows::ITERATIONS,
        rank: 0,
        num_ranks: 1,
        file: None,
        num_experts: 4,
        experts_per_token: 1,
        layers: &[7, 8],
        id_kind: IdKind::Expert,
        place: Place::Host,
        max_tokens_per_iteration: 0,
        run_id: None,
        added_counts: AddedCounts { cumulative: false, by_local_slot: false },
        num_shared: 0,
        rolling: 0,
    };

    /// Two rows of two layers, counting into row 1.
    fn window(config: &RecorderConfig) -> Window {
        let layout = Layout::of(config, IterationRange { start: 0, stop: 2 }).unwrap();
        let window = Window::create(&Device::open(Place::Host).unwrap(), layout, None).unwrap();
        window.set_row(1, Stream::DEFAULT).unwrap();
        window
    }

    fn count(window: &Window, ids: &[i32]) {
        // SAFETY: the ids outlive the call, which has done its work on return.
        let place = unsafe { Ids::at(ids.as_ptr() as u64, IdType::Int32, 0) };
        window.batch_count(1, &place, ids.len() as u32).run(&window.device, Stream::DEFAULT).unwrap();
    }

    /// Sets the count of expert 2 of layer 8 in row 1, and the layer's total.
    fn preset(window: &Window, count: u32) {
        let cell = window.layout.cells.start + (8 + 4 + 2) * 4;
        window.device.initialize(&window.memory, Part { start: cell, bytes: 4 }, count).unwrap();
        let ids = window.layout.totals().start + size_of::<Totals>();
        window.device.initialize(&window.memory, Part { start: ids, bytes: 4 }, count).unwrap();
    }

    fn copy_back(window: &Window) -> Result<Vec<u64>> {
        let fence = window.device.fence()?;
        let mut staging = window.staging()?;
        match window.copy_back(&fence, (1, 1), &[7, 8], &mut staging)? {
            Counts::U32(counts) => Ok(counts.iter().map(|&count| u64::from(count)).collect()),
            Counts::U64(counts) => Ok(counts.to_vec()),
        }
    }

    #[test]
    fn copy_back_fails_when_a_count_overflowed_32_bits() {
        let window = window(&CONFIG);
        preset(&window, u32::MAX - 1);
        count(&window, &[2]);
        assert_eq!(copy_back(&window).unwrap(), [0, 0, 0, 0, 0, 0, u64::from(u32::MAX), 0]);
        count(&window, &[1, 2]);
        let message = copy_back(&window).unwrap_err().to_string();
        assert!(
            message
                .starts_with("layer 8: 4294967297 ids were counted and the window has 1: a count overflowed"),
            "{message}"
        );
    }

    #[test]
    fn copy_back_returns_64_bit_counts_and_detects_contradictions() {
        let config = RecorderConfig { max_tokens_per_iteration: 1 << 32, ..CONFIG };
        let window = window(&config);
        count(&window, &[3, -1, 3]);
        assert_eq!(copy_back(&window).unwrap(), [0, 0, 0, 0, 0, 0, 0, 2]);
        let cell = window.layout.cells.start + (8 + 4 + 3) * 8;
        window.device.initialize(&window.memory, Part { start: cell, bytes: 8 }, 1).unwrap();
        assert!(copy_back(&window).unwrap_err().to_string().contains("still being counted"));
    }
}
