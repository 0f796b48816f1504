//! Zip archives as PyTorch writes them: files that are stored, not compressed.
//!
//! Format: <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>. The list of files at the end is what counts; PyTorch
//! writes it in its 64-bit form, whatever the size.

use std::collections::BTreeMap;

use crate::error::shortened;

/// What every archive begins with.
pub const MAGIC: &[u8] = b"PK\x03\x04";

const END: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const END_64_LOCATOR: &[u8] = b"PK\x06\x07";
const END_64_LOCATOR_BYTES: usize = 20;
const END_64: &[u8] = b"PK\x06\x06";
const LISTED: &[u8] = b"PK\x01\x02";
const LISTED_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;
/// The extra field that holds the numbers that do not fit 32 bits.
const EXTRA_64: u16 = 1;

/// The files of an archive.
pub struct Archive<'a> {
    files: BTreeMap<&'a str, Stored<'a>>,
}

struct Stored<'a> {
    bytes: &'a [u8],
    crc: u32,
}

impl<'a> Archive<'a> {
    /// Reads the list of files.
    pub fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let (list, count) = list_of(bytes)?;
        let (mut rest, mut files) = (list, BTreeMap::new());
        while !rest.is_empty() {
            let (name, stored, next) = listed(bytes, rest)?;
            if files.insert(name, stored).is_some() {
                return Err(format!("\"{}\" is in it twice", shortened(name)));
            }
            rest = next;
        }
        if files.len() as u64 != count {
            return Err(format!("its list has {} files, {count} expected", files.len()));
        }
        Ok(Archive { files })
    }

    /// The names of its files.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.files.keys().copied()
    }

    /// The bytes of a file, checked against its checksum.
    pub fn file(&self, name: &str) -> Result<&'a [u8], String> {
        let Stored { bytes, crc } =
            self.files.get(name).ok_or_else(|| format!("it has no \"{}\"", shortened(name)))?;
        // Fuzzing would never get past a checksum.
        if !cfg!(fuzzing) && crc32(bytes) != *crc {
            return Err(format!(
                "\"{}\" does not match its checksum: it is damaged, copy it again",
                shortened(name)
            ));
        }
        Ok(bytes)
    }
}

/// The list of files, and how many it has.
fn list_of(bytes: &[u8]) -> Result<(&[u8], u64), String> {
    let cut_off = || "it does not end as a zip archive does: it is cut off, copy it again".to_owned();
    // Behind the end there is only a comment, which takes less than 64 KiB.
    let last = bytes.len().checked_sub(END_BYTES).ok_or_else(cut_off)?;
    let is_end = |&at: &usize| {
        bytes[at..].starts_with(END)
            && number(&bytes[at..], 20, 2)
                .is_ok_and(|comment| at as u64 + END_BYTES as u64 + comment == bytes.len() as u64)
    };
    let end = (last.saturating_sub(usize::from(u16::MAX))..=last).rev().find(is_end).ok_or_else(cut_off)?;
    let locator = end.checked_sub(END_64_LOCATOR_BYTES).map(|at| &bytes[at..]);
    let (count, size, start) = match locator.filter(|locator| locator.starts_with(END_64_LOCATOR)) {
        None => {
            let end = &bytes[end..];
            (number(end, 10, 2)?, number(end, 12, 4)?, number(end, 16, 4)?)
        }
        Some(locator) => {
            let end = part(bytes, number(locator, 8, 8)?, 56)?;
            if !end.starts_with(END_64) {
                return Err("it is damaged: its 64-bit end is not where it should be".into());
            }
            (number(end, 32, 8)?, number(end, 40, 8)?, number(end, 48, 8)?)
        }
    };
    Ok((part(bytes, start, size)?, count))
}

/// The first file of `list`, a list of files in an archive of `bytes`, and the rest of the list.
fn listed<'a>(bytes: &'a [u8], list: &'a [u8]) -> Result<(&'a str, Stored<'a>, &'a [u8]), String> {
    let fixed = part(list, 0, LISTED_BYTES as u64)?;
    if !fixed.starts_with(LISTED) {
        return Err("it is damaged: its list of files does not hold together".into());
    }
    let field = |at| number(fixed, at, 2);
    let (name_len, extra_len, comment_len) = (field(28)?, field(30)?, field(32)?);
    let name = part(list, LISTED_BYTES as u64, name_len)?;
    let name = str::from_utf8(name).map_err(|_| "the name of one of its files is not UTF-8")?;
    let mut extra = part(list, LISTED_BYTES as u64 + name_len, extra_len)?;
    let (flags, method) = (field(8)?, field(10)?);
    if flags & 1 != 0 || method != 0 {
        let how = if flags & 1 != 0 { "encrypted" } else { "compressed" };
        return Err(format!("\"{}\" is {how}, which PyTorch's files are not", shortened(name)));
    }
    let mut sizes = [number(fixed, 24, 4)?, number(fixed, 20, 4)?, number(fixed, 42, 4)?];
    while extra.len() >= 4 && sizes.contains(&u64::from(u32::MAX)) {
        let (id, len) = (number(extra, 0, 2)?, number(extra, 2, 2)?);
        let body = part(extra, 4, len)?;
        if id == u64::from(EXTRA_64) {
            // Only those that did not fit, in this order.
            let mut at = 0;
            for size in sizes.iter_mut().filter(|size| **size == u64::from(u32::MAX)) {
                *size = number(body, at, 8)?;
                at += 8;
            }
            break;
        }
        extra = &extra[4 + body.len()..];
    }
    let [size, stored_size, start] = sizes;
    if size != stored_size {
        return Err(format!("\"{}\" is damaged: it has two sizes", shortened(name)));
    }
    let local = part(bytes, start, LOCAL_BYTES as u64)?;
    if !local.starts_with(MAGIC) {
        return Err(format!(
            "\"{}\" is not where the list of files says: it is damaged, copy it again",
            shortened(name)
        ));
    }
    let start = start + LOCAL_BYTES as u64 + number(local, 26, 2)? + number(local, 28, 2)?;
    let stored = Stored { bytes: part(bytes, start, size)?, crc: number(fixed, 16, 4)? as u32 };
    let next = LISTED_BYTES as u64 + name_len + extra_len + comment_len;
    Ok((name, stored, part(list, next, (list.len() as u64).saturating_sub(next))?))
}

/// `len` bytes from `start` on.
fn part(bytes: &[u8], start: u64, len: u64) -> Result<&[u8], String> {
    let end = start.checked_add(len).and_then(|end| usize::try_from(end).ok());
    let part = end.and_then(|end| bytes.get(start as usize..end));
    part.ok_or_else(|| "it is damaged or cut off: it points beyond its end, copy it again".into())
}

/// The little-endian number of `size` bytes at `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> Result<u64, String> {
    let bytes = part(bytes, at as u64, size as u64)?;
    Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// The checksum of zip archives, CRC-32 as in Ethernet.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut rest, mut bit) = (byte as u32, 0);
            while bit < 8 {
                rest = rest >> 1 ^ if rest & 1 == 1 { 0xedb8_8320 } else { 0 };
                bit += 1;
            }
            table[byte] = rest;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_zip_archives() {
        // The check value of CRC-32/ISO-HDLC in every catalogue of checksums.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
