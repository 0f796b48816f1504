//! Reads and writes NumPy's `.npy`, one array.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, versions 1.0 to 3.0. A file
//! has the bytes `\x93NUMPY`, two bytes of the version, the header's length in two bytes (four from 2.0 on), the header and the
//! numbers. The header is a Python dictionary with the keys `descr`, `fortran_order` and `shape`.
//!
//! The `npyz` crate is not used: it needs some twenty crates to parse Python literals, and its errors do not name the byte.

use std::io::{self, Write};

use super::array::{Array, Values, place_of};
use super::element::{Element, Kind, Undecodable};
use crate::error::shortened;

/// The first bytes of a file.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// NumPy refuses longer headers. Most have about a hundred bytes.
const MAX_HEADER_BYTES: usize = 10_000;

/// Reads a file of integers or floats. See [`Numbers::new`](super::array::Numbers::new) for `minus_one`.
pub fn read(bytes: &[u8], minus_one: bool) -> Result<Array, String> {
    let (header, data) = split(bytes)?;
    let header = Header::parse(header)?;
    let element = element(&header.descr)?;
    let count = header.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    let expected = count.and_then(|count| count.checked_mul(element.size));
    if expected != Some(data.len()) {
        return Err(format!(
            "its shape {:?} of {} does not fit its {} bytes: it is truncated or damaged, copy it again",
            header.shape,
            header.descr,
            data.len()
        ));
    }
    let in_order = |flat: usize| match header.fortran_order {
        true => transposed(&header.shape, flat),
        false => flat,
    };
    let values = element.decode(data, minus_one).map_err(|Undecodable { index, what }| {
        format!("{} {what}", place_of(&header.shape, in_order(index)))
    })?;
    let values = match (header.fortran_order, values) {
        (false, values) => values,
        (true, Values::Whole(values)) => Values::Whole(reordered(&values, in_order)),
        (true, Values::Real(values)) => Values::Real(reordered(&values, in_order)),
    };
    Array::new(header.shape, values)
}

/// The number of dimensions of a file's array.
pub fn dimensions(bytes: &[u8]) -> Result<usize, String> {
    Ok(Header::parse(split(bytes)?.0)?.shape.len())
}

/// Writes `values` as int64, [`super::array::MINUS_ONE`] as -1.
pub fn write(out: &mut dyn Write, shape: &[usize], values: &mut dyn Iterator<Item = u64>) -> io::Result<()> {
    write_header(out, "<i8", shape)?;
    for value in values {
        out.write_all(&value.to_le_bytes())?;
    }
    Ok(())
}

/// Writes `values` as float64.
pub fn write_floats(
    out: &mut dyn Write,
    shape: &[usize],
    values: &mut dyn Iterator<Item = f64>,
) -> io::Result<()> {
    write_header(out, "<f8", shape)?;
    for value in values {
        out.write_all(&value.to_le_bytes())?;
    }
    Ok(())
}

fn write_header(out: &mut dyn Write, descr: &str, shape: &[usize]) -> io::Result<()> {
    let sizes = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // The numbers begin at a multiple of 64, and the header ends in a line break.
    let start = (MAGIC.len() + 4 + header.len() + 1).next_multiple_of(64);
    let length = start - MAGIC.len() - 4;
    out.write_all(MAGIC)?;
    out.write_all(&[1, 0])?;
    out.write_all(&(length as u16).to_le_bytes())?;
    writeln!(out, "{header:<width$}", width = length - 1)
}

/// Splits a file into the header's text and the numbers.
fn split(bytes: &[u8]) -> Result<(&str, &[u8]), String> {
    let cut_off = || "its header is truncated".to_owned();
    let rest =
        bytes.strip_prefix(MAGIC).ok_or("it does not begin with \\x93NUMPY, so it is not a .npy file")?;
    let (&[major, minor], rest) = rest.split_first_chunk().ok_or_else(cut_off)?;
    let (length, rest) = match (major, minor) {
        (1, 0) => {
            let (&length, rest) = rest.split_first_chunk().ok_or_else(cut_off)?;
            (usize::from(u16::from_le_bytes(length)), rest)
        }
        (2 | 3, 0) => {
            let (&length, rest) = rest.split_first_chunk().ok_or_else(cut_off)?;
            (u32::from_le_bytes(length) as usize, rest)
        }
        _ => return Err(format!("its version is {major}.{minor}; 1.0, 2.0 or 3.0 expected")),
    };
    if length > MAX_HEADER_BYTES {
        return Err(format!("its header takes {length} bytes, at most {MAX_HEADER_BYTES} supported"));
    }
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut_off)?;
    Ok((str::from_utf8(header).map_err(|_| "its header is not UTF-8")?, data))
}

