//! Where buffers live and kernels run: on the host, or on a CUDA device. One small interface over both; with `ffi`, the only
//! `unsafe` of the library.
//!
//! Work is ordered by streams, which are the host's and only borrowed. On the host there is nothing to order: every call
//! has done its work when it returns.

mod count;
mod cuda;
mod host;
mod route;

use std::ffi::c_void;
use std::sync::Arc;

pub(crate) use count::{CellType, Count, Id, OFF, Target, histogram};
pub use count::{IdType, Ids, Totals};
pub use route::RankCounts;
pub(crate) use route::{
    Job, LEVEL_BLOCKS, LEVEL_LANES, LEVEL_SWEEPS, LevelTables, NO_GROUP, ROUTE_BLOCK, Route, Sizes, Tables,
    level_memory_words,
};
pub use route::{Routing, Rule};

use crate::error::{Error, Result};

/// What malloc gives, and enough for every number there is.
const LENT_ALIGNMENT: u64 = 16;

/// Whether a CUDA driver is there, new enough and has a device.
pub(crate) fn cuda_available() -> Result<()> {
    cuda::available()
}

/// Which device to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Host memory; kernels are functions.
    Host,
    /// The CUDA context that is current on the calling thread.
    Current,
    /// The primary context of a CUDA device.
    Ordinal(u32),
}

/// A stream of the host's; on the host device it means nothing.
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

/// A device that was opened. Clones are the same device.
#[derive(Debug, Clone)]
pub(crate) struct Device(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Host,
    Cuda(Arc<cuda::Context>),
}

impl Device {
    /// Takes the device; a CUDA device gets eplb's kernels loaded.
    pub fn open(place: Place) -> Result<Self> {
        Ok(Device(match place {
            Place::Host => Kind::Host,
            Place::Current => Kind::Cuda(Arc::new(cuda::Context::current()?)),
            Place::Ordinal(ordinal) => Kind::Cuda(Arc::new(cuda::Context::primary(ordinal)?)),
        }))
    }

    /// Whether work is done by the calling thread, at once, so that nobody else may look at the memory meanwhile.
    pub fn is_host(&self) -> bool {
        matches!(self.0, Kind::Host)
    }

    /// Takes `bytes` of the device's memory for `what`. What is in them is not known.
    pub fn allocate(&self, bytes: usize, what: &'static str) -> Result<Memory> {
        Ok(match &self.0 {
            Kind::Host => Memory::own(host::Block::allocate(bytes, what)?),
            Kind::Cuda(context) => {
                let block = cuda::Block::allocate(context, bytes, what)?;
                Memory { address: block.address(), bytes, owner: Some(Owner::Cuda(block)) }
            }
        })
    }

    /// Memory of `bytes` at least for `what`: what the host lends, if it does, which is checked, or our own.
    pub fn take(&self, bytes: usize, lent: Option<Memory>, what: &'static str) -> Result<Memory> {
        let Some(lent) = lent else { return self.allocate(bytes, what) };
        if lent.bytes < bytes || !lent.address.is_multiple_of(LENT_ALIGNMENT) {
            return Err(Error::InvalidArgument(format!(
                "the workspace has {} bytes at {:#x}; {bytes} are required, aligned to {LENT_ALIGNMENT}",
                lent.bytes, lent.address
            )));
        }
        self.check_address(lent.address, "workspace", Access::ReadWrite)?;
        Ok(lent)
    }

    /// Takes `bytes` of host memory that copies from the device can reach, for `what`.
    pub fn staging(&self, bytes: usize, what: &'static str) -> Result<Staging> {
        Ok(Staging(match &self.0 {
            Kind::Host => StagingKind::Host(host::Block::allocate(bytes, what)?),
            Kind::Cuda(context) => StagingKind::Cuda(cuda::Pinned::allocate(context, bytes, what)?),
        }))
    }

    /// Fills the 32-bit words of a part of `memory` with `value`, and has done so when it returns. Nobody else may use it
    /// meanwhile.
    pub fn initialize(&self, memory: &Memory, part: Part, value: u32) -> Result<()> {
        memory.check(part);
        match &self.0 {
            Kind::Host => memory.fill_on_host(part, value),
            Kind::Cuda(context) => {
                context.initialize(memory.address + part.start as u64, value, part.bytes / 4)?;
            }
        }
        Ok(())
    }

