//! Opens rank files: reads and checks their headers.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::RankFile;
use super::rank_file::{FileVersion, Index, MAX_HEADER_BYTES, RunInfo, open_regular};
use crate::error::{Error, Result};
use crate::page_buffer::PageBuffer;
use crate::threads;

impl RankFile {
    /// Reads and checks the header of the file at `path`. `num_experts` is the meta file's. `None` takes the first tensor's.
    pub fn open(path: &Path, num_experts: Option<usize>) -> Result<Self> {
        Self::open_like(&LastHeader::default(), path, num_experts)
    }

    /// As [`RankFile::open`], of several files on up to `threads` threads.
    pub(super) fn open_all(
        paths: &[PathBuf],
        num_experts: Option<usize>,
        threads: usize,
    ) -> Result<Vec<Self>> {
        let last = LastHeader::default();
        threads::map(paths.len(), threads, |index| Self::open_like(&last, &paths[index], num_experts))
    }

    fn open_like(last: &LastHeader, path: &Path, num_experts: Option<usize>) -> Result<Self> {
        let read_error = |e| Error::read(path, e);
        let damaged = |message: String| Error::InvalidDump(message).in_file(path);

        let mut file = open_regular(path)?;
        let version = FileVersion::of(&file.metadata().map_err(read_error)?);
        let truncated = || {
            damaged(format!(
                "it has {} bytes, too few for a safetensors file: it is truncated, copy it again",
                version.len
            ))
        };

        let mut length = [0; 8];
        if version.len < 8 {
            return Err(truncated());
        }
        file.read_exact(&mut length).map_err(read_error)?;
        let header_len = u64::from_le_bytes(length);
        if header_len > MAX_HEADER_BYTES {
            return Err(damaged(format!(
                "not a safetensors file: its header would have {header_len} bytes, at most {MAX_HEADER_BYTES} allowed"
            )));
        }
        if header_len > version.len - 8 {
            return Err(damaged(format!(
                "its header has {header_len} bytes, but only {} follow: it is truncated, copy it again",
                version.len - 8
            )));
        }
        let mut header = PageBuffer::new(header_len as usize, "a safetensors header")?;
        file.read_exact(&mut header).map_err(read_error)?;

        let data_len = version.len - 8 - header_len;
        let index = last.parse(header, data_len, num_experts).map_err(|e| e.in_file(path))?;
        Ok(RankFile {
            path: path.to_owned(),
            num_experts: index.num_experts,
            rows: index.rows,
            layers: index.layers,
            run: index.run,
            tensors: index.tensors,
            data_start: 8 + header_len,
            version,
        })
    }
}

/// The header that was parsed last. The headers of a dump's files mostly differ in their metadata alone, so most of them are
/// compared with another one instead of being parsed.
#[derive(Default)]
struct LastHeader(Mutex<Option<Arc<Parsed>>>);

struct Parsed {
    header: PageBuffer,
    /// Where the bytes after the metadata begin. 0 if the header does not begin with metadata.
    tensors_start: usize,
    data_len: u64,
    index: Index,
}

impl LastHeader {
    /// As [`Index::parse`]. `num_experts` is the same in every call.
    fn parse(&self, header: PageBuffer, data_len: u64, num_experts: Option<usize>) -> Result<Index> {
        let (metadata, tensors_start) = leading_metadata(&header).unzip();
        let tensors_start = tensors_start.unwrap_or(0);
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(last) = last
            && (last.data_len, last.tensors_start > 0) == (data_len, tensors_start > 0)
            && last.header[last.tensors_start..] == header[tensors_start..]
        {
            let run = match metadata {
                Some(metadata) => RunInfo::parse(&metadata)?,
                None => last.index.run.clone(),
            };
            let rows = |run: &Option<RunInfo>| run.as_ref().map(|run| run.rows);
            if rows(&run) == rows(&last.index.run) {
                return Ok(Index { run, ..last.index.clone() });
            }
        }
        let index = Index::parse(&header, data_len, num_experts)?;
        let parsed = Parsed { header, tensors_start, data_len, index: index.clone() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(parsed));
        Ok(index)
    }
}

/// The metadata with which a header begins, and the length of both.
fn leading_metadata(header: &[u8]) -> Option<(BTreeMap<String, String>, usize)> {
    const START: &[u8] = b"{\"__metadata__\":";
    let mut values = serde_json::Deserializer::from_slice(header.strip_prefix(START)?).into_iter();
    let metadata = values.next()?.ok()?;
    Some((metadata, START.len() + values.byte_offset()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENSORS: &str = concat!(
        r#""100_3":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"#,
        r#""101_3":{"dtype":"I32","shape":[2],"data_offsets":[16,24]}"#
    );

    fn metadata(rank: u32, more: &str) -> String {
        format!(
            r#""__metadata__":{{"rank":"{rank}","num_ranks":"20","layers":"3","iter_start":"100","iter_stop":"102","counts":"experts"{more}}},"#
        )
    }

    /// Parses `header` after the headers `before`. Must return what [`Index::parse`] returns.
    fn parse_after(before: &[&str], header: &str) -> (Result<Index>, LastHeader) {
        let last = LastHeader::default();
        let parse = |header: &str| {
            let mut buffer = PageBuffer::new(header.len(), "a test").unwrap();
            buffer.copy_from_slice(header.as_bytes());
            last.parse(buffer, 24, Some(2))
        };
        for header in before {
            let _ = parse(header);
        }
        let index = parse(header);
        let expected = Index::parse(header.as_bytes(), 24, Some(2));
        assert_eq!(format!("{index:?}"), format!("{expected:?}"), "{header}");
        (index, last)
    }

    #[test]
    fn headers_that_differ_in_metadata_share_their_tensors() {
        let [first, second] = [3, 12].map(|rank| format!("{{{}{TENSORS}}}", metadata(rank, "")));
        let (index, last) = parse_after(&[&first], &second);
        let last = last.0.into_inner().unwrap().unwrap();
        assert!(Arc::ptr_eq(&index.unwrap().tensors, &last.index.tensors));
    }

    #[test]
    fn a_header_means_the_same_after_any_other() {
        let own = metadata(0, "");
        let headers = [
            format!("{{{own}{TENSORS}}}"),
            format!("{{{}{TENSORS}}}   ", metadata(1, r#","run_id":"a""#)),
            format!("{{{}{TENSORS}}}", metadata(2, "").replace("\"102\"", "\"103\"")),
            format!("{{{}{TENSORS}}}", metadata(3, r#","iter_bucket":"2""#)),
            format!("{{{}{TENSORS}}}", metadata(4, "").replace("\"rank\":\"4\",", "")),
            format!("{{{}{TENSORS}}}", metadata(5, "").replace("\"20\"", "20")),
            format!("{{{own}{own}{TENSORS}}}"),
            format!("{{{TENSORS}}}"),
            format!("{{{TENSORS},{}}}", own.trim_end_matches(',')),
            format!("{{ {own}{TENSORS}}}"),
            format!("{{{own}{}}}", TENSORS.replace("101_3", "100_3")),
            format!("{{{own}{}}}", TENSORS.replace("[16,24]", "[16,32]")),
            format!("{{{own}{TENSORS}"),
            format!("{{{}}}", own.trim_end_matches(',')),
            String::new(),
        ];
        for first in &headers {
            for second in &headers {
                for third in &headers {
                    let _ = parse_after(&[first, second], third);
                }
            }
        }
    }
}