/// Puts each value at the index that `in_order` returns for its own.
fn reordered<T: Copy + Default>(values: &[T], in_order: impl Fn(usize) -> usize) -> Vec<T> {
    let mut reordered = vec![T::default(); values.len()];
    values.iter().enumerate().for_each(|(index, &value)| reordered[in_order(index)] = value);
    reordered
}

/// Converts an index in Fortran's order, the first index fastest, to C's order.
fn transposed(shape: &[usize], flat: usize) -> usize {
    let (mut rest, mut stride, mut position) = (flat, shape.iter().product::<usize>(), 0);
    for &size in shape {
        stride /= size;
        position += rest % size * stride;
        rest /= size;
    }
    position
}

/// Parses NumPy's name of a type: byte order, kind, bytes.
fn element(descr: &str) -> Result<Element, String> {
    let refuse = || {
        let descr = shortened(descr);
        Err(format!(
            "the type of its numbers is '{descr}'; integers or floats of 4 or 8 bytes expected, such as '<i8'"
        ))
    };
    let &[order @ (b'<' | b'>' | b'|' | b'='), kind, size] = descr.as_bytes() else { return refuse() };
    let (kind, size) = match (kind, size) {
        (b'i', b'1' | b'2' | b'4' | b'8') => (Kind::Signed, size),
        (b'u', b'1' | b'2' | b'4' | b'8') => (Kind::Unsigned, size),
        (b'f', b'4' | b'8') => (Kind::Float, size),
        _ => return refuse(),
    };
    // "=" is the writer's own order, which NumPy never writes. "|" is for types of one byte.
    match (order, size) {
        (b'=', _) | (b'|', b'2'..) => refuse(),
        _ => Ok(Element { kind, size: usize::from(size - b'0'), big_endian: order == b'>' }),
    }
}