    /// Writes words to a part of `memory`, and has done so when it returns. Nobody else may use it meanwhile.
    pub fn write(&self, memory: &Memory, part: Part, words: &[u32]) -> Result<()> {
        assert_eq!(part.bytes, size_of_val(words));
        let address = memory.at(part);
        match &self.0 {
            // SAFETY: the part lies in memory of this value's, which is on the host.
            Kind::Host => unsafe { host::write(address, words) },
            Kind::Cuda(context) => context.write(address, words)?,
        }
        Ok(())
    }

    /// Hot: fills the 32-bit words of a part of `memory` with `value`, in the order of `stream`.
    pub fn fill(&self, memory: &Memory, part: Part, value: u32, stream: Stream) -> Result<()> {
        memory.check(part);
        match &self.0 {
            Kind::Host => memory.fill_on_host(part, value),
            Kind::Cuda(context) => {
                context.fill(memory.address + part.start as u64, value, part.bytes / 4, stream)?;
            }
        }
        Ok(())
    }

    /// Hot: counts, in the order of `stream`.
    pub fn count(&self, count: &Count, stream: Stream) -> Result<()> {
        match &self.0 {
            // SAFETY: `Ids` and `Count` carry their makers' promises for the memory.
            Kind::Host => unsafe { count.run_on_host() },
            Kind::Cuda(context) => context.launch(&count.launch(), stream)?,
        }
        Ok(())
    }

    /// Hot: routes, in the order of `stream`. Not for the [host](Device::is_host), where [`Routing::on_host`] lends the ids.
    pub fn route(&self, route: &Route, stream: Stream) -> Result<()> {
        match &self.0 {
            Kind::Host => unreachable!("ids on the host are routed there"),
            Kind::Cuda(context) => route.launches(|launch| context.launch(launch, stream)),
        }
    }

    /// Whether memory of one device can be used with the other.
    pub fn is(&self, other: &Device) -> bool {
        match (&self.0, &other.0) {
            (Kind::Host, Kind::Host) => true,
            (Kind::Cuda(one), Kind::Cuda(another)) => one.is(another),
            _ => false,
        }
    }

    /// Hot: what CUDA graphs are being captured.
    pub fn capture(&self, stream: Stream) -> Result<Capture> {
        match &self.0 {
            Kind::Host => Ok(Capture::None),
            Kind::Cuda(context) => context.capture(stream),
        }
    }

    /// A fence, for [`Device::copy_back`] to wait at.
    pub fn fence(&self) -> Result<Fence> {
        match &self.0 {
            Kind::Host => Ok(Fence(None)),
            Kind::Cuda(context) => Ok(Fence(Some(cuda::Event::create(context)?))),
        }
    }

    /// Puts the fence after all work that `stream` has been given so far.
    pub fn record(&self, fence: &Fence, stream: Stream) -> Result<()> {
        fence.0.as_ref().map_or(Ok(()), |event| event.record(stream))
    }

    /// Copies a part of `memory` as it is after `fence`, or at once without one, and waits for it, but for no stream of the
    /// host's. Where the device [is the host](Device::is_host), nobody may write there meanwhile.
    pub fn copy_back(
        &self,
        memory: &Memory,
        part: Part,
        fence: Option<&Fence>,
        to: &mut Staging,
    ) -> Result<()> {
        memory.check(part);
        let to = to.bytes_mut();
        assert!(part.bytes <= to.len(), "{} bytes for {}", to.len(), part.bytes);
        match &self.0 {
            Kind::Host => memory.read_on_host(part, to),
            Kind::Cuda(context) => {
                let event = fence.and_then(|fence| fence.0.as_ref());
                context.copy_back(memory.address + part.start as u64, event, &mut to[..part.bytes])?;
            }
        }
        Ok(())
    }

    /// Whether kernels can reach `address`, as far as that can be told without trying.
    pub fn check_address(&self, address: u64, name: &str, access: Access) -> Result<()> {
        match &self.0 {
            Kind::Host => Ok(()),
            Kind::Cuda(context) => context.check_address(address, name, access),
        }
    }

