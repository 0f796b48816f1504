//! Reads dictionaries that `torch.save` wrote.
//!
//! Format: `_save` and `_load` of torch/serialization.py since PyTorch 1.6. A zip archive has one folder with `data.pkl`,
//! `byteorder`, and the bytes of each storage as `data/<key>`. `data.pkl` is a pickle whose persistent ids are
//! `("storage", type, key, device, size)`. A tensor is
//! `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`, or, where its type has no storage of its
//! own, `_rebuild_tensor_v3` of an untyped storage with the type behind the hooks.

use super::array::{Array, MAX_REPEATED, Numbers, place_of};
use super::element::{Element, Kind};
use super::lists::Lists;
use super::pickle::{Item, Object, Pickle};
use super::zip::{Archive, MAGIC};
use crate::error::shortened;

/// The first bytes of a file that PyTorch before 1.6 wrote: a bare pickle.
const LEGACY_MAGIC: &[u8] = b"\x80\x02";

/// A file of PyTorch.
pub struct TorchFile<'a> {
    archive: Archive<'a>,
    folder: String,
    pickle: Pickle<'a>,
    big_endian: bool,
}

/// Returns whether these are the first bytes of a file of PyTorch, of any version.
pub fn is_torch(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC) || bytes.starts_with(LEGACY_MAGIC)
}

impl<'a> TorchFile<'a> {
    /// Reads the structure of a file.
    pub fn open(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.starts_with(LEGACY_MAGIC) {
            return Err("it is a bare pickle, as torch.save wrote before PyTorch 1.6: rewrite it with \
                        torch.save(torch.load(FILE), FILE)"
                .into());
        }
        let archive = Archive::open(bytes)?;
        let folders: Vec<_> = archive.names().filter_map(|name| name.strip_suffix("/data.pkl")).collect();
        let [folder] = folders[..] else {
            return Err("it has no data.pkl, or more than one, so torch.save did not write it".into());
        };
        let folder = folder.to_owned();
        let mut big_endian = false;
        if archive.names().any(|name| name == format!("{folder}/byteorder")) {
            big_endian = match archive.file(&format!("{folder}/byteorder"))? {
                b"little" => false,
                b"big" => true,
                other => {
                    let order = shortened(&String::from_utf8_lossy(other));
                    return Err(format!("its byte order is \"{order}\", \"little\" or \"big\" expected"));
                }
            };
        }
        let pickle = Pickle::parse(archive.file(&format!("{folder}/data.pkl"))?)?;
        Ok(TorchFile { archive, folder, pickle, big_endian })
    }

    /// The file's dictionary.
    pub fn root(&self) -> Result<Entries<'_, 'a>, String> {
        self.entries(self.pickle.root()).ok_or_else(|| "it does not contain a dictionary".into())
    }

    /// The entries of a dictionary.
    pub fn entries(&self, item: Item) -> Option<Entries<'_, 'a>> {
        Some(Entries { pickle: &self.pickle, items: self.pickle.dict(item)? })
    }

    /// The string of an item that is one.
    pub fn text(&self, item: Item) -> Option<&'a str> {
        self.pickle.text(item)
    }

    /// The elements of a list or a tuple.
    pub fn sequence(&self, item: Item) -> Option<&[Item]> {
        self.pickle.sequence(item)
    }

    /// Reads a tensor or nested lists. Messages name it by `name`. See [`Numbers::new`] for `minus_one`.
    pub fn array(&self, item: Item, name: &str, minus_one: bool) -> Result<Array, String> {
        if self.pickle.sequence(item).is_some() {
            let mut lists = Lists::new(minus_one);
            self.add_list(item, &mut lists).map_err(|what| format!("{name}: {what}"))?;
            return lists.finish().map_err(|what| format!("{name}: {what}"));
        }
        let tensor = Tensor::of(&self.pickle, item)
            .ok_or_else(|| format!("\"{name}\" is neither a plain tensor nor lists of numbers"))?;
        tensor.values(self, name, minus_one)
    }

    /// Adds a number or a list. At most three lists are open at once, so this ends even where a list contains itself.
    fn add_list(&self, item: Item, lists: &mut Lists) -> Result<(), String> {
        match item {
            Item::Int(value) => lists.number(|numbers| numbers.signed(value)),
            Item::Float(value) => lists.number(|numbers| numbers.float(value)),
            Item::Other => lists.number(|numbers| Err(numbers.unexpected("no number in range"))),
            Item::Object(_) => {
                let items =
                    self.sequence(item).ok_or_else(|| format!("{} is no list of numbers", lists.here()))?;
                let level = lists.open()?;
                for &item in items {
                    self.add_list(item, lists)?;
                    lists.next(level);
                    // A list that is several times in the pickle takes its bytes only once.
                    if lists.len() > self.pickle.num_bytes().max(MAX_REPEATED) {
                        return Err(format!(
                            "it repeats lists for more than {MAX_REPEATED} numbers: save a tensor"
                        ));
                    }
                }
                lists.close(level)
            }
        }
    }
}

/// A dictionary of a file.
#[derive(Clone, Copy)]
pub struct Entries<'f, 'a> {
    pickle: &'f Pickle<'a>,
    items: &'f [(Item, Item)],
}

impl<'f, 'a> Entries<'f, 'a> {
    /// The keys that are strings.
    pub fn keys(self) -> impl Iterator<Item = &'a str> + use<'f, 'a> {
        self.items.iter().filter_map(move |&(key, _)| self.pickle.text(key))
    }

    /// The value of `key`. Fails if the key appears twice.
    pub fn find(self, key: &str) -> Result<Option<Item>, String> {
        let mut found = self.items.iter().filter(|&&(item, _)| self.pickle.text(item) == Some(key));
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(format!("\"{key}\" appears twice")),
            (found, None) => Ok(found.map(|&(_, value)| value)),
        }
    }

    /// The value of `key`.
    pub fn get(self, key: &str) -> Result<Item, String> {
        self.find(key)?.ok_or_else(|| {
            let keys = self.keys().collect::<Vec<_>>().join(", ");
            format!("it has no \"{key}\"; its keys are {}", shortened(&keys))
        })
    }
}

