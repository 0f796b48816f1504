//! Files that only one writer may have at a time, such as a recorder's.
//!
//! Within a process a list decides. Other processes are seen by their partial files, and by locks where those work: some cluster
//! file systems have none, or have them on each node alone.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::partial::{Owner, Partial};
use super::target::{directory_of, same_file};

/// Why a file is refused to a second writer.
pub(super) const BUSY: &str = "it is being written by another process, or by another handle of this one";

/// The right to a file. It ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Claim(Arc<Claimed>);

/// A file, by its directory and its name there: the file itself changes with each replacement.
#[derive(Debug, PartialEq, Eq)]
struct Claimed {
    /// A process made by fork() has the claims of its parent in its list, which it must not go by.
    process: u32,
    device: u64,
    directory: u64,
    name: OsString,
}

/// The claims of this process.
static CLAIMS: Mutex<Vec<Weak<Claimed>>> = Mutex::new(Vec::new());

impl Claim {
    /// Claims `target` in this process. Fails where another holder than `own` has it.
    pub fn new(target: &Path, own: Option<&Claim>) -> io::Result<Self> {
        let directory = fs::metadata(directory_of(target))?;
        let claimed = Arc::new(Claimed {
            process: std::process::id(),
            device: directory.dev(),
            directory: directory.ino(),
            name: target.file_name().unwrap_or_default().to_owned(),
        });
        let mut claims = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|claim| claim.strong_count() > 0);
        match claims.iter().filter_map(Weak::upgrade).find(|other| *other == claimed) {
            None => {
                claims.push(Arc::downgrade(&claimed));
                Ok(Claim(claimed))
            }
            Some(other) if own.is_some_and(|own| Arc::ptr_eq(&own.0, &other)) => Ok(Claim(other)),
            Some(_) => Err(busy()),
        }
    }
}

/// Locks the partial file. Fails where another process writes `target`, or holds it and that is not `own`.
pub(super) fn check_other_processes(partial: &Partial, target: &Path, own: Option<&File>) -> io::Result<()> {
    let locks_work = lock(partial);
    let is_busy = |path: &Path, owner| match owner {
        // The list knows the claims of this process, but not those of another copy of the library in it.
        Owner::ThisProcess => locks_work && is_locked(path),
        Owner::ThisHost => !locks_work || is_locked(path),
        Owner::AnotherHost => is_locked(path),
    };
    let held = || {
        let file = open(target).ok()?;
        let is_own = own.is_some_and(|own| same_file(own.metadata(), file.metadata()));
        (!is_own && is_held(&file)).then_some(())
    };
    match partial.others(target).iter().any(|other| is_busy(&other.path, other.owner)) || held().is_some() {
        true => Err(busy()),
        false => Ok(()),
    }
}

/// Locks the file, and returns whether another one sees the lock.
fn lock(partial: &Partial) -> bool {
    /// Others look at the lock for a moment, by a lock of their own.
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        match partial.file().try_lock() {
            Ok(()) => return is_locked(partial.path()),
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            Err(TryLockError::Error(e)) => {
                log::info!(
                    "{}: without a lock ({e}), so a second writer may be seen late or not at all",
                    partial.path().display()
                );
                return false;
            }
        }
    }
    false
}

fn busy() -> io::Error {
    io::Error::new(ErrorKind::ResourceBusy, BUSY)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)
}

fn is_locked(path: &Path) -> bool {
    open(path).is_ok_and(|file| is_held(&file))
}

/// Whether a holder has the file locked. Readers may open it too, and a shared lock conflicts only with that of a holder.
fn is_held(file: &File) -> bool {
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}
