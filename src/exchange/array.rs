//! Arrays of numbers, which every format contains.

use std::fmt::Write;

use crate::placement::MAX_COUNT;

/// Stands for -1, an empty slot, among numbers below 2^63.
pub const MINUS_ONE: u64 = u64::MAX;

/// 2^63, the first number out of range.
const LIMIT: f64 = 9_223_372_036_854_775_808.0;

/// How many numbers a small file may have if it stores some of them once for several places: 32 MiB.
pub const MAX_REPEATED: usize = 1 << 22;

/// Numbers, the last index fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Each at least 1 and at most [`MAX_COUNT`].
    shape: Vec<usize>,
    values: Values,
}

/// The numbers of an array.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// All are whole: 0 to 2^63 - 1, or [`MINUS_ONE`].
    Whole(Vec<u64>),
    /// Some are fractions: 0 to below 2^63, each exact.
    Real(Vec<f64>),
}

impl Array {
    /// An array of this shape. The caller has checked the number of `values`.
    pub fn new(shape: Vec<usize>, values: Values) -> Result<Self, String> {
        match shape.iter().find(|&&size| size == 0 || size > MAX_COUNT) {
            Some(size) => {
                Err(format!("its shape is {shape:?}: sizes of 1 to {MAX_COUNT} expected, not {size}"))
            }
            None => Ok(Array { shape, values }),
        }
    }

    /// The numbers as `[steps][rows][columns]`, one step where the array has none.
    pub fn steps(&self) -> Result<([usize; 3], &Values), String> {
        match self.shape[..] {
            [rows, columns] => Ok(([1, rows, columns], &self.values)),
            [steps, rows, columns] => Ok(([steps, rows, columns], &self.values)),
            _ => Err(format!(
                "it has {} dimensions, [layers][experts] or [steps][layers][experts] expected",
                self.shape.len()
            )),
        }
    }

    /// The whole numbers as `[rows][columns]`.
    pub fn rows(&self) -> Result<([usize; 2], &[u64]), String> {
        match (&self.shape[..], &self.values) {
            (&[rows, columns], Values::Whole(values)) => Ok(([rows, columns], values)),
            (_, Values::Real(_)) => Err("it has fractions, expert ids expected".to_owned()),
            _ => Err(format!("it has {} dimensions, [layers][slots] expected", self.shape.len())),
        }
    }
}

/// Checks and collects the numbers of an array. They are whole until the first fraction.
#[derive(Debug)]
pub struct Numbers {
    minus_one: bool,
    values: Values,
}

impl Numbers {
    /// Starts without numbers. With `minus_one` they are ids: whole, and -1 is read as [`MINUS_ONE`]. Otherwise they are counts
    /// or loads.
    pub fn new(minus_one: bool) -> Self {
        Numbers { minus_one, values: Values::Whole(Vec::new()) }
    }

    /// Reserves memory for so many more numbers.
    pub fn reserve(&mut self, count: usize) -> Result<(), String> {
        let reserved = match &mut self.values {
            Values::Whole(values) => values.try_reserve(count),
            Values::Real(values) => values.try_reserve(count),
        };
        reserved.map_err(|_| "out of memory".to_owned())
    }

