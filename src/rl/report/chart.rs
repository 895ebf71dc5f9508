//! Curves and intervals as SVG. Each chart shows one thing, so that nothing depends on telling colours apart.

use super::html::{At, Html, number};
use crate::rl::evaluation::Rate;

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 24.0;

/// Points that are drawn one by one; more of them become a band from the least to the greatest of neighbours.
const DRAWN: usize = 300;

/// One quantity over steps.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    /// What it is.
    pub(super) title: &'a str,
    /// What to know about it.
    pub(super) note: &'a str,
    /// Whether it is a share, from 0 to 100 %.
    pub(super) share: bool,
    /// Of training: step and value.
    pub(super) points: Vec<(f64, f64)>,
    /// Of evaluations: step and rate.
    pub(super) marks: Vec<(f64, Rate)>,
}

/// From values to places along an axis.
#[derive(Debug, Clone, Copy)]
struct Scale {
    from: (f64, f64),
    to: (f64, f64),
}

impl Scale {
    fn at(&self, value: f64) -> At {
        let share = (value - self.from.0) / (self.from.1 - self.from.0);
        At(self.to.0 + share * (self.to.1 - self.to.0))
    }
}

/// Draws a chart with its title.
pub(super) fn draw(html: &mut Html, chart: &Chart<'_>) {
    html.element("figure", &[("class", &"chart")], |html| {
        html.element("figcaption", &[], |html| {
            html.leaf("b", &[], chart.title);
            html.leaf("span", &[], chart.note);
        });
        let view = format!("0 0 {WIDTH} {HEIGHT}");
        let said = described(chart);
        html.element("svg", &[("viewBox", &view), ("role", &"img"), ("aria-label", &said)], |svg| {
            svg.leaf("title", &[], &said);
            let (x, y) = scales(chart);
            axes(svg, chart, x, y);
            curve(svg, &chart.points, x, y);
            for (step, rate) in &chart.marks {
                let x = x.at(*step);
                svg.empty(
                    "line",
                    &[
                        ("class", &"whisker"),
                        ("x1", &x),
                        ("x2", &x),
                        ("y1", &y.at(rate.low)),
                        ("y2", &y.at(rate.high)),
                    ],
                );
                svg.empty("circle", &[("class", &"mark"), ("cx", &x), ("cy", &y.at(rate.rate)), ("r", &3.5)]);
            }
        });
    });
}

/// What the chart shows, for those who cannot see it.
fn described(chart: &Chart<'_>) -> String {
    let value = |value: f64| if chart.share { super::html::percent(value) } else { number(value) };
    let ends = match (chart.points.first(), chart.points.last()) {
        (Some(first), Some(last)) => {
            format!("{} at step {}, {} at step {}", value(first.1), first.0, value(last.1), last.0)
        }
        _ => match (chart.marks.first(), chart.marks.last()) {
            (Some(first), Some(last)) => {
                let (a, b) = (value(first.1.rate), value(last.1.rate));
                format!("{a} at step {}, {b} at step {}", first.0, last.0)
            }
            _ => "nothing".to_owned(),
        },
    };
    format!("{}: {ends}", chart.title)
}

fn scales(chart: &Chart<'_>) -> (Scale, Scale) {
    let steps = chart.points.iter().map(|p| p.0).chain(chart.marks.iter().map(|m| m.0));
    let values = chart.points.iter().map(|p| p.1);
    let (first, last) = range(steps);
    let (mut low, mut high) = if chart.share { (0.0, 1.0) } else { range(values) };
    // A quantity that is never negative is seen from 0, unless it hardly varies.
    if low > 0.0 && low < 0.7 * high {
        low = 0.0;
    }
    if high - low <= f64::EPSILON * high.abs().max(low.abs()) {
        (low, high) = (low - 0.5 * low.abs().max(1e-9), high + 0.5 * high.abs().max(1e-9));
    }
    if !chart.share {
        let step = tick_step(low, high);
        (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
    }
    let last = if last > first { last } else { first + 1.0 };
    let x = Scale { from: (first, last), to: (LEFT, WIDTH - RIGHT) };
    (x, Scale { from: (low, high), to: (HEIGHT - BOTTOM, TOP) })
}

/// The least and the greatest; of nothing, 0 and 1.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let wider = |(low, high): (f64, f64), value| (low.min(value), high.max(value));
    values.map(|value| (value, value)).reduce(|range, (value, _)| wider(range, value)).unwrap_or((0.0, 1.0))
}

/// 1, 2 or 5 times a power of ten, so that there are about four of them.
fn tick_step(low: f64, high: f64) -> f64 {
    let rough = (high - low) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0].map(|times| times * power).into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power)
}

fn ticks(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let step = tick_step(low, high);
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(move |n| n as f64 * step)
}

fn axes(svg: &mut Html, chart: &Chart<'_>, x: Scale, y: Scale) {
    let share = |value: f64| format!("{:.0} %", 100.0 * value);
    for value in ticks(y.from.0, y.from.1) {
        let at = y.at(value);
        let kind = if value == 0.0 || value == y.from.0 { "axis" } else { "grid" };
        svg.empty(
            "line",
            &[("class", &kind), ("x1", &At(LEFT)), ("x2", &At(WIDTH - RIGHT)), ("y1", &at), ("y2", &at)],
        );
        let text = if chart.share { share(value) } else { number(value) };
        svg.leaf("text", &[("class", &"y"), ("x", &At(LEFT - 6.0)), ("y", &At(at.0 + 3.5))], text);
    }
    let steps = ticks(x.from.0, x.from.1).filter(|step| step.fract() == 0.0);
    for step in steps {
        let at = x.at(step);
        let end = if at.0 > WIDTH - RIGHT - 12.0 { "x end" } else { "x" };
        svg.leaf("text", &[("class", &end), ("x", &at), ("y", &At(HEIGHT - 8.0))], step);
    }
}

