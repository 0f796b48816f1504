//! Files that are there whole or not at all.
//!
//! The bytes go to `.<name>.partial` beside the target, are synced, and take the target's name in one rename.
//! Whenever the process dies, the target is the old file or the new one. The partial file is locked while it is
//! written, so that two writers of one target cannot mix; one left by a dead process is taken over.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Checks what can be checked before the work that leads to [`write`] is done: that `path` may name a regular
/// file in an existing directory. Returns the file that will be replaced, symbolic links followed.
pub fn check_target(path: &Path) -> Result<PathBuf> {
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(e) if e.kind() == ErrorKind::NotFound => path.to_owned(),
        Err(e) => return Err(Error::write(path, e)),
    };
    let refuse = |why| Err(Error::write(path, io::Error::new(ErrorKind::InvalidInput, why)));
    if target.file_name().is_none() {
        return refuse("it does not name a file".to_owned());
    }
    // Renaming over a device or a pipe would replace it for everybody.
    if target.exists() && !target.is_file() {
        return refuse("it exists and is not a regular file".to_owned());
    }
    let directory = directory_of(&target);
    if !directory.is_dir() {
        return refuse(format!("there is no directory {}; create it first", directory.display()));
    }
    Ok(target)
}

/// Replaces `path` by what `fill` writes, or leaves it untouched and fails.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let target = check_target(path)?;
    let partial = partial_path(&target);
    let attempt = || -> io::Result<()> {
        let file = open_locked(&partial)?;
        let written = (|| {
            let mut writer = BufWriter::with_capacity(1 << 18, &file);
            fill(&mut writer)?;
            writer.into_inner().map_err(|e| e.into_error())?;
            if let Ok(old) = fs::metadata(&target) {
                file.set_permissions(old.permissions())?;
            }
            file.sync_all()?;
            fs::rename(&partial, &target)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written?;
        // Without this the rename itself may be lost in a power cut.
        File::open(directory_of(&target))?.sync_all()
    };
    attempt().map_err(|e| Error::write(path, e))
}

fn directory_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn partial_path(target: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".partial");
    target.with_file_name(name)
}

fn open_locked(partial: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(partial)?;
        match file.try_lock() {
            Ok(()) => {}
            // Some cluster file systems have no locks; the rename alone still keeps the target whole.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    ErrorKind::ResourceBusy,
                    "another process is writing it right now",
                ));
            }
        }
        // The writer before us may have renamed its partial file between our open and our lock.
        let held = file.metadata()?;
        if fs::metadata(partial).is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        write(&path, |w| w.write_all(b"old")).unwrap();
        let failed = write(&path, |w| {
            w.write_all(b"half of the ne")?;
            Err(io::Error::other("disk on fire"))
        });
        assert_eq!(failed.unwrap_err().to_string(), format!("cannot write {}: disk on fire", path.display()));
        assert_eq!(read(&path), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_writer_is_refused_while_the_first_one_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        write(&path, |w| {
            let second = write(&path, |w| w.write_all(b"second"));
            assert!(second.unwrap_err().to_string().ends_with("another process is writing it right now"));
            w.write_all(b"first")
        })
        .unwrap();
        assert_eq!(read(&path), "first");
    }

    #[test]
    fn what_a_killed_writer_left_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(dir.path().join(".config.yaml.partial"), "a much longer half-written file").unwrap();
        write(&path, |w| w.write_all(b"whole")).unwrap();
        assert_eq!(read(&path), "whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_written_through_and_a_device_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("v1.yaml"), dir.path().join("current.yaml"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, |w| w.write_all(b"new")).unwrap();
        assert_eq!(read(&path), "new");
        assert!(link.is_symlink());

        let message = write(Path::new("/dev/null"), |_| Ok(())).unwrap_err().to_string();
        assert_eq!(message, "cannot write /dev/null: it exists and is not a regular file");
    }
}
