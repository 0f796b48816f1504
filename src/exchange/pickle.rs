//! Reads pickles without executing them.
//!
//! A pickle is a program for a stack machine, which in Python may call any function. This reader knows the instructions and names
//! that dictionaries of tensors, lists and numbers need (`torch.save` writes protocol 2). It keeps calls as data and refuses all
//! others by name. Format: CPython's Lib/pickletools.py.

use std::collections::HashMap;

use crate::error::shortened;

/// The contents of a pickle. Objects refer to each other by number, so deep nesting needs no recursion.
#[derive(Debug)]
pub struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    root: Item,
    num_bytes: usize,
}

/// A value: a number, or the number of an object, so that lists of numbers take little memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Item {
    /// None, True, False or an integer beyond 64 bits, which are not used.
    Other,
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// An object.
    Object(u32),
}

/// What is not a number.
#[derive(Debug)]
pub enum Object<'a> {
    /// A string.
    Text(&'a str),
    /// A tuple.
    Tuple(Vec<Item>),
    /// A list.
    List(Vec<Item>),
    /// A dictionary, ordered or not, in order.
    Dict(Vec<(Item, Item)>),
    /// A module and a name in it, which is not looked up.
    Global(&'a str, &'a str),
    /// The object of a persistent id, for PyTorch a storage.
    Persistent(Item),
    /// A call that is not made: the function, and the tuple of its arguments.
    Call(&'a str, Item),
}

/// The functions that a pickle may name in a call. None is called.
const CALLABLE: [(&str, &str); 8] = [
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
    ("collections", "OrderedDict"),
    ("__builtin__", "set"),
    ("_codecs", "encode"),
];

/// The limit of a pickle. A thousand steps of a large model take 80 MB as lists, and less than 1 KB as a tensor.
const MAX_BYTES: usize = 1 << 27;

/// The limit of objects. A record of a forward pass takes some 20, with counters of 60 layers some 400.
const MAX_OBJECTS: usize = 1 << 22;

impl<'a> Pickle<'a> {
    /// Reads a pickle.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!(
                "its pickle takes {} bytes, at most {MAX_BYTES} supported: save numbers as tensors, or fewer passes",
                bytes.len()
            ));
        }
        let mut machine = Machine {
            bytes,
            at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(false) => {}
                Ok(true) => break,
                Err(what) => return Err(format!("byte {at} of its pickle: {what}")),
            }
        }
        match machine.stack[..] {
            [root] => Ok(Pickle { objects: machine.objects, root, num_bytes: bytes.len() }),
            _ => Err("its pickle does not end with one value".into()),
        }
    }

    /// The pickle's result.
    pub fn root(&self) -> Item {
        self.root
    }

    /// The length of the pickle.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// The object of an item that is one.
    pub fn object(&self, item: Item) -> Option<&Object<'a>> {
        match item {
            Item::Object(number) => self.objects.get(number as usize),
            _ => None,
        }
    }

    /// The string of an item that is one.
    pub fn text(&self, item: Item) -> Option<&'a str> {
        match self.object(item)? {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of a tuple.
    pub fn tuple(&self, item: Item) -> Option<&[Item]> {
        match self.object(item)? {
            Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The elements of a list or a tuple.
    pub fn sequence(&self, item: Item) -> Option<&[Item]> {
        match self.object(item)? {
            Object::List(items) | Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The keys and values of a dictionary.
    pub fn dict(&self, item: Item) -> Option<&[(Item, Item)]> {
        match self.object(item)? {
            Object::Dict(items) => Some(items),
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Item>,
    /// The height of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Item>,
}

impl<'a> Machine<'a> {
    /// Runs one instruction. Returns whether it was the last.
    fn step(&mut self) -> Result<bool, String> {
        let [instruction] = *self.take()?;
        match instruction {
            0x80 => match *self.take()? {
                [2] => {}
                [protocol] => return Err(format!("protocol {protocol}, 2 expected as torch.save writes it")),
            },
            b'.' => return Ok(true),
            b'(' => self.marks.push(self.stack.len()),
            b'N' | 0x88 | 0x89 => self.push(Item::Other)?,
            b'G' => {
                let value = f64::from_be_bytes(*self.take()?);
                self.push(Item::Float(value))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(*self.take()?);
                self.push(Item::Int(value.into()))?;
            }
            b'K' => {
                let [value] = *self.take()?;
                self.push(Item::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(*self.take()?);
                self.push(Item::Int(value.into()))?;
            }
            0x8a => self.long()?,
            b'X' => {
                let length = u32::from_le_bytes(*self.take()?);
                let text =
                    str::from_utf8(self.slice(length as usize)?).map_err(|_| "a string that is not UTF-8")?;
                self.create(Object::Text(text))?;
            }
            b')' => self.create(Object::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(instruction - 0x84));
                let items = self.above(start)?;
                self.create(Object::Tuple(items))?;
            }
            b't' => {
                let items = self.marked()?;
                self.create(Object::Tuple(items))?;
            }
            b']' => self.create(Object::List(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.list()?.push(item);
            }
            b'e' => {
                let items = self.marked()?;
                self.list()?.extend(items);
            }
            b'}' => self.create(Object::Dict(Vec::new()))?,
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.dict()?.push((key, value));
            }
            b'u' => {
                let items = self.marked()?;
                let (pairs, odd) = items.as_chunks();
                if !odd.is_empty() {
                    return Err("a key without a value".into());
                }
                self.dict()?.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            b'q' => {
                let [key] = *self.take()?;
                self.store(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(*self.take()?);
                self.store(key)?;
            }
            b'h' => {
                let [key] = *self.take()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(*self.take()?);
                self.recall(key)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.create(Object::Global(module, name))?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.create(Object::Persistent(id))?;
            }
            b'R' => self.call()?,
            unknown => {
                let shown = char::from(unknown).escape_default();
                return Err(format!(
                    "instruction {unknown:#04x} ('{shown}') is not one that torch.save writes for tensors, lists and numbers"
                ));
            }
        }
        Ok(false)
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Some(&Object::Global(module, name)) = self.object(function) else {
            return Err("a call of a value that is not a function".into());
        };
        if !CALLABLE.contains(&(module, name)) {
            let called = shortened(&format!("{module}.{name}"));
            return Err(format!(
                "it would call {called}, which is not allowed: save a dictionary of tensors, lists and numbers"
            ));
        }
        match (name, self.object(arguments)) {
            // Its items follow, as those of a dictionary.
            ("OrderedDict", Some(Object::Tuple(items))) if items.is_empty() => {
                self.create(Object::Dict(Vec::new()))
            }
            ("OrderedDict", Some(Object::Tuple(_))) => Err("an OrderedDict with arguments".into()),
            (_, Some(Object::Tuple(_))) => self.create(Object::Call(name, arguments)),
            _ => Err("a call without a tuple of arguments".into()),
        }
    }

    fn long(&mut self) -> Result<(), String> {
        let [length] = *self.take()?;
        let bytes = self.slice(length.into())?;
        let Some(unused) = 8usize.checked_sub(bytes.len()) else { return self.push(Item::Other) };
        let bits = bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
        let unused = 8 * unused as u32;
        let value = bits.checked_shl(unused).map_or(0, |bits| bits.cast_signed() >> unused);
        self.push(Item::Int(value))
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (slice, _) = self.bytes[self.at..].split_at_checked(length).ok_or("it is truncated")?;
        self.at += length;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], String> {
        let (taken, _) = self.bytes[self.at..].split_first_chunk().ok_or("it is truncated")?;
        self.at += N;
        Ok(taken)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("it is truncated")?;
        self.at += length + 1;
        str::from_utf8(&rest[..length]).map_err(|_| "a name that is not UTF-8".to_owned())
    }

    fn push(&mut self, item: Item) -> Result<(), String> {
        self.stack.try_reserve(1).map_err(|_| "out of memory")?;
        self.stack.push(item);
        Ok(())
    }

    fn create(&mut self, object: Object<'a>) -> Result<(), String> {
        if self.objects.len() == MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} objects: save numbers as tensors, or fewer passes"));
        }
        self.objects.try_reserve(1).map_err(|_| "out of memory")?;
        self.objects.push(object);
        self.push(Item::Object(self.objects.len() as u32 - 1))
    }

    fn object(&self, item: Item) -> Option<&Object<'a>> {
        match item {
            Item::Object(number) => self.objects.get(number as usize),
            _ => None,
        }
    }

    fn top_object(&mut self) -> Result<Option<&mut Object<'a>>, String> {
        Ok(match self.top()? {
            Item::Object(number) => self.objects.get_mut(number as usize),
            _ => None,
        })
    }

    fn pop(&mut self) -> Result<Item, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Pops the last mark and the values above it.
    fn marked(&mut self) -> Result<Vec<Item>, String> {
        let start = self.marks.pop();
        self.above(start)
    }

    /// The height of the stack at the last mark. Values below it must not be popped.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or_default()
    }

    fn above(&mut self, start: Option<usize>) -> Result<Vec<Item>, String> {
        let allowed = self.floor()..=self.stack.len();
        let start = start.filter(|start| allowed.contains(start)).ok_or("too few values")?;
        Ok(self.stack.split_off(start))
    }

    fn top(&self) -> Result<Item, String> {
        self.stack[self.floor()..].last().copied().ok_or_else(|| "too few values".to_owned())
    }

    fn list(&mut self) -> Result<&mut Vec<Item>, String> {
        match self.top_object()? {
            Some(Object::List(items)) => Ok(items),
            _ => Err("items for a value that is not a list".into()),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(Item, Item)>, String> {
        match self.top_object()? {
            Some(Object::Dict(items)) => Ok(items),
            _ => Err("items for a value that is not a dictionary".into()),
        }
    }

    fn store(&mut self, key: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let item = *self.memo.get(&key).ok_or_else(|| format!("the memo has no {key}"))?;
        self.push(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        Pickle::parse(bytes).unwrap_err()
    }

    #[test]
    fn integers_are_read_in_each_form() {
        // Python: pickle.dumps((7, 300, -2, 2**40, -2**40, 0), 2), its long 0 written by hand.
        let bytes =
            b"\x80\x02(K\x07M\x2c\x01J\xfe\xff\xff\xff\x8a\x06\0\0\0\0\0\x01\x8a\x06\0\0\0\0\0\xff\x8a\0t.";
        let pickle = Pickle::parse(bytes).unwrap();
        let expected = [7, 300, -2, 1 << 40, -1 << 40, 0].map(Item::Int);
        assert_eq!(pickle.tuple(pickle.root()), Some(&expected[..]));
        // Python: pickle.dumps([1.5, 2**64 - 1], 2)
        let bytes = b"\x80\x02](G?\xf8\0\0\0\0\0\0\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\0e.";
        let pickle = Pickle::parse(bytes).unwrap();
        assert_eq!(pickle.sequence(pickle.root()), Some(&[Item::Float(1.5), Item::Other][..]));
    }

    #[test]
    fn ordered_dict_is_a_dictionary_and_other_calls_are_data() {
        // Python: pickle.dumps(OrderedDict(a=1), 2), without its memo.
        let pickle = Pickle::parse(b"\x80\x02ccollections\nOrderedDict\n)RX\x01\0\0\0aK\x01s.").unwrap();
        let &[(key, value)] = pickle.dict(pickle.root()).unwrap() else { panic!("{pickle:?}") };
        assert_eq!((pickle.text(key), value), (Some("a"), Item::Int(1)));
        let pickle = Pickle::parse(b"ctorch\nSize\nK\x02\x85\x85R.").unwrap();
        assert!(matches!(pickle.object(pickle.root()), Some(Object::Call("Size", _))));
    }

    #[test]
    fn calls_are_rejected_by_name() {
        // Python: class Evil: __reduce__ = lambda self: (os.system, ("true",)); pickle.dumps(Evil(), 2)
        let evil = b"\x80\x02cposix\nsystem\nq\0X\x04\0\0\0trueq\x01\x85q\x02Rq\x03.";
        assert_eq!(
            message(evil),
            "byte 32 of its pickle: it would call posix.system, which is not allowed: save a dictionary of tensors, \
             lists and numbers"
        );
        // The same by an instruction for objects, and by one of a later protocol.
        assert!(
            message(b"\x80\x02(cposix\nsystem\no.")
                .starts_with("byte 17 of its pickle: instruction 0x6f ('o') is not one")
        );
        assert_eq!(
            message(b"\x80\x04N."),
            "byte 0 of its pickle: protocol 4, 2 expected as torch.save writes it"
        );
    }

    #[test]
    fn invalid_program_is_rejected_with_the_byte() {
        for (program, expected) in [
            (&b"\x80\x02"[..], "byte 2 of its pickle: it is truncated"),
            (b".", "its pickle does not end with one value"),
            (b"NN.", "its pickle does not end with one value"),
            (b"t.", "byte 0 of its pickle: too few values"),
            (b"N(\x85.", "byte 2 of its pickle: too few values"),
            (b"N(Na.", "byte 3 of its pickle: too few values"),
            (b"NNa.", "byte 2 of its pickle: items for a value that is not a list"),
            (b"]NNs.", "byte 3 of its pickle: items for a value that is not a dictionary"),
            (b"}(Nu.", "byte 3 of its pickle: a key without a value"),
            (b"h\x01.", "byte 0 of its pickle: the memo has no 1"),
            (b"X\x05\0\0\0abc", "byte 0 of its pickle: it is truncated"),
            (b"ccollections\nOrderedDict\nN\x85R.", "byte 27 of its pickle: an OrderedDict with arguments"),
            (b"N)R.", "byte 2 of its pickle: a call of a value that is not a function"),
            (b"ccollections\nOrderedDict\nNR.", "byte 26 of its pickle: a call without a tuple of arguments"),
        ] {
            assert_eq!(message(program), expected);
        }
    }

    #[test]
    fn nesting_and_self_reference_need_no_recursion() {
        let nested = [&b"]"[..], &b"\x85".repeat(1 << 20), b"."].concat();
        let pickle = Pickle::parse(&nested).unwrap();
        assert!(pickle.tuple(pickle.root()).is_some());
        let pickle = Pickle::parse(b"]q\0h\0a.").unwrap();
        assert_eq!(pickle.sequence(pickle.root()), Some(&[pickle.root()][..]));
    }

    #[test]
    fn pickle_with_too_many_objects_is_rejected() {
        let lists = [&b"]".repeat(MAX_OBJECTS + 1)[..], b"."].concat();
        assert_eq!(
            message(&lists),
            "byte 4194304 of its pickle: more than 4194304 objects: save numbers as tensors, or fewer passes"
        );
    }
}
