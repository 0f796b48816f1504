//! Reads and writes nested lists of numbers in JSON.

use std::fmt;
use std::io::{self, Write};

use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::array::Array;
use super::lists::{Level, Lists};
use crate::error::shortened;

/// Reads a file that is one nested list. See [`Numbers::new`](super::array::Numbers::new) for `minus_one`.
pub fn read_lists(text: &[u8], minus_one: bool) -> Result<Array, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let array = ListsSeed { minus_one }.deserialize(&mut json).map_err(bad)?;
    json.end().map_err(bad)?;
    Ok(array)
}

/// The message for invalid JSON. serde_json adds line and column.
pub fn bad(error: serde_json::Error) -> String {
    shortened(&format!("bad JSON: {error}"))
}

/// Reads a nested list within a file.
pub struct ListsSeed {
    /// As in [`read_lists`].
    pub minus_one: bool,
}

impl<'de> DeserializeSeed<'de> for ListsSeed {
    type Value = Array;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Array, D::Error> {
        let mut lists = Lists::new(self.minus_one);
        deserializer.deserialize_seq(Element(&mut lists))?;
        lists.finish().map_err(de::Error::custom)
    }
}

/// Reads a number or a list, and adds it to the lists around it.
struct Element<'a>(&'a mut Lists);

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "lists of numbers")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.0.number(|numbers| numbers.unsigned(value)).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.0.number(|numbers| numbers.signed(value)).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.0.number(|numbers| numbers.float(value)).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let level: Level = self.0.open().map_err(de::Error::custom)?;
        while seq.next_element_seed(Element(self.0))?.is_some() {
            self.0.next(level);
        }
        self.0.close(level).map_err(de::Error::custom)
    }
}

/// Writes `values` as nested lists of the shape, in the form of Python's `json.dump`,
/// [`MINUS_ONE`](super::array::MINUS_ONE) as -1.
pub fn write_lists(
    out: &mut dyn Write,
    shape: &[usize],
    values: &mut dyn Iterator<Item = u64>,
) -> io::Result<()> {
    write_shape(out, shape, &mut |out| match values.next() {
        Some(value) => write!(out, "{}", value.cast_signed()),
        None => Ok(()),
    })
}

/// Writes `values` as [`write_lists`] does, each with the digits that read back as the same double.
pub fn write_float_lists(
    out: &mut dyn Write,
    shape: &[usize],
    values: &mut dyn Iterator<Item = f64>,
) -> io::Result<()> {
    write_shape(out, shape, &mut |out| match values.next() {
        Some(value) => write!(out, "{value:?}"),
        None => Ok(()),
    })
}

fn write_shape(
    out: &mut dyn Write,
    shape: &[usize],
    write_next: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let Some((&size, inner)) = shape.split_first() else { return write_next(out) };
    for index in 0..size {
        out.write_all(if index == 0 { b"[" } else { b", " })?;
        write_shape(out, inner, write_next)?;
    }
    out.write_all(b"]")
}

#[cfg(test)]
mod tests {
    use super::super::array::Values;
    use super::*;

    fn message(text: &str) -> String {
        read_lists(text.as_bytes(), false).unwrap_err()
    }

    #[test]
    fn lists_of_one_shape_are_an_array() {
        let expected = Array::new(vec![2, 3], Values::Whole(vec![1, 2, 3, 4, 5, 6])).unwrap();
        assert_eq!(read_lists(b"[[1, 2.0, 3], [4, 5e0, 6]]\n", false).unwrap(), expected);
        let mut text = Vec::new();
        write_lists(&mut text, &[2, 1, 3], &mut (1..=6)).unwrap();
        assert_eq!(str::from_utf8(&text).unwrap(), "[[[1, 2, 3]], [[4, 5, 6]]]");
    }

    #[test]
    fn fractions_are_equal_after_writing_and_reading() {
        let values = vec![0.1, 3.0, 1e-300, 9_007_199_254_740_994.0];
        let mut text = Vec::new();
        write_float_lists(&mut text, &[2, 2], &mut values.iter().copied()).unwrap();
        assert_eq!(str::from_utf8(&text).unwrap(), "[[0.1, 3.0], [1e-300, 9007199254740994.0]]");
        assert_eq!(read_lists(&text, false).unwrap(), Array::new(vec![2, 2], Values::Real(values)).unwrap());
        // A fraction is no expert.
        assert!(read_lists(&text, true).unwrap_err().starts_with("bad JSON: [0][0] is 0.1, a whole number"));
    }

    #[test]
    fn read_lists_names_the_place_of_an_error() {
        for (text, expected) in [
            ("[[1, 2], [3]]", "[1] has 1 elements, 2 expected at line 1 column 12"),
            ("[[1, 2],\n[3, -4]]", "[1][1] is -4, a number from 0 to below 2^63 expected at line 2 column 6"),
            ("[[1, 2.5], [3, 18446744073709551615]]", "[1][1] is 18446744073709551615, a number from 0 "),
            (
                "[[1, 2], [3, -0.5]]",
                "[1][1] is -0.5, a number from 0 to below 2^63 expected at line 1 column 17",
            ),
            (
                "[[9007199254740993, 0.5]]",
                "[0][1] follows a number that is 9007199254740993: beside fractions, whole numbers must be exact as \
                 doubles at line 1 column 23",
            ),
            ("[[1, 1e300]]", "[0][1] is 1"),
            ("[[1, 2], 3]", "[1] is a number where others are lists at line 1 column 10"),
            ("[1, [2]]", "[1] is a list where a number is expected"),
            ("[[[[1]]]]", "[0][0][0] is a list where a number is expected"),
            ("[[1, true]]", "invalid type: boolean `true`, expected lists of numbers at line 1 column 9"),
            ("{}", "invalid type: map, expected lists of numbers at line 1 column 0"),
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
