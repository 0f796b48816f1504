//! Reads and writes nested lists of whole numbers in JSON.

use std::fmt;
use std::io::{self, Write};

use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::array::{Array, place};
use super::element::{MINUS_ONE, whole};
use crate::error::shortened;

/// `[steps][layers][experts]` is the deepest.
const MAX_DIMENSIONS: usize = 3;

/// Reads a file that is one nested list. With `minus_one`, -1 is read as [`MINUS_ONE`].
pub fn read_lists(text: &[u8], minus_one: bool) -> Result<Array, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let array = Lists { minus_one }.deserialize(&mut json).map_err(bad)?;
    json.end().map_err(bad)?;
    Ok(array)
}

/// The message for invalid JSON. serde_json adds line and column.
pub fn bad(error: serde_json::Error) -> String {
    shortened(&format!("bad JSON: {error}"))
}

/// Reads a nested list within a file.
pub struct Lists {
    /// Whether -1 is read, as [`MINUS_ONE`].
    pub minus_one: bool,
}

impl<'de> DeserializeSeed<'de> for Lists {
    type Value = Array;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Array, D::Error> {
        let mut lists = Reading {
            place: Vec::new(),
            shape: Vec::new(),
            values: Vec::new(),
            depth: None,
            minus_one: self.minus_one,
        };
        deserializer.deserialize_seq(&mut lists)?;
        Array::new(lists.shape, lists.values).map_err(de::Error::custom)
    }
}

/// The state of a reading.
struct Reading {
    /// The list that is being read, by the indices that lead to it.
    place: Vec<usize>,
    /// The length of the first list that ended at each depth.
    shape: Vec<usize>,
    values: Vec<u64>,
    /// The depth of the first number.
    depth: Option<usize>,
    minus_one: bool,
}

impl Reading {
    /// The current place, for messages.
    fn here(&self) -> String {
        if self.place.is_empty() { "the file".to_owned() } else { place(&self.place) }
    }

    fn number<E: de::Error>(&mut self, number: Result<u64, String>) -> Result<(), E> {
        let value = number.map_err(|number| {
            E::custom(format!("{} is {number}, a whole number from 0 to 2^63 - 1 expected", self.here()))
        })?;
        if *self.depth.get_or_insert(self.place.len()) != self.place.len() {
            return Err(E::custom(format!("{} is a number where others are lists", self.here())));
        }
        self.values.try_reserve(1).map_err(|_| E::custom("out of memory"))?;
        self.values.push(value);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Reading {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Reading {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "lists of whole numbers")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.number(i64::try_from(value).map(|_| value).map_err(|_| value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        match value {
            -1 if self.minus_one => self.number(Ok(MINUS_ONE)),
            _ => self.number(u64::try_from(value).map_err(|_| value.to_string())),
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.number(whole(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let level = self.place.len();
        if level == MAX_DIMENSIONS || self.depth.is_some_and(|depth| level >= depth) {
            return Err(de::Error::custom(format!("{} is a list where a number is expected", self.here())));
        }
        self.place.push(0);
        while seq.next_element_seed(&mut *self)?.is_some() {
            self.place[level] += 1;
        }
        let length = self.place.pop().unwrap_or_default();
        // No list is empty, so a number was read before the first list ends.
        self.shape.resize(self.depth.unwrap_or(level + 1), 0);
        match self.shape[level] {
            _ if length == 0 => Err(de::Error::custom(format!("{} is an empty list", self.here()))),
            0 => {
                self.shape[level] = length;
                Ok(())
            }
            first if first == length => Ok(()),
            first => {
                Err(de::Error::custom(format!("{} has {length} elements, {first} expected", self.here())))
            }
        }
    }
}

/// Writes `values` as nested lists of the shape, in the form of Python's `json.dump`, [`MINUS_ONE`] as -1.
pub fn write_lists(
    out: &mut dyn Write,
    shape: &[usize],
    values: &mut dyn Iterator<Item = u64>,
) -> io::Result<()> {
    let Some((&size, inner)) = shape.split_first() else {
        return values.next().map_or(Ok(()), |value| write!(out, "{}", value.cast_signed()));
    };
    for index in 0..size {
        out.write_all(if index == 0 { b"[" } else { b", " })?;
        write_lists(out, inner, values)?;
    }
    out.write_all(b"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        read_lists(text.as_bytes(), false).unwrap_err()
    }

    #[test]
    fn lists_of_one_shape_are_an_array() {
        let expected = Array::new(vec![2, 3], vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(read_lists(b"[[1, 2.0, 3], [4, 5e0, 6]]\n", false).unwrap(), expected);
        let mut text = Vec::new();
        write_lists(&mut text, &[2, 1, 3], &mut (1..=6)).unwrap();
        assert_eq!(str::from_utf8(&text).unwrap(), "[[[1, 2, 3]], [[4, 5, 6]]]");
    }

    #[test]
    fn read_lists_names_the_place_of_an_error() {
        for (text, expected) in [
            ("[[1, 2], [3]]", "[1] has 1 elements, 2 expected at line 1 column 12"),
            (
                "[[1, 2],\n[3, -4]]",
                "[1][1] is -4, a whole number from 0 to 2^63 - 1 expected at line 2 column 6",
            ),
            (
                "[[1, 2], [3, 0.5]]",
                "[1][1] is 0.5, a whole number from 0 to 2^63 - 1 expected at line 1 column 16",
            ),
            ("[[1, 1e300]]", "[0][1] is 1"),
            ("[[1, 2], 3]", "[1] is a number where others are lists at line 1 column 10"),
            ("[1, [2]]", "[1] is a list where a number is expected"),
            ("[[[[1]]]]", "[0][0][0] is a list where a number is expected"),
            (
                "[[1, true]]",
                "invalid type: boolean `true`, expected lists of whole numbers at line 1 column 9",
            ),
            ("{}", "invalid type: map, expected lists of whole numbers at line 1 column 0"),
            ("[[1, 2]", "EOF while parsing a list at line 1 column 7"),
            ("[[1]] [", "trailing characters at line 1 column 7"),
            ("[[], [1]]", "[0] is an empty list at line 1 column 3"),
            ("[[[1]], []]", "[1] is an empty list at line 1 column 10"),
            ("[[1], [[1]]]", "[1][0] is a list where a number is expected"),
            ("[]", "the file is an empty list at line 1 column 2"),
        ] {
            let message = message(text);
            assert!(message.starts_with(&format!("bad JSON: {expected}")), "{text}: {message}");
        }
    }
}
