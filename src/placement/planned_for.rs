//! The last line of a configuration file that eplb planned, a comment: `# eplb: ep_size 8, hash 0123456789abcdef`.
//!
//! TensorRT-LLM's file lacks the number of ranks. On another number the file loads just as well, and balances nothing.

use std::fmt;

use super::Placement;
use crate::error::{Error, Result, shortened};

const START: &str = "# eplb:";

/// What the line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedFor {
    /// The number of ranks.
    pub ep_size: usize,
    /// [`Placement::hash`].
    pub hash: u64,
}

impl PlannedFor {
    pub(super) fn of(placement: &Placement) -> Self {
        PlannedFor { ep_size: placement.shape().num_ranks(), hash: placement.hash() }
    }

    /// Finds the line in a file's text. Lines of other programs may follow it.
    pub(super) fn find(text: &str) -> Result<Option<Self>> {
        let Some(line) = text.lines().rev().find(|line| line.starts_with(START)) else { return Ok(None) };
        Self::parse(line).map(Some).ok_or_else(|| {
            Error::InvalidPlacement(format!(
                "the line \"{}\" was edited, \"{START} ep_size N, hash H\" expected; remove it to use the file as it is",
                shortened(line)
            ))
        })
    }

    fn parse(line: &str) -> Option<Self> {
        let (ep_size, hash) =
            line.strip_prefix(START)?.trim().strip_prefix("ep_size ")?.split_once(", hash ")?;
        let hash = (hash.len() == 16).then(|| u64::from_str_radix(hash, 16).ok())??;
        Some(PlannedFor { ep_size: ep_size.parse().ok()?, hash })
    }

    /// Fails if the file is to be used on another number of ranks.
    pub(super) fn check_num_ranks(&self, wanted: usize) -> Result<()> {
        if self.ep_size == wanted {
            return Ok(());
        }
        Err(Error::InvalidPlacement(format!(
            "the file was planned for {} ranks, {wanted} ranks expected, which it does not balance; generate it for \
             {wanted} ranks, or remove its line \"{self}\" to use it as it is",
            self.ep_size
        )))
    }
}

impl fmt::Display for PlannedFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{START} ep_size {}, hash {:016x}", self.ep_size, self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{ConfigFile, Expected, MissingLayers, Shape};

    fn planned() -> Placement {
        let shape = Shape::new(4, 6, 2).unwrap();
        Placement::new(shape, &[3], &[0, 1, 2, 3, 0, 1]).unwrap().with_planned(true)
    }

    fn read(text: &str, num_ranks: Option<usize>) -> std::result::Result<Placement, String> {
        let config = ConfigFile::parse(text).map_err(|error| error.to_string())?;
        config.placement(Expected { num_ranks, ..Default::default() }).map_err(|error| error.to_string())
    }

    #[test]
    fn a_planned_placement_keeps_its_line_over_saving_and_loading() {
        let text = planned().to_yaml().unwrap();
        let line = format!("num_slots: 6\n# eplb: ep_size 2, hash {:016x}\n", planned().hash());
        assert!(text.ends_with(&line), "{text}");
        let read = read(&text, None).unwrap();
        assert_eq!(read, planned(), "the line says how many ranks");
        assert_eq!(read.to_yaml().unwrap(), text);
        assert_eq!(read.to_eplb_yaml(), planned().to_eplb_yaml());
    }

    #[test]
    fn other_placements_are_saved_without_a_line() {
        let without = planned().with_planned(false).to_yaml().unwrap();
        assert!(!without.contains('#'), "{without}");
        assert_eq!(read(&without, Some(2)).unwrap().to_yaml().unwrap(), without);
        let own = read(&planned().to_eplb_yaml(), None).unwrap();
        assert_eq!(own.to_yaml().unwrap(), without);
    }

    #[test]
    fn another_number_of_ranks_is_refused_with_the_way_out() {
        let text = planned().to_yaml().unwrap();
        let line = text.lines().last().unwrap();
        assert_eq!(
            read(&text, Some(3)).unwrap_err(),
            format!(
                "the file was planned for 2 ranks, 3 ranks expected, which it does not balance; generate it for 3 ranks, or \
                 remove its line \"{line}\" to use it as it is"
            )
        );
        assert_eq!(read(&text.replace(line, ""), Some(3)).unwrap().shape().num_ranks(), 3);
        let contradicting = format!("ep_size: 3\n{text}");
        assert!(read(&contradicting, None).unwrap_err().starts_with("the file was planned for 2 ranks"));
        assert_eq!(read(&format!("ep_size: 2\n{text}"), None).unwrap().shape().num_ranks(), 2);
    }

    #[test]
    fn an_edited_file_is_read_and_loses_its_line() {
        let text = planned().to_yaml().unwrap();
        let (first, rest) = text.split_once("3: [").unwrap();
        let (row, rest) = rest.split_once(']').unwrap();
        let turned: Vec<&str> = row.rsplit(", ").collect();
        let edited = read(&format!("{first}3: [{}]{rest}", turned.join(", ")), Some(2)).unwrap();
        assert!(!edited.to_yaml().unwrap().contains('#'));
        // A layer more than the file has is none of what was planned.
        let layers = Some(&[3, 4][..]);
        let missing_layers = MissingLayers::CopyLast;
        let filled = ConfigFile::parse(&text).unwrap();
        let filled = filled.placement(Expected { layers, missing_layers, ..Default::default() }).unwrap();
        assert!(!filled.is_planned());
        for line in
            ["# eplb: ep_size 2", "# eplb: ep_size two, hash 0123456789abcdef", "# eplb: ep_size 2, hash 1"]
        {
            let damaged = format!("num_slots: 2\n{line}\n");
            let message = read(&damaged, Some(2)).unwrap_err();
            assert!(message.starts_with(&format!("the line \"{line}\" was edited")), "{message}");
        }
    }
}
