//! Writes a rank's part of a dump: its file, and on rank 0 the meta file.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::clock::{ANY_TIME, Clock};
use super::rank_file::MAX_HEADER_BYTES;
use super::{DumpInfo, IdKind, IterationRange, MetaInfo, Rows, RunId};
use crate::atomic_file::{AtomicFile, HeldFile};
use crate::error::{Error, Result};
use crate::placement::MAX_COUNT;

/// Counts of either width.
#[derive(Debug, Clone, Copy)]
pub enum Counts<'a> {
    /// 32-bit counts.
    U32(&'a [u32]),
    /// 64-bit counts.
    U64(&'a [u64]),
}

/// Which of a dump's files a rank writes, where that is not the one of its rank in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileNumber {
    /// The number in the file's name. File 0 comes with the meta file.
    pub rank: u32,
    /// Files of the dump.
    pub num_files: usize,
}

/// The counts of one rank, ready to be dumped.
#[derive(Debug, Clone, Copy)]
pub struct RankDump<'a> {
    /// The rank that counted.
    pub rank: u32,
    /// Ranks of its group.
    pub num_ranks: usize,
    /// The file to write. `None`: that of the rank, one of `num_ranks`.
    pub file: Option<FileNumber>,
    /// Experts of a layer, or slots where those were counted.
    pub num_experts: usize,
    /// Experts that each token chooses.
    pub experts_per_token: usize,
    /// What the counted ids name.
    pub id_kind: IdKind,
    /// The range of iterations to count.
    pub iterations: IterationRange,
    /// The iterations of the range that were counted. Readers report the others as missing.
    pub held: IterationRange,
    /// Which iterations a row has.
    pub rows: Rows,
    /// Layers that this rank counted, by number.
    pub layers: &'a [u32],
    /// `[rows][layers][experts]`, of the rows that `held` is in.
    pub counts: Counts<'a>,
    /// The run's name. Readers refuse files of different runs.
    pub run_id: Option<RunId<'a>>,
}

