//! Pipes, devices and descriptors, which are written to and stay.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

/// An open pipe, device or descriptor.
///
/// What was written to it before stays, and others may write to it later. A reader that closes a pipe early makes an error, not
/// the signal SIGPIPE, whatever the process does with that signal.
#[derive(Debug)]
pub(super) struct Stream(File);

impl Stream {
    /// Opens a pipe or a device. For a named pipe this waits for a reader, as every program does.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open(path).map(Stream)
    }

    /// Writes to a descriptor of this process, at its position.
    pub fn of_descriptor(number: RawFd) -> io::Result<Self> {
        let refuse = |why: &str| {
            let message = format!("descriptor {number} is not open{why}");
            Err(io::Error::new(ErrorKind::InvalidInput, message))
        };
        // SAFETY: reads the flags of a number, open or not.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFL) };
        match flags {
            -1 => refuse(""),
            flags if flags & libc::O_ACCMODE == libc::O_RDONLY => refuse(" for writing"),
            // SAFETY: the descriptor is open. The caller, who named it, keeps it open during the call.
            _ => Ok(Stream(unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()?.into())),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match without_sigpipe(|| self.0.write(bytes)) {
                // The other end of a pipe may have made it non-blocking.
                Err(e) if e.kind() == ErrorKind::WouldBlock => wait_until_writable(&self.0)?,
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wait_until_writable(file: &File) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, whose descriptor is open.
    match unsafe { libc::poll(&mut poll, 1, -1) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Calls `write` with SIGPIPE blocked for this thread, and takes the signal back that it raised.
fn without_sigpipe<T>(write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut pipe = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    let mut pending = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: each set is written before it is read, and the mask is this thread's.
    let (blocked, was_pending) = unsafe {
        libc::sigemptyset(pipe.as_mut_ptr());
        libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, pipe.as_ptr(), before.as_mut_ptr()) == 0;
        libc::sigemptyset(pending.as_mut_ptr());
        libc::sigpending(pending.as_mut_ptr());
        (blocked, libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1)
    };
    let written = write();
    if blocked {
        let raised = written.as_ref().is_err_and(|e| e.kind() == ErrorKind::BrokenPipe) && !was_pending;
        let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: as above; the signal is blocked, so this takes it if it is pending and does not wait.
        unsafe {
            while raised
                && libc::sigtimedwait(pipe.as_ptr(), ptr::null_mut(), &no_time) == -1
                && io::Error::last_os_error().kind() == ErrorKind::Interrupted
            {}
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        }
    }
    written
}
