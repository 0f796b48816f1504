//! Writing a dump: one file a rank, and the meta file, which rank 0 writes.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::{Counted, DumpInfo, IterationRange, MetaInfo};
use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};
use crate::placement::MAX_COUNT;

/// The counts of one rank, ready to be dumped.
#[derive(Debug, Clone, Copy)]
pub struct RankDump<'a> {
    /// The rank that counted.
    pub rank: u32,
    /// Ranks of its group.
    pub num_ranks: usize,
    /// Experts of a layer, or slots where those were counted.
    pub num_experts: usize,
    /// Experts that each token chooses.
    pub experts_per_token: usize,
    /// Experts or slots.
    pub counted: Counted,
    /// Iterations counted.
    pub iterations: IterationRange,
    /// Layers that this rank counted, by number.
    pub layers: &'a [u32],
    /// `[iterations][layers][experts]`
    pub counts: &'a [u64],
    /// Tells one run from another.
    pub run_id: Option<&'a str>,
}

impl RankDump<'_> {
    /// Writes `rank<R>.safetensors` into `directory`, which is created if missing, and as rank 0 `meta_info.json` too.
    /// Each file is there whole or not at all.
    pub fn write(&self, directory: &Path) -> Result<()> {
        self.check()?;
        fs::create_dir_all(directory).map_err(|e| Error::write(directory, e))?;
        let header = self.header();
        AtomicFile::create(&directory.join(format!("rank{}.safetensors", self.rank)))?.replace(|file| {
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            self.counts.iter().try_for_each(|count| file.write_all(&count.to_le_bytes()))
        })?;
        if self.rank == 0 {
            let meta = serde_json::to_string(&self.meta()).map_err(|e| Error::Internal(e.to_string()))?;
            AtomicFile::create(&directory.join(MetaInfo::FILE_NAME))?
                .replace(|file| file.write_all(meta.as_bytes()))?;
        }
        Ok(())
    }

    /// Whether the reader would take the dump.
    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        if self.rank as usize >= self.num_ranks {
            return refuse(format!("rank {} of {} ranks", self.rank, self.num_ranks));
        }
        if self.num_experts > MAX_COUNT || !(1..=self.num_experts).contains(&self.experts_per_token) {
            return refuse(format!("{} of {} experts a token", self.experts_per_token, self.num_experts));
        }
        let mut layers = self.layers.to_vec();
        layers.sort_unstable();
        if layers.windows(2).any(|pair| pair[0] == pair[1])
            || layers.iter().any(|&l| i32::try_from(l).is_err())
        {
            return refuse(format!("layers {:?}: each must be there once and fit int32", self.layers));
        }
        if self.iterations.stop > i64::MAX as u64 {
            return refuse(format!("iterations {} must fit int64", self.iterations));
        }
        let cells = (self.iterations.len() as usize).checked_mul(self.layers.len());
        let wanted = cells.and_then(|cells| cells.checked_mul(self.num_experts)).filter(|&counts| counts > 0);
        if wanted != Some(self.counts.len()) {
            return refuse(format!(
                "{} counts for iterations {}, {} layers and {} experts",
                self.counts.len(),
                self.iterations,
                self.layers.len(),
                self.num_experts
            ));
        }
        match self.counts.iter().find(|&&count| count > i64::MAX as u64) {
            None => Ok(()),
            Some(count) => refuse(format!("count {count} does not fit int64")),
        }
    }

    fn meta(&self) -> MetaInfo {
        MetaInfo {
            num_experts: self.num_experts,
            num_experts_per_token: self.experts_per_token,
            eplb: Some(DumpInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                num_ranks: self.num_ranks,
                iter_start: self.iterations.start,
                iter_stop: self.iterations.stop,
                layers: self.layers.to_vec(),
                counts: self.counted,
            }),
        }
    }

    fn header(&self) -> String {
        let layers = self.layers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let counted = match self.counted {
            Counted::Experts => "experts",
            Counted::Slots => "slots",
        };
        let IterationRange { start, stop } = self.iterations;
        let mut header = format!(
            "{{\"__metadata__\":{{\"rank\":\"{}\",\"num_ranks\":\"{}\",\"layers\":\"{layers}\",\
             \"iter_start\":\"{start}\",\"iter_stop\":\"{stop}\",\"counts\":\"{counted}\"",
            self.rank, self.num_ranks
        );
        if let Some(run_id) = self.run_id {
            let _ = write!(header, ",\"run_id\":{}", serde_json::Value::from(run_id));
        }
        header.push('}');
        let (size, mut offset) = (self.num_experts * size_of::<i64>(), 0);
        for iteration in start..stop {
            for layer in self.layers {
                let end = offset + size;
                let _ = write!(
                    header,
                    ",\"{iteration}_{layer}\":{{\"dtype\":\"I64\",\"shape\":[{}],\"data_offsets\":[{offset},{end}]}}",
                    self.num_experts
                );
                offset = end;
            }
        }
        header.push('}');
        // The format's writers align the data; spaces after the JSON are part of the header.
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        header
    }
}
