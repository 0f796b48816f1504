//! Partial files: each writer has one of its own beside the target, `.<name>.<host>.<process>.<number>.partial`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::process::{is_gone, this_host, this_process};
use super::target::{directory_of, is_same};

/// The most bytes of the target's name in that of a partial file. File systems take names of 255 bytes, some of 143.
const LONGEST_NAME: usize = 64;
const LONGEST_HOST: usize = 40;

/// A file of this writer alone. Drop removes it, unless it became the target.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    file: Arc<File>,
    /// The process that created it. A process made by fork() must not remove it.
    process: u32,
    renamed: bool,
}

/// The partial file of another writer of the target.
pub(super) struct Other {
    pub path: PathBuf,
    pub owner: Owner,
}

/// The process of a partial file. It has not ended, or that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    ThisProcess,
    ThisHost,
    AnotherHost,
}

impl Partial {
    /// Creates a partial file of `target`.
    pub fn create(target: &Path) -> io::Result<Self> {
        /// Numbers to try. A file of a number exists if another copy of the library in this process created it.
        const MAX_TRIES: u64 = 1000;
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let prefix = prefix(target);
        let (host, process) = (host(), this_process());
        let mut tries = 0;
        loop {
            let mut name = prefix.clone();
            name.push(format!("{host}.{process}.{}.partial", NUMBER.fetch_add(1, Ordering::Relaxed)));
            let path = target.with_file_name(name);
            tries += 1;
            // This never opens what exists, not even by a link.
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let (file, process) = (Arc::new(file), std::process::id());
                    return Ok(Partial { path, file, process, renamed: false });
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists && tries < MAX_TRIES => {}
                Err(e) => {
                    let message = format!("cannot create {} beside it: {e}", path.display());
                    return Err(io::Error::new(e.kind(), message));
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Makes the file `target` in one step.
    pub fn rename(mut self, target: &Path) -> io::Result<Arc<File>> {
        if let Err(error) = fs::rename(&self.path, target) {
            // A network file system may carry out a rename whose answer is lost, and fail the repeated request.
            if !is_at(&self.file, target) {
                return Err(error);
            }
            log::info!("{}: replaced, although the rename reported: {error}", target.display());
        }
        self.renamed = true;
        Ok(self.file.clone())
    }

    /// Returns the partial files of other writers of `target`. Removes those of this host whose process has ended.
    pub fn others(&self, target: &Path) -> Vec<Other> {
        let (prefix, host, process) = (prefix(target), host(), this_process());
        let Ok(entries) = fs::read_dir(directory_of(target)) else { return Vec::new() };
        let mut others = Vec::new();
        for entry in entries.flatten() {
            let (name, path) = (entry.file_name(), target.with_file_name(entry.file_name()));
            let Some(rest) = name.as_bytes().strip_prefix(prefix.as_bytes()) else { continue };
            let parts: Vec<&str> = str::from_utf8(rest).unwrap_or_default().split('.').collect();
            let &[of_host, of_process, _, "partial"] = &parts[..] else { continue };
            let owner = match (of_host == host, of_process == process) {
                (false, _) => Owner::AnotherHost,
                (true, true) => Owner::ThisProcess,
                (true, false) => Owner::ThisHost,
            };
            if owner == Owner::ThisHost && is_gone(of_process) {
                // If it cannot be removed, it does no harm.
                if entry.file_type().is_ok_and(|of_entry| of_entry.is_file()) {
                    let _ = fs::remove_file(path);
                }
            } else if path != self.path {
                others.push(Other { path, owner });
            }
        }
        others
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.renamed && self.process == std::process::id() {
            // If this fails, the next writer removes the file once this process has ended.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The beginning of the names of all partial files of `target`.
fn prefix(target: &Path) -> OsString {
    let name = shortened(target.file_name().unwrap_or_default().as_bytes(), LONGEST_NAME);
    OsString::from_vec([b".", &name[..], b"."].concat())
}

/// The host in names of partial files, which has no dot.
fn host() -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = this_host().chars().map(plain).collect();
    String::from_utf8_lossy(&shortened(name.as_bytes(), LONGEST_HOST)).into_owned()
}

/// The name, or its beginning and a checksum of the whole.
fn shortened(name: &[u8], longest: usize) -> Vec<u8> {
    if name.len() <= longest {
        return name.to_vec();
    }
    let checksum = format!("~{:08x}", crc32fast::hash(name));
    let mut end = longest - checksum.len();
    // Some file systems refuse a part of a UTF-8 character.
    while end > 0 && name[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    [&name[..end], checksum.as_bytes()].concat()
}

/// Whether `path` is the open `file`.
fn is_at(file: &File, path: &Path) -> bool {
    // A network file system queries the server when a file is opened. Before, it may answer from its cache.
    let open = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path);
    let found = open().and_then(|opened| opened.metadata()).or_else(|_| fs::symlink_metadata(path));
    found.is_ok_and(|found| file.metadata().is_ok_and(|file| is_same(&file, &found)))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn each_partial_file_has_a_name_of_its_own_and_long_names_fit() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.yaml".to_owned(), "x".repeat(255), "模".repeat(85)] {
            let target = dir.path().join(&name);
            let (one, another) = (Partial::create(&target).unwrap(), Partial::create(&target).unwrap());
            assert_ne!(one.path, another.path);
            let others = one.others(&target);
            assert_eq!(others.len(), 1, "{name}");
            assert_eq!((&others[0].path, others[0].owner), (&another.path, Owner::ThisProcess));
            assert_eq!(names(dir.path()).len(), 2);
            another.rename(&target).unwrap();
            drop(one);
            assert_eq!(names(dir.path()), [OsStr::new(&name)]);
            fs::remove_file(&target).unwrap();
        }
    }

    #[test]
    fn others_removes_what_ended_processes_of_this_host_left() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("config.yaml");
        let (host, own) = (host(), std::process::id());
        // The parent lives, and nobody knows what runs on another host.
        let kept = [
            format!(".config.yaml.{host}.{}-0.0.partial", std::os::unix::process::parent_id()),
            format!(".config.yaml.{host}x.{own}-1.0.partial"),
            format!(".config.yaml.b.{host}.{own}-1.0.partial"),
            format!(".config.yaml.{host}.{own}-1.0.part"),
            format!(".config.yaml.{host}.{own}.0.partial"),
        ];
        let gone = format!(".config.yaml.{host}.{own}-1.7.partial");
        for name in kept.iter().chain([&gone]) {
            fs::write(dir.path().join(name), "half").unwrap();
        }
        let partial = Partial::create(&target).unwrap();
        let mut owners: Vec<_> = partial.others(&target).iter().map(|other| other.owner).collect();
        owners.sort_by_key(|owner| *owner as u8);
        assert_eq!(owners, [Owner::ThisHost, Owner::ThisHost, Owner::AnotherHost]);
        drop(partial);
        let mut kept = kept.map(OsString::from);
        kept.sort();
        assert_eq!(names(dir.path()), kept);
    }

    #[test]
    fn create_never_opens_what_exists() {
        let dir = tempfile::tempdir().unwrap();
        let (target, precious) = (dir.path().join("config.yaml"), dir.path().join("precious"));
        fs::write(&precious, "precious").unwrap();
        // The next numbers are taken by a link and a folder. Other tests take numbers meanwhile.
        let first = Partial::create(&target).unwrap();
        let name = first.path.to_str().unwrap();
        let number = number_of(name);
        let of = |other: u64| name.replace(&format!(".{number}.partial"), &format!(".{other}.partial"));
        for next in number + 1..number + 200 {
            match next % 2 {
                0 => std::os::unix::fs::symlink(&precious, of(next)).unwrap(),
                _ => fs::create_dir(of(next)).unwrap(),
            }
        }
        let second = Partial::create(&target).unwrap();
        assert!(number_of(second.path.to_str().unwrap()) >= number + 200);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }

    fn number_of(name: &str) -> u64 {
        name.rsplit('.').nth(1).unwrap().parse().unwrap()
    }
}
