//! Replaces files in one step.
//!
//! The bytes are written to a partial file beside the target and synced. One rename makes it the target. If the process dies,
//! the target is the old file or the new one. Each writer has a partial file of its own, `.<name>.<host>.<process>.<number>.partial`,
//! so whole files rely on no lock: of several writers, the last to finish wins. The next writer of the host removes the partial
//! file of a process that has ended.
//!
//! Pipes, devices and descriptors (`/dev/stdout`, `/dev/fd/3`) are written to and never replaced. A descriptor is written at its
//! position, so that what its process writes before and after stays.

mod claim;
mod partial;
mod process;
mod stream;
mod target;

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use claim::{Claim, check_unclaimed};
use partial::Partial;
use stream::Stream;
use target::{Target, directory_of};

use crate::error::{Error, Result};

/// A file that was replaced and is still locked. Until it is dropped, or the file is removed or replaced, [`AtomicFile::claim`]
/// refuses the file to others.
#[derive(Debug)]
pub struct HeldFile {
    /// None for a stream.
    file: Option<Arc<File>>,
    #[expect(dead_code, reason = "it ends when this is dropped")]
    claim: Option<Claim>,
    process: u32,
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        // A process made by fork() may have the file open too. It must not keep the lock, nor end that of its parent.
        if let Some(file) = &self.file
            && self.process == std::process::id()
        {
            let _ = file.unlock();
        }
    }
}

/// A file that will be replaced, or a stream that will be written. Drop without [`AtomicFile::replace`] leaves no trace.
#[derive(Debug)]
pub struct AtomicFile {
    /// The caller's path, for messages.
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The path with symbolic links resolved, and the file that will replace it.
    File {
        target: PathBuf,
        partial: Partial,
        claim: Option<Claim>,
    },
    Stream(Stream),
}

impl AtomicFile {
    /// Begins to replace or create `path`, or to write to it if it is a pipe, a device or a descriptor. Fails early where it
    /// cannot be written. Does not refuse a second writer.
    pub fn create(path: &Path) -> Result<Self> {
        let attempt = || match Target::of(path)? {
            Target::Descriptor(number) => Stream::of_descriptor(number).map(Place::Stream),
            Target::Stream(path) => Stream::open(&path).map(Place::Stream),
            Target::File(target) => {
                let partial = Partial::create(&target)?;
                // Those of processes that have ended are removed; the others do no harm.
                partial.others(&target);
                Ok(Place::File { target, partial, claim: None })
            }
        };
        let place = attempt().map_err(|e| Error::write(path, e))?;
        Ok(AtomicFile { path: path.to_owned(), place })
    }

    /// Begins to replace or create a regular file that no other writer may have. Fails where somebody claimed or holds the file,
    /// unless that is `own`.
    ///
    /// A writer of another process is seen on this host, and where locks work across hosts. Elsewhere the last to finish wins.
    pub fn claim(path: &Path, own: Option<&HeldFile>) -> Result<Self> {
        let attempt = || {
            let Target::File(target) = Target::of(path)? else {
                let why = "it exists and is not a regular file; remove it, or choose another directory";
                return Err(io::Error::new(ErrorKind::InvalidInput, why));
            };
            let claim = Claim::of_name(&target)?;
            let partial = Partial::create(&target)?;
            check_unclaimed(&partial, &target, own.and_then(|own| own.file.as_deref()))?;
            Ok(Place::File { target, partial, claim: Some(claim) })
        };
        let place = attempt().map_err(|e| Error::write(path, e))?;
        Ok(AtomicFile { path: path.to_owned(), place })
    }

    /// The caller's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file by the bytes that `fill` writes. On failure the old file is unchanged. A stream may have a part of them.
    pub fn replace(self, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        self.replace_and_hold(fill).map(drop)
    }

