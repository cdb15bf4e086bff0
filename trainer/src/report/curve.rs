//! One diagram as inline SVG: axes with round numbers, one line a series, a legend.
//!
//! Comes in: points (step, value). Goes out: text. It knows nothing of training.

use std::fmt::Write;

/// A line of a diagram.
#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// For the legend.
    pub name: &'a str,
    /// Points by ascending x; values that are not finite leave a gap.
    pub points: Vec<(f64, f64)>,
}

/// Width and height of the drawing in its own units; the page scales it.
const SIZE: (f64, f64) = (640.0, 260.0);
/// Room for the numbers left of and below the axes, and for the legend above.
const MARGIN: Margin = Margin { left: 62.0, right: 12.0, top: 26.0, bottom: 34.0 };
/// More points than the drawing has columns show nothing new: neighbours are averaged down to this many.
const MOST_POINTS: usize = 400;
/// Told apart by people who see red and green alike (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

struct Margin {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// Least and greatest value of an axis, and the distance of its ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    least: f64,
    greatest: f64,
    tick: f64,
}

impl Axis {
    /// An axis with round ends that holds every value, with about `ticks` ticks. `None` when there is no finite value.
    fn around(values: impl Iterator<Item = f64>, ticks: f64) -> Option<Self> {
        let (least, greatest) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), value| (least.min(value), greatest.max(value)));
        if least > greatest {
            return None;
        }
        let span = if greatest > least { greatest - least } else { greatest.abs().max(1.0) * 0.1 };
        let rough = span / ticks;
        let decade = 10_f64.powf(rough.log10().floor());
        // The round steps people expect on an axis: 1, 2, 5 times a power of ten.
        let tick = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * decade).find(|tick| *tick >= rough).unwrap_or(decade * 10.0);
        let low = (least / tick).floor() * tick;
        let high = (greatest / tick).ceil() * tick;
        Some(Self { least: low, greatest: if high > low { high } else { low + tick }, tick })
    }

    fn part(self, value: f64) -> f64 {
        (value - self.least) / (self.greatest - self.least)
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        let count = ((self.greatest - self.least) / self.tick).round() as usize;
        (0..=count).map(move |index| self.least + index as f64 * self.tick)
    }

    fn label(self, value: f64) -> String {
        if value == 0.0 || value.abs() < self.tick * 1e-6 {
            return "0".to_owned();
        }
        if value.abs() < 1e-3 || value.abs() >= 1e6 {
            return format!("{value:.1e}");
        }
        let decimals = (-self.tick.log10().floor()).clamp(0.0, 6.0) as usize;
        format!("{value:.decimals$}")
    }
}

/// Draws the series over each other. Without any finite point it is a sentence that says so.
#[must_use]
pub fn draw(title: &str, series: &[Series<'_>]) -> String {
    let thinned: Vec<Vec<(f64, f64)>> = series.iter().map(|line| thin(&line.points)).collect();
    let points = || thinned.iter().flatten().filter(|(_, value)| value.is_finite());
    let (Some(x), Some(y)) = (Axis::around(points().map(|(x, _)| *x), 8.0), Axis::around(points().map(|(_, y)| *y), 5.0)) else {
        return format!("<figure><figcaption>{}</figcaption><p>no values yet</p></figure>", escape(title));
    };
    let mut svg = format!(
        r#"<figure><figcaption>{}</figcaption><svg viewBox="0 0 {} {}" role="img" aria-label="{}">"#,
        escape(title),
        SIZE.0,
        SIZE.1,
        escape(title)
    );
    draw_axes(&mut svg, x, y);
    for (index, (line, points)) in series.iter().zip(&thinned).enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        draw_line(&mut svg, points, colour, x, y);
        let left = MARGIN.left + 150.0 * index as f64;
        let _ = write!(
            svg,
            r#"<rect x="{left}" y="8" width="14" height="4" fill="{colour}"/><text x="{}" y="14">{}</text>"#,
            left + 20.0,
            escape(line.name)
        );
    }
    svg.push_str("</svg></figure>");
    svg
}

