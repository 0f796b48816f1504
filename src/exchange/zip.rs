//! Reads zip archives of stored files, as PyTorch writes them.
//!
//! The `rawzip` crate parses the format, zip64 included, and returns slices of the input. This module checks
//! that no name repeats, the number of files, that nothing is compressed or encrypted, and each checksum (by `crc32fast`). The
//! `zip` crate drops the first of two files of one name, and copies each file to read it.

use std::collections::BTreeMap;

use rawzip::{CompressionMethod, ErrorKind, ZipArchive, ZipFileHeaderRecord, ZipSliceArchive};

use crate::error::shortened;

/// The first bytes of an archive.
pub const MAGIC: &[u8] = b"PK\x03\x04";

/// The end record and the longest comment behind it.
const END_BYTES: u64 = 22 + 65_535;

/// The files of an archive.
pub struct Archive<'a> {
    files: BTreeMap<String, Stored<'a>>,
}

struct Stored<'a> {
    bytes: &'a [u8],
    crc: u32,
}

impl<'a> Archive<'a> {
    /// Reads the list of files.
    pub fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let archive = ZipArchive::with_max_search_space(END_BYTES)
            .locate_in_slice(bytes)
            .map_err(|(_, error)| damaged(error.kind()))?;
        // Bytes after the end mean that the file is not one archive.
        if archive.end_offset() != bytes.len() as u64 {
            return Err(damaged(&ErrorKind::MissingEndOfCentralDirectory));
        }
        let (mut files, mut entries) = (BTreeMap::new(), archive.entries());
        while let Some(entry) = entries.next_entry().map_err(|error| damaged(error.kind()))? {
            let path = entry.file_path();
            let name =
                str::from_utf8(path.as_ref()).map_err(|_| "the name of one of its files is not UTF-8")?;
            let stored = stored(&archive, &entry, name)?;
            if files.insert(name.to_owned(), stored).is_some() {
                return Err(format!("\"{}\" is in it twice", shortened(name)));
            }
        }
        if files.len() as u64 != archive.entries_hint() {
            return Err(format!("its list has {} files, {} expected", files.len(), archive.entries_hint()));
        }
        Ok(Archive { files })
    }

    /// The names of its files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The bytes of a file, checked against its checksum.
    pub fn file(&self, name: &str) -> Result<&'a [u8], String> {
        let Stored { bytes, crc } =
            self.files.get(name).ok_or_else(|| format!("it has no \"{}\"", shortened(name)))?;
        // Fuzzing would rarely pass a checksum.
        if !cfg!(fuzzing) && crc32fast::hash(bytes) != *crc {
            return Err(format!(
                "\"{}\" does not match its checksum: it is damaged, copy it again",
                shortened(name)
            ));
        }
        Ok(bytes)
    }
}

/// The bytes of `entry`, the file `name`.
fn stored<'a>(
    archive: &ZipSliceArchive<&'a [u8]>,
    entry: &ZipFileHeaderRecord<'_>,
    name: &str,
) -> Result<Stored<'a>, String> {
    let name = || shortened(name);
    let encrypted = entry.flags().is_encrypted();
    if encrypted || entry.compression_method() != CompressionMethod::STORE {
        let how = if encrypted { "encrypted" } else { "compressed" };
        return Err(format!("\"{}\" is {how}; PyTorch neither compresses nor encrypts", name()));
    }
    if entry.uncompressed_size_hint() != entry.compressed_size_hint() {
        return Err(format!("\"{}\" is damaged: it has two sizes", name()));
    }
    let local = archive.get_entry(entry.wayfinder()).map_err(|error| match error.kind() {
        ErrorKind::InvalidSignature { .. } => {
            format!("\"{}\" is not at its place in the list of files: it is damaged, copy it again", name())
        }
        other => damaged(other),
    })?;
    let (start, end) = local.compressed_data_range();
    let bytes =
        archive.get_ref().get(start as usize..end as usize).ok_or_else(|| damaged(&ErrorKind::Eof))?;
    Ok(Stored { bytes, crc: entry.crc32() })
}

