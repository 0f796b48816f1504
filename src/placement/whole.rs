//! A whole number in a placement's file, in each spelling that TensorRT-LLM's configuration class takes: `10`,
//! `10.0` and `"10"`. A fraction or a number out of range is an error.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;

use serde::de::{self, DeserializeSeed, Deserializer, Unexpected, Visitor};

/// Reads a number within `range`. `what` names it in errors.
pub struct Whole<W> {
    pub what: W,
    pub range: RangeInclusive<i64>,
}

impl<'de, W: Display> DeserializeSeed<'de> for Whole<W> {
    type Value = i64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<i64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<W: Display> Whole<W> {
    fn checked<E: de::Error>(&self, number: Option<i64>, found: Unexpected) -> Result<i64, E> {
        let in_range = number.filter(|number| self.range.contains(number));
        in_range.ok_or_else(|| E::invalid_value(found, self))
    }
}

impl<W: Display> Visitor<'_> for Whole<W> {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.what.fmt(f)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<i64, E> {
        self.checked(Some(number), Unexpected::Signed(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<i64, E> {
        self.checked(i64::try_from(number).ok(), Unexpected::Unsigned(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<i64, E> {
        // Below 2^53 each whole float is one integer.
        let whole = number.fract() == 0.0 && number.abs() < (1u64 << f64::MANTISSA_DIGITS) as f64;
        self.checked(whole.then_some(number as i64), Unexpected::Float(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<i64, E> {
        match parse(text) {
            Some(number) => self.checked(Some(number), Unexpected::Str(text)),
            None => Err(E::invalid_type(Unexpected::Str(text), &self)),
        }
    }
}

/// Parses a quoted number as the class does: spaces around it, a sign, single underscores between digits and zeros after
/// a point are allowed. Not a leading zero: without quotes, PyYAML reads `010` as octal, and the quotes are unknown here.
fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    let (number, zeros) = text.split_once('.').unwrap_or((text, "0"));
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", number.strip_prefix('+').unwrap_or(number)),
    };
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let starts_with_zero = digits.len() > 1 && digits.starts_with('0');
    let is_zero = !zeros.is_empty() && zeros.bytes().all(|byte| byte == b'0');
    if starts_with_zero || !is_zero || !digits.split('_').all(is_number) {
        return None;
    }
    format!("{sign}{}", digits.replace('_', "")).parse().ok()
}

/// Reads a number, or null as `None`.
pub struct OrNull<W>(pub Whole<W>);

impl<'de, W: Display> DeserializeSeed<'de> for OrNull<W> {
    type Value = Option<i64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<i64>, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, W: Display> Visitor<'de> for OrNull<W> {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.what.fmt(f)
    }

    fn visit_none<E>(self) -> Result<Option<i64>, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Option<i64>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<i64>, D::Error> {
        self.0.deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_read_as_pydantic_reads_them() {
        for (text, number) in [
            ("10", 10),
            (" 10 ", 10),
            ("+10", 10),
            ("-1", -1),
            ("10.0", 10),
            ("10.000", 10),
            ("1_000", 1000),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in [
            "", " ", "010", "00", "1__0", "_1", "1_", "10.", "10.5", ".0", "1e1", "0x10", "--1", "1 0", "ten",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("9223372036854775807"), Some(i64::MAX));
        assert_eq!(parse("9223372036854775808"), None);
    }
}
