//! Pictures as SVG, for slides and papers.

use plotters::prelude::*;

use super::{Balance, LoadReport, Views};
use crate::error::{Error, Result};

const SIZE: (u32, u32) = (1280, 720);
const BEFORE: RGBColor = RGBColor(0xd9, 0x77, 0x57);
const AFTER: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const INK: RGBColor = RGBColor(0x22, 0x26, 0x2b);
const FAINT: RGBColor = RGBColor(0xe3, 0xe6, 0xea);

/// The imbalance ratio of each layer's ranks: before and, with a placement, after.
pub fn layers(report: &LoadReport) -> Result<String> {
    let mut svg = String::new();
    draw_layers(report, &mut svg).map_err(|e| Error::Internal(format!("drawing: {e}")))?;
    Ok(svg)
}

type View = fn(&Views) -> Option<Balance>;

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw_layers(report: &LoadReport, svg: &mut String) -> Drawn {
    let averages = report.averages(|layer| layer.ranks);
    let percent =
        |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{:.1} %", 100.0 * ratio));
    let before = format!("before, {} on average", percent(averages.before().imbalance_ratio));
    let after =
        averages.projected.map(|average| format!("after, {} on average", percent(average.imbalance_ratio)));
    let series: [(Option<String>, RGBColor, View); 2] =
        [(Some(before), BEFORE, |views| Some(*views.before())), (after, AFTER, |views| views.projected)];
    let series: Vec<_> =
        series.into_iter().filter_map(|(name, color, view)| Some((name?, color, view))).collect();
    let ratio = |view: View, index: usize| {
        view(&report.layers[index].ranks).and_then(|balance| balance.imbalance_ratio)
    };
    let num_layers = report.layers.len();
    let ratios = series.iter().flat_map(|s| (0..num_layers).filter_map(|index| ratio(s.2, index)));
    let top = 105.0 * ratios.fold(0.0, f64::max).max(0.01);

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let font = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let title = format!("What the hottest of {} ranks carries above the mean, by layer", report.num_ranks);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, font(30))
        .margin(24)
        .x_label_area_size(56)
        .y_label_area_size(84)
        .build_cartesian_2d(-0.5..num_layers as f64 - 0.5, 0.0..top)?;
    let layer_name = |x: &f64| {
        let layer = (x.fract() == 0.0).then(|| report.layers.get(*x as usize)).flatten();
        layer.map_or(String::new(), |layer| layer.layer.to_string())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .x_labels(num_layers.min(30))
        .x_label_formatter(&layer_name)
        .y_label_formatter(&|y| format!("{y:.0} %"))
        .x_desc("layer")
        .label_style(font(18))
        .axis_desc_style(font(20))
        .draw()?;
    let width = 0.8 / series.len() as f64;
    for (place, (name, color, view)) in series.iter().enumerate() {
        let bars = (0..num_layers).filter_map(|index| {
            let left = index as f64 - 0.4 + place as f64 * width;
            let height = 100.0 * ratio(*view, index)?;
            Some(Rectangle::new([(left, 0.0), (left + width, height)], color.filled()))
        });
        let color = *color;
        chart
            .draw_series(bars)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 8), (x + 18, y + 8)], color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.9))
        .border_style(FAINT)
        .label_font(font(20))
        .draw()?;
    root.present()?;
    Ok(())
}
