//! Reads nested lists of one shape, as JSON and pickles hold them.

use super::array::{Array, Numbers, place};

/// `[steps][layers][experts]` is the deepest.
const MAX_DIMENSIONS: usize = 3;

/// The depth of a list that is being read.
#[derive(Debug, Clone, Copy)]
pub struct Level(usize);

/// Nested lists while they are read. Messages name the place.
pub struct Lists {
    /// The list that is being read, by the indices that lead to it.
    place: Vec<usize>,
    /// The length of the first list that ended at each depth.
    shape: Vec<usize>,
    numbers: Numbers,
    /// The depth of the first number.
    depth: Option<usize>,
}

impl Lists {
    /// Starts before the outermost list. See [`Numbers::new`] for `minus_one`.
    pub fn new(minus_one: bool) -> Self {
        Lists { place: Vec::new(), shape: Vec::new(), numbers: Numbers::new(minus_one), depth: None }
    }

    /// The numbers so far.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// The current place.
    pub fn here(&self) -> String {
        if self.place.is_empty() { "the file".to_owned() } else { place(&self.place) }
    }

    /// Adds a number by one of the calls of [`Numbers`].
    pub fn number(&mut self, add: impl FnOnce(&mut Numbers) -> Result<(), String>) -> Result<(), String> {
        if *self.depth.get_or_insert(self.place.len()) != self.place.len() {
            return Err(format!("{} is a number where others are lists", self.here()));
        }
        add(&mut self.numbers).map_err(|what| format!("{} {what}", self.here()))
    }

    /// Begins a list.
    pub fn open(&mut self) -> Result<Level, String> {
        let level = self.place.len();
        if level == MAX_DIMENSIONS || self.depth.is_some_and(|depth| level >= depth) {
            return Err(format!("{} is a list where a number is expected", self.here()));
        }
        self.place.push(0);
        Ok(Level(level))
    }

    /// Counts an element of the list that began at `level`.
    pub fn next(&mut self, level: Level) {
        self.place[level.0] += 1;
    }

    /// Ends the list that began at `level`.
    pub fn close(&mut self, Level(level): Level) -> Result<(), String> {
        let length = self.place.pop().unwrap_or_default();
        // No list is empty, so a number was read before the first list ends.
        self.shape.resize(self.depth.unwrap_or(level + 1), 0);
        match self.shape[level] {
            _ if length == 0 => Err(format!("{} is an empty list", self.here())),
            0 => {
                self.shape[level] = length;
                Ok(())
            }
            first if first == length => Ok(()),
            first => Err(format!("{} has {length} elements, {first} expected", self.here())),
        }
    }

    /// Returns the array, after the outermost list.
    pub fn finish(self) -> Result<Array, String> {
        Array::new(self.shape, self.numbers.finish())
    }
}
