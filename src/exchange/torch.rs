//! Reads a tensor from a dictionary that `torch.save` wrote, as SGLang's recorder does.
//!
//! Format: `_save` and `_load` of torch/serialization.py since PyTorch 1.6. A zip archive has one folder with `data.pkl`,
//! `byteorder`, and the bytes of each storage as `data/<key>`. `data.pkl` is a pickle whose persistent ids are
//! `("storage", type, key, device, size)`. A tensor is
//! `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`.

use super::array::{Array, place_of};
use super::element::{Element, Kind, Undecodable};
use super::pickle::{Pickle, Value};
use super::sglang::{IGNORED, unknown};
use super::zip::Archive;
use crate::error::shortened;

/// Reads the tensor under `key`, of integers or of whole floats.
pub fn read(bytes: &[u8], key: &str) -> Result<Array, String> {
    let archive = Archive::open(bytes)?;
    let mut folders = archive.names().filter_map(|name| name.strip_suffix("/data.pkl"));
    let (Some(folder), None) = (folders.next(), folders.next()) else {
        return Err("it has no data.pkl, or more than one, so torch.save did not write it".into());
    };
    if archive.names().any(|name| name == format!("{folder}/byteorder")) {
        let order = archive.file(&format!("{folder}/byteorder"))?;
        if order != b"little" {
            let order = shortened(&String::from_utf8_lossy(order));
            return Err(format!("its byte order is \"{order}\", \"little\" expected"));
        }
    }
    let pickle = Pickle::parse(archive.file(&format!("{folder}/data.pkl"))?)?;
    let Value::Dict(items) = pickle.root() else { return Err("it does not contain a dictionary".into()) };
    let mut found = None;
    for &(item, value) in items {
        match *pickle.value(item) {
            Value::Text(text) if text == key => {
                if found.replace(value).is_some() {
                    return Err(format!("\"{key}\" appears twice"));
                }
            }
            Value::Text(text) if IGNORED.contains(&text) => {}
            Value::Text(text) => return Err(unknown(text, key)),
            _ => return Err("its dictionary has a key that is not a string".into()),
        }
    }
    let found = found.ok_or_else(|| format!("it has no \"{key}\""))?;
    let tensor = Tensor::of(&pickle, found).ok_or_else(|| format!("\"{key}\" is not a plain tensor"))?;
    tensor.values(&archive, folder, key)
}

/// The description of a tensor in a pickle.
struct Tensor<'a> {
    storage: &'a str,
    storage_type: &'a str,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<'a> Tensor<'a> {
    fn of(pickle: &Pickle<'a>, number: usize) -> Option<Self> {
        let tuple = |number| match pickle.value(number) {
            Value::Tuple(items) => Some(&items[..]),
            _ => None,
        };
        let text = |number| match *pickle.value(number) {
            Value::Text(text) => Some(text),
            _ => None,
        };
        let int = |number| match *pickle.value(number) {
            Value::Int(value) => usize::try_from(value).ok(),
            _ => None,
        };
        let ints = |number| tuple(number)?.iter().map(|&item| int(item)).collect::<Option<Vec<_>>>();
        let Value::Call(function, arguments) = *pickle.value(number) else { return None };
        let Value::Global(_, "_rebuild_tensor_v2") = *pickle.value(function) else { return None };
        let &[storage, offset, shape, strides, _, _] = tuple(arguments)? else { return None };
        let Value::Persistent(id) = *pickle.value(storage) else { return None };
        let &[kind, storage_type, key, _, _] = tuple(id)? else { return None };
        let (Some("storage"), Value::Global("torch", storage_type)) =
            (text(kind), pickle.value(storage_type))
        else {
            return None;
        };
        let (storage, offset) = (text(key)?, int(offset)?);
        Some(Tensor { storage, storage_type, offset, shape: ints(shape)?, strides: ints(strides)? })
    }

    fn values(&self, archive: &Archive, folder: &str, key: &str) -> Result<Array, String> {
        let Tensor { shape, strides, offset, .. } = self;
        let element = element(self.storage_type).ok_or_else(|| {
            let kind = shortened(self.storage_type);
            format!("\"{key}\" is stored as {kind}; integers, floats or doubles expected")
        })?;
        // Other strides could repeat values, so that a small file would take much memory.
        let mut stride = Some(1usize);
        let in_order = shape.len() == strides.len()
            && shape.iter().zip(strides).rev().all(|(&size, &given)| {
                let fits = size == 1 || stride == Some(given);
                stride = stride.and_then(|stride| stride.checked_mul(size));
                fits
            });
        let (true, Some(count)) = (in_order, stride) else {
            return Err(format!(
                "\"{key}\" of shape {shape:?} has strides {strides:?}: save it with .contiguous()"
            ));
        };
        let storage = archive.file(&format!("{folder}/data/{}", self.storage))?;
        let range = offset
            .checked_add(count)
            .and_then(|end| storage.get(offset.checked_mul(element.size)?..end.checked_mul(element.size)?));
        let bytes = range.ok_or_else(|| {
            format!("\"{key}\" of shape {shape:?} goes beyond the {} bytes of its storage", storage.len())
        })?;
        let values = element.decode(bytes, false).map_err(|error| match error {
            Undecodable::Memory(message) => message,
            Undecodable::Value { index, number } => {
                format!(
                    "{key}{} is {number}, a whole number from 0 to 2^63 - 1 expected",
                    place_of(shape, index)
                )
            }
        })?;
        Array::new(shape.clone(), values)
    }
}

fn element(storage_type: &str) -> Option<Element> {
    let (kind, size) = match storage_type {
        "ByteStorage" => (Kind::Unsigned, 1),
        "CharStorage" => (Kind::Signed, 1),
        "ShortStorage" => (Kind::Signed, 2),
        "IntStorage" => (Kind::Signed, 4),
        "LongStorage" => (Kind::Signed, 8),
        "FloatStorage" => (Kind::Float, 4),
        "DoubleStorage" => (Kind::Float, 8),
        _ => return None,
    };
    Some(Element { kind, size, big_endian: false })
}
