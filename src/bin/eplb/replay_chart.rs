//! The chart of a replay in SVG: the balance over time, and the moves of live plans below it.

use eplb::report::{Replayed, Strategy};
use eplb::solve::Policy;
use eplb::{Error, Result};
use plotters::prelude::*;

use crate::chart::{AFTER, BEFORE, DrawResult, FAINT, INK, SIZE};

/// Draws the balancedness of each iteration by strategy, where each recording begins, and the moves of each live plan.
pub fn draw(replayed: &[Replayed], recordings: &[(String, usize)], window: usize) -> Result<String> {
    let mut svg = String::new();
    draw_over_time(replayed, recordings, window, &mut svg)
        .map_err(|e| Error::Internal(format!("drawing: {e}")))?;
    Ok(svg)
}

fn draw_over_time(
    replayed: &[Replayed],
    recordings: &[(String, usize)],
    window: usize,
    svg: &mut String,
) -> DrawResult {
    let num_measured = replayed.first().map_or(0, |of| of.iterations.len());
    let right = (window + num_measured) as f64;
    let lowest = replayed.iter().flat_map(|of| of.iterations.iter().flatten()).copied().fold(1.0, f64::min);
    let bottom = (lowest * 20.0).floor() / 20.0;
    let live = replayed.iter().find(|of| of.strategy == Strategy::Live);
    let most =
        live.iter().flat_map(|of| &of.plans).map(|plan| plan.num_moves).max().unwrap_or(0).max(1) as f64;

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 * 3 / 4);
    let font = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&upper)
        .caption("Balance of the ranks over time: mean / max, 1 is even", font(30))
        .margin(24)
        .margin_bottom(4)
        .x_label_area_size(24)
        .y_label_area_size(84)
        .build_cartesian_2d(0.0..right, bottom..1.0)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .label_style(font(18))
        .draw()?;
    for (name, first) in recordings {
        let at = *first as f64;
        let line = [(at, bottom), (at, 1.0)];
        chart.draw_series(DashedLineSeries::new(line, 4, 4, INK.mix(0.5).stroke_width(1)))?;
        let text = Text::new(name.clone(), (at + right / 200.0, bottom + (1.0 - bottom) / 14.0), font(16));
        chart.draw_series(std::iter::once(text))?;
    }
    for of in replayed {
        let color = color(of.strategy);
        let width = if of.strategy == Strategy::Live { 4 } else { 2 };
        let points: Vec<(f64, f64)> = (window..)
            .zip(&of.iterations)
            .filter_map(|(index, value)| Some((index as f64 + 0.5, (*value)?)))
            .collect();
        let mean = of.balancedness.map_or("-".to_owned(), |mean| format!("{mean:.3}"));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(width)))?
            .label(format!("{}, {mean} on average", of.strategy))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(width)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.9))
        .border_style(FAINT)
        .label_font(font(18))
        .draw()?;

    let mut moves = ChartBuilder::on(&lower)
        .margin(24)
        .margin_top(0)
        .x_label_area_size(56)
        .y_label_area_size(84)
        .build_cartesian_2d(0.0..right, 0.0..1.05 * most)?;
    moves
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .y_labels(4)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_desc("iteration")
        .y_desc("moves of live plans")
        .label_style(font(18))
        .axis_desc_style(font(20))
        .draw()?;
    let bar = right / 400.0;
    let bars = live.into_iter().flat_map(|of| &of.plans).map(|plan| {
        let at = plan.index as f64;
        Rectangle::new([(at - bar, 0.0), (at + bar, plan.num_moves as f64)], AFTER.filled())
    });
    moves.draw_series(bars)?;
    root.present()?;
    Ok(())
}

/// The colour of a strategy: the page's.
fn color(strategy: Strategy) -> RGBColor {
    match strategy {
        Strategy::Never => RGBColor(0x65, 0x6b, 0x73),
        Strategy::Fresh(Policy::Search) => RGBColor(0x2f, 0x7d, 0x4f),
        Strategy::Fresh(_) => BEFORE,
        Strategy::Live => AFTER,
        Strategy::Oracle => RGBColor(0x7a, 0x4f, 0xa3),
    }
}
