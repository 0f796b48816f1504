//! Gives the shared library its SONAME, so that the dynamic linker tells incompatible versions apart.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libeplb.so.0");
    }
}
