//! What a path names: a file that can be replaced, or a pipe, device or descriptor that can only be written to.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a path names.
#[derive(Debug)]
pub(super) enum Target {
    /// A regular file, or a name that is free. Symbolic links are resolved.
    File(PathBuf),
    /// A descriptor of this process, which is never replaced.
    Descriptor(RawFd),
    /// A pipe or a device, which is never replaced. To open a pipe waits for its reader.
    Stream(PathBuf),
}

fn refuse<T>(why: impl Into<String>) -> io::Result<T> {
    Err(io::Error::new(ErrorKind::InvalidInput, why.into()))
}

impl Target {
    /// Resolves the symbolic links of `path`. Opens nothing.
    pub fn of(path: &Path) -> io::Result<Self> {
        match descriptor_of(path) {
            Some(Descriptor::Own(number)) => return Ok(Target::Descriptor(number)),
            Some(Descriptor::OfAnotherProcess) => return foreign(path),
            None => {}
        }
        let target = match fs::canonicalize(path) {
            Ok(target) => target,
            Err(e) if e.kind() == ErrorKind::NotFound && !path.is_symlink() => path.to_owned(),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return refuse("it is a dangling symbolic link; remove it");
            }
            Err(e) => return Err(e),
        };
        if target.file_name().is_none() {
            return refuse("it does not name a file");
        }
        match fs::metadata(&target) {
            Ok(found) if found.is_dir() => return refuse("it is a directory; name a file in it"),
            Ok(found) if !found.is_file() => return stream(target, &found),
            _ => {}
        }
        let directory = directory_of(&target);
        if !directory.is_dir() {
            return refuse(format!("there is no directory {}; create it first", directory.display()));
        }
        Ok(Target::File(target))
    }
}

fn stream(path: PathBuf, found: &Metadata) -> io::Result<Target> {
    match found.file_type().is_socket() {
        true => refuse("it is a socket, which cannot be opened; name a file or a pipe"),
        false => Ok(Target::Stream(path)),
    }
}

/// What a descriptor of another process is.
fn foreign(path: &Path) -> io::Result<Target> {
    let found = fs::metadata(path)?;
    if found.is_file() || found.is_dir() {
        // To write at its end or its beginning would mix with what that process writes at a place that only it knows.
        return refuse("it is a file that another process has open; name the file itself");
    }
    stream(path.to_owned(), &found)
}

enum Descriptor {
    Own(RawFd),
    OfAnotherProcess,
}

/// Returns the descriptor that `path` names by itself or by symbolic links. To open such a path again would begin at the start of
/// a redirected file.
fn descriptor_of(path: &Path) -> Option<Descriptor> {
    /// As many links as Linux follows.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let standard = ["/dev/stdin", "/dev/stdout", "/dev/stderr"];
        if let Some(number) = standard.iter().position(|&name| path == Path::new(name)) {
            return Some(Descriptor::Own(number as RawFd));
        }
        let directory = directory_of(&path);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(number) = name.parse()
            && let Some(is_own) = has_descriptors(directory)
        {
            return Some(if is_own { Descriptor::Own(number) } else { Descriptor::OfAnotherProcess });
        }
        let link = fs::read_link(&path).ok()?;
        path = directory.join(link);
    }
    None
}

/// Whether `directory` has the descriptors of this process or of another one, if of any.
fn has_descriptors(directory: &Path) -> Option<bool> {
    if directory == Path::new("/dev/fd") {
        return Some(true);
    }
    let directory = fs::canonicalize(directory).ok()?;
    let parts: Vec<&str> = directory.iter().map(|part| part.to_str().unwrap_or_default()).collect();
    // /proc/PROCESS/fd, or /proc/PROCESS/task/THREAD/fd.
    let process = match parts[..] {
        ["/", "proc", process, "fd"] | ["/", "proc", process, "task", _, "fd"] => process,
        _ => return None,
    };
    let own = fs::read_link("/proc/self").ok()?;
    Some(own == Path::new(process))
}

/// The directory of a file.
pub(super) fn directory_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Whether two files are one.
pub(super) fn is_same(one: &Metadata, another: &Metadata) -> bool {
    (one.dev(), one.ino()) == (another.dev(), another.ino())
}
