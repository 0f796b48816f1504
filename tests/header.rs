//! The headers are generated from the C boundary. `EPLB_WRITE_HEADER=1 cargo test --test header` writes them.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

/// A header: its name, the text before its declarations, and its sections.
struct Header {
    name: &'static str,
    start: &'static str,
    sections: &'static [Section],
}

struct Section {
    title: &'static str,
    /// Files of src/ffi.
    files: &'static [&'static str],
    /// A program that shows the calls; scripts/check_header.sh compiles and runs it.
    sample: Option<&'static str>,
}

const HEADERS: [Header; 3] = [
    Header {
        name: "eplb.h",
        start: include_str!("header/eplb.h.in"),
        sections: &[
            Section {
                title: "Library: statuses, versions, messages, log",
                files: &["status", "library"],
                sample: None,
            },
            Section { title: "Devices, streams and ids", files: &["device"], sample: None },
            Section {
                title: "Recorder: counts routed experts (step 1, collect)",
                files: &["recorder_config", "recorder", "recorder_info"],
                sample: Some(include_str!("header/collect.c")),
            },
            Section {
                title: "Placement: which expert each slot holds (step 3, run)",
                files: &["placement"],
                sample: None,
            },
            Section {
                title: "Dispatch: routes expert ids to slot ids (step 3, run)",
                files: &["dispatch"],
                sample: Some(include_str!("header/run.c")),
            },
        ],
    },
    Header {
        name: "eplb_tools.h",
        start: include_str!("header/eplb_tools.h.in"),
        sections: &[
            Section { title: "Statistics: counts of a dump or of arrays", files: &["stats"], sample: None },
            Section { title: "Solving: loads to placement", files: &["solve"], sample: None },
            Section {
                title: "Generating: a dump to a configuration file (step 2)",
                files: &["generate"],
                sample: Some(include_str!("header/generate.c")),
            },
            Section {
                title: "Evaluation: how evenly a placement loads the ranks",
                files: &["evaluation"],
                sample: None,
            },
            Section { title: "Exchange: files of other systems", files: &["exchange"], sample: None },
            Section { title: "Metrics, for Prometheus", files: &["metrics"], sample: None },
        ],
    },
    Header {
        name: "eplb_live.h",
        start: include_str!("header/eplb_live.h.in"),
        sections: &[
            Section {
                title: "Counts: what was counted since the last snapshot",
                files: &["live_recorder"],
                sample: None,
            },
            Section {
                title: "Plans: which experts move between which slots",
                files: &["plan"],
                sample: None,
            },
            Section {
                title: "Rebalancer: observed loads to plans",
                files: &["rebalancer"],
                sample: Some(include_str!("header/live.c")),
            },
            Section {
                title: "Tables: change at the same addresses, in stream order",
                files: &["live_dispatch"],
                sample: None,
            },
            Section { title: "Metrics, for Prometheus", files: &["live_metrics"], sample: None },
        ],
    },
];

/// Columns of the headers.
const WIDTH: usize = 110;

impl Header {
    fn generate(&self) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
        let mut header = self
            .start
            .replace("@MAJOR@", env!("CARGO_PKG_VERSION_MAJOR"))
            .replace("@MINOR@", env!("CARGO_PKG_VERSION_MINOR"))
            .replace("@PATCH@", env!("CARGO_PKG_VERSION_PATCH"));
        header += "#ifdef __cplusplus\nextern \"C\" {\n#endif\n";
        for Section { title, files, sample } in self.sections {
            let builder = cbindgen::Builder::new().with_config(config.clone());
            let add = |builder: cbindgen::Builder, file: &&str| {
                builder.with_src(root.join(format!("src/ffi/{file}.rs")))
            };
            let mut section = Vec::new();
            files.iter().fold(builder, add).generate().unwrap().write(&mut section);
            let rule = "-".repeat(WIDTH - 6);
            let sample = sample.map_or(String::new(), as_comment);
            let _ = write!(header, "\n/* {rule}\n * {title}{sample}\n * {rule} */\n\n");
            header += &readable(&String::from_utf8(section).unwrap());
        }
        header += "\n#ifdef __cplusplus\n} // extern \"C\"\n#endif\n\n#endif\n";
        header
    }
}

/// A sample behind the title of its section.
fn as_comment(sample: &str) -> String {
    let line = |line: &str| format!("\n *   {line}").trim_end().to_owned();
    "\n *".to_owned() + &sample.lines().map(line).collect::<String>()
}

