//! Prometheus' text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.

use std::fmt::{Display, Write};

use crate::error::{Error, Result, shortened};

/// The type of a metric.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// May increase and decrease.
    Gauge,
    /// Only increases, or restarts from 0.
    Counter,
}

/// Metrics in the order in which they were added. The samples of each are consecutive, as the format requires.
#[derive(Debug, Clone, Default)]
pub(super) struct Exposition {
    metrics: Vec<Metric>,
}

#[derive(Debug, Clone)]
struct Metric {
    name: &'static str,
    /// The HELP and TYPE comments, and a line for each sample.
    text: String,
}

impl Exposition {
    /// Adds samples of a metric. The labels of a sample follow `labels`; both may be empty. A metric without samples is left out.
    pub fn add<V: Display>(
        &mut self,
        (kind, name, help): (Kind, &'static str, &'static str),
        labels: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        let mut lines = String::new();
        for (sample_labels, value) in samples {
            let _ = match (labels, &*sample_labels) {
                ("", "") => writeln!(lines, "{name} {value}"),
                ("", one) | (one, "") => writeln!(lines, "{name}{{{one}}} {value}"),
                (first, second) => writeln!(lines, "{name}{{{first},{second}}} {value}"),
            };
        }
        match self.metrics.iter_mut().find(|metric| metric.name == name) {
            Some(metric) => metric.text += &lines,
            None if lines.is_empty() => {}
            None => {
                let kind = match kind {
                    Kind::Gauge => "gauge",
                    Kind::Counter => "counter",
                };
                let text = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
                self.metrics.push(Metric { name, text });
            }
        }
    }

    pub fn text(&self) -> String {
        self.metrics.iter().map(|metric| &*metric.text).collect()
    }
}

/// Formats one label, escaped.
pub(super) fn label(name: &str, value: impl Display) -> String {
    let value = value.to_string().replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    format!("{name}=\"{value}\"")
}

/// Formats the caller's labels, sorted by name. Rejects names that Prometheus does not accept, and those in `reserved`.
pub(super) fn caller_labels(labels: &[(&str, &str)], reserved: &[&str]) -> Result<String> {
    let reject = |name: &str, reason: &str| {
        Err(Error::InvalidArgument(format!("label \"{}\": {reason}", shortened(name))))
    };
    let mut labels = labels.to_vec();
    labels.sort_unstable();
    for (index, &(name, value)) in labels.iter().enumerate() {
        let is_legal =
            |(at, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit());
        if name.is_empty() || !name.char_indices().all(is_legal) {
            return reject(name, "a name must have letters, digits and _, and no digit first");
        }
        if name.starts_with("__") {
            return reject(name, "names that begin with __ are reserved for Prometheus");
        }
        if reserved.contains(&name) {
            return reject(name, "the name is reserved for labels of eplb");
        }
        if index > 0 && labels[index - 1].0 == name {
            return reject(name, "the name is given twice");
        }
        if value.is_empty() {
            return reject(name, "the value is empty, which Prometheus takes for no label");
        }
    }
    Ok(labels.iter().map(|(name, value)| label(name, value)).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposition_groups_samples_by_metric() {
        let mut exposition = Exposition::default();
        let hot = (Kind::Gauge, "hot", "How hot.");
        let done = (Kind::Counter, "done_total", "Work done.");
        exposition.add(hot, "", [(String::new(), 1)]);
        exposition.add(done, r#"rank="0""#, [(String::new(), 2)]);
        exposition.add(hot, "", [(label("layer", 3), 4)]);
        exposition.add(hot, r#"rank="1""#, [(label("layer", 3), 5), (label("layer", 4), 6)]);
        exposition.add((Kind::Gauge, "cold", "How cold."), "", [(); 0].map(|()| (String::new(), 7)));
        assert_eq!(
            exposition.text(),
            "# HELP hot How hot.\n\
             # TYPE hot gauge\n\
             hot 1\n\
             hot{layer=\"3\"} 4\n\
             hot{rank=\"1\",layer=\"3\"} 5\n\
             hot{rank=\"1\",layer=\"4\"} 6\n\
             # HELP done_total Work done.\n\
             # TYPE done_total counter\n\
             done_total{rank=\"0\"} 2\n"
        );
    }

    #[test]
    fn label_escapes_backslashes_quotes_and_line_feeds_only() {
        // The format: "label_value can be any sequence of UTF-8 characters, but the backslash (\), double-quote ("), and line
        // feed (\n) characters have to be escaped as \\, \", and \n, respectively."
        let value = "C:\\new \"MoE\"\n\tä{},=";
        assert_eq!(label("model", value), r#"model="C:\\new \"MoE\"\n"#.to_owned() + "\tä{},=\"");
        assert_eq!(caller_labels(&[("model", "\\n")], &[]).unwrap(), r#"model="\\n""#);
    }

    #[test]
    fn caller_labels_are_sorted_by_name() {
        let labels = caller_labels(&[("rank", "3"), ("model", "r1")], &["layer"]).unwrap();
        assert_eq!(labels, r#"model="r1",rank="3""#);
        assert_eq!(caller_labels(&[("model", "r1"), ("rank", "3")], &["layer"]).unwrap(), labels);
        assert_eq!(caller_labels(&[], &[]).unwrap(), "");
    }

    #[test]
    fn caller_labels_reject_illegal_reserved_and_repeated_names() {
        let error = |labels: &[(&str, &str)]| caller_labels(labels, &["layer"]).unwrap_err().to_string();
        for name in ["", "3", "3d", "a-b", "a b", "a:b", "ä", "a\n", "a\""] {
            let message = error(&[(name, "x")]);
            assert_eq!(
                message,
                format!("label \"{name}\": a name must have letters, digits and _, and no digit first")
            );
        }
        assert!(caller_labels(&[("_a9", "x"), ("A_", "y")], &["layer"]).is_ok());
        assert!(error(&[("__name__", "x")]).contains("reserved for Prometheus"));
        assert!(error(&[("layer", "x")]).contains("reserved for labels of eplb"));
        assert!(
            error(&[("a", "x"), ("b", "x"), ("a", "y")]).contains("label \"a\": the name is given twice")
        );
        assert!(error(&[("a", "")]).contains("the value is empty"));
    }
}
