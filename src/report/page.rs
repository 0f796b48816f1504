//! The load report as a page: one file that needs nothing else, with the report's JSON in it.

use super::Document;
use crate::error::Result;

const TEMPLATE: &str = include_str!("page/page.html");

/// The page's HTML. Its script draws every figure from the JSON that [`Document::to_json`] gives with `per_expert`, which the
/// page embeds. It loads nothing, and its content security policy forbids it to.
pub fn html(document: &Document<'_>) -> Result<String> {
    // No "<" in the data can end the element that it is in.
    let data = document.to_json(true)?.replace('<', "\\u003c");
    let mut html = String::with_capacity(TEMPLATE.len() + data.len() + (64 << 10));
    // Piece by piece, so that nothing that is put in is looked through for further places.
    for piece in TEMPLATE.split("@@") {
        html.push_str(match piece {
            "style" => include_str!("page/page.css"),
            "data" => &data,
            "marks" => include_str!("page/marks.js"),
            "script" => include_str!("page/page.js"),
            text => text,
        });
    }
    Ok(html)
}