/// One declaration of cbindgen's: the lines of its comment, without their decoration, and of its code.
#[derive(Debug, Clone, Default)]
struct Item {
    comment: Vec<String>,
    code: Vec<String>,
}

/// What cbindgen writes, in the form of the headers: enumerations as a typedef with its constants, comments that are as
/// short as they can be, and an `_INIT` for each struct that begins with `struct_size`.
fn readable(section: &str) -> String {
    let mut items = items(section);
    // An object ends with its destruction, whichever file has it.
    items.sort_by_key(|item| item.code.iter().any(|line| line.contains("_destroy(")));
    let mut text = String::new();
    for (i, item) in items.iter().enumerate() {
        let first = item.code.first().map_or("", String::as_str);
        let blank = if i == 0 { "" } else { "\n" };
        if let Some(name) = enumeration(first) {
            let of_name = |item: &&Item| constant(item, name).is_some();
            let constants: Vec<&Item> = items.iter().filter(of_name).collect();
            text += &format!("{blank}{}{first}\nenum {{\n", comment(&item.comment, ""));
            for item in constants {
                let (constant, value) = constant(item, name).unwrap();
                text += &member(&item.comment, &format!("{constant} = {value},"));
            }
            text += "};\n";
        } else if let Some((macro_name, value)) = define(item) {
            if !items.iter().any(|other| is_constant_of(macro_name, other)) {
                let value = if value.starts_with('-') { format!("({value})") } else { value.to_owned() };
                let code = format!("#define {macro_name} {value}\n");
                text += &format!("{blank}{}{code}", comment(&item.comment, ""));
            }
        } else if first.starts_with("typedef struct") && first.ends_with('{') {
            text += blank;
            text += &structure(item);
        } else {
            let code = item.code.join("\n").replace("struct eplb_", "eplb_");
            let code = code.replace("typedef eplb_", "typedef struct eplb_");
            let code = code.replace(" CUstream_st *", " struct CUstream_st *");
            let code = if code.starts_with("EPLB_API") { prototype(&code) } else { code + "\n" };
            text += &format!("{blank}{}{code}", comment(&item.comment, ""));
        }
    }
    text
}

/// A prototype in as few lines as it takes.
fn prototype(code: &str) -> String {
    let words: Vec<&str> = code.split_whitespace().collect();
    let (name, arguments) =
        words.join(" ").split_once('(').map(|(n, a)| (n.to_owned(), a.to_owned())).unwrap();
    let indent = " ".repeat(4);
    let (mut text, mut column) = (name + "(", 0);
    column += text.len();
    for (i, argument) in arguments.split(", ").enumerate() {
        let last = argument.ends_with(';');
        let argument = if last { argument.to_owned() } else { format!("{argument},") };
        if column + 1 + argument.len() > WIDTH {
            text += &format!("\n{indent}{argument}");
            column = indent.len() + argument.len();
        } else {
            let space = if i == 0 { "" } else { " " };
            text += &format!("{space}{argument}");
            column += space.len() + argument.len();
        }
    }
    text + "\n"
}

/// The name of an enumeration, which src/ffi declares as a type and constants that begin with its name.
fn enumeration(code: &str) -> Option<&str> {
    let name = code.strip_prefix("typedef int32_t ")?.strip_suffix(';')?;
    name.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some(name)
}

fn define(item: &Item) -> Option<(&str, &str)> {
    item.code.first()?.strip_prefix("#define ")?.split_once(' ')
}

/// The name and value of a constant of the enumeration `name`.
fn constant<'a>(item: &'a Item, name: &str) -> Option<(&'a str, &'a str)> {
    define(item).filter(|(constant, _)| constant.starts_with(&format!("{}_", name.to_uppercase())))
}

fn is_constant_of(constant: &str, typedef: &Item) -> bool {
    let first = typedef.code.first().map_or("", String::as_str);
    let name = enumeration(first);
    name.is_some_and(|name| constant.starts_with(&format!("{}_", name.to_uppercase())))
}

/// Splits what cbindgen wrote into its declarations.
fn items(section: &str) -> Vec<Item> {
    let mut items = Vec::new();
    let mut item = Item::default();
    let mut lines = section.lines().peekable();
    while let Some(line) = lines.next() {
        match line {
            "/**" if item.code.is_empty() => item.comment = comment_lines(&mut lines),
            "" if item.code.is_empty() => {}
            _ => {
                item.code.push(line.to_owned());
                let in_struct = item.code[0].ends_with('{') && !line.starts_with('}');
                if !in_struct && (line.ends_with(';') || line.starts_with("#define")) {
                    items.push(std::mem::take(&mut item));
                }
            }
        }
    }
    assert!(item.code.is_empty(), "a declaration without an end: {item:?}");
    items
}