impl RankDump<'_> {
    /// Writes `rank<R>.safetensors` into `directory`, which is created if missing. File 0 comes with `meta_info.json`. Each file is
    /// replaced in one step. They say when they were written; `SOURCE_DATE_EPOCH` in the environment replaces that time.
    pub fn write(&self, directory: &Path) -> Result<()> {
        self.check()?;
        self.write_claimed(self.claim(directory, None)?, directory, Clock::from_env()).map(drop)
    }

    /// Begins to write the rank's file in `directory`, which is created if missing. Until it is written, other writers are
    /// refused. Fails where somebody holds the file, unless that is `own`.
    pub(super) fn claim(&self, directory: &Path, own: Option<&HeldFile>) -> Result<AtomicFile> {
        check_directory(directory)?;
        fs::create_dir_all(directory).map_err(|e| {
            let message = format!("the directory could not be created: {e}; create it or choose another");
            Error::write(directory, io::Error::new(e.kind(), message))
        })?;
        if self.file().rank == 0 {
            // Dropped at once. If the meta file cannot be written, the run fails early.
            AtomicFile::claim(&directory.join(MetaInfo::FILE_NAME), None)?;
        }
        AtomicFile::claim(&self.path_in(directory), own)
    }

    /// Writes a dump that passed [`RankDump::check`]. The rank's file stays refused to others while the result lives.
    pub(super) fn write_claimed(&self, file: AtomicFile, directory: &Path, clock: Clock) -> Result<HeldFile> {
        let written_at = &clock.now();
        let held = file.replace_and_hold(|file| {
            // The safetensors package aligns the data by spaces after the JSON, which belong to the header.
            let json_len = self.json_len(written_at);
            let header_len = json_len.next_multiple_of(8);
            file.write_all(&header_len.to_le_bytes())?;
            self.write_json(file, written_at)?;
            file.write_all(&b"       "[..(header_len - json_len) as usize])?;
            self.write_counts(file)
        })?;
        if self.file().rank == 0 {
            let meta =
                serde_json::to_string(&self.meta(written_at)).map_err(|e| Error::Internal(e.to_string()))?;
            AtomicFile::claim(&directory.join(MetaInfo::FILE_NAME), None)?
                .replace(|file| file.write_all(meta.as_bytes()))?;
        }
        Ok(held)
    }

    fn path_in(&self, directory: &Path) -> PathBuf {
        directory.join(format!("rank{}.safetensors", self.file().rank))
    }

    /// All files that the rank writes into `directory`.
    pub(super) fn paths_in(&self, directory: &Path) -> impl Iterator<Item = PathBuf> {
        let meta = (self.file().rank == 0).then(|| directory.join(MetaInfo::FILE_NAME));
        [self.path_in(directory)].into_iter().chain(meta)
    }

    /// The first of the rows of `held`, and their number.
    fn rows(&self) -> (u64, u64) {
        self.rows.rows_of(self.iterations, self.held)
    }

    /// The file to write.
    fn file(&self) -> FileNumber {
        self.file.unwrap_or(FileNumber { rank: self.rank, num_files: self.num_ranks })
    }

    /// Checks that the reader would accept the dump.
    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        self.check_run()?;
        let (len, too_large) = match self.counts {
            Counts::U32(counts) => (counts.len(), None),
            Counts::U64(counts) => (counts.len(), counts.iter().find(|&&count| count > i64::MAX as u64)),
        };
        let (_, rows) = self.rows();
        if len as u64 != rows * (self.layers.len() * self.num_experts) as u64 {
            return refuse(format!(
                "{len} counts for iterations {}{}, {} layers and {} experts",
                self.held,
                if self.rows.are_iterations() { String::new() } else { format!(" in {rows} rows") },
                self.layers.len(),
                self.num_experts
            ));
        }
        match too_large {
            None => Ok(()),
            Some(count) => refuse(format!("count {count} does not fit int64")),
        }
    }

    /// As [`RankDump::check`], without the counts.
    pub(super) fn check_run(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        let (rank, num_ranks, num_experts) = (self.rank, self.num_ranks, self.num_experts);
        if num_ranks == 0 {
            return refuse("num_ranks is 0; at least 1 expected".to_owned());
        }
        if rank as usize >= num_ranks {
            return refuse(format!("rank is {rank}, num_ranks {num_ranks}; 0 to {} expected", num_ranks - 1));
        }
        let FileNumber { rank: file_rank, num_files } = self.file();
        if num_files < num_ranks {
            return refuse(format!(
                "num_files is {num_files}, num_ranks {num_ranks}; each rank writes a file, so at least {num_ranks} expected"
            ));
        }
        if file_rank as usize >= num_files {
            return refuse(format!(
                "file_rank is {file_rank}, num_files {num_files}; 0 to {} expected",
                num_files - 1
            ));
        }
        if !(1..=MAX_COUNT).contains(&num_experts) {
            return refuse(format!("num_experts is {num_experts}; 1 to {MAX_COUNT} expected"));
        }
        if !(1..=num_experts).contains(&self.experts_per_token) {
            return refuse(format!(
                "experts_per_token is {}, num_experts {num_experts}; 1 to {num_experts} expected",
                self.experts_per_token
            ));
        }
        let mut layers = self.layers.to_vec();
        layers.sort_unstable();
        if let Some(twice) = layers.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(format!("layer {} is listed twice", twice[0]));
        }
        if let Some(large) = layers.iter().find(|&&layer| i32::try_from(layer).is_err()) {
            return refuse(format!("layer {large} does not fit int32"));
        }
        let IterationRange { start, stop } = self.iterations;
        if self.iterations.is_empty() || stop > i64::MAX as u64 {
            return refuse(format!(
                "iterations {start}..{stop}: at least one expected, and none above int64"
            ));
        }
        if self.held.is_empty() || self.held.start < start || self.held.stop > stop {
            return refuse(format!(
                "iterations {} were counted, which are not all in {}",
                self.held, self.iterations
            ));
        }
        // Checked before the header is made: each of its entries has more than 64 bytes.
        let (_, rows) = self.rows();
        let tensors = rows.saturating_mul(self.layers.len() as u64);
        if tensors > MAX_HEADER_BYTES / 64 || self.json_len(ANY_TIME) > MAX_HEADER_BYTES {
            return refuse(format!(
                "iterations {} of {} layers are {tensors} tensors, more than a safetensors file may have; count fewer \
                 iterations, or raise iter_bucket or iter_stride",
                self.held,
                self.layers.len()
            ));
        }
        Ok(())
    }

    fn meta(&self, written_at: &str) -> MetaInfo {
        MetaInfo {
            num_experts: self.num_experts,
            num_experts_per_token: self.experts_per_token,
            eplb: Some(DumpInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                num_ranks: self.num_ranks,
                num_files: Some(self.file().num_files).filter(|&files| files != self.num_ranks),
                iter_bucket: Some(self.rows.bucket()).filter(|&bucket| bucket != 1),
                iter_stride: Some(self.rows.stride()).filter(|&stride| stride != 1),
                iter_start: self.iterations.start,
                iter_stop: self.iterations.stop,
                layers: self.layers.to_vec(),
                id_kind: self.id_kind,
                written_at: Some(written_at.to_owned()),
            }),
        }
    }

    /// The bytes of the header's JSON.
    fn json_len(&self, written_at: &str) -> u64 {
        let mut length = ByteCount(0);
        // Counting bytes cannot fail.
        let _ = self.write_json(&mut length, written_at);
        length.0
    }

    /// Writes the header in pieces, since the whole may be larger than the counts.
    fn write_json(&self, out: &mut dyn Write, written_at: &str) -> io::Result<()> {
        let counts = self.id_kind.name();
        let IterationRange { start, stop } = self.iterations;
        let FileNumber { rank, num_files } = self.file();
        write!(out, "{{\"__metadata__\":{{\"rank\":\"{rank}\",\"num_ranks\":\"{}\"", self.num_ranks)?;
        if (rank, num_files) != (self.rank, self.num_ranks) {
            write!(out, ",\"num_files\":\"{num_files}\",\"ep_rank\":\"{}\"", self.rank)?;
        }
        write!(out, ",\"layers\":\"")?;
        for (index, layer) in self.layers.iter().enumerate() {
            write!(out, "{}{layer}", if index == 0 { "" } else { "," })?;
        }
        write!(out, "\",\"iter_start\":\"{start}\",\"iter_stop\":\"{stop}\",\"counts\":\"{counts}\"")?;
        if !self.rows.are_iterations() {
            let (bucket, stride) = (self.rows.bucket(), self.rows.stride());
            write!(out, ",\"iter_bucket\":\"{bucket}\",\"iter_stride\":\"{stride}\"")?;
            // Without these a reader could not see that the first or last row is partial.
            let IterationRange { start, stop } = self.held;
            write!(out, ",\"counted_start\":\"{start}\",\"counted_stop\":\"{stop}\"")?;
        }
        if let Some(RunId { name, launcher }) = self.run_id {
            write!(out, ",\"run_id\":{}", serde_json::Value::from(name))?;
            if let Some(launcher) = launcher {
                write!(out, ",\"run_id_source\":{}", serde_json::Value::from(launcher))?;
            }
        }
        write!(out, ",\"written_at\":\"{written_at}\"}}")?;
        let (size, mut offset) = (self.num_experts * size_of::<i64>(), 0);
        let (first, rows) = self.rows();
        // Without layers the rows may be very many, and none has a tensor.
        let rows = if self.layers.is_empty() { 0 } else { rows };
        for row in first..first + rows {
            let iteration = self.rows.key(self.iterations, row);
            for layer in self.layers {
                let end = offset + size;
                write!(
                    out,
                    ",\"{iteration}_{layer}\":{{\"dtype\":\"I64\",\"shape\":[{}],\"data_offsets\":[{offset},{end}]}}",
                    self.num_experts
                )?;
                offset = end;
            }
        }
        write!(out, "}}")
    }

    fn write_counts(&self, out: &mut dyn Write) -> io::Result<()> {
        match self.counts {
            Counts::U32(counts) => write_i64(out, counts, u64::from),
            Counts::U64(counts) => write_i64(out, counts, u64::from),
        }
    }
}

