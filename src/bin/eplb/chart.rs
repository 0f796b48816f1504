//! Charts in SVG, for slides and papers.

use eplb::report::{AverageBalance, Balance, LoadReport, SweepPoint, Views};
use eplb::{Error, Result};
use plotters::prelude::*;

pub(crate) const SIZE: (u32, u32) = (1280, 720);
pub(crate) const BEFORE: RGBColor = RGBColor(0xd9, 0x77, 0x57);
pub(crate) const AFTER: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
/// Colours of curves, also distinguishable with red-green blindness.
const CURVES: [RGBColor; 6] = [
    AFTER,
    BEFORE,
    RGBColor(0x2f, 0x7d, 0x4f),
    RGBColor(0x7a, 0x4f, 0xa3),
    RGBColor(0xb0, 0x89, 0x1e),
    RGBColor(0x55, 0x5c, 0x66),
];
pub(crate) const INK: RGBColor = RGBColor(0x22, 0x26, 0x2b);
pub(crate) const FAINT: RGBColor = RGBColor(0xe3, 0xe6, 0xea);

/// Draws the imbalance ratio of each layer's ranks without and, if there is a placement, with it.
pub fn layers(report: &LoadReport) -> Result<String> {
    let mut svg = String::new();
    draw_layers(report, &mut svg).map_err(|e| Error::Internal(format!("drawing: {e}")))?;
    Ok(svg)
}

/// Selects a view.
type View = fn(&Views) -> Option<Balance>;

pub(crate) type DrawResult = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw_layers(report: &LoadReport, svg: &mut String) -> DrawResult {
    let averages = report.averages(|layer| layer.ranks);
    let percent =
        |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{:.1} %", 100.0 * ratio));
    let named = |name: &str, average: Option<AverageBalance>| {
        average.map(|average| format!("{name}, {} on average", percent(average.imbalance_ratio)))
    };
    let series: [(Option<String>, RGBColor, View); 2] = [
        (named("before", averages.before), BEFORE, |views| views.before),
        (named("after", averages.projected), AFTER, |views| views.projected),
    ];
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
    let title = format!("Load of the hottest of {} ranks above the mean, by layer", report.num_ranks);
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

/// Draws the imbalance ratio over the number of spare slots, a curve for each number of ranks.
pub fn curves(points: &[SweepPoint]) -> Result<String> {
    let mut svg = String::new();
    draw_curves(points, &mut svg).map_err(|e| Error::Internal(format!("drawing: {e}")))?;
    Ok(svg)
}

fn draw_curves(points: &[SweepPoint], svg: &mut String) -> DrawResult {
    let place = |point: &SweepPoint| {
        let num_experts = point.num_slots - point.extra_slots;
        Some((100.0 * point.extra_slots as f64 / num_experts as f64, 100.0 * point.imbalance_ratio?))
    };
    let known = || points.iter().filter_map(place);
    let right = 1.02 * known().map(|(x, _)| x).fold(1.0, f64::max);
    let top = 1.05 * known().map(|(_, y)| y).fold(1.0, f64::max);
    let mut rank_counts: Vec<usize> = points.iter().map(|point| point.num_ranks).collect();
    rank_counts.sort_unstable();
    rank_counts.dedup();

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let font = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&root)
        .caption("Load of the hottest rank above the mean, by the number of spare slots", font(30))
        .margin(24)
        .x_label_area_size(60)
        .y_label_area_size(84)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .x_label_formatter(&|x| format!("{x:.0} %"))
        .y_label_formatter(&|y| format!("{y:.0} %"))
        .x_desc("spare slots, in % of the experts")
        .label_style(font(18))
        .axis_desc_style(font(20))
        .draw()?;
    for (&num_ranks, &color) in rank_counts.iter().zip(CURVES.iter().cycle()) {
        let curve: Vec<_> =
            points.iter().filter(|point| point.num_ranks == num_ranks).filter_map(place).collect();
        chart
            .draw_series(LineSeries::new(curve.iter().copied(), color.stroke_width(3)))?
            .label(format!("{num_ranks} ranks"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3)));
        chart.draw_series(curve.into_iter().map(|at| Circle::new(at, 5, color.filled())))?;
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
