//! The files of the run before, `rank3.safetensors.previous` and `meta_info.json.previous`.
//!
//! A recorder gives its rank's old files these names when its range begins. So a rank that dies before its dump cannot lend the
//! counts of its last run to the next one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What follows the name of a file of the run before.
const SUFFIX: &str = ".previous";

/// The name of a file of the run before.
pub(super) fn previous_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(SUFFIX);
    name.into()
}

/// Renames a file of the run before, and replaces that of the run before it. Returns the new name, or `None` without a file.
pub(super) fn set_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if !found.is_file() {
        // The dump follows a link, so that renaming the link would rename the new file too.
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is a link, not a regular file"));
    }
    let previous = previous_of(path);
    fs::rename(path, &previous)?;
    // If both names were links to one file, the rename has left both.
    if fs::symlink_metadata(path).is_ok_and(|left| (left.dev(), left.ino()) == (found.dev(), found.ino())) {
        fs::remove_file(path)?;
    }
    // A machine that fails must not bring the old name back. Some file systems cannot sync a directory.
    let _ = File::open(path.parent().unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
    Ok(Some(previous))
}

/// Whether this is the name of a rank's file of the run before.
pub fn is_previous_rank_file(path: &Path) -> bool {
    path.to_str()
        .and_then(|path| path.strip_suffix(SUFFIX))
        .is_some_and(|path| path.ends_with(".safetensors"))
}

/// For the error about a missing file: that it has one of the run before.
pub(super) fn of_missing_file(path: &Path) -> String {
    let previous = previous_of(path);
    match previous.file_name() {
        Some(name) if previous.is_file() => format!(
            "; its rank has begun to count and has not dumped, {} is of the run before",
            Path::new(name).display()
        ),
        _ => String::new(),
    }
}

/// For the error about missing ranks: which of them have a file of the run before. `present` are the ranks with a file,
/// of `num_files`.
pub(super) fn of_missing_ranks(directory: &Path, present: &[u32], num_files: usize) -> String {
    let mut ranks: Vec<u32> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| {
            name.strip_prefix("rank")?.strip_suffix(SUFFIX)?.strip_suffix(".safetensors")?.parse().ok()
        })
        .filter(|rank| (*rank as usize) < num_files && present.binary_search(rank).is_err())
        .collect();
    ranks.sort_unstable();
    match &ranks[..] {
        [] => String::new(),
        [rank] => format!(
            "; rank {rank} has begun to count and has not dumped, rank{rank}.safetensors{SUFFIX} is of the run before"
        ),
        [first, ..] => {
            let shown: Vec<String> = ranks.iter().take(8).map(u32::to_string).collect();
            format!(
                "; ranks {}{} have begun to count and have not dumped, rank{first}.safetensors{SUFFIX} and the like are of the \
                 run before",
                shown.join(", "),
                if ranks.len() > shown.len() { ", ..." } else { "" }
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_aside_replaces_the_file_of_the_run_before() {
        let dir = tempfile::tempdir().unwrap();
        let (path, previous) =
            (dir.path().join("rank3.safetensors"), dir.path().join("rank3.safetensors.previous"));
        assert_eq!(set_aside(&path).unwrap(), None);
        for run in ["first", "second"] {
            fs::write(&path, run).unwrap();
            assert_eq!(set_aside(&path).unwrap(), Some(previous.clone()));
            assert!(!path.exists());
            assert_eq!(fs::read_to_string(&previous).unwrap(), run);
        }
        // Without a dump in between, the last one stays.
        assert_eq!(set_aside(&path).unwrap(), None);
        assert_eq!(fs::read_to_string(&previous).unwrap(), "second");
    }

    #[test]
    fn set_aside_removes_the_name_of_a_file_with_both_names() {
        let dir = tempfile::tempdir().unwrap();
        let (path, previous) =
            (dir.path().join("meta_info.json"), dir.path().join("meta_info.json.previous"));
        fs::write(&path, "{}").unwrap();
        fs::hard_link(&path, &previous).unwrap();
        assert_eq!(set_aside(&path).unwrap(), Some(previous.clone()));
        assert!(!path.exists() && previous.is_file());
    }

    #[test]
    fn set_aside_keeps_what_it_cannot_rename() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rank3.safetensors");
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert_eq!(set_aside(&path).unwrap_err().to_string(), "it is a link, not a regular file");
        assert!(path.is_symlink());

        fs::remove_file(&path).unwrap();
        fs::write(&path, "old").unwrap();
        fs::create_dir(dir.path().join("rank3.safetensors.previous")).unwrap();
        set_aside(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }
}
