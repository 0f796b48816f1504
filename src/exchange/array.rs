//! What every format comes down to: whole numbers in rows.

use std::fmt::Write;

use crate::placement::MAX_COUNT;

/// Whole numbers from 0 to 2^63 - 1, the last index fastest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Each at least 1 and at most [`MAX_COUNT`].
    shape: Vec<usize>,
    values: Vec<u64>,
}

impl Array {
    /// `values` in the shape that they have been counted for.
    pub fn new(shape: Vec<usize>, values: Vec<u64>) -> Result<Self, String> {
        match shape.iter().find(|&&size| size == 0 || size > MAX_COUNT) {
            Some(size) => {
                Err(format!("its shape is {shape:?}: a size of {size} is none from 1 to {MAX_COUNT}"))
            }
            None => Ok(Array { shape, values }),
        }
    }

    /// The numbers as `[steps][rows][columns]`, one step where the array has none.
    pub fn steps(&self) -> Result<([usize; 3], &[u64]), String> {
        match self.shape[..] {
            [rows, columns] => Ok(([1, rows, columns], &self.values)),
            [steps, rows, columns] => Ok(([steps, rows, columns], &self.values)),
            _ => Err(format!(
                "it has {} dimensions, [layers][experts] or [steps][layers][experts] expected",
                self.shape.len()
            )),
        }
    }

    /// The numbers as `[rows][columns]`.
    pub fn rows(&self) -> Result<([usize; 2], &[u64]), String> {
        match self.shape[..] {
            [rows, columns] => Ok(([rows, columns], &self.values)),
            _ => Err(format!("it has {} dimensions, [layers][slots] expected", self.shape.len())),
        }
    }
}

/// `[3][7]`: where in an array something is.
pub fn place(indices: &[usize]) -> String {
    indices.iter().fold(String::new(), |mut place, index| {
        let _ = write!(place, "[{index}]");
        place
    })
}

/// The place of the value that comes `flat`-th.
pub fn place_of(shape: &[usize], flat: usize) -> String {
    let mut indices: Vec<usize> = shape
        .iter()
        .rev()
        .scan(flat, |rest, &size| {
            let index = *rest % size;
            *rest /= size;
            Some(index)
        })
        .collect();
    indices.reverse();
    place(&indices)
}
