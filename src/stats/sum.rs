//! Reads the counts of a dump and sums them over ranks, in bounded pieces on several threads.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::rank_file::{Dtype, FileVersion, Tensor, open_regular};
use super::{RankFile, RowRange};
use crate::error::{Error, Result, try_zeroed};
use crate::page_buffer::PageBuffer;
use crate::threads;

/// Bytes of one read. A piece of a file and the sums that it is added to fit a core's own cache.
const PIECE_BYTES: usize = 128 << 10;

/// Pieces that a thread takes at a time. The sums of consecutive pieces lie side by side, and a processor fetches a little more
/// than it is asked for: threads that took every other piece would fetch lines that the other one writes.
const PIECES_AT_ONCE: usize = 4;

/// The most files that are open at once. The sums of a piece are fetched from memory once for all of these files.
const MOST_OPEN: usize = 32;

/// The counts of `files` in the chosen layers and rows, `[layers][rows][experts]`, each below 2^63.
pub(super) fn sum(
    files: &[RankFile],
    num_experts: usize,
    layers: &[u32],
    rows: RowRange,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Vec<u64>> {
    let num_cells = usize::try_from(rows.len()).ok().and_then(|n| n.checked_mul(layers.len()));
    let mut counts = try_zeroed(num_cells.and_then(|n| n.checked_mul(num_experts)), "the counts")?;
    let cell_of = |tensor: &Tensor| {
        let layer = layers.binary_search(&tensor.layer).ok()?;
        let row = rows.starting_at(tensor.iteration)?;
        Some(layer * rows.len() as usize + row as usize)
    };
    let groups = || files.chunk_by(|a, b| a.tensors == b.tensors);
    let bytes_of = |group: &[RankFile]| -> u64 {
        let wanted = group[0].tensors.iter().filter(|tensor| cell_of(tensor).is_some());
        wanted.map(|tensor| group[0].tensor_bytes(tensor) as u64).sum::<u64>() * group.len() as u64
    };
    let total = groups().map(bytes_of).sum();
    let (done, mut reported) = (AtomicU64::new(0), 0);
    for group in groups() {
        let mut pieces = pieces(&group[0], counts.chunks_exact_mut(num_experts.max(1)), cell_of);
        let tasks: Vec<_> = pieces.chunks_mut(PIECES_AT_ONCE).map(Mutex::new).collect();
        let mut unread = group;
        while !unread.is_empty() {
            let open = OpenFiles::open(unread)?;
            let add = |task: usize| {
                let bytes = open.add(&mut tasks[task].lock().unwrap_or_else(PoisonError::into_inner))?;
                done.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            };
            threads::map_watched(tasks.len(), threads, add, || {
                let before = std::mem::replace(&mut reported, done.load(Ordering::Relaxed));
                if reported > before { progress(reported, total) } else { Ok(()) }
            })?;
            open.check_unchanged()?;
            unread = &unread[open.handles.len()..];
        }
    }
    Ok(counts)
}

/// Consecutive tensors of a file, and the sums of each.
struct Piece<'a> {
    /// From the start of the file's data.
    offset: u64,
    bytes: usize,
    tensors: Range<usize>,
    cells: Vec<&'a mut [u64]>,
}

/// The tensors of `file` that have a cell, in pieces of at most [`PIECE_BYTES`] but at least one tensor. `cell_of` is the number of
/// a tensor's cell, which no other tensor has.
fn pieces<'a>(
    file: &RankFile,
    cells: impl Iterator<Item = &'a mut [u64]>,
    cell_of: impl Fn(&Tensor) -> Option<usize>,
) -> Vec<Piece<'a>> {
    let mut cells: Vec<_> = cells.map(Some).collect();
    let (mut pieces, mut offset) = (Vec::<Piece<'a>>::new(), 0);
    for (index, tensor) in file.tensors.iter().enumerate() {
        let bytes = file.tensor_bytes(tensor);
        if let Some(cell) = cell_of(tensor).and_then(|cell| cells[cell].take()) {
            match pieces.last_mut() {
                Some(piece) if piece.tensors.end == index && piece.bytes + bytes <= PIECE_BYTES => {
                    piece.bytes += bytes;
                    piece.tensors.end += 1;
                    piece.cells.push(cell);
                }
                _ => pieces.push(Piece { offset, bytes, tensors: index..index + 1, cells: vec![cell] }),
            }
        }
        offset += bytes as u64;
    }
    pieces
}

/// Open files with the same tensors.
struct OpenFiles<'a> {
    files: &'a [RankFile],
    handles: Vec<File>,
    /// Buffers that no thread uses.
    buffers: Mutex<Vec<PageBuffer>>,
}