    /// The numbers so far.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::Whole(values) => values.len(),
            Values::Real(values) => values.len(),
        }
    }

    /// Adds an integer. The message of a failure follows the number's place.
    pub fn signed(&mut self, value: i64) -> Result<(), String> {
        match u64::try_from(value) {
            Ok(value) => self.whole(value),
            Err(_) if value == -1 && self.minus_one => self.push(MINUS_ONE),
            Err(_) => Err(self.unexpected(value)),
        }
    }

    /// Adds an integer: see [`Numbers::signed`].
    pub fn unsigned(&mut self, value: u64) -> Result<(), String> {
        match i64::try_from(value) {
            Ok(_) => self.whole(value),
            Err(_) => Err(self.unexpected(value)),
        }
    }

    /// Adds a number with or without a fraction: see [`Numbers::signed`].
    pub fn float(&mut self, value: f64) -> Result<(), String> {
        match (0.0..LIMIT).contains(&value) {
            true if value.fract() == 0.0 => self.whole(value as u64),
            true if !self.minus_one => self.real(value),
            false if value == -1.0 && self.minus_one => self.push(MINUS_ONE),
            _ => Err(self.unexpected(value)),
        }
    }

    /// Returns the numbers.
    pub fn finish(self) -> Values {
        self.values
    }

    /// The message for another value than a number in range.
    pub fn unexpected(&self, value: impl std::fmt::Display) -> String {
        let expected = match self.minus_one {
            true => "a whole number from 0 to 2^63 - 1",
            false => "a number from 0 to below 2^63",
        };
        format!("is {value}, {expected} expected")
    }

    fn whole(&mut self, value: u64) -> Result<(), String> {
        if let Values::Real(_) = self.values {
            return exact(value).and_then(|value| self.real(value));
        }
        self.push(value)
    }

    fn push(&mut self, value: u64) -> Result<(), String> {
        self.reserve(1)?;
        if let Values::Whole(values) = &mut self.values {
            values.push(value);
        }
        Ok(())
    }

    fn real(&mut self, value: f64) -> Result<(), String> {
        if let Values::Whole(whole) = &self.values {
            let mut values = Vec::new();
            values.try_reserve(whole.capacity()).map_err(|_| "out of memory")?;
            for &value in whole {
                values.push(exact(value).map_err(|what| format!("follows a number that {what}"))?);
            }
            self.values = Values::Real(values);
        }
        self.reserve(1)?;
        if let Values::Real(values) = &mut self.values {
            values.push(value);
        }
        Ok(())
    }
}

/// Converts a whole number among fractions, which are doubles.
fn exact(value: u64) -> Result<f64, String> {
    match value as f64 {
        double if double as u64 == value => Ok(double),
        _ => Err(format!("is {value}: beside fractions, whole numbers must be exact as doubles")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_until_the_first_fraction() {
        let mut numbers = Numbers::new(false);
        numbers.signed(3).unwrap();
        numbers.unsigned((1 << 53) + 2).unwrap();
        numbers.float(4.0).unwrap();
        numbers.float(0.1).unwrap();
        numbers.signed(5).unwrap();
        assert_eq!(numbers.len(), 5);
        assert_eq!(numbers.finish(), Values::Real(vec![3.0, 9_007_199_254_740_994.0, 4.0, 0.1, 5.0]));
    }

    #[test]
    fn whole_number_beside_fractions_is_never_rounded() {
        let odd = (1 << 53) + 1;
        let beside = "is 9007199254740993: beside fractions, whole numbers must be exact as doubles";
        let mut numbers = Numbers::new(false);
        numbers.float(0.5).unwrap();
        assert_eq!(numbers.unsigned(odd), Err(beside.to_owned()));
        let mut numbers = Numbers::new(false);
        numbers.unsigned(odd).unwrap();
        assert_eq!(numbers.float(0.5), Err(format!("follows a number that {beside}")));
    }

    #[test]
    fn numbers_out_of_range_are_rejected() {
        let mut counts = Numbers::new(false);
        for (number, shown) in
            [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-0.5, "-0.5"), (LIMIT, "9223372036854776000")]
        {
            let expected = format!("is {shown}, a number from 0 to below 2^63 expected");
            assert_eq!(counts.float(number), Err(expected));
        }
        assert!(counts.signed(-1).is_err() && counts.unsigned(1 << 63).is_err());
        let mut ids = Numbers::new(true);
        assert_eq!(ids.float(0.5), Err("is 0.5, a whole number from 0 to 2^63 - 1 expected".to_owned()));
        assert_eq!(ids.signed(-2), Err("is -2, a whole number from 0 to 2^63 - 1 expected".to_owned()));
        ids.signed(-1).and_then(|()| ids.float(-1.0)).unwrap();
        assert_eq!(ids.finish(), Values::Whole(vec![MINUS_ONE, MINUS_ONE]));
    }
}