fn place(x: Axis, y: Axis, point: (f64, f64)) -> (f64, f64) {
    (
        MARGIN.left + x.part(point.0) * (SIZE.0 - MARGIN.left - MARGIN.right),
        SIZE.1 - MARGIN.bottom - y.part(point.1) * (SIZE.1 - MARGIN.top - MARGIN.bottom),
    )
}

fn draw_axes(svg: &mut String, x: Axis, y: Axis) {
    for value in y.ticks() {
        let (left, top) = place(x, y, (x.least, value));
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{left:.1}" x2="{:.1}" y1="{top:.1}" y2="{top:.1}"/><text text-anchor="end" x="{:.1}" y="{:.1}">{}</text>"#,
            SIZE.0 - MARGIN.right,
            left - 6.0,
            top + 4.0,
            y.label(value)
        );
    }
    for value in x.ticks() {
        let (left, top) = place(x, y, (value, y.least));
        let _ = write!(svg, r#"<text text-anchor="middle" x="{left:.1}" y="{:.1}">{}</text>"#, top + 18.0, x.label(value));
    }
}

fn draw_line(svg: &mut String, points: &[(f64, f64)], colour: &str, x: Axis, y: Axis) {
    for part in points.split(|(_, value)| !value.is_finite()).filter(|part| !part.is_empty()) {
        if let [point] = part {
            let (left, top) = place(x, y, *point);
            let _ = write!(svg, r#"<circle cx="{left:.1}" cy="{top:.1}" r="2.5" fill="{colour}"/>"#);
            continue;
        }
        let _ = write!(svg, r#"<polyline fill="none" stroke="{colour}" stroke-width="1.6" points=""#);
        for point in part {
            let (left, top) = place(x, y, *point);
            let _ = write!(svg, "{left:.1},{top:.1} ");
        }
        svg.push_str(r#""/>"#);
    }
}

/// At most [`MOST_POINTS`] points, each the mean of neighbours; a value that is not finite makes its mean one.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MOST_POINTS).max(1);
    points
        .chunks(group)
        .map(|group| {
            let count = group.len() as f64;
            (group.iter().map(|point| point.0).sum::<f64>() / count, group.iter().map(|point| point.1).sum::<f64>() / count)
        })
        .collect()
}

/// Text for use between tags and in attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ends_that_hold_every_value() {
        let check = |values: &[f64], expected: Option<(f64, f64, f64)>| {
            let axis = Axis::around(values.iter().copied(), 5.0);
            match (axis, expected) {
                (None, None) => {}
                (Some(axis), Some((least, greatest, tick))) => {
                    for (found, wanted) in [(axis.least, least), (axis.greatest, greatest), (axis.tick, tick)] {
                        assert!((found - wanted).abs() < 1e-9 * wanted.abs().max(1.0), "{values:?}: {axis:?}");
                    }
                }
                (axis, expected) => panic!("{values:?}: {axis:?}, expected {expected:?}"),
            }
        };
        check(&[], None);
        check(&[f64::NAN], None);
        check(&[0.3, 9.7], Some((0.0, 10.0, 2.0)));
        check(&[-1.0, 1.0], Some((-1.0, 1.0, 0.5)));
        check(&[5.0, 5.0], Some((5.0, 5.1, 0.1)));
        check(&[0.0, 0.0], Some((0.0, 0.02, 0.02)));
        check(&[1e-5, 1e-3], Some((0.0, 1e-3, 2e-4)));
    }

    #[test]
    fn a_gap_splits_the_line_and_a_lone_point_is_a_dot() {
        let series = [Series { name: "a<b", points: vec![(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.5)] }];
        let svg = draw("loss & more", &series);
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("a&lt;b") && svg.contains("loss &amp; more") && !svg.contains("NaN"));
    }

    #[test]
    fn many_points_are_averaged_to_a_drawable_number() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|step| (f64::from(step), 3.0)).collect();
        let thinned = thin(&points);
        assert!(thinned.len() <= MOST_POINTS && thinned.len() > MOST_POINTS / 2);
        assert!(thinned.iter().all(|(_, value)| (value - 3.0).abs() < 1e-12));
        assert!((thinned[0].0 - 12.0).abs() < 1e-9, "{:?}", thinned[0]);
    }

    #[test]
    fn nothing_to_draw_is_said() {
        assert!(draw("x", &[]).contains("no values yet"));
    }
}