/// The message for an archive whose parts cannot be found.
fn damaged(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::MissingEndOfCentralDirectory => {
            "it does not end as a zip archive does: it is truncated, copy it again"
        }
        ErrorKind::Eof => "it is damaged or truncated: it points beyond its end, copy it again",
        ErrorKind::InvalidSignature { .. } => "it is damaged: its list of files is invalid",
        _ => "it is damaged: its end does not locate its list of files",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with the file "a" that holds "123456789", whose CRC-32 every catalogue of checksums lists.
    fn archive() -> Vec<u8> {
        let sizes = [0xcbf4_3926u32, 9, 9].map(u32::to_le_bytes).concat();
        let name_lengths = [1, 0, 0, 0];
        let local = [MAGIC, &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0], &sizes, &name_lengths, b"a123456789"].concat();
        let listed = [
            &b"PK\x01\x02"[..],
            &[20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &sizes,
            &name_lengths,
            &[0; 14],
            b"a",
        ]
        .concat();
        let place = [listed.len() as u32, local.len() as u32].map(u32::to_le_bytes).concat();
        let end = [&b"PK\x05\x06"[..], &[0, 0, 0, 0, 1, 0, 1, 0], &place, &[0, 0]].concat();
        [local, listed, end].concat()
    }

    fn refused(bytes: &[u8]) -> String {
        Archive::open(bytes).and_then(|archive| archive.file("a").map(drop)).unwrap_err()
    }

    #[test]
    fn archive_returns_the_stored_bytes() {
        let bytes = archive();
        let archive = Archive::open(&bytes).unwrap();
        assert_eq!(archive.names().collect::<Vec<_>>(), ["a"]);
        assert_eq!(archive.file("a"), Ok(&b"123456789"[..]));
        assert_eq!(archive.file("b"), Err("it has no \"b\"".to_owned()));
    }

    #[test]
    fn archive_rejects_truncation_and_bytes_after_its_end() {
        let bytes = archive();
        for end in 0..bytes.len() {
            assert!(refused(&bytes[..end]).contains("truncated"), "{end}");
        }
        assert!(refused(&[&bytes[..], b"x"].concat()).contains("truncated"));
    }

    #[test]
    fn archive_names_the_damaged_file() {
        let good = archive();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            refused(&bytes)
        };
        // The local header has 30 bytes, the name and 9 bytes follow: the list begins at 40, and the end at 87.
        assert_eq!(with(31, b'0'), "\"a\" does not match its checksum: it is damaged, copy it again");
        assert_eq!(
            with(0, b'Q'),
            "\"a\" is not at its place in the list of files: it is damaged, copy it again"
        );
        assert_eq!(with(40, b'Q'), "it is damaged: its list of files is invalid");
        assert_eq!(with(40 + 8, 1), "\"a\" is encrypted; PyTorch neither compresses nor encrypts");
        assert_eq!(with(40 + 10, 8), "\"a\" is compressed; PyTorch neither compresses nor encrypts");
        assert_eq!(with(40 + 20, 8), "\"a\" is damaged: it has two sizes");
        assert_eq!(
            with(40 + 42, 1),
            "\"a\" is not at its place in the list of files: it is damaged, copy it again"
        );
        assert_eq!(with(40 + 45, 1), "it is damaged or truncated: it points beyond its end, copy it again");
        assert_eq!(with(87 + 10, 2), "its list has 1 files, 2 expected");
    }

    #[test]
    fn archive_rejects_a_wrong_number_of_files_without_allocating() {
        let mut bytes = archive();
        bytes[87 + 8..87 + 12].fill(0xff);
        assert_eq!(refused(&bytes), "its list has 1 files, 65535 expected");
    }
}