/// The contents of a header.
#[derive(Debug, Default)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Result<Self, String> {
        let mut literal = Literal { text, rest: text };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        literal.expect("{")?;
        while !literal.accept("}") {
            let key = literal.string()?;
            literal.expect(":")?;
            let twice = match key {
                "descr" => descr.replace(literal.string()?.to_owned()).is_some(),
                "fortran_order" => fortran_order.replace(literal.boolean()?).is_some(),
                "shape" => shape.replace(literal.sizes()?).is_some(),
                _ => return Err(format!("its header has the unknown key '{}'", shortened(key))),
            };
            if twice {
                return Err(format!("its header has '{key}' twice"));
            }
            if !literal.accept(",") {
                literal.expect("}")?;
                break;
            }
        }
        if !literal.rest.trim().is_empty() {
            return Err(literal.wrong("nothing more"));
        }
        let missing = |key: &str| format!("its header has no '{key}'");
        Ok(Header {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// A Python literal that is being read.
struct Literal<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn accept(&mut self, token: &str) -> bool {
        let found = self.rest.trim_start().strip_prefix(token);
        found.inspect(|rest| self.rest = rest).is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.accept(token) { Ok(()) } else { Err(self.wrong(token)) }
    }

    fn wrong(&self, expected: &str) -> String {
        let at = self.text.len() - self.rest.trim_start().len();
        format!(
            "byte {at} of its header: {expected} expected, \"{}\" found",
            shortened(self.rest.trim_start())
        )
    }

    /// Reads a string without escapes. A structured array has a list here, which is an error.
    fn string(&mut self) -> Result<&'a str, String> {
        let start = self.rest.trim_start();
        let quote = if start.starts_with('"') { '"' } else { '\'' };
        let inner = start.strip_prefix(quote).and_then(|rest| rest.split_once(quote));
        let (string, rest) = inner.ok_or_else(|| self.wrong("a string"))?;
        self.rest = rest;
        Ok(string)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        match (self.accept("True"), self.accept("False")) {
            (true, _) => Ok(true),
            (_, true) => Ok(false),
            _ => Err(self.wrong("True or False")),
        }
    }

    /// Reads a tuple of whole numbers.
    fn sizes(&mut self) -> Result<Vec<usize>, String> {
        let mut sizes = Vec::new();
        self.expect("(")?;
        while !self.accept(")") {
            let start = self.rest.trim_start();
            let end = start.find(|c: char| !c.is_ascii_digit()).unwrap_or(start.len());
            sizes.push(start[..end].parse().map_err(|_| self.wrong("a size"))?);
            // Python 2 wrote an L behind long integers.
            self.rest = start[end..].strip_prefix('L').unwrap_or(&start[end..]);
            if !self.accept(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of version 1.0 with this header and these bytes.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let length = (header.len() as u16).to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), data].concat()
    }

    fn message(header: &str, data: &[u8]) -> String {
        read(&file(header, data), false).unwrap_err()
    }

    #[test]
    fn written_file_is_read_and_its_data_is_aligned_to_64() {
        let mut bytes = Vec::new();
        write(&mut bytes, &[2, 3], &mut (1..=6)).unwrap();
        assert_eq!(bytes.len() % 64, 6 * 8);
        assert_eq!(bytes[bytes.len() - 49], b'\n');
        assert_eq!(
            read(&bytes, false).unwrap(),
            Array::new(vec![2, 3], Values::Whole(vec![1, 2, 3, 4, 5, 6])).unwrap()
        );
        assert_eq!(dimensions(&bytes).unwrap(), 2);
    }

    #[test]
    fn fortran_order_is_read() {
        // [[1, 2, 3], [4, 5, 6]], columns first.
        let bytes = file("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3)}", &[1, 4, 2, 5, 3, 6]);
        assert_eq!(
            read(&bytes, false).unwrap(),
            Array::new(vec![2, 3], Values::Whole(vec![1, 2, 3, 4, 5, 6])).unwrap()
        );
        let header = "{'descr': '|i1', 'fortran_order': True, 'shape': (2, 3)}";
        let message = message(header, &[1, 4, 2, 255, 3, 6]);
        assert_eq!(message, "[1][1] is -1, a number from 0 to below 2^63 expected");
    }

    #[test]
    fn header_errors_name_the_byte_or_the_key() {
        let good = "{'descr': '<i4', 'fortran_order': False, 'shape': (1L, 2,), }   \n";
        assert_eq!(
            read(&file(good, &[1, 0, 0, 0, 2, 0, 0, 0]), false).unwrap(),
            Array::new(vec![1, 2], Values::Whole(vec![1, 2])).unwrap()
        );
        for (was, is, expected) in [
            (
                "'<i4'",
                "'|O'",
                "the type of its numbers is '|O'; integers or floats of 4 or 8 bytes expected, such as '<i8'",
            ),
            (
                "'<i4'",
                "'<f2'",
                "the type of its numbers is '<f2'; integers or floats of 4 or 8 bytes expected, such as '<i8'",
            ),
            (
                "'<i4'",
                "'=i4'",
                "the type of its numbers is '=i4'; integers or floats of 4 or 8 bytes expected, such as '<i8'",
            ),
            ("'<i4'", "[('a', '<i4')]", "byte 10 of its header: a string expected, \"[('a', '<i4')], "),
            ("'descr'", "'dtype'", "its header has the unknown key 'dtype'"),
            ("'descr': '<i4', ", "", "its header has no 'descr'"),
            ("'fortran_order': False", "'descr': '<i4'", "its header has 'descr' twice"),
            ("False", "0", "byte 34 of its header: True or False expected, \"0, 'shape'"),
            ("1L", "-1", "byte 51 of its header: a size expected, \"-1, 2,), }"),
            ("2,)", "2}", "byte 56 of its header: ) expected, \"}, }"),
            ("}   ", "} x ", "byte 62 of its header: nothing more expected, \"x "),
            ("2,)", "3,)", "its shape [1, 3] of <i4 does not fit its 8 bytes: "),
            ("2,)", "99999999999999999999,)", "byte 55 of its header: a size expected, "),
        ] {
            let message = message(&good.replacen(was, is, 1), &[1, 0, 0, 0, 2, 0, 0, 0]);
            assert!(message.starts_with(expected), "{was}: {message}");
        }
    }

    #[test]
    fn truncation_magic_version_and_length_are_checked() {
        let bytes = file("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1)}", &[5]);
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end], false).is_err(), "{end}");
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            read(&bytes, false).unwrap_err()
        };
        assert_eq!(with(0, 0x92), "it does not begin with \\x93NUMPY, so it is not a .npy file");
        assert_eq!(with(6, 4), "its version is 4.0; 1.0, 2.0 or 3.0 expected");
        assert_eq!(with(9, 0xff), "its header takes 65337 bytes, at most 10000 supported");
    }
}
