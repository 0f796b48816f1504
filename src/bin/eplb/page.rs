//! The load report and the replay, each as one self-contained HTML page.

use eplb::Result;
use eplb::report::Document;
use serde_json::Value;

const TEMPLATE: &str = include_str!("page/page.html");

/// Formats the page of a report. It embeds the JSON of [`Document::to_json`] with `per_expert`, from which its script draws all
/// figures.
pub fn html(document: &Document<'_>) -> Result<String> {
    let footer = include_str!("page/report_footer.html");
    Ok(fill("load report", &document.to_json(true)?, include_str!("page/page.js"), footer))
}

/// Formats the page of a replay, from the JSON of `eplb replay --json`.
pub fn replay(document: &Value) -> Result<String> {
    let footer = include_str!("page/replay_footer.html");
    Ok(fill("replay", &document.to_string(), include_str!("page/replay.js"), footer))
}

/// Fills in the template. The page loads nothing: its content security policy forbids it.
fn fill(name: &str, data: &str, script: &str, footer: &str) -> String {
    // Escaped, so that no "</script>" in the data ends its element.
    let data = data.replace('<', "\\u003c");
    let mut html = String::with_capacity(TEMPLATE.len() + data.len() + (64 << 10));
    // Split once, so that placeholders in inserted text are not replaced.
    for piece in TEMPLATE.split("@@") {
        html.push_str(match piece {
            "style" => include_str!("page/page.css"),
            "data" => &data,
            "marks" => include_str!("page/marks.js"),
            "script" => script,
            "footer" => footer,
            "name" => name,
            text => text,
        });
    }
    html
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use eplb::placement::{Placement, Shape};
    use eplb::report::{LoadReport, Recording};
    use eplb::stats::{Counts, Dump, IdKind, IterationRange, LoadOptions, RankDump, Rows};

    use super::*;

    #[test]
    fn page_embeds_the_json_in_less_than_a_megabyte() {
        // 58 layers x 256 experts x 100 iterations on 72 ranks.
        let layers: Vec<u32> = (3..61).collect();
        let mut state = 1u64;
        let mut count = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 54) * (state >> 54) / 64
        };
        let counts: Vec<u64> = (0..100 * 58 * 256).map(|_| count()).collect();
        let (directory, iterations) = (tempfile::tempdir().unwrap(), IterationRange { start: 0, stop: 100 });
        let dump = RankDump {
            rank: 0,
            num_ranks: 1,
            file: None,
            rows: Rows::default(),
            num_experts: 256,
            experts_per_token: 1,
            id_kind: IdKind::Expert,
            iterations,
            held: iterations,
            layers: &layers,
            counts: Counts::U64(&counts),
            run_id: None,
        };
        dump.write(directory.path()).unwrap();
        let dump = Dump::open(directory.path(), &LoadOptions::default()).unwrap();
        let stats = dump.read(&mut |_, _| Ok(())).unwrap();
        let experts: Vec<u32> =
            (0..58u32).flat_map(|layer| (0..288).map(move |slot| (slot * 7 + layer) % 256)).collect();
        let placement = Placement::new(Shape::new(256, 288, 72).unwrap(), &layers, &experts).unwrap();
        let recording = Recording::new(&stats, Some(&placement)).unwrap();
        let report = LoadReport::new(&recording, None, 0).unwrap();
        let document = Document {
            report: &report,
            dump: Path::new("a </script> b"),
            num_layers: None,
            placement: Some((Path::new("config.yaml"), &placement)),
            against: None,
        };
        let page = html(&document).unwrap();
        assert!(page.len() < 1_000_000, "{}", page.len());

        let data = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap().1;
        let data = data.split_once("</script>").unwrap().0;
        let embedded: Value = serde_json::from_str(data).unwrap();
        let json: Value = serde_json::from_str(&document.to_json(true).unwrap()).unwrap();
        assert_eq!(embedded, json);
        assert_eq!(json["dump"]["path"], "a </script> b");
        let layer = &report.layers[57];
        assert_eq!(
            json["projected"]["60"]["imbalance_ratio"],
            layer.ranks.projected.unwrap().imbalance_ratio.unwrap()
        );
        assert_eq!(json["per_expert"]["tokens"]["60"][255], layer.tokens[255]);
        // The page refers to nothing that a browser would fetch.
        for reference in ["http://", "https://", "src=", "url(", "@import", "fetch("] {
            assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(reference), "{reference}");
        }
    }
}
