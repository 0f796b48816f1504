//! Errors. Each variant is one status of the C interface.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of every call that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// The variant is the kind of error. The message names file, rank, iteration, layer or slot, and the way out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// An invalid argument: NULL, out of range, an unknown layer.
    InvalidArgument(String),
    /// The caller's callback requested a stop.
    Cancelled,
    /// An allocation failed.
    OutOfMemory {
        /// The purpose of the memory, and the driver's error where it refused.
        what: Cow<'static, str>,
        /// The requested bytes.
        bytes: usize,
    },
    /// The operating system refused a call that is not about a file.
    System(String),
    /// An operation that was started earlier has not ended.
    NotReady(String),
    /// A defect of this library, caught at the boundary.
    Internal(String),
    /// A file could not be read.
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A file could not be written. An existing file is unchanged.
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A dump that is damaged or contradicts itself.
    InvalidDump(String),
    /// A dump in which ranks, iterations or layers are missing.
    IncompleteDump(String),
    /// Numbers of experts, slots and ranks, or of groups and nodes, that do not fit together.
    InvalidShape(String),
    /// Loads that are not finite and non-negative.
    InvalidLoads(String),
    /// An invalid placement or configuration file.
    InvalidPlacement(String),
    /// No CUDA driver can be used.
    NoDriver(String),
    /// The CUDA driver refused a call.
    Cuda {
        /// The call and its purpose.
        call: String,
        /// CUDA's number of the error.
        code: i32,
        /// CUDA's name of the error and its description.
        name: String,
    },
    /// A stream is being captured by a CUDA graph, and the call would become part of the graph.
    Capturing(String),
    /// A change of a layer that was planned against another state of it.
    Stale(String),
    /// Experts would lose their last replica.
    NoReplica(String),
}

impl Error {
    /// An invalid argument of a hot call. The code of the message stays out of the call's own.
    #[cold]
    #[inline(never)]
    pub(crate) fn invalid_argument(message: impl FnOnce() -> String) -> Self {
        Error::InvalidArgument(message())
    }

    pub(crate) fn out_of_memory(bytes: usize, what: impl Into<Cow<'static, str>>) -> Self {
        Error::OutOfMemory { what: what.into(), bytes }
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Error::Read { path: path.to_owned(), source: Arc::new(source) }
    }

    /// The message of a caught panic.
    pub(crate) fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Error::Internal(text.unwrap_or("a panic without a message").to_owned())
    }

    /// Adds the file's name to an error about its contents.
    pub fn in_file(self, path: &Path) -> Self {
        let named = |message: String| format!("{}: {message}", path.display());
        match self {
            Error::InvalidArgument(message) => Error::InvalidArgument(named(message)),
            Error::InvalidDump(message) => Error::InvalidDump(named(message)),
            Error::IncompleteDump(message) => Error::IncompleteDump(named(message)),
            Error::InvalidShape(message) => Error::InvalidShape(named(message)),
            Error::InvalidPlacement(message) => Error::InvalidPlacement(named(message)),
            other => other,
        }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Error::Write { path: path.to_owned(), source: Arc::new(source) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidArgument(message)
            | Error::System(message)
            | Error::InvalidDump(message)
            | Error::IncompleteDump(message)
            | Error::InvalidShape(message)
            | Error::InvalidLoads(message)
            | Error::InvalidPlacement(message)
            | Error::NotReady(message)
            | Error::NoDriver(message)
            | Error::Capturing(message)
            | Error::Stale(message)
            | Error::NoReplica(message) => f.write_str(message),
            Error::Cuda { call, code, name } => write!(f, "{call} failed: CUDA error {code}, {name}"),
            Error::Cancelled => f.write_str("cancelled by the progress callback"),
            Error::OutOfMemory { what, bytes } => write!(f, "out of memory: {bytes} bytes for {what}"),
            Error::Internal(message) => write!(f, "internal error, please report it: {message}"),
            Error::Read { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            Error::Write { path, source } => write!(f, "cannot write {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Read { source, .. } | Error::Write { source, .. } => Some(&**source),
            _ => None,
        }
    }
}

/// The start of `text`, which a file may make megabytes long, for a message.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// Allocates `count` zeros. Fails with [`Error::OutOfMemory`] where `vec!` would abort the process.
pub(crate) fn try_zeroed<T: Copy + Default>(count: Option<usize>, what: &'static str) -> Result<Vec<T>> {
    let bytes = count.and_then(|n| n.checked_mul(size_of::<T>())).unwrap_or(usize::MAX);
    let count = count.unwrap_or(usize::MAX);
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| Error::out_of_memory(bytes, what))?;
    values.resize(count, T::default());
    Ok(values)
}
