//! The plot of a benchmark: how each of its figures grows with the size, all on logarithmic scales, as an SVG. Figures
//! of one unit share a picture, below each other in the order in which they were measured. A cost per unit that
//! does not grow is a flat line.

use std::fmt::Write as _;

use super::Series;

const WIDTH: f64 = 900.0;
/// Room for the numbers beside the axes and for the names of the lines.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 390.0;
/// Room for the title, and around each picture: its unit above, the sizes below.
const TITLE: f64 = 30.0;
const ABOVE: f64 = 28.0;
const BELOW: f64 = 46.0;
/// The least height of a picture, and from one name to the next.
const HEIGHT: f64 = 150.0;
const LINE: f64 = 22.0;
const COLOURS: &[&str] = &["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989"];
/// Lines of one colour are told apart by their dashes.
const DASHES: &[&str] = &["none", "6 4", "2 3", "10 3 2 3"];

/// Powers of ten from the one below the least value to the one above the greatest.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| value.is_finite() && *value > 0.0) {
            (least, most) = (least.min(value), most.max(value));
        }
        let (low, high) = if most > 0.0 { (least.log10().floor(), most.log10().ceil()) } else { (0.0, 1.0) };
        Self { low, high: high.max(low + 1.0), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.max(f64::MIN_POSITIVE).log10() - self.low) / (self.high - self.low);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn powers(&self) -> impl Iterator<Item = f64> + use<> {
        (self.low as i32..=self.high as i32).map(|n| 10_f64.powi(n))
    }
}

/// Draws the lines of `title`, whatever of them can be drawn, over the size, which is counted in `of`.
#[must_use]
pub fn svg(title: &str, of: &str, series: &[Series]) -> String {
    let mut pictures: Vec<Vec<&Series>> = Vec::new();
    for line in series {
        match pictures.iter_mut().find(|lines| lines[0].unit == line.unit) {
            Some(lines) => lines.push(line),
            None => pictures.push(vec![line]),
        }
    }
    let sizes = series.iter().flat_map(|line| line.points.iter()).map(|(size, _)| *size);
    let x = Scale::over(sizes, LEFT, WIDTH - RIGHT);
    let (mut drawn, mut top) = (String::new(), TITLE);
    for lines in &pictures {
        top = picture(&mut drawn, top, &x, of, lines);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{top}\" viewBox=\"0 0 {WIDTH} {top}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n{drawn}</svg>\n"
    )
}

/// Draws lines of one unit below `top`, and answers where they end.
fn picture(svg: &mut String, top: f64, x: &Scale, of: &str, lines: &[&Series]) -> f64 {
    let (first, right) = (top + ABOVE, WIDTH - RIGHT);
    // As high as all names are, one below the other.
    let bottom = first + HEIGHT.max(LINE * lines.len() as f64);
    let values = lines.iter().flat_map(|line| line.points.iter()).map(|(_, value)| *value);
    let y = Scale::over(values, bottom, first);
    let unit = lines.first().map(|line| line.unit).filter(|unit| !unit.is_empty()).unwrap_or("a number");
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{unit}</text>", first - 8.0);
    for power in x.powers() {
        let (at, below) = (x.at(power), bottom + 18.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1} {first}V{bottom}\" stroke=\"#d8dee4\"/><text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
            number(power)
        );
    }
    for power in y.powers() {
        let at = y.at(power);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#d8dee4\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            number(power)
        );
    }
    let (middle, below) = (f64::midpoint(LEFT, right), bottom + 34.0);
    let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{of}</text>");
    for (n, Series { name, points, .. }) in lines.iter().enumerate() {
        let (colour, dashes) = (COLOURS[n % COLOURS.len()], DASHES[n / COLOURS.len() % DASHES.len()]);
        let look = format!("stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"");
        // Nothing has no place on a logarithmic scale, nor has what could not be measured.
        let path = points.iter().filter(|(_, value)| value.is_finite() && *value > 0.0);
        let path: Vec<_> = path.map(|(size, value)| format!("{:.1},{:.1}", x.at(*size), y.at(*value))).collect();
        let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" {look}/>", path.join(" "));
        for point in &path {
            let (cx, cy) = point.split_once(',').unwrap_or_default();
            let _ = writeln!(svg, "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let (label, at) = (right + 18.0, first + 10.0 + LINE * n as f64);
        let _ = writeln!(
            svg,
            "<line x1=\"{label}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\" {look}/><text x=\"{2}\" y=\"{at}\">{name}</text>",
            at - 4.0,
            label + 22.0,
            label + 28.0
        );
    }
    bottom + BELOW
}

/// A power of ten for people.
fn number(power: f64) -> String {
    match power {
        p if p >= 1e6 => format!("{} M", p / 1e6),
        p if p >= 1e3 => format!("{} k", p / 1e3),
        p => format!("{p}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_that_stays_is_a_flat_line_and_every_point_is_in_the_picture() {
        let flat = Series { name: "cost".into(), unit: "ms", points: vec![(10.0, 2.0), (1000.0, 2.0), (1e6, 2.0)] };
        let grows = Series { name: "time".into(), unit: "s", points: vec![(10.0, 0.5), (1e6, 800.0)] };
        let drawn = svg("create", "VMs", &[flat, grows]);
        let lines: Vec<Vec<(f64, f64)>> = drawn
            .lines()
            .filter_map(|line| line.strip_prefix("<polyline points=\"")?.split_once('"'))
            .map(|(points, _)| {
                let point = |text: &str| {
                    let (x, y) = text.split_once(',').unwrap();
                    (x.parse().unwrap(), y.parse().unwrap())
                };
                points.split(' ').map(point).collect()
            })
            .collect();
        assert!(lines.len() == 2 && lines[0].iter().all(|(_, y)| (*y - lines[0][0].1).abs() < 0.01), "{drawn}");
        assert!(lines[1][0].1 > lines[1][1].1, "more is higher up");
        // Each in the picture of its unit, one below the other.
        let inside = |(x, y): &(f64, f64), top: f64| {
            (LEFT..=WIDTH - RIGHT).contains(x) && (top + ABOVE..=top + ABOVE + HEIGHT).contains(y)
        };
        let tops = [TITLE, TITLE + ABOVE + HEIGHT + BELOW];
        assert!(lines.iter().zip(tops).all(|(line, top)| line.iter().all(|point| inside(point, top))), "{drawn}");
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        let points = vec![(10.0, 2.0), (100.0, f64::INFINITY), (1000.0, f64::NAN), (1e4, 0.0)];
        let drawn = svg("create", "VMs", &[Series { name: "times".into(), unit: "", points }]);
        assert_eq!(drawn.matches("<circle").count(), 1, "{drawn}");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        assert!(!svg("x", "y", &[]).contains("polyline") && !svg("x", "y", &[]).contains("NaN"));
    }
}
