//! Writes the self-contained file that ctest reads: the types, constants and declarations of src/ffi. ctest generates a test
//! in Rust and in C from it and include/eplb_live.h, which includes the other headers.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Fields, Item, ItemFn, ItemStruct, Visibility};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    println!("cargo:rerun-if-changed={}", root.join("src/ffi").display());
    println!("cargo:rerun-if-changed={}", root.join("include").display());

    let mut interface = Interface::default();
    let mut files: Vec<PathBuf> =
        fs::read_dir(root.join("src/ffi")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        syn::parse_file(&source).unwrap().items.iter().for_each(|item| interface.add(item));
    }
    let path = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("interface.rs");
    fs::write(&path, interface.text()).unwrap();

    let mut generator = ctest::TestGenerator::new();
    generator.header("eplb_live.h").include(root.join("include")).edition(2024);
    let opaque = interface.opaque.clone();
    // Incomplete types in C have no layout.
    generator.skip_struct(move |item| opaque.iter().any(|name| name == item.ident()));
    // The structs are typedefs in C, without "struct" before their names.
    generator.rename_struct_ty(|name| name.starts_with("eplb_").then(|| name.to_owned()));
    ctest::generate_test(&mut generator, &path, "all.rs").unwrap();
}

/// The interface that src/ffi declares.
#[derive(Default)]
struct Interface {
    items: String,
    functions: String,
    opaque: Vec<String>,
}

impl Interface {
    fn text(&self) -> String {
        format!(
            "use std::ffi::{{c_char, c_void}};\n{}\nunsafe extern \"C\" {{\n{}}}\n",
            self.items, self.functions
        )
    }

    fn add(&mut self, item: &Item) {
        match item {
            Item::Struct(item) if is_public(&item.vis) => self.add_struct(item),
            Item::Fn(item) if item.sig.abi.is_some() => self.add_function(item),
            Item::Type(item) if is_public(&item.vis) => {
                let (name, ty) = (&item.ident, item.ty.to_token_stream());
                let _ = writeln!(self.items, "pub type {name} = {ty};");
            }
            Item::Const(item) if is_public(&item.vis) => {
                let (name, ty, value) = (&item.ident, item.ty.to_token_stream(), item.expr.to_token_stream());
                let _ = writeln!(self.items, "pub const {name}: {ty} = {value};");
            }
            _ => {}
        }
    }

    fn add_struct(&mut self, item: &ItemStruct) {
        let name = &item.ident;
        if !name.to_string().starts_with("eplb_") && name != "CUstream_st" {
            return;
        }
        let Fields::Named(fields) = &item.fields else {
            self.opaque.push(name.to_string());
            let _ = writeln!(self.items, "#[repr(C)] pub struct {name} {{ _private: [u8; 0] }}");
            return;
        };
        let fields: String = fields
            .named
            .iter()
            .map(|field| format!("pub {}: {}, ", field.ident.as_ref().unwrap(), field.ty.to_token_stream()))
            .collect();
        let _ = writeln!(self.items, "#[repr(C)] #[derive(Clone, Copy)] pub struct {name} {{ {fields}}}");
    }

    fn add_function(&mut self, item: &ItemFn) {
        let (name, output) = (&item.sig.ident, item.sig.output.to_token_stream());
        let inputs = item.sig.inputs.to_token_stream();
        let _ = writeln!(self.functions, "    pub fn {name}({inputs}) {output};");
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}
