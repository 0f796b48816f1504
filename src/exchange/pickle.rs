//! Reads pickles without executing them.
//!
//! A pickle is a program for a stack machine, which in Python may call any function. This reader knows the instructions and names
//! that a dictionary of tensors needs (`torch.save` writes protocol 2). It keeps calls as data and refuses all others by name.
//! Format: CPython's Lib/pickletools.py.

use std::collections::HashMap;

use crate::error::shortened;

/// The values of a pickle. They refer to each other by number, so deep nesting needs no recursion.
#[derive(Debug)]
pub struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: usize,
}

/// A value. `usize` is the number of another value.
#[derive(Debug)]
pub enum Value<'a> {
    /// None, True, False or a float, which are not used.
    Other,
    /// A whole number.
    Int(i64),
    /// A string.
    Text(&'a str),
    /// A tuple.
    Tuple(Vec<usize>),
    /// A list.
    List(Vec<usize>),
    /// A dictionary, in order.
    Dict(Vec<(usize, usize)>),
    /// A module and a name in it, which is not looked up.
    Global(&'a str, &'a str),
    /// The object of a persistent id, for PyTorch a storage.
    Persistent(usize),
    /// A call that is not made: the function and the tuple of its arguments.
    Call(usize, usize),
}

/// The functions that a pickle may name in a call. None is called.
const CALLABLE: [(&str, &str); 2] = [("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict")];

/// The limit of a pickle. A recording's has less than 1 KB, and each byte may become a value of several.
const MAX_BYTES: usize = 1 << 20;

impl<'a> Pickle<'a> {
    /// Reads a pickle.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!("its pickle takes {} bytes, at most {MAX_BYTES} supported", bytes.len()));
        }
        let mut machine = Machine {
            bytes,
            at: 0,
            values: Vec::new(),
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
            [root] => Ok(Pickle { values: machine.values, root }),
            _ => Err("its pickle does not end with one value".into()),
        }
    }

    /// The pickle's result.
    pub fn root(&self) -> &Value<'a> {
        self.value(self.root)
    }

    /// The value with this number.
    pub fn value(&self, number: usize) -> &Value<'a> {
        &self.values[number]
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<usize>,
    /// The height of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, usize>,
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
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b'G' => {
                self.take::<8>()?;
                self.push(Value::Other);
            }
            b'J' => {
                let value = i32::from_le_bytes(*self.take()?);
                self.push(Value::Int(value.into()));
            }
            b'K' => {
                let [value] = *self.take()?;
                self.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(*self.take()?);
                self.push(Value::Int(value.into()));
            }
            0x8a => self.long()?,
            b'X' => {
                let length = u32::from_le_bytes(*self.take()?);
                let text =
                    str::from_utf8(self.slice(length as usize)?).map_err(|_| "a string that is not UTF-8")?;
                self.push(Value::Text(text));
            }
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(instruction - 0x84));
                let items = self.above(start)?;
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.marked()?;
                self.push(Value::Tuple(items));
            }
            b']' => self.push(Value::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.list()?.push(item);
            }
            b'e' => {
                let items = self.marked()?;
                self.list()?.extend(items);
            }
            b'}' => self.push(Value::Dict(Vec::new())),
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
                self.push(Value::Global(module, name));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            b'R' => self.call()?,
            unknown => {
                let shown = char::from(unknown).escape_default();
                return Err(format!(
                    "instruction {unknown:#04x} ('{shown}') is not one that a dictionary of tensors needs"
                ));
            }
        }
        Ok(false)
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Global(module, name) = self.values[function] else {
            return Err("a call of a value that is not a function".into());
        };
        if !CALLABLE.contains(&(module, name)) {
            let called = shortened(&format!("{module}.{name}"));
            return Err(format!("it would call {called}, which a dictionary of tensors does not need"));
        }
        if !matches!(self.values[arguments], Value::Tuple(_)) {
            return Err("a call without a tuple of arguments".into());
        }
        self.push(Value::Call(function, arguments));
        Ok(())
    }

    fn long(&mut self) -> Result<(), String> {
        let [length] = *self.take()?;
        let bytes = self.slice(length.into())?;
        let Some(unused) = 8usize.checked_sub(bytes.len()) else {
            return Err(format!("an integer of {length} bytes, at most 8 supported"));
        };
        let bits = bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
        let unused = 8 * unused as u32;
        let value = bits.checked_shl(unused).map_or(0, |bits| bits.cast_signed() >> unused);
        self.push(Value::Int(value));
        Ok(())
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

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<usize, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Pops the last mark and the values above it.
    fn marked(&mut self) -> Result<Vec<usize>, String> {
        let start = self.marks.pop();
        self.above(start)
    }

    /// The height of the stack at the last mark. Values below it must not be popped.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or_default()
    }

    fn above(&mut self, start: Option<usize>) -> Result<Vec<usize>, String> {
        let allowed = self.floor()..=self.stack.len();
        let start = start.filter(|start| allowed.contains(start)).ok_or("too few values")?;
        Ok(self.stack.split_off(start))
    }

    fn top(&self) -> Result<usize, String> {
        self.stack[self.floor()..].last().copied().ok_or_else(|| "too few values".to_owned())
    }

    fn list(&mut self) -> Result<&mut Vec<usize>, String> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::List(items) => Ok(items),
            _ => Err("items for a value that is not a list".into()),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(usize, usize)>, String> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::Dict(items) => Ok(items),
            _ => Err("items for a value that is not a dictionary".into()),
        }
    }

    fn store(&mut self, key: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let value = *self.memo.get(&key).ok_or_else(|| format!("the memo has no {key}"))?;
        self.stack.push(value);
        Ok(())
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
        let Value::Tuple(items) = pickle.root() else { panic!("{pickle:?}") };
        let numbers = items.iter().map(|&item| match pickle.value(item) {
            Value::Int(number) => *number,
            other => panic!("{other:?}"),
        });
        assert_eq!(numbers.collect::<Vec<_>>(), [7, 300, -2, 1 << 40, -1 << 40, 0]);
    }

    #[test]
    fn calls_are_rejected_by_name() {
        // Python: class Evil: __reduce__ = lambda self: (os.system, ("true",)); pickle.dumps(Evil(), 2)
        let evil = b"\x80\x02cposix\nsystem\nq\0X\x04\0\0\0trueq\x01\x85q\x02Rq\x03.";
        assert_eq!(
            message(evil),
            "byte 32 of its pickle: it would call posix.system, which a dictionary of tensors does not need"
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
            (b"\x8a\x09123456789.", "byte 0 of its pickle: an integer of 9 bytes, at most 8 supported"),
            (b"N)R.", "byte 2 of its pickle: a call of a value that is not a function"),
            (b"ccollections\nOrderedDict\nNR.", "byte 26 of its pickle: a call without a tuple of arguments"),
        ] {
            assert_eq!(message(program), expected);
        }
    }

    #[test]
    fn nesting_and_self_reference_need_no_recursion() {
        let nested = [&b"]"[..], &b"\x85".repeat(MAX_BYTES - 2), b"."].concat();
        assert!(matches!(Pickle::parse(&nested).unwrap().root(), Value::Tuple(_)));
        assert!(matches!(Pickle::parse(b"]q\0h\0a.").unwrap().root(), Value::List(_)));
    }
}