/// The lines of a comment up to its end, without their decoration.
fn comment_lines<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<String> {
    let strip = |line: &str| line.trim().trim_start_matches('*').strip_prefix(' ').unwrap_or("").to_owned();
    lines.take_while(|line| line.trim() != "*/").map(strip).collect()
}

/// A comment before a declaration.
fn comment(lines: &[String], indent: &str) -> String {
    let mut text = format!("{indent}/** ");
    for (i, line) in lines.iter().enumerate() {
        let before = if i == 0 { String::new() } else { format!("\n{indent} * ") };
        text += format!("{before}{line}").trim_end_matches(' ');
    }
    text + " */\n"
}

/// A field or constant with its comment, behind it if both fit in a line.
fn member(lines: &[String], code: &str) -> String {
    let line = format!("  {code} /**< {} */\n", lines.join(" "));
    if lines.len() == 1 && line.len() <= WIDTH + 1 {
        return line;
    }
    format!("{}  {code}\n", comment(lines, "  "))
}

fn structure(item: &Item) -> String {
    let mut text = comment(&item.comment, "") + &item.code[0] + "\n";
    let (mut zeros, mut grows) = (String::new(), false);
    let mut lines = item.code[1..].iter().map(String::as_str);
    let mut field_comment = Vec::new();
    while let Some(line) = lines.next() {
        if line.trim() == "/**" {
            field_comment = comment_lines(&mut lines);
        } else if let Some(name) = line.strip_prefix("} ").and_then(|rest| rest.strip_suffix(';')) {
            let _ = writeln!(text, "{line}");
            if grows {
                let init = format!("#define {}_INIT", name.to_uppercase());
                let values = wrapped(&format!("{{ sizeof({name}){zeros} }}"));
                let _ = writeln!(text, "/** An {name} with every default. */\n{init} \\\n{values}");
            }
        } else {
            let field = line.trim().replace("struct eplb_", "eplb_");
            match field.ends_with(" struct_size;") {
                true => grows = true,
                false => zeros += &format!(", {}", zero_of(&field)),
            }
            text += &member(&field_comment, &field);
        }
    }
    text
}

/// A macro's value, indented and continued where a line would be too long.
fn wrapped(values: &str) -> String {
    let (mut text, mut column) = (String::from(" "), 1);
    for word in values.split(' ') {
        if column + 1 + word.len() > 104 {
            text += " \\\n   ";
            column = 3;
        }
        text += " ";
        text += word;
        column += 1 + word.len();
    }
    text
}

fn zero_of(field: &str) -> &'static str {
    let (kind, name) = field.rsplit_once(' ').unwrap();
    match name {
        "device;" => "EPLB_DEVICE_HOST",
        _ if name.starts_with('*') || kind.ends_with("_callback") => "NULL",
        _ if name.ends_with("];") => "{ 0 }",
        _ => "0",
    }
}

#[test]
fn checked_in_headers_are_those_of_the_code() {
    for header in HEADERS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include").join(header.name);
        let generated = header.generate();
        if env::var_os("EPLB_WRITE_HEADER").is_some() {
            fs::write(&path, &generated).unwrap();
        }
        let checked_in = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            checked_in == generated,
            "include/{} is stale: run `make header` and read the difference",
            header.name
        );
    }
}

#[test]
fn headers_are_short() {
    let texts = HEADERS.map(|header| (header.name, header.generate()));
    for (name, text) in &texts {
        let long = text.lines().find(|line| line.chars().count() > WIDTH);
        assert_eq!(long, None, "{name} has a line of more than {WIDTH} columns");
    }
    let lines = |text: &String| text.lines().count();
    let prototypes = |text: &String| text.lines().filter(|line| line.starts_with("EPLB_API ")).count();
    let all_lines: usize = texts.iter().map(|(_, text)| lines(text)).sum();
    let all_prototypes: usize = texts.iter().map(|(_, text)| prototypes(text)).sum();
    assert!(lines(&texts[0].1) <= 1000, "eplb.h has {} lines", lines(&texts[0].1));
    assert!(
        all_lines <= 26 * all_prototypes,
        "{all_lines} lines for {all_prototypes} functions: {} at most",
        26 * all_prototypes
    );
}
