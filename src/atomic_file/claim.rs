//! Files that only one writer may have at a time, such as a recorder's.
//!
//! Within a process a list decides. Other processes are seen by their partial files, and by locks where those work: some cluster
//! file systems have none, or have them on each node alone.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::partial::{Owner, Partial};
use super::target::{directory_of, is_same};

/// Why a file is refused to a second writer.
pub(super) const BUSY: &str = "it is being written by another process, or by another handle of this one";

/// What this process writes or holds. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Claim(Arc<Claimed>);

#[derive(Debug, PartialEq, Eq)]
struct Claimed {
    /// A process made by fork() has the claims of its parent in its list, which it must not go by.
    process: u32,
    device: u64,
    /// Of the directory in which a name is being written, or of a file that is held.
    inode: u64,
    name: Option<OsString>,
}

/// The claims of this process.
static CLAIMS: Mutex<Vec<Weak<Claimed>>> = Mutex::new(Vec::new());

fn claims() -> MutexGuard<'static, Vec<Weak<Claimed>>> {
    CLAIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claimed {
    fn new(at: &Metadata, name: Option<&OsStr>) -> Self {
        let (process, name) = (std::process::id(), name.map(OsStr::to_owned));
        Claimed { process, device: at.dev(), inode: at.ino(), name }
    }

    fn is_in(&self, claims: &[Weak<Claimed>]) -> bool {
        claims.iter().filter_map(Weak::upgrade).any(|other| *other == *self)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Without claims the list holds no memory. A process made by fork() may find it locked for good, so this never waits; a
        // claim that stays in the list has ended nevertheless.
        if let Ok(mut claims) = CLAIMS.try_lock() {
            claims.retain(|claim| claim.as_ptr() != Arc::as_ptr(&self.0));
            if claims.is_empty() {
                *claims = Vec::new();
            }
        }
    }
}

impl Claim {
    /// Claims the name of `target`. Fails where this process writes it already.
    pub fn of_name(target: &Path) -> io::Result<Self> {
        let directory = fs::metadata(directory_of(target))?;
        let mut claims = claims();
        match Claimed::new(&directory, target.file_name()) {
            claimed if claimed.is_in(&claims) => Err(busy()),
            claimed => Ok(Self::add(claimed, &mut claims)),
        }
    }

    /// Claims a file of this writer alone, for as long as it is at its path.
    pub fn of_file(file: &File) -> io::Result<Self> {
        let claimed = Claimed::new(&file.metadata()?, None);
        Ok(Self::add(claimed, &mut claims()))
    }

    fn add(claimed: Claimed, claims: &mut Vec<Weak<Claimed>>) -> Self {
        claims.retain(|claim| claim.strong_count() > 0);
        let claimed = Arc::new(claimed);
        claims.push(Arc::downgrade(&claimed));
        Claim(claimed)
    }
}

/// Locks the partial file. Fails where another process writes `target`, or where somebody holds it and that is not `own`.
pub(super) fn check_unclaimed(partial: &Partial, target: &Path, own: Option<&File>) -> io::Result<()> {
    let locks_work = lock(partial);
    let is_busy = |path: &Path, owner| match owner {
        // The list knows the claims of this process, but not those of another copy of the library in it.
        Owner::ThisProcess => locks_work && is_locked(path),
        Owner::ThisHost => !locks_work || is_locked(path),
        Owner::AnotherHost => is_locked(path),
    };
    let is_written = partial.others(target).iter().any(|other| is_busy(&other.path, other.owner));
    let is_held = fs::metadata(target).is_ok_and(|at_target| {
        let is_own = own.is_some_and(|own| own.metadata().is_ok_and(|own| is_same(&own, &at_target)));
        !is_own && (Claimed::new(&at_target, None).is_in(&claims()) || is_locked(target))
    });
    if is_written || is_held { Err(busy()) } else { Ok(()) }
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

/// Whether a holder has the file locked. Readers may open it too, and a shared lock conflicts only with that of a holder.
fn is_locked(path: &Path) -> bool {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path);
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
