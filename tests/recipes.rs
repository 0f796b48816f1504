//! The code in docs/recipes.md and docs/live.md is that of cpp_tests/recipes, which is compiled and run. `EPLB_WRITE_RECIPES=1
//! cargo test --test recipes` writes it.

use std::path::Path;
use std::{env, fs};

/// Returns the part of a recipe between the lines "// recipe" and "// end".
fn shown(source: &str) -> String {
    let (_, rest) = source.split_once("\n// recipe\n").expect("a line \"// recipe\"");
    let (shown, _) = rest.split_once("\n// end\n").expect("a line \"// end\"");
    shown.to_owned()
}

/// Puts the code of each recipe after the comment that names its file.
fn with_code(page: &str, read: impl Fn(&str) -> String) -> String {
    let mut pieces = page.split("<!-- ");
    let mut filled = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once(" -->\n").expect("the end of a comment");
        let rest = match rest.strip_prefix("```cpp\n") {
            Some(code) => code.split_once("\n```\n").expect("the end of a block of code").1,
            None => rest,
        };
        filled += &format!("<!-- {name} -->\n```cpp\n{}\n```\n{rest}", shown(&read(name)));
    }
    filled
}

#[test]
fn pages_show_the_code_that_is_compiled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = root.join("cpp_tests/recipes");
    let mut all = String::new();
    for name in ["docs/recipes.md", "docs/live.md"] {
        let page = root.join(name);
        let text = fs::read_to_string(&page).unwrap();
        let filled = with_code(&text, |name| fs::read_to_string(sources.join(name)).unwrap());
        if env::var_os("EPLB_WRITE_RECIPES").is_some() {
            fs::write(&page, &filled).unwrap();
        } else {
            assert!(text == filled, "{name} differs from cpp_tests/recipes: make recipes writes it");
        }
        all += &filled;
    }
    for source in fs::read_dir(&sources).unwrap() {
        let name = source.unwrap().file_name().into_string().unwrap();
        assert!(
            !name.ends_with(".cpp") || all.contains(&format!("<!-- {name} -->")),
            "{name} is neither in docs/recipes.md nor in docs/live.md"
        );
    }
}

#[test]
fn code_replaces_an_older_block() {
    let read = |_: &str| "x\n// recipe\nnew();\n// end\n".to_owned();
    let fresh = with_code("a\n<!-- f.cpp -->\nb\n", read);
    assert_eq!(fresh, "a\n<!-- f.cpp -->\n```cpp\nnew();\n```\nb\n");
    assert_eq!(with_code("a\n<!-- f.cpp -->\n```cpp\nold();\n```\nb\n", read), fresh);
}
