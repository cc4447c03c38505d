//! The picture of the first table.

use std::fmt::Write;

use crate::starting::{NUMBERS, Series};
use crate::ways::{OWN_WAYS, SPAWN};

// Where the chart's axes lie.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 430.0;
const COLORS: [&str; 13] = [
    "#777777", "#222222", "#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e6a700", "#ff7f0e",
    "#bcbd22", "#17becf", "#e377c2", "#5a3fb5",
];

/// Time against the number of workers, both logarithmic, as SVG.
pub(crate) fn chart(all: &[Series]) -> anyhow::Result<String> {
    let seconds =
        all.iter().flat_map(|series| series.turns.iter().map(|&(nprocs, _)| series.seconds(nprocs)));
    let (least, most) =
        seconds.fold((f64::MAX, f64::MIN), |(least, most), one| (least.min(one), most.max(one)));
    let (low, high) = (least.log10().floor() as i32, most.log10().ceil() as i32);
    let (first, last) = (NUMBERS[0].0 as f64, NUMBERS[NUMBERS.len() - 1].0 as f64);
    let x = |nprocs: usize| LEFT + (nprocs as f64 / first).ln() / (last / first).ln() * (RIGHT - LEFT);
    let y =
        |seconds: f64| BOTTOM - (seconds.log10() - f64::from(low)) / f64::from(high - low) * (BOTTOM - TOP);
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 780 490\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"780\" height=\"490\" fill=\"white\"/>\n\
         <text x=\"70\" y=\"28\" font-size=\"16\">Starting and joining workers that do nothing</text>\n\
         <text x=\"335\" y=\"475\" text-anchor=\"middle\">workers</text>\n",
    );
    for (nprocs, _) in NUMBERS {
        let x = x(nprocs);
        writeln!(svg, "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#ddd\"/>")?;
        writeln!(svg, "<text x=\"{x:.1}\" y=\"450\" text-anchor=\"middle\">{nprocs}</text>")?;
    }
    for decade in low..=high {
        let (y, label) = (y(10_f64.powi(decade)), decade_label(decade));
        writeln!(svg, "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/>")?;
        writeln!(svg, "<text x=\"62\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", y + 4.0)?;
    }
    let drawn = all.iter().filter(|series| !series.turns.is_empty());
    for ((number, series), color) in drawn.enumerate().zip(COLORS.iter().cycle()) {
        let points = series.turns.iter().map(|&(nprocs, _)| (x(nprocs), y(series.seconds(nprocs))));
        let points: Vec<_> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        // What is not ours is dashed.
        let dashes = if (SPAWN..OWN_WAYS).contains(&number) { "" } else { " stroke-dasharray=\"6 3\"" };
        let line = format!("stroke=\"{color}\" stroke-width=\"2\" fill=\"none\"{dashes}");
        writeln!(svg, "<polyline points=\"{}\" {line}/>", points.join(" "))?;
        let y = TOP + 14.0 + 22.0 * number as f64;
        writeln!(svg, "<path d=\"M615 {y:.1}h26\" {line}/>")?;
        writeln!(svg, "<text x=\"648\" y=\"{:.1}\">{}</text>", y + 4.0, series.name)?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn decade_label(decade: i32) -> String {
    let (unit, power) = match decade {
        ..-3 => ("µs", decade + 6),
        -3..0 => ("ms", decade + 3),
        0.. => ("s", decade),
    };
    format!("{} {unit}", 10_f64.powi(power))
}