    /// Whether `stream` is one of this device.
    pub fn check_stream(&self, stream: Stream) -> Result<()> {
        match &self.0 {
            Kind::Host => Ok(()),
            Kind::Cuda(context) => context.check_stream(stream),
        }
    }
}

/// What a capture has to do with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capture {
    /// Nothing.
    None,
    /// The stream is being captured.
    Active,
    /// Another stream is, and this one, the default stream, must not be used meanwhile.
    Elsewhere,
}

/// What kernels do with memory of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// They read it, from wherever it is.
    Read,
    /// They count in it.
    ReadWrite,
}

/// Bytes of a [`Memory`], a multiple of 4 from a multiple of 4 on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// Where it begins.
    pub start: usize,
    /// How long it is.
    pub bytes: usize,
}

/// Memory of a device, the library's own or lent by the host.
#[derive(Debug)]
pub struct Memory {
    address: u64,
    bytes: usize,
    owner: Option<Owner>,
}

#[derive(Debug)]
enum Owner {
    Host(#[expect(dead_code, reason = "held for its drop")] host::Block),
    Cuda(#[expect(dead_code, reason = "held for its drop")] cuda::Block),
}

impl Memory {
    fn own(block: host::Block) -> Self {
        let (address, bytes) = (block.address(), block.len());
        Memory { address, bytes, owner: Some(Owner::Host(block)) }
    }

    /// Memory that the host lends.
    ///
    /// # Safety
    /// `bytes` of the device's memory from `address` on, which nobody else uses while this value lives.
    pub unsafe fn lent(address: u64, bytes: usize) -> Self {
        Memory { address, bytes, owner: None }
    }

    /// Never gives it back: in a copy of the process, it is another's.
    pub(crate) fn leave(&mut self) {
        std::mem::forget(self.owner.take());
    }

    /// The device address of a part.
    pub(crate) fn at(&self, part: Part) -> u64 {
        self.check(part);
        self.address + part.start as u64
    }

    fn check(&self, part: Part) {
        let end = part.start.checked_add(part.bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes)
                && part.start.is_multiple_of(4)
                && part.bytes.is_multiple_of(4),
            "{part:?} of {} bytes",
            self.bytes
        );
    }

    fn fill_on_host(&self, part: Part, value: u32) {
        self.check(part);
        // SAFETY: the part lies in memory of this value's, which is on the host.
        unsafe { host::fill(self.address + part.start as u64, part.bytes / 4, value) }
    }

    fn read_on_host(&self, part: Part, to: &mut [u8]) {
        // SAFETY: the part, which the caller checked, lies in memory of this value's, which is on the host.
        unsafe { host::read(self.address + part.start as u64, &mut to[..part.bytes]) }
    }
}

/// Host memory that copies from a device can reach.
#[derive(Debug)]
pub(crate) struct Staging(StagingKind);

#[derive(Debug)]
enum StagingKind {
    Host(host::Block),
    Cuda(cuda::Pinned),
}

impl Staging {
    fn start(&self) -> (*mut u8, usize) {
        match &self.0 {
            StagingKind::Host(block) => (block.address() as *mut u8, block.len()),
            StagingKind::Cuda(pinned) => (pinned.start(), pinned.len()),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let (start, len) = self.start();
        // SAFETY: memory of this value's, which was filled with zeros when it was taken.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Numbers that were copied there: `count` of them from byte `start` on.
    pub fn numbers<T: Number>(&self, start: usize, count: usize) -> &[T] {
        let (base, len) = self.start();
        let end = count.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(start));
        assert!(end.is_some_and(|end| end <= len) && start.is_multiple_of(align_of::<T>()));
        // SAFETY: within memory of this value's, aligned (its start is to 64 bytes), and any bits are a number.
        unsafe { std::slice::from_raw_parts(base.add(start).cast(), count) }
    }
}

/// What may be read from bytes that a device wrote.
///
/// # Safety
/// Any bits are a value, aligned to at most 64 bytes.
pub(crate) unsafe trait Number: Copy {}

// SAFETY: integers.
unsafe impl Number for u32 {}
// SAFETY: integers.
unsafe impl Number for u64 {}
// SAFETY: integers without padding.
unsafe impl Number for Totals {}

/// A place in a stream.
#[derive(Debug)]
pub(crate) struct Fence(Option<cuda::Event>);
