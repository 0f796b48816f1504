//! Prometheus' text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.

use std::fmt::{Display, Write};

use crate::error::{Error, Result, shortened};

/// How a metric goes over time.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Up and down.
    Gauge,
    /// Up, and anew from 0 where what it counts begins anew.
    Counter,
}

/// Metrics in the order in which they came, the samples of each together, as the format wants them.
#[derive(Debug, Clone, Default)]
pub(super) struct Exposition {
    metrics: Vec<Metric>,
}

#[derive(Debug, Clone)]
struct Metric {
    name: &'static str,
    /// The two comments that come first, and a line for each sample.
    text: String,
}

impl Exposition {
    /// Adds samples of a metric, each with labels of its own, or none, after `labels`. No samples leave no trace.
    pub fn add<V: Display>(
        &mut self,
        (kind, name, help): (Kind, &'static str, &'static str),
        labels: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        let mut lines = String::new();
        for (own, value) in samples {
            let _ = match (labels, &*own) {
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

/// One label as it stands between the braces.
pub(super) fn label(name: &str, value: impl Display) -> String {
    let value = value.to_string().replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    format!("{name}=\"{value}\"")
}

/// Labels of the host's as they stand between the braces, the same for any order of them. `taken` are names that it must not
/// give.
pub(super) fn host_labels(labels: &[(&str, &str)], taken: &[&str]) -> Result<String> {
    let refuse = |name: &str, why: &str| {
        Err(Error::InvalidArgument(format!("the label \"{}\" {why}", shortened(name))))
    };
    let mut labels = labels.to_vec();
    labels.sort_unstable();
    for (place, &(name, value)) in labels.iter().enumerate() {
        let legal =
            |(at, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit());
        if name.is_empty() || !name.char_indices().all(legal) {
            return refuse(name, "has no name for Prometheus: letters, digits and _, no digit first");
        }
        if name.starts_with("__") {
            return refuse(name, "begins with __, which Prometheus keeps to itself");
        }
        if taken.contains(&name) {
            return refuse(name, "is one that the metrics have of their own");
        }
        if place > 0 && labels[place - 1].0 == name {
            return refuse(name, "is given twice");
        }
        if value.is_empty() {
            return refuse(name, "has no value, which is the same as no label");
        }
    }
    Ok(labels.iter().map(|(name, value)| label(name, value)).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_metric_stand_together_after_its_comments() {
        let mut exposition = Exposition::default();
        let hot = (Kind::Gauge, "hot", "How hot.");
        let done = (Kind::Counter, "done_total", "What is done.");
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
             # HELP done_total What is done.\n\
             # TYPE done_total counter\n\
             done_total{rank=\"0\"} 2\n"
        );
    }

    #[test]
    fn backslashes_quotes_and_line_feeds_are_escaped_and_nothing_else_is() {
        // The format: "label_value can be any sequence of UTF-8 characters, but the backslash (\), double-quote ("), and line
        // feed (\n) characters have to be escaped as \\, \", and \n, respectively."
        let value = "C:\\new \"MoE\"\n\tä{},=";
        assert_eq!(label("model", value), r#"model="C:\\new \"MoE\"\n"#.to_owned() + "\tä{},=\"");
        assert_eq!(host_labels(&[("model", "\\n")], &[]).unwrap(), r#"model="\\n""#);
    }

    #[test]
    fn labels_are_the_same_text_in_any_order() {
        let labels = host_labels(&[("rank", "3"), ("model", "r1")], &["layer"]).unwrap();
        assert_eq!(labels, r#"model="r1",rank="3""#);
        assert_eq!(host_labels(&[("model", "r1"), ("rank", "3")], &["layer"]).unwrap(), labels);
        assert_eq!(host_labels(&[], &[]).unwrap(), "");
    }

    #[test]
    fn labels_that_prometheus_would_not_read_or_would_confuse_are_refused() {
        let refused = |labels: &[(&str, &str)]| host_labels(labels, &["layer"]).unwrap_err().to_string();
        for name in ["", "3", "3d", "a-b", "a b", "a:b", "ä", "a\n", "a\""] {
            let message = refused(&[(name, "x")]);
            assert_eq!(
                message,
                format!(
                    "the label \"{name}\" has no name for Prometheus: letters, digits and _, no digit first"
                )
            );
        }
        assert!(host_labels(&[("_a9", "x"), ("A_", "y")], &["layer"]).is_ok());
        assert!(refused(&[("__name__", "x")]).contains("begins with __"));
        assert!(refused(&[("layer", "x")]).contains("of their own"));
        assert!(refused(&[("a", "x"), ("b", "x"), ("a", "y")]).contains("\"a\" is given twice"));
        assert!(refused(&[("a", "")]).contains("has no value"));
    }
}
