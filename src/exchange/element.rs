//! Decodes the numbers of binary arrays.

use super::array::{Numbers, Values};

/// The encoding of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// The kind of number.
    pub kind: Kind,
    /// Bytes: 1, 2, 4 or 8, for floats 2, 4 or 8, for bfloat16 2.
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
    /// The upper half of a float of 4 bytes.
    Bfloat16,
}

/// Why bytes could not be decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// The number's index in the array.
    pub index: usize,
    /// What is wrong with it, to follow its place.
    pub what: String,
}

impl Element {
    /// Decodes numbers, which follow each other. See [`Numbers::new`] for `minus_one`. Fails at the first invalid one.
    pub fn decode(self, bytes: &[u8], minus_one: bool) -> Result<Values, Undecodable> {
        let mut numbers = Numbers::new(minus_one);
        numbers.reserve(bytes.len() / self.size).map_err(|what| Undecodable { index: 0, what })?;
        for (index, bytes) in bytes.chunks_exact(self.size).enumerate() {
            self.add(bytes, &mut numbers).map_err(|what| Undecodable { index, what })?;
        }
        Ok(numbers.finish())
    }

    /// Decodes one number, and adds it to `numbers`.
    pub fn add(self, bytes: &[u8], numbers: &mut Numbers) -> Result<(), String> {
        let mut low_first = [0; 8];
        low_first[..self.size].copy_from_slice(bytes);
        if self.big_endian {
            low_first[..self.size].reverse();
        }
        let bits = u64::from_le_bytes(low_first);
        let unused = 64 - 8 * self.size as u32;
        match (self.kind, self.size) {
            (Kind::Unsigned, _) => numbers.unsigned(bits),
            (Kind::Signed, _) => numbers.signed((bits << unused).cast_signed() >> unused),
            (Kind::Bfloat16, _) => numbers.float(f32::from_bits((bits as u32) << 16).into()),
            (Kind::Float, 2) => numbers.float(half(bits as u16)),
            (Kind::Float, 4) => numbers.float(f32::from_bits(bits as u32).into()),
            (Kind::Float, _) => numbers.float(f64::from_bits(bits)),
        }
    }
}

/// Decodes a float of 2 bytes: a sign, 5 bits of exponent with bias 15, 10 bits of fraction.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff) / 1024.0);
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-14),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        _ => (1.0 + fraction) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(kind: Kind, size: usize, bytes: &[u8]) -> Result<Values, Undecodable> {
        Element { kind, size, big_endian: false }.decode(bytes, false)
    }

    fn whole(values: &[u64]) -> Result<Values, Undecodable> {
        Ok(Values::Whole(values.to_vec()))
    }

    #[test]
    fn decode_reads_each_kind_and_names_the_first_invalid_number() {
        assert_eq!(decode(Kind::Unsigned, 1, &[7, 255]), whole(&[7, 255]));
        assert_eq!(decode(Kind::Signed, 2, &[0x34, 0x12]), whole(&[0x1234]));
        let big_endian = Element { kind: Kind::Signed, size: 2, big_endian: true };
        assert_eq!(big_endian.decode(&[0x12, 0x34], false), whole(&[0x1234]));
        assert_eq!(decode(Kind::Float, 4, &3e6f32.to_le_bytes()), whole(&[3_000_000]));
        assert_eq!(decode(Kind::Float, 8, &0.1f64.to_le_bytes()), Ok(Values::Real(vec![0.1])));
        let wrong = |index, number: &str| {
            Err(Undecodable { index, what: format!("is {number}, a number from 0 to below 2^63 expected") })
        };
        assert_eq!(decode(Kind::Signed, 1, &[7, 255]), wrong(1, "-1"));
        assert_eq!(decode(Kind::Unsigned, 8, &u64::MAX.to_le_bytes()), wrong(0, "18446744073709551615"));
        assert_eq!(decode(Kind::Float, 8, &f64::NAN.to_le_bytes()), wrong(0, "NaN"));
        assert_eq!(decode(Kind::Float, 8, &2f64.powi(63).to_le_bytes()), wrong(0, "9223372036854776000"));
    }

    #[test]
    fn half_precision_is_decoded_exactly() {
        // Python: struct.pack("<e", x) for x in 0.5, 2049 (rounded to 2048), 65504, 2**-24, inf, -2.
        let bits = [0x3800u16, 0x6800, 0x7bff, 0x0001, 0x7c00, 0xc000];
        assert_eq!(bits.map(half), [0.5, 2048.0, 65504.0, 2f64.powi(-24), f64::INFINITY, -2.0]);
        assert!(half(0x7e00).is_nan());
        // bfloat16 of 2.5 is 0x4020.
        assert_eq!(decode(Kind::Bfloat16, 2, &[0x20, 0x40]), Ok(Values::Real(vec![2.5])));
    }
}