    /// As [`AtomicFile::replace`], and keeps a claimed file claimed and locked.
    pub fn replace_and_hold(self, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<HeldFile> {
        let AtomicFile { path, place } = self;
        let attempt = || match place {
            Place::Stream(stream) => {
                write(stream, fill)?;
                Ok((None, None))
            }
            Place::File { target, partial, claim } => {
                write(&**partial.file(), fill)?;
                let allowed = match fs::metadata(&target) {
                    Ok(old) => partial.file().set_permissions(old.permissions()),
                    Err(_) => Ok(()),
                };
                partial.file().sync_all()?;
                // The claim of the name ends with this call, and that of the file begins before.
                let held = claim.as_ref().map(|_| Claim::of_file(partial.file())).transpose()?;
                let file = partial.rename(&target)?;
                // The new file is in place, so other failures are only logged.
                let synced = File::open(directory_of(&target)).and_then(|directory| directory.sync_all());
                for (done, what) in [(allowed, "keep its permissions"), (synced, "sync its directory")] {
                    if let Err(e) = done {
                        log::warn!("{}: written, but could not {what}: {e}", path.display());
                    }
                }
                Ok((Some(file), held))
            }
        };
        let (file, claim) = attempt().map_err(|e| Error::write(&path, e))?;
        Ok(HeldFile { file, claim, process: std::process::id() })
    }
}

/// Writes what `fill` writes in large pieces.
fn write(out: impl Write, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    /// Bytes of a piece.
    const PIECE: usize = 1 << 18;
    let mut writer = BufWriter::with_capacity(PIECE, out);
    let written = fill(&mut writer).and_then(|()| writer.flush());
    // After a failure, drop would write what is left.
    let _ = writer.into_parts();
    written
}

#[cfg(test)]
mod tests {
    use super::claim::BUSY;
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
    fn claim_refuses_pipes_and_devices_without_opening_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rank0.safetensors");
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: a string that ends in 0. To open this pipe would wait for a reader, which never comes.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for path in [&*path, Path::new("/dev/null"), Path::new("/dev/fd/2")] {
            let message = AtomicFile::claim(path, None).unwrap_err().to_string();
            assert!(
                message.ends_with(
                    ": it exists and is not a regular file; remove it, or choose another directory"
                ),
                "{message}"
            );
        }
    }

    #[test]
    fn each_writer_has_a_file_of_its_own_and_the_last_to_finish_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        write(&path, |w| {
            w.write_all(b"first, ")?;
            write(&path, |w| w.write_all(b"second")).unwrap();
            assert_eq!(read(&path), "second");
            let failed = write(&path, |w| {
                w.write_all(b"third")?;
                Err(io::Error::other("disk on fire"))
            });
            assert!(failed.is_err());
            assert_eq!(read(&path), "second");
            w.write_all(b"whole")
        })
        .unwrap();
        assert_eq!(read(&path), "first, whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
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
        fs::remove_file(&path).unwrap();
        AtomicFile::claim(&path, None).unwrap();
        fs::write(&path, "bytes").unwrap();
        AtomicFile::claim(&path, None).unwrap();
        drop(held_again);
        AtomicFile::claim(&path, None).unwrap();
        assert_eq!(read(&path), "bytes");
    }

    #[test]
    fn replace_follows_links() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("v1.yaml"), dir.path().join("current.yaml"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, |w| w.write_all(b"new")).unwrap();
        assert_eq!(read(&path), "new");
        assert!(link.is_symlink());
        let held = AtomicFile::claim(&path, None).unwrap();
        assert!(AtomicFile::claim(&link, None).unwrap_err().to_string().contains(BUSY));
        drop(held);

        fs::remove_file(&path).unwrap();
        let message = write(&link, |_| Ok(())).unwrap_err().to_string();
        assert!(message.ends_with("current.yaml: it is a dangling symbolic link; remove it"), "{message}");
    }

    #[test]
    fn create_refuses_directories_and_claim_refuses_devices() {
        let dir = tempfile::tempdir().unwrap();
        for (path, why) in [
            (dir.path().to_owned(), "it is a directory; name a file in it".to_owned()),
            (
                dir.path().join("a/b"),
                format!("there is no directory {}; create it first", dir.path().join("a").display()),
            ),
            (dir.path().join(".."), "it is a directory; name a file in it".to_owned()),
        ] {
            let message = AtomicFile::create(&path).unwrap_err().to_string();
            assert_eq!(message, format!("cannot write {}: {why}", path.display()));
        }
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