impl<'a> OpenFiles<'a> {
    /// Opens the first of `files`, and as many more as the process may open, up to [`MOST_OPEN`].
    fn open(files: &'a [RankFile]) -> Result<Self> {
        let mut handles = Vec::with_capacity(MOST_OPEN);
        for file in files.iter().take(MOST_OPEN) {
            match open_regular(&file.path) {
                Err(Error::Read { source, .. }) if !handles.is_empty() && is_out_of_descriptors(&source) => {
                    break;
                }
                handle => handles.push(handle?),
            }
        }
        let open = OpenFiles { files: &files[..handles.len()], handles, buffers: Mutex::default() };
        open.check_unchanged()?;
        Ok(open)
    }

    fn check_unchanged(&self) -> Result<()> {
        for (file, handle) in self.files.iter().zip(&self.handles) {
            let now = handle.metadata().map_err(|e| Error::read(&file.path, e))?;
            if FileVersion::of(&now) != file.version {
                return Err(changed(file));
            }
        }
        Ok(())
    }

    /// Adds pieces of each file. Returns the bytes read.
    fn add(&self, pieces: &mut [Piece<'_>]) -> Result<u64> {
        let buffers = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0);
        let unused = buffers().pop().filter(|buffer| buffer.len() >= longest);
        let mut buffer = match unused {
            Some(buffer) => buffer,
            None => PageBuffer::new(longest.max(PIECE_BYTES), "a read buffer")?,
        };
        let mut bytes = 0;
        for piece in pieces {
            for (file, handle) in self.files.iter().zip(&self.handles) {
                piece.add(file, handle, &mut buffer)?;
                bytes += piece.bytes as u64;
            }
        }
        buffers().push(buffer);
        Ok(bytes)
    }
}

impl Piece<'_> {
    fn add(&mut self, file: &RankFile, handle: &File, buffer: &mut [u8]) -> Result<()> {
        let mut unread = &mut buffer[..self.bytes];
        handle.read_exact_at(unread, file.data_start + self.offset).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => changed(file),
            _ => Error::read(&file.path, e),
        })?;
        for (tensor, cell) in file.tensors[self.tensors.clone()].iter().zip(&mut self.cells) {
            let (counts, rest) = unread.split_at_mut(file.tensor_bytes(tensor));
            add(cell, file, tensor, counts)?;
            unread = rest;
        }
        Ok(())
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn changed(file: &RankFile) -> Error {
    let message = "it changed or was truncated while it was read; read it again after the run";
    Error::InvalidDump(message.into()).in_file(&file.path)
}

/// Adds one tensor to its cell.
fn add(cell: &mut [u64], file: &RankFile, tensor: &Tensor, counts: &[u8]) -> Result<()> {
    match tensor.dtype {
        Dtype::I64 => add_counts(cell, file, tensor, counts.as_chunks().0, i64::from_le_bytes),
        Dtype::I32 => {
            add_counts(cell, file, tensor, counts.as_chunks().0, |count| i64::from(i32::from_le_bytes(count)))
        }
    }
}

fn add_counts<const N: usize>(
    cell: &mut [u64],
    file: &RankFile,
    tensor: &Tensor,
    counts: &[[u8; N]],
    decode: impl Fn([u8; N]) -> i64,
) -> Result<()> {
    // Valid terms are below 2^63, so an overflow sets the sign bit of the sum, as a negative count sets its own. The bits are
    // collected and tested once, so that the loop has no branches.
    let mut signs = 0;
    for (sum, &count) in cell.iter_mut().zip(counts) {
        let count = decode(count);
        *sum = sum.wrapping_add(count as u64);
        signs |= count | *sum as i64;
    }
    if signs < 0 { Err(invalid(file, tensor, counts.iter().copied().map(decode))) } else { Ok(()) }
}

/// Why counts could not be added: one is negative, or else a sum has overflowed.
#[cold]
fn invalid(file: &RankFile, tensor: &Tensor, counts: impl Iterator<Item = i64>) -> Error {
    let Tensor { iteration, layer, .. } = tensor;
    match counts.enumerate().find(|&(_, count)| count < 0) {
        Some((expert, count)) => {
            let message = format!("tensor \"{iteration}_{layer}\" has the count {count} for expert {expert}");
            Error::InvalidDump(message).in_file(&file.path)
        }
        None => {
            let message =
                format!("iteration {iteration} of layer {layer}: the sum over ranks overflows 63 bits");
            Error::InvalidDump(message).in_file(file.path.parent().unwrap_or(&file.path))
        }
    }
}