/// Writes counts as int64, many at a time.
fn write_i64<T: Copy>(out: &mut dyn Write, counts: &[T], widen: impl Fn(T) -> u64) -> io::Result<()> {
    let mut bytes = [0; 8192];
    for counts in counts.chunks(bytes.len() / size_of::<u64>()) {
        let (words, _) = bytes.as_chunks_mut();
        words.iter_mut().zip(counts).for_each(|(word, &count)| *word = widen(count).to_le_bytes());
        out.write_all(&bytes[..counts.len() * size_of::<u64>()])?;
    }
    Ok(())
}

/// Fails for a path that cannot be a dump's directory: standard output, a pipe, any file.
pub(super) fn check_directory(directory: &Path) -> Result<()> {
    let why = if directory == Path::new("-") {
        "a dump is a directory of several files, which standard output cannot be; ./- is a directory of that name"
    } else if directory.exists() && !directory.is_dir() {
        "it is not a directory, which a dump of several files needs; choose another path"
    } else {
        return Ok(());
    };
    Err(Error::write(directory, io::Error::new(io::ErrorKind::InvalidInput, why)))
}

/// Counts the bytes that are written to it.
struct ByteCount(u64);

impl Write for ByteCount {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_in_order_whatever_their_number() {
        for len in [0, 1, 1023, 1024, 1025, 5000] {
            let (wide, narrow) = ((0..len).map(|i| i << 33).collect::<Vec<u64>>(), (0..len as u32).collect());
            let (mut written, narrow): (Vec<u8>, Vec<u32>) = (Vec::new(), narrow);
            write_i64(&mut written, &wide, u64::from).unwrap();
            write_i64(&mut written, &narrow, u64::from).unwrap();
            let expected = wide.into_iter().chain(narrow.into_iter().map(u64::from));
            assert_eq!(written, expected.flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
        }
    }
}
