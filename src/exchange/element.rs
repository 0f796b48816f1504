//! Decodes the numbers of binary arrays.

use crate::error::try_zeroed;

/// Stands for -1, an empty slot, among numbers below 2^63.
pub const MINUS_ONE: u64 = u64::MAX;

/// The encoding of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// The kind of number.
    pub kind: Kind,
    /// Bytes: 1, 2, 4 or 8, and for floats 4 or 8.
    pub size: usize,
    /// Whether the first byte is the most significant one.
    pub big_endian: bool,
}

/// A kind of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two's complement.
    Signed,
    /// From 0.
    Unsigned,
    /// IEEE 754.
    Float,
}

impl Element {
    /// Decodes whole numbers from 0 to 2^63 - 1, with `minus_one` also -1, as [`MINUS_ONE`]. Fails at the first
    /// other number.
    pub fn decode(self, bytes: &[u8], minus_one: bool) -> Result<Vec<u64>, Undecodable> {
        let count = bytes.len() / self.size;
        let mut values =
            try_zeroed(Some(count), "an array").map_err(|e| Undecodable::Memory(e.to_string()))?;
        for (index, (value, bytes)) in values.iter_mut().zip(bytes.chunks_exact(self.size)).enumerate() {
            *value = match self.number(bytes) {
                Err(number) if minus_one && number == "-1" => MINUS_ONE,
                number => number.map_err(|number| Undecodable::Value { index, number })?,
            };
        }
        Ok(values)
    }

    fn number(self, bytes: &[u8]) -> Result<u64, String> {
        let mut low_first = [0; 8];
        low_first[..self.size].copy_from_slice(bytes);
        if self.big_endian {
            low_first[..self.size].reverse();
        }
        let bits = u64::from_le_bytes(low_first);
        let unused = 64 - 8 * self.size as u32;
        match self.kind {
            Kind::Unsigned => i64::try_from(bits).map(|_| bits).map_err(|_| bits.to_string()),
            Kind::Signed => {
                let value = (bits << unused).cast_signed() >> unused;
                u64::try_from(value).map_err(|_| value.to_string())
            }
            Kind::Float if self.size == 4 => whole(f64::from(f32::from_bits(bits as u32))),
            Kind::Float => whole(f64::from_bits(bits)),
        }
    }
}

/// Why bytes could not be decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum Undecodable {
    /// A number that is not whole or not from 0 to 2^63 - 1.
    Value {
        /// Its index in the array.
        index: usize,
        /// The number as text.
        number: String,
    },
    /// The allocation failed.
    Memory(String),
}

/// Converts a float, which must be whole.
pub fn whole(value: f64) -> Result<u64, String> {
    // 2^63, the first number out of range.
    match (0.0..9_223_372_036_854_775_808.0).contains(&value) && value.fract() == 0.0 {
        true => Ok(value as u64),
        false => Err(value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(kind: Kind, size: usize, bytes: &[u8]) -> Result<Vec<u64>, Undecodable> {
        Element { kind, size, big_endian: false }.decode(bytes, false)
    }

    #[test]
    fn decode_accepts_whole_numbers_and_names_the_first_other_one() {
        assert_eq!(decode(Kind::Unsigned, 1, &[7, 255]), Ok(vec![7, 255]));
        assert_eq!(decode(Kind::Signed, 2, &[0x34, 0x12]), Ok(vec![0x1234]));
        let big_endian = Element { kind: Kind::Signed, size: 2, big_endian: true };
        assert_eq!(big_endian.decode(&[0x12, 0x34], false), Ok(vec![0x1234]));
        assert_eq!(decode(Kind::Float, 4, &3e6f32.to_le_bytes()), Ok(vec![3_000_000]));
        let wrong = |index, number: &str| Err(Undecodable::Value { index, number: number.to_owned() });
        assert_eq!(decode(Kind::Signed, 1, &[7, 255]), wrong(1, "-1"));
        assert_eq!(decode(Kind::Unsigned, 8, &u64::MAX.to_le_bytes()), wrong(0, "18446744073709551615"));
        assert_eq!(decode(Kind::Float, 8, &0.5f64.to_le_bytes()), wrong(0, "0.5"));
        assert_eq!(decode(Kind::Float, 8, &f64::NAN.to_le_bytes()), wrong(0, "NaN"));
        assert_eq!(decode(Kind::Float, 8, &2f64.powi(63).to_le_bytes()), wrong(0, "9223372036854776000"));
    }
}