fn curve(svg: &mut Html, points: &[(f64, f64)], x: Scale, y: Scale) {
    if let [(step, value)] = points {
        svg.empty("circle", &[("class", &"dot"), ("cx", &x.at(*step)), ("cy", &y.at(*value)), ("r", &2)]);
    }
    if points.len() <= DRAWN {
        line(svg, "raw", points, x, y);
    } else {
        band(svg, points, x, y);
    }
    line(svg, "mean", &smooth(points), x, y);
}

fn line(svg: &mut Html, class: &str, points: &[(f64, f64)], x: Scale, y: Scale) {
    let places: Vec<String> =
        points.iter().map(|(step, value)| format!("{},{}", x.at(*step), y.at(*value))).collect();
    svg.empty("polyline", &[("class", &class), ("points", &places.join(" "))]);
}

fn band(svg: &mut Html, points: &[(f64, f64)], x: Scale, y: Scale) {
    let buckets: Vec<_> = points.chunks(points.len().div_ceil(DRAWN)).collect();
    let edge = |bucket: &&[(f64, f64)], upper: bool| {
        let (low, high) = range(bucket.iter().map(|p| p.1));
        format!("{},{}", x.at(bucket[0].0), y.at(if upper { high } else { low }))
    };
    let there = buckets.iter().map(|bucket| edge(bucket, true));
    let back = buckets.iter().rev().map(|bucket| edge(bucket, false));
    let places: Vec<String> = there.chain(back).collect();
    svg.empty("polygon", &[("class", &"band"), ("points", &places.join(" "))]);
}

/// The average of a value and its neighbours, about a fifteenth of all; at most [`DRAWN`] of these.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 30;
    let every = points.len().div_ceil(DRAWN).max(1);
    let mean = |at: usize| {
        // The same reach to both sides, so that an end is not dragged towards the middle.
        let reach = reach.min(at).min(points.len() - 1 - at);
        let near = &points[at - reach..=at + reach];
        (points[at].0, near.iter().map(|p| p.1).sum::<f64>() / near.len() as f64)
    };
    (0..points.len()).step_by(every).map(mean).collect()
}

/// Rates with their intervals on one line from 0 to 100 %: what was, hollow, and what is.
pub(super) fn intervals(html: &mut Html, before: Option<Rate>, after: Option<Rate>) {
    let x = Scale { from: (0.0, 1.0), to: (6.0, 154.0) };
    // The numbers stand beside it.
    html.element(
        "svg",
        &[("class", &"interval"), ("viewBox", &"0 0 160 20"), ("aria-hidden", &"true")],
        |svg| {
            svg.empty(
                "line",
                &[("class", &"grid"), ("x1", &x.at(0.0)), ("x2", &x.at(1.0)), ("y1", &10), ("y2", &10)],
            );
            for end in [0.0, 0.5, 1.0].map(|share| x.at(share)) {
                svg.empty("line", &[("class", &"grid"), ("x1", &end), ("x2", &end), ("y1", &7), ("y2", &13)]);
            }
            for (class, y, rate) in [("before", 6.5, before), ("after", 13.5, after)] {
                let Some(rate) = rate else { continue };
                let (low, high, at) = (x.at(rate.low), x.at(rate.high), x.at(rate.rate));
                svg.empty("line", &[("class", &class), ("x1", &low), ("x2", &high), ("y1", &y), ("y2", &y)]);
                svg.empty("circle", &[("class", &class), ("cx", &at), ("cy", &y), ("r", &3)]);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let list = |low, high| ticks(low, high).map(number).collect::<Vec<_>>();
        assert_eq!(list(0.0, 1.0), ["0", "0.5", "1"]);
        assert_eq!(list(0.0, 60.0), ["0", "20", "40", "60"]);
        assert_eq!(list(-0.02, 0.011), ["−0.02", "−0.01", "0", "0.01"]);
        assert_eq!(list(1.0, 7.0), ["2", "4", "6"]);
    }

    #[test]
    fn an_average_keeps_ends_and_straight_lines() {
        let straight: Vec<(f64, f64)> = (0..100).map(|n| (f64::from(n), 2.0 * f64::from(n))).collect();
        let smoothed = smooth(&straight);
        assert_eq!(smoothed.len(), 100);
        for (a, b) in smoothed.iter().zip(&straight) {
            assert!((a.1 - b.1).abs() < 1e-9, "{a:?} {b:?}");
        }
        assert!(smooth(&[]).is_empty());
        let many: Vec<(f64, f64)> = (0..10_000).map(|n| (f64::from(n), f64::from(n % 7))).collect();
        let few = smooth(&many);
        assert!(few.len() <= DRAWN);
        assert!(few[100..200].iter().all(|point| (point.1 - 3.0).abs() < 0.1), "{few:?}");
    }

    #[test]
    fn what_does_not_vary_can_be_drawn() {
        for points in [vec![(1.0, 0.0)], vec![(1.0, 5.0), (2.0, 5.0)], vec![(3.0, -1e-30)], vec![]] {
            let mut html = Html::default();
            draw(&mut html, &Chart { title: "t", note: "", share: false, points, marks: Vec::new() });
            let drawn = html.document();
            assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        }
    }
}
