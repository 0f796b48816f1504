//! Arrays of whole numbers, which every format contains.

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
    /// An array of this shape. The caller has checked the number of `values`.
    pub fn new(shape: Vec<usize>, values: Vec<u64>) -> Result<Self, String> {
        match shape.iter().find(|&&size| size == 0 || size > MAX_COUNT) {
            Some(size) => {
                Err(format!("its shape is {shape:?}: sizes of 1 to {MAX_COUNT} expected, not {size}"))
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

/// Formats a place in an array, such as `[3][7]`.
pub fn place(indices: &[usize]) -> String {
    indices.iter().fold(String::new(), |mut place, index| {
        let _ = write!(place, "[{index}]");
        place
    })
}

/// Formats the place of the value at a flat index.
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
