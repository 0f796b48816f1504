//! Which dump each row of a merged dump comes from.

use std::ops::Range;

/// What becomes of iterations that several dumps have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overlap {
    /// They are an error.
    #[default]
    Refuse,
    /// The dump that is listed first counts.
    First,
    /// The dump that is listed last counts.
    Last,
    /// Their counts add up.
    Add,
    /// Each dump is numbered on from the end of the one that is listed before it, whatever its own numbers.
    Append,
}

/// Iterations of one rank in one dump, as positions: the position of an iteration is the number of counted iterations before it,
/// from the first row of all dumps on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub dump: usize,
    pub positions: Range<u64>,
}

/// Consecutive rows that come from the same dumps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub rows: Range<u64>,
    /// The dumps whose counts add up, for each rank. Empty where the rank has these rows in no dump, or not all of a row.
    pub sources: Vec<Vec<usize>>,
}

/// Two dumps that both have iterations of a rank, and these positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conflict {
    pub rank: usize,
    pub dumps: [usize; 2],
    pub positions: Range<u64>,
}

impl Segment {
    /// Whether all ranks have the rows.
    pub fn is_complete(&self) -> bool {
        self.sources.iter().all(|sources| !sources.is_empty())
    }
}

/// Splits all rows, from the first position to the last, into segments. `ranks` has the pieces of each rank, by dump. A row has
/// `bucket` positions, the last one may have fewer.
pub(super) fn segments(
    ranks: &[Vec<Piece>],
    bucket: u64,
    overlap: Overlap,
) -> std::result::Result<Vec<Segment>, Conflict> {
    let pieces = || ranks.iter().flatten().map(|piece| &piece.positions);
    let end = pieces().map(|positions| positions.end).max().unwrap_or(0);
    // Between two of these rows, every row has the same pieces.
    let ends = || pieces().flat_map(|positions| [positions.start, positions.end]);
    let mut cuts: Vec<u64> = ends().flat_map(|at| [at / bucket, at.div_ceil(bucket)]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut segments: Vec<Segment> = Vec::new();
    for pair in cuts.windows(2) {
        let positions = pair[0] * bucket..((pair[0] + 1) * bucket).min(end);
        let of_rank = |(rank, pieces): (usize, &Vec<Piece>)| sources(pieces, &positions, overlap, rank);
        let sources = ranks.iter().enumerate().map(of_rank).collect::<std::result::Result<Vec<_>, _>>()?;
        match segments.last_mut().filter(|last| last.sources == sources) {
            Some(last) => last.rows.end = pair[1],
            None => segments.push(Segment { rows: pair[0]..pair[1], sources }),
        }
    }
    Ok(segments)
}

/// The dumps that make up the row of `positions`.
fn sources(
    pieces: &[Piece],
    row: &Range<u64>,
    overlap: Overlap,
    rank: usize,
) -> std::result::Result<Vec<usize>, Conflict> {
    let part = |piece: &Piece| piece.positions.start.max(row.start)..piece.positions.end.min(row.end);
    let mut parts: Vec<(usize, Range<u64>)> = pieces.iter().map(|piece| (piece.dump, part(piece))).collect();
    parts.retain(|(_, part)| !part.is_empty());
    let whole: Vec<usize> = parts.iter().filter(|(_, part)| part == row).map(|&(dump, _)| dump).collect();
    parts.sort_by_key(|(dump, part)| (part.start, part.end, *dump));
    let positions =
        |dump| pieces.iter().find(|piece| piece.dump == dump).map_or(0..0, |piece| piece.positions.clone());
    let conflict = parts.windows(2).find(|pair| pair[1].1.start < pair[0].1.end).map(|pair| {
        let dumps = [pair[0].0.min(pair[1].0), pair[0].0.max(pair[1].0)];
        let [one, other] = dumps.map(positions);
        Conflict { rank, dumps, positions: one.start.max(other.start)..one.end.min(other.end) }
    });
    let one = match (&conflict, overlap) {
        (Some(_), Overlap::First) => whole.first(),
        (Some(_), Overlap::Last) => whole.last(),
        _ => None,
    };
    match (conflict, one) {
        (_, Some(&dump)) => return Ok(vec![dump]),
        // Of two parts of a row that have iterations in common, neither can be left out.
        (Some(conflict), None) if overlap != Overlap::Add => return Err(conflict),
        _ => {}
    }
    let mut reached = row.start;
    for (_, part) in &parts {
        if part.start <= reached {
            reached = reached.max(part.end);
        }
    }
    let mut dumps: Vec<usize> =
        parts.into_iter().map(|(dump, _)| dump).filter(|_| reached == row.end).collect();
    dumps.sort_unstable();
    Ok(dumps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(of_ranks: &[&[(usize, Range<u64>)]]) -> Vec<Vec<Piece>> {
        let piece =
            |(dump, positions): &(usize, Range<u64>)| Piece { dump: *dump, positions: positions.clone() };
        of_ranks.iter().map(|pieces| pieces.iter().map(piece).collect()).collect()
    }

    fn segment(rows: Range<u64>, sources: &[&[usize]]) -> Segment {
        Segment { rows, sources: sources.iter().map(|dumps| dumps.to_vec()).collect() }
    }

    #[test]
    fn rows_of_one_dump_after_another_are_two_segments() {
        let ranks = ranks(&[&[(0, 0..10), (1, 10..25)]]);
        let expected = [segment(0..10, &[&[0]]), segment(10..25, &[&[1]])];
        assert_eq!(segments(&ranks, 1, Overlap::Refuse).unwrap(), expected);
        // In rows of 10, the last has 5.
        let expected = [segment(0..1, &[&[0]]), segment(1..3, &[&[1]])];
        assert_eq!(segments(&ranks, 10, Overlap::Refuse).unwrap(), expected);
    }

    #[test]
    fn parts_of_a_row_add_up() {
        // Restarted within the row of positions 10 to 19.
        let ranks = ranks(&[&[(0, 0..14), (1, 14..30)]]);
        let expected = [segment(0..1, &[&[0]]), segment(1..2, &[&[0, 1]]), segment(2..3, &[&[1]])];
        assert_eq!(segments(&ranks, 10, Overlap::Refuse).unwrap(), expected);
    }

    #[test]
    fn a_row_that_a_rank_lacks_in_part_is_incomplete() {
        let ranks = ranks(&[&[(0, 0..14), (1, 14..30)], &[(0, 0..13), (1, 14..30)]]);
        let found = segments(&ranks, 10, Overlap::Refuse).unwrap();
        let complete: Vec<(Range<u64>, bool)> =
            found.iter().map(|segment| (segment.rows.clone(), segment.is_complete())).collect();
        assert_eq!(complete, [(0..1, true), (1..2, false), (2..3, true)]);
        // No dump has positions 10 to 19.
        let ranks = self::ranks(&[&[(0, 0..10), (1, 20..30)]]);
        assert_eq!(segments(&ranks, 10, Overlap::Refuse).unwrap()[1], segment(1..2, &[&[]]));
    }

    #[test]
    fn overlaps_are_a_conflict_or_resolved() {
        let ranks = ranks(&[&[(0, 0..20), (1, 15..30)]]);
        let conflict = Conflict { rank: 0, dumps: [0, 1], positions: 15..20 };
        assert_eq!(segments(&ranks, 1, Overlap::Refuse).unwrap_err(), conflict);
        for (overlap, of_both) in [(Overlap::First, &[0][..]), (Overlap::Last, &[1]), (Overlap::Add, &[0, 1])]
        {
            let found = segments(&ranks, 1, overlap).unwrap();
            let of = |row: u64| &found.iter().find(|segment| segment.rows.contains(&row)).unwrap().sources[0];
            assert_eq!([14, 15, 19, 20].map(of), [&vec![0], &of_both.to_vec(), &of_both.to_vec(), &vec![1]]);
        }
        // In rows of 10, dump 1 has a part of the row that dump 0 has in full.
        let expected = [segment(0..2, &[&[0]]), segment(2..3, &[&[1]])];
        assert_eq!(segments(&ranks, 10, Overlap::Last).unwrap(), expected);
        // Neither has all of it, and both have position 15.
        let ranks = self::ranks(&[&[(0, 0..16), (1, 15..30)]]);
        let conflict = Conflict { rank: 0, dumps: [0, 1], positions: 15..16 };
        for overlap in [Overlap::Refuse, Overlap::First, Overlap::Last] {
            assert_eq!(segments(&ranks, 10, overlap).unwrap_err(), conflict);
        }
        assert_eq!(segments(&ranks, 10, Overlap::Add).unwrap()[1].sources[0], [0, 1]);
    }
}
