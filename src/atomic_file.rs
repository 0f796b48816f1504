//! Replaces files in one step.
//!
//! The bytes are written to `.<name>.partial` beside the target and synced. One rename makes it the target. If the process dies,
//! the target is the old file or the new one. The partial file is locked, so a second writer of the target is refused. A partial
//! file that a dead process left is reused.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// A file that was replaced and is still locked. Until it is dropped, [`AtomicFile::claim`] refuses the file to others.
#[derive(Debug)]
pub struct HeldFile(Arc<File>);

impl Drop for HeldFile {
    fn drop(&mut self) {
        // A process made by fork() may have the file open too, and must not keep the lock.
        let _ = self.0.unlock();
    }
}

/// A file that will be replaced. Its partial file exists, locked and empty. Drop without [`AtomicFile::replace`] removes it.
#[derive(Debug)]
pub struct AtomicFile {
    /// The caller's path, for messages.
    path: PathBuf,
    /// The path with symbolic links resolved.
    target: PathBuf,
    partial: PathBuf,
    file: Arc<File>,
    replaced: bool,
}

impl AtomicFile {
    /// Begins to replace or create `path`. Fails early where the file cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let attempt = || {
            let target = target_of(path)?;
            let mut name = OsString::from(".");
            name.push(target.file_name().unwrap_or_default());
            name.push(".partial");
            let partial = target.with_file_name(name);
            let file = Arc::new(open_locked(&partial)?);
            Ok(AtomicFile { path: path.to_owned(), target, partial, file, replaced: false })
        };
        attempt().map_err(|e| Error::write(path, e))
    }

    /// The caller's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As [`AtomicFile::create`]. Fails also where somebody holds the file, unless that is `own`.
    pub fn claim(path: &Path, own: Option<&HeldFile>) -> Result<Self> {
        let claimed = Self::create(path)?;
        // Readers may open the target too, and this lock conflicts only with that of a holder.
        let busy = File::open(&claimed.target).is_ok_and(|target| {
            !own.is_some_and(|own| same_file(&own.0, &target))
                && matches!(target.try_lock_shared(), Err(TryLockError::WouldBlock))
        });
        match busy {
            true => Err(Error::write(path, io::Error::new(ErrorKind::ResourceBusy, BUSY))),
            false => Ok(claimed),
        }
    }

    /// Replaces the file by the bytes that `fill` writes. On failure the old file is unchanged.
    pub fn replace(self, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        self.replace_and_hold(fill).map(drop)
    }

    /// As [`AtomicFile::replace`], and keeps the new file locked.
    pub fn replace_and_hold(
        mut self,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<HeldFile> {
        let old = fs::metadata(&self.target).ok();
        let attempt = || {
            let mut writer = BufWriter::with_capacity(1 << 18, &*self.file);
            fill(&mut writer)?;
            writer.into_inner().map_err(io::IntoInnerError::into_error)?;
            self.file.sync_all()?;
            fs::rename(&self.partial, &self.target)
        };
        attempt().map_err(|e| Error::write(&self.path, e))?;
        self.replaced = true;

        // The new file is in place, so later failures are only logged.
        let directory = directory_of(&self.target);
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        let allowed = old.map_or(Ok(()), |old| self.file.set_permissions(old.permissions()));
        for (done, what) in [(synced, "sync its directory"), (allowed, "keep its permissions")] {
            if let Err(e) = done {
                log::warn!("{}: written, but could not {what}: {e}", self.path.display());
            }
        }
        Ok(HeldFile(self.file.clone()))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.replaced {
            // The partial file is locked, so it belongs to this value. If this fails, the next writer reuses the file.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Why a file is refused to a second writer.
const BUSY: &str = "it is being written by another process, or by another handle of this one";

fn same_file(one: &File, another: &File) -> bool {
    let inode = |file: &File| file.metadata().map(|data| (data.dev(), data.ino())).ok();
    inode(one).is_some_and(|one| Some(one) == inode(another))
}

/// Resolves the symbolic links of `path`, which names a regular file or nothing.
fn target_of(path: &Path) -> io::Result<PathBuf> {
    let refuse = |why: String| Err(io::Error::new(ErrorKind::InvalidInput, why));
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(e) if e.kind() == ErrorKind::NotFound && !path.is_symlink() => path.to_owned(),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return refuse("it is a dangling symbolic link; remove it".to_owned());
        }
        Err(e) => return Err(e),
    };
    if target.file_name().is_none() {
        return refuse("it does not name a file".to_owned());
    }
    // Renaming over a device or a pipe would remove it for all processes.
    if target.exists() && !target.is_file() {
        return refuse("it exists and is not a regular file".to_owned());
    }
    let directory = directory_of(&target);
    if !directory.is_dir() {
        return refuse(format!("there is no directory {}; create it first", directory.display()));
    }
    Ok(target)
}

fn directory_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn open_locked(partial: &Path) -> io::Result<File> {
    let cannot_open =
        |e: io::Error| io::Error::new(e.kind(), format!("cannot open {} beside it: {e}", partial.display()));
    loop {
        // A link or a pipe of that name must not be followed or waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let options = OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).clone();
        let file = options.open(partial).map_err(cannot_open)?;
        let opened = file.metadata()?;
        if !opened.is_file() || opened.nlink() > 1 {
            let not_partial = io::Error::new(ErrorKind::AlreadyExists, "it is not a partial file; remove it");
            return Err(cannot_open(not_partial));
        }
        match file.try_lock() {
            Ok(()) => {}
            // Some cluster file systems have no locks. The rename still replaces the target in one step.
            Err(TryLockError::Error(e))
                if e.kind() == ErrorKind::Unsupported || e.raw_os_error() == Some(libc::ENOLCK) => {}
            Err(TryLockError::Error(e)) => return Err(cannot_open(e)),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(ErrorKind::ResourceBusy, BUSY));
            }
        }
        // Another writer may have renamed its partial file between the open and the lock.
        if fs::symlink_metadata(partial)
            .is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino()))
        {
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

    fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        AtomicFile::create(path)?.replace(fill)
    }

    #[test]
    fn failed_replace_keeps_the_old_file_and_removes_the_partial_file() {
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
    fn create_refuses_a_second_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        write(&path, |w| {
            let second = write(&path, |w| w.write_all(b"second"));
            assert!(second.unwrap_err().to_string().contains("it is being written by another process"));
            w.write_all(b"first")
        })
        .unwrap();
        assert_eq!(read(&path), "first");
    }

    #[test]
    fn claim_refuses_a_file_that_another_writer_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rank0.safetensors");
        let written = |file: AtomicFile| file.replace_and_hold(|w| w.write_all(b"bytes")).unwrap();
        let held = written(AtomicFile::claim(&path, None).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(
            AtomicFile::claim(&path, None).unwrap_err().to_string(),
            format!("cannot write {}: {BUSY}", path.display())
        );
        let held_again = written(AtomicFile::claim(&path, Some(&held)).unwrap());
        drop(held);
        assert!(AtomicFile::claim(&path, None).is_err());
        drop(held_again);
        AtomicFile::claim(&path, None).unwrap();
        assert_eq!(read(&path), "bytes");
    }

    #[test]
    fn create_reuses_the_partial_file_of_a_killed_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(dir.path().join(".config.yaml.partial"), "a much longer half-written file").unwrap();
        write(&path, |w| w.write_all(b"whole")).unwrap();
        assert_eq!(read(&path), "whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn replace_follows_links_and_create_refuses_devices() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("v1.yaml"), dir.path().join("current.yaml"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, |w| w.write_all(b"new")).unwrap();
        assert_eq!(read(&path), "new");
        assert!(link.is_symlink());

        let message = write(Path::new("/dev/null"), |_| Ok(())).unwrap_err().to_string();
        assert_eq!(message, "cannot write /dev/null: it exists and is not a regular file");

        fs::remove_file(&path).unwrap();
        let message = write(&link, |_| Ok(())).unwrap_err().to_string();
        assert!(message.ends_with("current.yaml: it is a dangling symbolic link; remove it"), "{message}");
    }

    #[test]
    fn create_refuses_other_files_named_like_the_partial_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, partial) = (dir.path().join("config.yaml"), dir.path().join(".config.yaml.partial"));
        let important = dir.path().join("important");
        fs::write(&important, "precious").unwrap();
        let refused = || write(&path, |w| w.write_all(b"new")).unwrap_err().to_string();

        std::os::unix::fs::symlink(&important, &partial).unwrap();
        assert!(refused().contains(".config.yaml.partial beside it: "));
        fs::remove_file(&partial).unwrap();
        fs::hard_link(&important, &partial).unwrap();
        assert!(refused().ends_with(".config.yaml.partial beside it: it is not a partial file; remove it"));
        fs::remove_file(&partial).unwrap();
        fs::create_dir(&partial).unwrap();
        assert!(refused().contains(".config.yaml.partial beside it: "));
        assert_eq!(read(&important), "precious");
        assert!(!path.exists());
    }

    #[test]
    fn replace_keeps_permissions_and_drop_removes_the_partial_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        write(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(read(&path), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o440);

        drop(AtomicFile::create(&path).unwrap());
        assert_eq!(read(&path), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
