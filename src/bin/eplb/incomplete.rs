//! What an incomplete dump has, for `eplb inspect`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use eplb::stats::{MetaInfo, RankFile};

use crate::output::layer_list;

/// Describes each file of a dump that cannot be read as a whole. Empty if there is no rank file.
pub fn describe(directory: &Path) -> String {
    let files = rank_files(directory);
    let Some((&last, _)) = files.last_key_value() else { return String::new() };
    let mut text = format!("{}: statistic dump, incomplete\n", directory.display());
    let meta = MetaInfo::read(directory);
    let _ = writeln!(text, "  {:<22} {}", MetaInfo::FILE_NAME, describe_meta(&meta));
    for (rank, path) in &files {
        let _ = writeln!(text, "  {:<22} {}", format!("rank{rank}.safetensors"), describe_file(path));
    }
    let declared = meta.ok().flatten().and_then(|meta| meta.eplb).map(|info| info.files() as u64);
    let num_files = declared.unwrap_or(u64::from(last) + 1);
    let num_missing = num_files.saturating_sub(files.len() as u64);
    if num_missing > 0 {
        let absent = (0..).filter(|rank| !files.contains_key(rank)).take(num_missing.min(8) as usize);
        let first: Vec<String> = absent.map(|rank| rank.to_string()).collect();
        let more = if num_missing > 8 { ", ..." } else { "" };
        let _ = writeln!(
            text,
            "  {:<22} {num_missing} of {num_files} rank files: rank {}{more}",
            "missing",
            first.join(", ")
        );
    }
    text
}

/// The rank files by their numbers, without files of raw ids.
fn rank_files(directory: &Path) -> BTreeMap<u32, PathBuf> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let number = |name: &str| name.strip_prefix("rank")?.strip_suffix(".safetensors")?.parse().ok();
    let files = names.filter_map(|name| Some((number(name.to_str()?)?, directory.join(&name))));
    files.collect()
}

fn describe_meta(meta: &eplb::Result<Option<MetaInfo>>) -> String {
    match meta {
        Err(error) => error.to_string(),
        Ok(None) => "null".to_owned(),
        Ok(Some(meta)) => {
            let of_run = meta.eplb.as_ref().and_then(|info| {
                Some(format!(", iterations {}, {} rank files", info.rows().ok()?, info.files()))
            });
            let (experts, chosen) = (meta.num_experts, meta.num_experts_per_token);
            format!("{experts} experts, {chosen} a token{}", of_run.unwrap_or_default())
        }
    }
}

fn describe_file(path: &Path) -> String {
    match RankFile::open(path, None) {
        Err(error) => error.to_string(),
        Ok(file) if file.layers.is_empty() => "no layers".to_owned(),
        Ok(file) => format!("layers {}, iterations {}", layer_list(&file.layers), file.rows),
    }
}
