//! Gives the shared library its SONAME, so that the dynamic linker tells incompatible versions apart.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is_linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if let (true, Ok(major)) = (is_linux, std::env::var("CARGO_PKG_VERSION_MAJOR")) {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libeplb.so.{major}");
    }
}
