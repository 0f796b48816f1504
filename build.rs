//! Compiles the kernels with nvcc, or takes the prebuilt image where there is no nvcc. Sets the SONAME of the shared library.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is_linux = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if is_linux {
        // The dynamic linker then never loads a library with an incompatible interface.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libeplb.so.{}", abi_version());
    }
    kernels();
}

/// EPLB_ABI_VERSION. A build script cannot use the crate that it builds, so it reads the source.
fn abi_version() -> u32 {
    const SOURCE: &str = "src/ffi/library.rs";
    println!("cargo:rerun-if-changed={SOURCE}");
    let source = fs::read_to_string(SOURCE).expect(SOURCE);
    let value = source.lines().find_map(|line| {
        line.strip_prefix("pub const EPLB_ABI_VERSION: u32 = ")?.strip_suffix(';')?.parse().ok()
    });
    value.unwrap_or_else(|| panic!("{SOURCE} does not define EPLB_ABI_VERSION as a number"))
}

/// Puts `eplb.fatbin` and `eplb.ptx` into OUT_DIR.
fn kernels() {
    for variable in ["EPLB_NVCC", "CUDA_HOME", "PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    match nvcc() {
        Some(nvcc) => compile(&nvcc, &out),
        None => {
            for name in ["eplb.fatbin", "eplb.ptx"] {
                // fs::copy would also copy the permissions of a read-only source tree.
                let image = fs::read(Path::new("kernels/prebuilt").join(name));
                fs::write(out.join(name), image.expect("kernels/prebuilt is part of the source"))
                    .expect(name);
            }
        }
    }
    // The driver takes PTX as a C string.
    let ptx = out.join("eplb.ptx");
    let mut text = fs::read(&ptx).expect("eplb.ptx");
    text.push(0);
    fs::write(&ptx, text).expect("eplb.ptx");
}

/// Finds nvcc: `$EPLB_NVCC` (empty: none), `$CUDA_HOME/bin/nvcc`, or on the PATH.
fn nvcc() -> Option<PathBuf> {
    if let Some(named) = env::var_os("EPLB_NVCC") {
        return (named != OsString::new()).then(|| named.into());
    }
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain(env::split_paths(&path));
    folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

/// Compiles the kernels. A failing nvcc fails the build, since falling back would hide the failure.
fn compile(nvcc: &Path, out: &Path) {
    let compiled = Command::new("kernels/compile.sh").arg(nvcc).arg(out).output();
    let failed = match compiled {
        Ok(output) if output.status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(e) => e.to_string(),
    };
    panic!(
        "kernels/compile.sh {} failed (it needs CUDA 12.8 or newer; EPLB_NVCC= takes the kernels in kernels/prebuilt \
         instead):\n{failed}",
        nvcc.display()
    );
}
