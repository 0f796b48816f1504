//! Devices: memory, streams, captures and kernel launches, on the host or on a CUDA device.
//!
//! Streams order work. They belong to the caller and are only borrowed. The host has no streams: each call has done its work
//! when it returns.

mod cuda;
mod host;
mod ids;
mod memory;

use std::ffi::c_void;
use std::sync::Arc;

pub(crate) use cuda::Kernel;
pub(crate) use ids::Id;
pub use ids::{IdType, Ids};
pub use memory::Memory;
pub(crate) use memory::{Number, Part, Staging};

use crate::error::{Error, Result};

/// Checks that a CUDA driver is installed, is new enough and has a device.
pub(crate) fn cuda_available() -> Result<()> {
    cuda::available()
}

/// Which device to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Host memory, without kernels.
    Host,
    /// The CUDA context that is current on the calling thread.
    Current,
    /// The primary context of a CUDA device.
    Ordinal(u32),
}

/// A stream of the caller. The host device ignores it.
#[derive(Debug, Clone, Copy)]
pub struct Stream(*mut c_void);

impl Stream {
    /// # Safety
    /// `stream` is NULL, for the default stream, or a live stream for as long as this value is used.
    pub unsafe fn borrow(stream: *mut c_void) -> Self {
        Stream(stream)
    }

    /// The default stream.
    pub const DEFAULT: Stream = Stream(std::ptr::null_mut());
}

/// An open device. Clones are the same device.
#[derive(Debug, Clone)]
pub(crate) enum Device {
    /// The calling thread does the work, in memory that it can reach.
    Host,
    /// Kernels do the work.
    Cuda(Cuda),
}

/// A CUDA context with the library's kernels loaded.
#[derive(Debug, Clone)]
pub(crate) struct Cuda(Arc<cuda::Context>);

/// The size of a kernel launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Blocks of the launch.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Cuda {
    /// Hot: launches a kernel in the order of `stream`.
    ///
    /// # Safety
    /// The kernel's only parameter is a struct with the layout of `A`. Whatever the kernel reads and writes through the addresses
    /// in `arguments` is memory of this device when the kernel runs.
    pub unsafe fn launch<A>(&self, kernel: Kernel, grid: Grid, arguments: &A, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(kernel, grid, (&raw const *arguments).cast(), stream) }
    }
}

impl Device {
    /// Opens a device. Loads the library's kernels on a CUDA device.
    pub fn open(place: Place) -> Result<Self> {
        let context = match place {
            Place::Host => return Ok(Device::Host),
            Place::Current => cuda::Context::current()?,
            Place::Ordinal(ordinal) => cuda::Context::primary(ordinal)?,
        };
        Ok(Device::Cuda(Cuda(Arc::new(context))))
    }

    /// Whether the calling thread does the work at once. Then no other thread may access the memory meanwhile.
    pub fn is_host(&self) -> bool {
        matches!(self, Device::Host)
    }

    /// Allocates `bytes` of the device's memory, with unspecified contents. `what` names their purpose in errors.
    pub fn allocate(&self, bytes: usize, what: &'static str) -> Result<Memory> {
        // The driver refuses to allocate no bytes.
        let bytes = bytes.max(4);
        match self {
            Device::Host => Ok(Memory::of_host(host::Block::allocate(bytes, what)?)),
            Device::Cuda(Cuda(context)) => {
                Ok(Memory::of_cuda(cuda::Block::allocate(context, bytes, what)?, bytes))
            }
        }
    }

    /// Returns the caller-provided memory after checking that it has `bytes` bytes, or allocates where there is none.
    pub fn provided_or_allocated(
        &self,
        provided: Option<Memory>,
        bytes: usize,
        what: &'static str,
    ) -> Result<Memory> {
        let Some(provided) = provided else { return self.allocate(bytes, what) };
        provided.check_size(bytes)?;
        self.check_address(provided.address(), "workspace", Access::ReadWrite)?;
        Ok(provided)
    }

    /// Allocates `bytes` of host memory that [`Device::copy_back`] can write. `what` names their purpose in errors.
    pub fn staging(&self, bytes: usize, what: &'static str) -> Result<Staging> {
        let bytes = bytes.max(4);
        match self {
            Device::Host => Ok(Staging::Host(host::Block::allocate(bytes, what)?)),
            Device::Cuda(Cuda(context)) => Ok(Staging::Cuda(cuda::Pinned::allocate(context, bytes, what)?)),
        }
    }

    /// Fills the 32-bit words of a part of `memory` with `value` and waits for it. Nobody else may use the part meanwhile.
    pub fn initialize(&self, memory: &Memory, part: Part, value: u32) -> Result<()> {
        match self {
            _ if part.bytes == 0 => {}
            Device::Host => memory.fill_on_host(part, value),
            Device::Cuda(Cuda(context)) => context.initialize(memory.at(part), value, part.bytes / 4)?,
        }
        Ok(())
    }

