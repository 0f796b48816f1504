//! Loads with fractions, such as averages of counts.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use super::select::one_row;
use super::{CountsFormat, Model, json, npy, sglang};
use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};
use crate::stats::Summary;

/// Loads of a file with fractions, such as averages: exact, finite and not negative.
#[derive(Debug, Clone, PartialEq)]
pub struct Loads {
    summary: Summary,
    /// `[layers][steps][experts]`
    values: Vec<f64>,
}

impl Loads {
    /// Takes `values` in the order `[layers][steps][experts]`, with the sizes of `summary`.
    pub(super) fn new(summary: Summary, values: Vec<f64>) -> Self {
        Loads { summary, values }
    }

    /// The sizes. A row is a step of the file.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The loads `[layers][steps][experts]`, as [`crate::solve::Loads`] takes them with a sample for each step.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The loads of `layer`, `[steps][experts]`. `None` if the file lacks it.
    pub fn layer(&self, layer: u32) -> Option<&[f64]> {
        let index = self.summary.layers.binary_search(&layer).ok()?;
        let len = self.values.len() / self.summary.layers.len();
        Some(&self.values[index * len..][..len])
    }

    /// Loads of `layer` for the solver, `[num_samples][num_experts]`. A sample is the sum of consecutive steps, and samples have
    /// nearly equal lengths. Fails where `num_experts` is not the file's.
    pub fn layer_samples(&self, layer: u32, num_samples: usize, num_experts: usize) -> Result<Vec<f64>> {
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        let steps = self.summary.rows.len() as usize;
        if num_experts != self.summary.num_experts {
            return refuse(format!(
                "num_experts is {num_experts}, the loads have {}",
                self.summary.num_experts
            ));
        }
        if !(1..=steps).contains(&num_samples) {
            return refuse(format!(
                "num_samples is {num_samples}; 1 to {steps}, the number of steps, expected"
            ));
        }
        let Some(loads) = self.layer(layer) else {
            return refuse(format!("layer {layer} is not among the {} layers", self.summary.layers.len()));
        };
        let mut sums = vec![0.0; num_samples * num_experts];
        for (step, loads) in loads.chunks_exact(num_experts).enumerate() {
            let sample = ((step + 1) * num_samples - 1) / steps;
            sums[sample * num_experts..].iter_mut().zip(loads).for_each(|(sum, load)| *sum += load);
        }
        Ok(sums)
    }

    /// The loads of `layers` alone; `None`: all. Fails with [`Error::InvalidArgument`] for a layer that is not there.
    fn of_layers(&self, layers: Option<&[u32]>) -> Result<Cow<'_, Loads>> {
        let Some(layers) = layers else { return Ok(Cow::Borrowed(self)) };
        let layers: Vec<u32> = layers.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if layers == self.summary.layers {
            return Ok(Cow::Borrowed(self));
        }
        let mut values = Vec::new();
        for &layer in &layers {
            let Some(loads) = self.layer(layer) else {
                let message = format!("layer {layer} is not among the {} layers", self.summary.layers.len());
                return Err(Error::InvalidArgument(message));
            };
            values.extend_from_slice(loads);
        }
        Ok(Cow::Owned(Loads { summary: Summary { layers, ..self.summary.clone() }, values }))
    }

    /// The loads summed over the steps.
    pub(super) fn sum_steps(&self) -> Result<Loads> {
        let summary = Summary { rows: one_row(&self.summary.rows)?, ..self.summary.clone() };
        let mut values = Vec::new();
        for &layer in &summary.layers {
            values.extend(self.layer_samples(layer, 1, summary.num_experts)?);
        }
        Ok(Loads { summary, values })
    }

    /// The error where counts are needed. It names the first fraction.
    pub fn not_counts(&self) -> Error {
        let (num_experts, steps) = (self.summary.num_experts, self.summary.rows.len() as usize);
        let at = self.values.iter().position(|load| load.fract() != 0.0).unwrap_or_default();
        let (layer, step, expert) =
            (self.summary.layers[at / num_experts / steps], at / num_experts % steps, at % num_experts);
        Error::InvalidDump(format!(
            "layer {layer}, step {step}, expert {expert}: {} is a fraction, so the file has loads and not counts; solve from them, \
             or write them as {}, {} or {}",
            self.values[at],
            CountsFormat::SglangCount.name(),
            CountsFormat::Lmdeploy.name(),
            CountsFormat::Npy.name()
        ))
    }
}

/// Writes `loads` to a file, which is replaced in one step, with the rows that counts have. Numbers read back exactly. LMDeploy's
/// format has the sums over the steps, rounded to doubles.
///
/// [`CountsFormat::Dump`] is an [`Error::InvalidDump`] that names a fraction.
pub fn write_loads(loads: &Loads, path: &Path, format: CountsFormat, model: &Model) -> Result<()> {
    let loads = &*loads.of_layers(model.layers)?;
    let summary = loads.summary();
    let (num_experts, steps) = (summary.num_experts, summary.rows.len() as usize);
    let rows_of_model = || -> Result<Vec<u32>> { Ok((0..model.num_rows(&summary.layers)? as u32).collect()) };
    match format {
        CountsFormat::Dump => Err(loads.not_counts()),
        CountsFormat::SglangPt => Err(format.read_only()),
        CountsFormat::SglangCount => {
            let rows = rows_of_model()?;
            let shape = [steps, rows.len(), num_experts];
            AtomicFile::create(path)?.replace(|out| {
                write!(out, "{{\"{}\": ", sglang::LOGICAL_COUNT)?;
                json::write_float_lists(out, &shape, &mut cells(loads, &rows))?;
                writeln!(out, "}}")
            })
        }
        CountsFormat::Lmdeploy => {
            let rows = rows_of_model()?;
            let mut totals = Vec::new();
            for &layer in &rows {
                match loads.layer(layer) {
                    Some(_) => totals.extend(loads.layer_samples(layer, 1, num_experts)?),
                    None => totals.resize(totals.len() + num_experts, 0.0),
                }
            }
            AtomicFile::create(path)?.replace(|out| {
                json::write_float_lists(out, &[rows.len(), num_experts], &mut totals.iter().copied())?;
                writeln!(out)
            })
        }
        CountsFormat::Npy => {
            // The planners of vLLM and SGLang take [layers][experts] alone.
            let shape = [steps, summary.layers.len(), num_experts];
            let shape = if steps == 1 { &shape[1..] } else { &shape };
            AtomicFile::create(path)?
                .replace(|out| npy::write_floats(out, shape, &mut cells(loads, &summary.layers)))
        }
    }
}

/// The loads as `[steps][rows][experts]`, with zeros for rows without a layer.
fn cells<'a>(loads: &'a Loads, rows: &'a [u32]) -> impl Iterator<Item = f64> + 'a {
    let num_experts = loads.summary.num_experts;
    let rows: Vec<_> = rows.iter().map(|&layer| loads.layer(layer)).collect();
    (0..loads.summary.rows.len() as usize).flat_map(move |step| {
        let cells = rows.iter().flat_map(|row| {
            (0..num_experts).map(move |expert| row.map_or(0.0, |row| row[step * num_experts + expert]))
        });
        cells.collect::<Vec<_>>()
    })
}
