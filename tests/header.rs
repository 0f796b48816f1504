//! `include/eplb.h` is generated from the C boundary. `EPLB_WRITE_HEADER=1 cargo test --test header` writes it anew.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

/// The sections of the header, in the order in which an engine developer meets them, and the files of src/ffi for each.
const SECTIONS: [(&str, &[&str]); 10] = [
    ("Library: versions, statuses, messages, log", &["status", "library"]),
    ("Devices and streams", &["device"]),
    ("Recorder: counting routed experts (step 1)", &["recorder"]),
    ("Statistics: what was counted (step 1 leaves it, step 2 reads it)", &["stats"]),
    ("Placement: which expert each slot holds", &["placement"]),
    ("Solving: loads to placement", &["solve"]),
    ("Generating: a dump directory to a configuration file (step 2 as a whole)", &["generate"]),
    ("Exchange: counts and placements in files of other systems", &["exchange"]),
    ("Dispatch: expert ids to slot ids (step 3)", &["dispatch"]),
    ("Metrics: what recorders, placements and dispatches tell of themselves, for Prometheus", &["metrics"]),
];

const START: &str = r#"/** \file
 * eplb: expert parallelism load balancer for mixture-of-experts inference.
 *
 * Generated from src/ffi by `make header`; do not edit.
 *
 * In three steps: count which experts the router chooses and dump the counts (collect), turn the dump into a
 * configuration file that says which expert each slot holds (generate), load that file and route by it (run).
 *
 * API conventions
 *
 * Status      Every call that can fail returns an eplb_status. eplb_last_error_message() then says, for the calling
 *             thread, what went wrong, where, and what to do. Results are written only on success.
 * Handles     eplb_<object> is opaque. A handle comes from _create, _load or eplb_solve() and goes back once, by its
 *             _destroy, which takes NULL. What a handle lends lives until it is destroyed.
 * Threads     Calls on a const handle may run on several threads at once, and so may calls without a handle; calls on
 *             another handle are yours to serialise, unless its documentation says that they take turns. Threads that a
 *             call starts have ended when it returns, but for a recorder's, which ends with it.
 * Streams     are yours, the last argument, and order the work on a CUDA device; NULL is the legacy default stream, and a
 *             program built with per-thread default streams passes cudaStreamPerThread for its own. Your thread's
 *             current context is left as found. Calls marked "hot" allocate nothing, wait for nothing, read nothing back, and
 *             are legal while a CUDA graph captures the stream. On EPLB_DEVICE_HOST the same calls work on host memory, at
 *             once, and the stream means nothing. No CUDA header is needed, and CUDA's may be included too.
 * Pointers    are yours and are used only until the call returns, unless it says otherwise. NULL where a value is
 *             needed, a number out of range and an unknown constant are errors, never crashes.
 * Structs     that begin with struct_size are initialised with their _INIT, so that a program and a library of
 *             different minor versions fit together: fields are only ever appended, and zero is their default.
 * Names       Expert, slot, rank, layer as everywhere in the field. Ranks are those of the expert-parallel group. Layers
 *             are listed by the model's own numbers. S slots are split evenly over R ranks: rank r owns the slots
 *             r * S/R .. (r + 1) * S/R.
 * Strings     are UTF-8 and end in NUL.
 * State       There is none outside handles, but for the log callback and each thread's last error message. No panic
 *             or exception leaves the library, and no call ends the process: memory for what a file or an argument asks
 *             for is a status when it cannot be had. Only where the system refuses even small allocations, Rust ends it.
 */
#ifndef EPLB_H
#define EPLB_H

#include <stddef.h>
#include <stdint.h>

/** CUDA's stream: cudaStream_t and CUstream are pointers to it. */
struct CUstream_st;

#ifndef EPLB_API
#if defined(__GNUC__)
#define EPLB_API __attribute__((visibility("default")))
#else
#define EPLB_API
#endif
#endif

"#;

const END: &str = "\n#endif /* EPLB_H */\n";

fn generate() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut header = START.to_owned();
    for (title, files) in SECTIONS {
        let builder = cbindgen::Builder::new().with_config(config.clone());
        let with_file = |builder: cbindgen::Builder, file: &&str| {
            builder.with_src(root.join(format!("src/ffi/{file}.rs")))
        };
        let bindings = files.iter().fold(builder, with_file).generate().unwrap();
        let mut section = Vec::new();
        bindings.write(&mut section);
        let rule = "-".repeat(100);
        let _ = write!(header, "\n/* {rule}\n * {title}\n * {rule} */\n\n");
        header += &readable(String::from_utf8(section).unwrap().trim());
    }
    header + END
}

/// What cbindgen writes, as a person would: typedefs used, one-line comments on one line, and behind each struct that
/// begins with `struct_size` its `_INIT`, which names every field, as -Wextra wants it.
fn readable(section: &str) -> String {
    let mut text = String::new();
    let mut fields: Option<Vec<&str>> = None;
    let mut lines = section.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() == "/**" {
            let first = lines.next().unwrap();
            match lines.next_if(|next| next.trim() == "*/") {
                Some(_) => _ = writeln!(text, "{}", first.replacen(" * ", "/** ", 1) + " */"),
                None => _ = writeln!(text, "{line}\n{first}"),
            }
        } else if line.starts_with("typedef struct eplb_") {
            let _ = writeln!(text, "{line}");
            fields = line.ends_with('{').then(Vec::new);
        } else if let Some(name) = line.strip_prefix("} ").and_then(|rest| rest.strip_suffix(';')) {
            let _ = writeln!(text, "{line}");
            if let Some([first, rest @ ..]) = fields.take().as_deref()
                && first.ends_with(" struct_size;")
            {
                let zeros: String = rest.iter().map(|field| format!(", {}", zero_of(field))).collect();
                let init = name.to_uppercase() + "_INIT";
                let _ = writeln!(text, "/** An {name} with every default. */");
                let _ = writeln!(text, "#define {init} {{ sizeof({name}){zeros} }}");
            }
        } else {
            if let Some(fields) = fields.as_mut().filter(|_| !line.trim_start().starts_with('*')) {
                fields.push(line);
            }
            let line = line.replace("struct eplb_", "eplb_").replace("EPLB_API ", "EPLB_API\n");
            let line = line.replace(" CUstream_st *", " struct CUstream_st *");
            let line = negative_in_parentheses(line);
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// A macro that is a negative number, so that it can stand in any expression.
fn negative_in_parentheses(line: String) -> String {
    match line.strip_prefix("#define ").and_then(|rest| rest.split_once(" -")) {
        Some((name, digits)) => format!("#define {name} (-{digits})"),
        None => line,
    }
}

fn zero_of(field: &str) -> &'static str {
    let (kind, name) = field.trim().rsplit_once(' ').unwrap();
    match name {
        "device;" => "EPLB_DEVICE_HOST",
        _ if name.starts_with('*') || kind.ends_with("_callback") => "NULL",
        _ if name.ends_with("];") => "{ 0 }",
        _ => "0",
    }
}

#[test]
fn the_checked_in_header_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/eplb.h");
    let generated = generate();
    if env::var_os("EPLB_WRITE_HEADER").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == generated,
        "include/eplb.h is not fresh: run `make header` and look at the difference"
    );
}