/// The description of a tensor in a pickle.
struct Tensor<'a> {
    storage: &'a str,
    /// The name of its storage, such as `IntStorage`, or of its type, such as `uint32`.
    kind: &'a str,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<'a> Tensor<'a> {
    fn of(pickle: &Pickle<'a>, item: Item) -> Option<Self> {
        let size = |item| match item {
            Item::Int(value) => usize::try_from(value).ok(),
            _ => None,
        };
        let sizes = |item| pickle.tuple(item)?.iter().map(|&item| size(item)).collect::<Option<Vec<_>>>();
        let global = |item, expected| match *pickle.object(item)? {
            Object::Global(module, name) if module == expected => Some(name),
            _ => None,
        };
        let Object::Call(function, arguments) = *pickle.object(item)? else { return None };
        let arguments = pickle.tuple(arguments)?;
        if function == "_rebuild_parameter" {
            // The tensor of a parameter is none itself.
            let tensor = *arguments.first()?;
            let Object::Call("_rebuild_tensor_v2" | "_rebuild_tensor_v3", _) = pickle.object(tensor)? else {
                return None;
            };
            return Tensor::of(pickle, tensor);
        }
        let (&[storage, offset, shape, strides, _, _], rest) = arguments.split_first_chunk()?;
        let Object::Persistent(id) = *pickle.object(storage)? else { return None };
        let &[kind, storage_type, key, _, _] = pickle.tuple(id)? else { return None };
        if pickle.text(kind) != Some("storage") {
            return None;
        }
        // Metadata may follow, such as that of a conjugate, which is not read.
        let kind = match (function, rest) {
            ("_rebuild_tensor_v2", []) => global(storage_type, "torch")?,
            ("_rebuild_tensor_v3", &[dtype]) => {
                global(storage_type, "torch.storage").filter(|&name| name == "UntypedStorage")?;
                global(dtype, "torch")?
            }
            _ => return None,
        };
        let (storage, offset) = (pickle.text(key)?, size(offset)?);
        Some(Tensor { storage, kind, offset, shape: sizes(shape)?, strides: sizes(strides)? })
    }

    fn values(&self, file: &TorchFile, name: &str, minus_one: bool) -> Result<Array, String> {
        let Tensor { shape, strides, offset, .. } = self;
        let element = element(self.kind, file.big_endian).ok_or_else(|| {
            let kind = shortened(self.kind);
            format!("\"{name}\" is stored as {kind}; integers or floats of 2, 4 or 8 bytes expected")
        })?;
        if shape.len() != strides.len() {
            return Err(format!("\"{name}\" of shape {shape:?} has strides {strides:?}"));
        }
        // Sizes of 0 have no last element, and are refused with the array.
        let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        if count == Some(0) {
            return Array::new(shape.clone(), Numbers::new(minus_one).finish());
        }
        let storage = file.archive.file(&format!("{}/data/{}", file.folder, self.storage))?;
        let last = shape
            .iter()
            .zip(strides)
            .try_fold(*offset, |last, (&size, &stride)| last.checked_add((size - 1).checked_mul(stride)?));
        let stored = storage.len() / element.size;
        let Some(count) = count.filter(|_| last.is_some_and(|last| last < stored)) else {
            return Err(format!(
                "\"{name}\" of shape {shape:?} goes beyond the {} bytes of its storage",
                storage.len()
            ));
        };
        // A tensor may repeat what is stored once, so that a small file would take much memory.
        if count > stored.max(MAX_REPEATED) {
            return Err(format!(
                "\"{name}\" of shape {shape:?} with strides {strides:?} repeats its {stored} stored numbers: save it with \
                 .contiguous()"
            ));
        }
        let mut numbers = Numbers::new(minus_one);
        numbers.reserve(count)?;
        let (row, stride) = (shape.last().copied().unwrap_or(1), strides.last().copied().unwrap_or(0));
        for start in (0..count).step_by(row) {
            let (mut at, mut rest) = (*offset, start);
            for (&size, &stride) in shape.iter().zip(strides).rev() {
                at += rest % size * stride;
                rest /= size;
            }
            for index in 0..row {
                let bytes = &storage[(at + index * stride) * element.size..][..element.size];
                element
                    .add(bytes, &mut numbers)
                    .map_err(|what| format!("{name}{} {what}", place_of(shape, start + index)))?;
            }
        }
        Array::new(shape.clone(), numbers.finish())
    }
}

/// The encoding of a storage or type by its name.
fn element(name: &str, big_endian: bool) -> Option<Element> {
    let (kind, size) = match name {
        "ByteStorage" => (Kind::Unsigned, 1),
        "CharStorage" => (Kind::Signed, 1),
        "ShortStorage" => (Kind::Signed, 2),
        "IntStorage" => (Kind::Signed, 4),
        "LongStorage" => (Kind::Signed, 8),
        "HalfStorage" => (Kind::Float, 2),
        "BFloat16Storage" => (Kind::Bfloat16, 2),
        "FloatStorage" => (Kind::Float, 4),
        "DoubleStorage" => (Kind::Float, 8),
        "uint16" => (Kind::Unsigned, 2),
        "uint32" => (Kind::Unsigned, 4),
        "uint64" => (Kind::Unsigned, 8),
        _ => return None,
    };
    Some(Element { kind, size, big_endian })
}
