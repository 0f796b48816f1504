//! The slots that may give what they hold.

use crate::solve::search::lanes::LANES;

/// Slots that are empty or whose expert has several replicas, and what they gain if they give it. They are lanes, by rising cell.
#[derive(Default)]
pub(in crate::solve::search::improvement) struct Givers {
    pub cells: Vec<u32>,
    /// What the ranks of the expert's other replicas lose, in whole vectors.
    pub others_lose: Vec<f32>,
    /// What the slot gains at most, before it takes another expert. In whole vectors, at least one.
    pub given: Vec<f32>,
    /// The load of the slot's rank without its expert, which is read with one sample only, and the cost of the rank less what the
    /// other replicas take over. In whole vectors.
    pub without: Vec<f32>,
    pub left: Vec<f32>,
    /// What the ranks of an expert's replicas gain by one more replica, and lose by one fewer: `[experts]`, and empty slots.
    sums: Vec<[f64; 2]>,
}

/// What ranks gain by other numbers of replicas, `[cells]`.
pub(super) struct Gains<'a> {
    pub experts: &'a [u32],
    pub removed: &'a [f32],
    pub without: &'a [f32],
    pub rank_costs: &'a [f32],
    pub thinner: &'a [f32],
    pub thicker: &'a [f32],
    /// Of all replicas of a cell's expert.
    pub gained: &'a mut [f32],
}

impl Givers {
    /// Takes the cells that give, by rising cell. A cell gives where `thick` is above 0, in the first ones of each row.
    pub(super) fn restart(&mut self, num_experts: usize, thick: &[f32], row: usize, num_slots: &[usize]) {
        self.sums.resize(num_experts + 1, [0.0; 2]);
        self.cells.resize(thick.len(), 0);
        let mut length = 0;
        for (rank, (thick, &num_slots)) in thick.chunks_exact(row).zip(num_slots).enumerate() {
            // Without branches, which would be mispredicted.
            for (place, &thick) in thick[..num_slots].iter().enumerate() {
                self.cells[length] = (rank * row + place) as u32;
                length += usize::from(thick > 0.0);
            }
        }
        self.cells.truncate(length);
    }

    /// Adds a cell, or takes it out if it is there.
    pub(super) fn toggle(&mut self, cell: usize) {
        match self.cells.binary_search(&(cell as u32)) {
            Ok(lane) => drop(self.cells.remove(lane)),
            Err(lane) => self.cells.insert(lane, cell as u32),
        }
    }

    /// The lanes of some cells.
    #[inline(always)]
    pub fn lanes_of(&self, cells: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let lane = |cell: usize| self.cells.partition_point(|&giver| (giver as usize) < cell);
        lane(cells.start)..lane(cells.end)
    }

    /// Computes what all gain.
    pub(super) fn update(&mut self, gains: Gains<'_>) {
        let Givers { cells, others_lose, given, without, left, sums } = self;
        // With one length, each cell is compared with it once.
        let Gains { experts, removed, thinner, thicker, gained, .. } = gains;
        let num_cells = experts.len();
        let (removed, loads_without) = (&removed[..num_cells], &gains.without[..num_cells]);
        let rank_costs = &gains.rank_costs[..num_cells];
        let (thinner, thicker) = (&thinner[..num_cells], &thicker[..num_cells]);
        let gained = &mut gained[..num_cells];
        // Empty slots have no expert, and gain and lose nothing.
        let most = sums.len() - 1;
        let place = |cell: usize| (experts[cell] as usize).min(most);
        sums.fill([0.0; 2]);
        for &cell in cells.iter() {
            let cell = cell as usize;
            let [gained, lost] = &mut sums[place(cell)];
            *gained += f64::from(thinner[cell]);
            *lost += f64::from(thicker[cell]);
        }
        let num_lanes = cells.len().max(1).next_multiple_of(LANES);
        for numbers in [&mut *others_lose, given, without, left] {
            numbers.resize(num_lanes, 0.0);
        }
        let lanes = others_lose.iter_mut().zip(&mut *given).zip(without.iter_mut().zip(&mut *left));
        for (&cell, ((others_lose, given), (without, left))) in cells.iter().zip(lanes) {
            let cell = cell as usize;
            let [of_expert, lost] = sums[place(cell)];
            gained[cell] = of_expert as f32;
            // In double precision, the difference of the sum and a part of it is exact enough.
            *others_lose = (lost - f64::from(thicker[cell])) as f32;
            *given = removed[cell] - *others_lose;
            *without = loads_without[cell];
            *left = rank_costs[cell] - *others_lose;
        }
        others_lose[cells.len()..].fill(f32::INFINITY);
        given[cells.len()..].fill(f32::NEG_INFINITY);
        left[cells.len()..].fill(f32::NEG_INFINITY);
        // About the mean load. Powers of small numbers underflow, which takes long.
        without[cells.len()..].fill(1.0);
    }
}
