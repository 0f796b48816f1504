//! Reads the counts of a dump and sums them over ranks, in bounded pieces on several threads.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};

use super::rank_file::{Dtype, FileVersion, Tensor, open_regular};
use super::{RankFile, RowRange};
use crate::error::{Error, Result, try_zeroed};
use crate::threads;

/// Bytes of one read: many enough to make system calls cheap, few enough for a core's own cache.
const CHUNK_BYTES: usize = 256 << 10;

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
    // One lock for each cell: threads read different files and rarely add to the same cell.
    let cells: Vec<Mutex<&mut [u64]>> = counts.chunks_exact_mut(num_experts).map(Mutex::new).collect();
    let cell_of = |tensor: &Tensor| {
        let layer = layers.binary_search(&tensor.layer).ok()?;
        let row = rows.starting_at(tensor.iteration)?;
        Some(layer * rows.len() as usize + row as usize)
    };
    let wanted = |tensor: &&Tensor| cell_of(tensor).is_some();
    let bytes_of = |file: &RankFile| -> u64 {
        file.tensors.iter().filter(wanted).map(|tensor| file.tensor_bytes(tensor) as u64).sum()
    };
    let total = files.iter().map(bytes_of).sum();

    let add_file = |index: usize, sender: &SyncSender<u64>| {
        let file = &files[index];
        read_tensors(
            file,
            |tensor| cell_of(tensor).is_some(),
            sender,
            |tensor, bytes| {
                let Some(cell) = cell_of(tensor) else { return Ok(()) };
                let mut counts = cells[cell].lock().unwrap_or_else(PoisonError::into_inner);
                match add(&mut counts, tensor, bytes).map_err(|e| e.in_file(&file.path))? {
                    Added::Fits => Ok(()),
                    Added::Overflowed => Err(overflow(file, tensor)),
                }
            },
        )
    };
    let mut done = 0;
    threads::map_watched(files.len(), threads, add_file, |bytes| {
        done += bytes;
        progress(done, total)
    })?;
    drop(cells);
    Ok(counts)
}

/// Names the dump, not the file: the file that makes the sum overflow depends on the order of threads.
#[cold]
fn overflow(file: &RankFile, tensor: &Tensor) -> Error {
    let Tensor { iteration, layer, .. } = tensor;
    let message = format!("iteration {iteration} of layer {layer}: the sum over ranks overflows 63 bits");
    Error::InvalidDump(message).in_file(file.path.parent().unwrap_or(&file.path))
}

/// Calls `take` with the bytes of each wanted tensor, in the file's order. Sends the number of bytes read.
fn read_tensors(
    file: &RankFile,
    wanted: impl Fn(&Tensor) -> bool,
    sender: &SyncSender<u64>,
    mut take: impl FnMut(&Tensor, &[u8]) -> Result<()>,
) -> Result<()> {
    let handle = open_regular(&file.path)?;
    let mut buffer = Vec::new();
    let mut offset = file.data_start;
    let mut rest = &file.tensors[..];
    check_unchanged(file, &handle)?;
    while let Some(first) = rest.first() {
        if !wanted(first) {
            offset += file.tensor_bytes(first) as u64;
            rest = &rest[1..];
            continue;
        }
        // The consecutive wanted tensors that fit a chunk, but at least one.
        let (mut bytes, mut taken) = (0, 0);
        for tensor in rest.iter().take_while(|tensor| wanted(tensor)) {
            let size = file.tensor_bytes(tensor);
            if taken > 0 && bytes + size > CHUNK_BYTES {
                break;
            }
            (bytes, taken) = (bytes + size, taken + 1);
        }
        if buffer.len() < bytes {
            buffer = try_zeroed(Some(bytes), "a read buffer")?;
        }
        handle.read_exact_at(&mut buffer[..bytes], offset).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => changed(file),
            _ => Error::read(&file.path, e),
        })?;
        let mut unread = &buffer[..bytes];
        for tensor in &rest[..taken] {
            let (this, next) = unread.split_at(file.tensor_bytes(tensor));
            take(tensor, this)?;
            unread = next;
        }
        offset += bytes as u64;
        rest = &rest[taken..];
        sender.send(bytes as u64).map_err(|_| Error::Cancelled)?;
    }
    check_unchanged(file, &handle)
}

fn check_unchanged(file: &RankFile, handle: &File) -> Result<()> {
    let now = handle.metadata().map_err(|e| Error::read(&file.path, e))?;
    if FileVersion::of(&now) == file.version { Ok(()) } else { Err(changed(file)) }
}

fn changed(file: &RankFile) -> Error {
    let message = "it changed or was truncated while it was read; read it again after the run";
    Error::InvalidDump(message.into()).in_file(&file.path)
}

/// Adds one tensor to its cell. An invalid tensor leaves the cell unchanged, so that the error does not name another file.
fn add(cell: &mut [u64], tensor: &Tensor, bytes: &[u8]) -> Result<Added> {
    match tensor.dtype {
        Dtype::I64 => add_counts(cell, tensor, bytes.as_chunks().0, i64::from_le_bytes),
        Dtype::I32 => {
            add_counts(cell, tensor, bytes.as_chunks().0, |count| i64::from(i32::from_le_bytes(count)))
        }
    }
}

/// Whether all sums of a cell fit 63 bits.
enum Added {
    Fits,
    Overflowed,
}

fn add_counts<const N: usize>(
    cell: &mut [u64],
    tensor: &Tensor,
    counts: &[[u8; N]],
    decode: impl Fn([u8; N]) -> i64,
) -> Result<Added> {
    // Sign bits are collected and tested once, so that the loops have no branches.
    let signs = counts.iter().fold(0, |signs, &count| signs | decode(count));
    if signs < 0 {
        let wrong = counts.iter().copied().map(decode).enumerate().find(|&(_, count)| count < 0);
        let (expert, count) = wrong.unwrap_or_default();
        let Tensor { iteration, layer, .. } = tensor;
        let message = format!("tensor \"{iteration}_{layer}\" has the count {count} for expert {expert}");
        return Err(Error::InvalidDump(message));
    }
    // Both terms are below 2^63, so an overflow sets the sign bit of the sum.
    let mut signs = 0;
    for (sum, &count) in cell.iter_mut().zip(counts) {
        *sum = sum.wrapping_add(decode(count) as u64);
        signs |= *sum;
    }
    Ok(if signs >> 63 == 0 { Added::Fits } else { Added::Overflowed })
}
