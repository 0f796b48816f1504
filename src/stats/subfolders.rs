//! Finds the dumps below a directory: those of other recorders of the process, by name, and those of later ranges.

use std::fs;
use std::path::{Path, PathBuf};

use super::MetaInfo;

/// Directories to look into. A dump's directory has few, but any directory may be given.
const MAX_DIRECTORIES: usize = 1000;

/// The dumps in subfolders of `directory` and in theirs, ascending: `DIRECTORY/<name>` and `DIRECTORY/<name>/<start>-<stop>`.
///
/// A dump is a directory with a `meta_info.json`. What cannot be read is skipped.
pub fn dumps_below(directory: &Path) -> Vec<PathBuf> {
    let mut dumps = Vec::new();
    let mut left = MAX_DIRECTORIES;
    collect(directory, 2, &mut left, &mut dumps);
    dumps
}

fn collect(directory: &Path, depth: usize, left: &mut usize, dumps: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .take(*left)
        .collect();
    folders.sort();
    *left -= folders.len();
    for folder in folders {
        if folder.join(MetaInfo::FILE_NAME).is_file() {
            dumps.push(folder.clone());
        }
        if depth > 1 {
            collect(&folder, depth - 1, left, dumps);
        }
    }
}

/// Formats the first of some dumps as a list.
pub fn list_dumps(dumps: &[PathBuf]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = dumps.iter().take(SHOWN).map(|dump| dump.display().to_string()).collect();
    let more = match dumps.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &more
}