    /// Writes words to a part of `memory` and waits for it. Nobody else may use the part meanwhile.
    pub fn write(&self, memory: &Memory, part: Part, words: &[u32]) -> Result<()> {
        assert_eq!(part.bytes, size_of_val(words));
        match self {
            _ if part.bytes == 0 => {}
            Device::Host => memory.write_on_host(part, words),
            Device::Cuda(Cuda(context)) => context.write(memory.at(part), words)?,
        }
        Ok(())
    }

    /// Hot: fills the 32-bit words of a part of `memory` with `value`, in the order of `stream`.
    pub fn fill(&self, memory: &Memory, part: Part, value: u32, stream: Stream) -> Result<()> {
        match self {
            _ if part.bytes == 0 => {}
            Device::Host => memory.fill_on_host(part, value),
            Device::Cuda(Cuda(context)) => context.fill(memory.at(part), value, part.bytes / 4, stream)?,
        }
        Ok(())
    }

    /// Whether both are the same device, so that one can use the other's memory.
    pub fn is(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Host, Device::Host) => true,
            (Device::Cuda(Cuda(one)), Device::Cuda(Cuda(another))) => one.is(another),
            _ => false,
        }
    }

    /// Hot: which CUDA graphs are being captured.
    pub fn capture(&self, stream: Stream) -> Result<Capture> {
        match self {
            Device::Host => Ok(Capture::None),
            Device::Cuda(Cuda(context)) => context.capture(stream),
        }
    }

    /// Hot: fails while a CUDA graph is being captured that `call` would become part of.
    pub fn check_not_capturing(&self, stream: Stream, call: &str) -> Result<()> {
        let why = match self.capture(stream)? {
            Capture::None => return Ok(()),
            Capture::Active => {
                "the stream is being captured by a CUDA graph, which would do the same at each replay"
            }
            Capture::Elsewhere => {
                "a CUDA graph is being captured, and meanwhile the default stream must not be used"
            }
        };
        Err(Error::Capturing(format!("{why}: call {call}() before or after")))
    }

    /// Creates a fence for [`Device::copy_back`].
    pub fn fence(&self) -> Result<Fence> {
        match self {
            Device::Host => Ok(Fence(None)),
            Device::Cuda(Cuda(context)) => Ok(Fence(Some(cuda::Event::create(context)?))),
        }
    }

    /// Puts the fence after all work that `stream` has been given so far.
    pub fn record(&self, fence: &Fence, stream: Stream) -> Result<()> {
        fence.0.as_ref().map_or(Ok(()), |event| event.record(stream))
    }

    /// Copies a part of `memory` to `to` and waits for the copy: after `fence`, or at once without one. Waits for no stream of
    /// the caller. On [the host](Device::is_host), nobody may write to the part meanwhile.
    pub fn copy_back(
        &self,
        memory: &Memory,
        part: Part,
        fence: Option<&Fence>,
        to: &mut Staging,
    ) -> Result<()> {
        let to = to.bytes_mut();
        assert!(part.bytes <= to.len(), "{} bytes for {}", to.len(), part.bytes);
        match self {
            _ if part.bytes == 0 => {}
            Device::Host => memory.read_on_host(part, to),
            Device::Cuda(Cuda(context)) => {
                let event = fence.and_then(|fence| fence.0.as_ref());
                context.copy_back(memory.at(part), event, &mut to[..part.bytes])?;
            }
        }
        Ok(())
    }

    /// Checks that kernels can reach `address`, as far as the driver knows.
    pub fn check_address(&self, address: u64, name: &str, access: Access) -> Result<()> {
        match self {
            Device::Host => Ok(()),
            Device::Cuda(Cuda(context)) => context.check_address(address, name, access),
        }
    }

    /// Checks that `stream` is a stream of this device.
    pub fn check_stream(&self, stream: Stream) -> Result<()> {
        match self {
            Device::Host => Ok(()),
            Device::Cuda(Cuda(context)) => context.check_stream(stream),
        }
    }
}

/// How a capture affects a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capture {
    /// No capture affects the stream.
    None,
    /// The stream is being captured.
    Active,
    /// Another stream is being captured. This one is the default stream and must not be used meanwhile.
    Elsewhere,
}

/// How kernels access memory of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Kernels read it, on whichever device it is.
    Read,
    /// Kernels write to it, on the device.
    ReadWrite,
    /// Kernels write to it, on the device or in page-locked host memory.
    Write,
}

/// A place in a stream.
#[derive(Debug)]
pub(crate) struct Fence(Option<cuda::Event>);
