//! Plots as SVG, by hand: bars side by side for each case.

use std::fmt::Write as _;

use crate::run::Row;

const COLOURS: [&str; 6] = ["#1f6f8b", "#d1495b", "#edae49", "#66a182", "#8d96a3", "#2e4057"];
const BAR: f64 = 16.0;
const ROW_GAP: f64 = 12.0;
const LEFT: f64 = 230.0;
const WIDTH: f64 = 900.0;

/// Bars of `value` for each row, grouped by case.
pub fn bars<'a>(
    title: &str,
    unit: &str,
    groups: impl Iterator<Item = &'a [Row]>,
    value: fn(&Row) -> f64,
) -> String {
    let groups: Vec<Group<'_>> = groups
        .map(|rows| Group {
            name: rows.first().map_or(String::new(), |row| row.case.name()),
            bars: rows.iter().map(|row| (row.target, value(row))).collect(),
        })
        .collect();
    grouped(title, unit, &groups)
}

/// Bars that stand together: those of a case, say.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// What they have in common.
    pub name: String,
    /// Name and length of each; bars of one name have one colour in all groups.
    pub bars: Vec<(&'a str, f64)>,
}

/// Bars in groups; the longest of each group fills the width.
pub fn grouped(title: &str, unit: &str, groups: &[Group<'_>]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in groups.iter().flat_map(|group| &group.bars) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let bars: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = 70.0 + bars as f64 * BAR + groups.len() as f64 * ROW_GAP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" font-size=\"14\">{title} ({unit})</text>\n"
    );
    for (n, name) in names.iter().enumerate() {
        let x = 10.0 + n as f64 * 140.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"30\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"39\">{name}</text>",
            COLOURS[n % COLOURS.len()],
            x + 14.0
        );
    }
    let mut y = 58.0;
    for group in groups {
        let most = group.bars.iter().map(|bar| bar.1).fold(1e-9, f64::max);
        let _ = writeln!(svg, "<text x=\"10\" y=\"{}\">{}</text>", y + 11.0, group.name);
        for (name, value) in &group.bars {
            let colour = names.iter().position(|known| known == name).unwrap_or(0) % COLOURS.len();
            let length = value / most * (WIDTH - LEFT - 80.0);
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/><text x=\"{:.0}\" y=\"{:.0}\">{}</text>",
                BAR - 3.0,
                COLOURS[colour],
                LEFT + length + 4.0,
                y + 10.0,
                number(*value)
            );
            y += BAR;
        }
        y += ROW_GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Points joined by lines, one line for each series of (x, y); x in logarithmic steps.
pub fn lines(title: &str, x_name: &str, y_name: &str, series: &[(String, Vec<(f64, f64)>)]) -> String {
    let (width, height, left, bottom) = (700.0, 360.0, 70.0, 50.0);
    let points = || series.iter().flat_map(|(_, points)| points);
    let x_min = points().map(|p| p.0).fold(f64::INFINITY, f64::min).max(1.0).log2();
    let x_max = points().map(|p| p.0).fold(1.0, f64::max).log2().max(x_min + 1.0);
    let y_max = points().map(|p| p.1).fold(1e-9, f64::max) * 1.1;
    let x = |v: f64| left + (v.max(1.0).log2() - x_min) / (x_max - x_min) * (width - left - 160.0);
    let y = |v: f64| height - bottom - v / y_max * (height - bottom - 50.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" font-size=\"14\">{title}</text>\n\
         <text x=\"{left}\" y=\"{}\">{x_name}</text>\n<text x=\"10\" y=\"40\">{y_name}</text>\n\
         <path d=\"M{left} 45V{b}H{}\" stroke=\"black\" fill=\"none\"/>\n",
        height - 10.0,
        width - 150.0,
        b = height - bottom,
    );
    for tick in 0..=4 {
        let value = y_max * f64::from(tick) / 4.0;
        let _ = writeln!(svg, "<text x=\"5\" y=\"{:.0}\">{}</text>", y(value) + 4.0, number(value));
    }
    let mut marked: Vec<f64> = points().map(|p| p.0).collect();
    marked.sort_by(f64::total_cmp);
    marked.dedup();
    for value in marked {
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{}\">{}</text>",
            x(value) - 8.0,
            height - bottom + 14.0,
            number(value)
        );
    }
    for (n, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let path: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            width - 140.0,
            60 + n * 16
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
