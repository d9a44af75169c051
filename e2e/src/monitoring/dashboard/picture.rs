//! The dashboard drawn as Grafana lays it out, from what Prometheus answered: as much of a panel's settings as the chart's
//! dashboard uses. It is for the docs, and for a look at the dashboard without a Grafana; it sends no request.

use anyhow::{Context as _, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

use super::{Panel, Variables};
use crate::monitoring::prometheus::{Range, Series};

const WIDTH: u32 = 1600;
const COLUMNS: u32 = 24;
/// Of a grid unit, the gap included.
const UNIT: u32 = 38;
const GAP: u32 = 8;
const MARGIN: u32 = 12;
const HEAD: u32 = 52;

const BACKGROUND: RGBColor = RGBColor(0x11, 0x12, 0x17);
const CARD: RGBColor = RGBColor(0x18, 0x1b, 0x1f);
const GRID: RGBColor = RGBColor(0x2c, 0x30, 0x36);
const TEXT: RGBColor = RGBColor(0xcc, 0xcc, 0xdc);
const FAINT: RGBColor = RGBColor(0x8e, 0x8e, 0x9a);

/// Grafana's names, and in this order its palette.
const COLORS: [(&str, RGBColor); 6] = [
    ("green", RGBColor(0x73, 0xbf, 0x69)),
    ("yellow", RGBColor(0xfa, 0xde, 0x2a)),
    ("blue", RGBColor(0x57, 0x94, 0xf2)),
    ("orange", RGBColor(0xff, 0x98, 0x30)),
    ("red", RGBColor(0xf2, 0x49, 0x5c)),
    ("purple", RGBColor(0xb8, 0x77, 0xd9)),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A panel with what its queries were answered, in their order.
pub(crate) struct Answered {
    /// The panel.
    pub panel: Panel,
    /// An answer a query.
    pub answers: Vec<Vec<Series>>,
}

/// A line or a stack's layer.
struct Curve {
    name: String,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

/// The whole as SVG.
///
/// # Errors
///
/// When a panel has what cannot be drawn.
pub(crate) fn svg(panels: &[Answered], variables: &Variables, range: Range) -> Result<String> {
    let bottom = panels.iter().map(|it| it.panel.at("y") + it.panel.at("h")).max().context("no panels")?;
    let mut text = String::new();
    {
        let size = (WIDTH, HEAD + bottom * UNIT + MARGIN);
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&BACKGROUND)?;
        write(&root, "Pod sandboxes", (16, 16), 22, TEXT)?;
        let chosen = format!(
            "Cluster: All · Namespace: All · Node: All · Pod: {} · {} to {} UTC",
            variables.pod,
            clock(range.from),
            clock(range.to)
        );
        write(&root, &chosen, (200, 20), 15, FAINT)?;
        for answered in panels {
            let (area, size) = place(&root, &answered.panel);
            answered.draw(&area, size, variables, range).with_context(|| answered.panel.title.clone())?;
        }
        root.present()?;
    }
    Ok(text)
}

fn place<'a>(root: &Area<'a>, panel: &Panel) -> (Area<'a>, (u32, u32)) {
    let column = |x: u32| x * (WIDTH - 2 * MARGIN + GAP) / COLUMNS;
    let (left, right) = (column(panel.at("x")), column(panel.at("x") + panel.at("w")));
    let size = (right - left - GAP, panel.at("h") * UNIT - GAP);
    (root.clone().shrink((MARGIN + left, HEAD + panel.at("y") * UNIT), size), size)
}

fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60)
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), size: i32, color: RGBColor) -> Result<()> {
    Ok(area.draw(&Text::new(text.to_owned(), at, ("sans-serif", size).into_font().color(&color)))?)
}

/// About how wide a text comes out.
fn width_of(text: &str, size: i32) -> i32 {
    i32::try_from(text.chars().count()).unwrap_or(0) * size * 11 / 20
}

impl Panel {
    fn at(&self, key: &str) -> u32 {
        self.json["gridPos"][key].as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
    }

    fn defaults(&self) -> &Value {
        &self.json["fieldConfig"]["defaults"]
    }

    fn is_stacked(&self) -> bool {
        self.defaults()["custom"]["stacking"]["mode"] == "normal"
    }

    fn has_bars(&self) -> bool {
        self.defaults()["custom"]["drawStyle"] == "bars"
    }

    /// The color that an override gives to a series of this name.
    fn fixed_color(&self, name: &str) -> Option<RGBColor> {
        let overrides = self.json["fieldConfig"]["overrides"].as_array()?;
        let is_of = |of: &&Value| {
            let options = of["matcher"]["options"].as_str().unwrap_or_default();
            let end = options.strip_prefix('/').and_then(|rest| rest.strip_suffix("$/"));
            end.map_or(options == name, |end| name.ends_with(end))
        };
        let of_name = overrides.iter().find(is_of)?;
        color(of_name["properties"][0]["value"]["fixedColor"].as_str()?)
    }

    /// The color of the highest threshold that the value reaches.
    fn threshold_color(&self, value: f64) -> RGBColor {
        let steps = self.defaults()["thresholds"]["steps"].as_array();
        let mut reached = steps
            .into_iter()
            .flatten()
            .filter(|step| step["value"].as_f64().is_none_or(|from| value >= from));
        reached.next_back().and_then(|step| color(step["color"].as_str()?)).unwrap_or(TEXT)
    }

    /// Whether Grafana asks for a range of time, and not for one moment.
    #[must_use]
    pub fn is_range(&self) -> bool {
        self.json["targets"][0]["range"] == true
    }

    /// What a number of the panel is: the sum of a range, or the last value.
    fn reduced(&self, series: &Series) -> Option<f64> {
        let mut values = series.points.iter().map(|(_, value)| *value);
        if self.json["options"]["reduceOptions"]["calcs"][0] == "sum" {
            Some(values.sum())
        } else {
            values.next_back()
        }
    }

    /// The title of a table's column of this field.
    fn column<'a>(&'a self, field: &'a str) -> &'a str {
        let names = &self.json["transformations"][0]["options"]["renameByName"];
        names[field].as_str().unwrap_or(field)
    }

    /// The range as Grafana would ask for it: a point may stand for a longer time than the others' do.
    #[must_use]
    pub fn range(&self, range: Range) -> Range {
        let minutes = self.json["interval"]
            .as_str()
            .and_then(|interval| interval.strip_suffix('m')?.parse::<u64>().ok());
        Range { step: minutes.map_or(range.step, |minutes| range.step.max(60 * minutes)), ..range }
    }

    /// A mark of the axis. Where there are only whole numbers, none stands between them.
    fn tick(&self, value: f64) -> String {
        let whole = self.defaults()["decimals"] == 0;
        if whole && value.fract() > 0.005 { String::new() } else { self.shown(value) }
    }

    /// A value in the panel's unit.
    fn shown(&self, value: f64) -> String {
        match self.defaults()["unit"].as_str() {
            Some("percentunit") => format!("{:.1}%", value * 100.0),
            Some("s") if value >= 90.0 => format!("{:.0} min", value / 60.0),
            Some("s") => format!("{value:.0} s"),
            Some("ops" | "reqps") if value < 10.0 && value.fract() > 0.005 => format!("{value:.1}/s"),
            Some("ops" | "reqps") => format!("{value:.0}/s"),
            _ if value.fract().abs() < 0.005 => format!("{value:.0}"),
            _ => format!("{value:.1}"),
        }
    }
}

fn color(name: &str) -> Option<RGBColor> {
    COLORS.iter().find(|(known, _)| *known == name).map(|(_, color)| *color)
}

impl Answered {
    fn draw(&self, area: &Area<'_>, size: (u32, u32), variables: &Variables, range: Range) -> Result<()> {
        let title = variables.put_into(&self.panel.title);
        if self.panel.kind == "row" {
            return write(area, &title, (4, 8), 17, TEXT);
        }
        area.fill(&CARD)?;
        write(area, &title, (12, 10), 15, TEXT)?;
        match self.panel.kind.as_str() {
            "stat" => self.draw_stat(area, size),
            "table" => self.draw_table(area, size),
            _ => self.draw_curves(area, size, range),
        }
    }

    fn draw_stat(&self, area: &Area<'_>, size: (u32, u32)) -> Result<()> {
        let value = self.answers.iter().flatten().next().and_then(|series| self.panel.reduced(series));
        let (text, color) = match value {
            None => ("No data".to_owned(), FAINT),
            Some(value) => {
                let mapped = &self.panel.defaults()["mappings"][0]["options"][format!("{value:.0}")];
                match (mapped["text"].as_str(), mapped["color"].as_str().and_then(color)) {
                    (Some(text), Some(color)) => (text.to_owned(), color),
                    _ => (self.panel.shown(value), self.panel.threshold_color(value)),
                }
            }
        };
        let left = (i32::try_from(size.0)? - width_of(&text, 46)) / 2;
        write(area, &text, (left, 54), 46, color)
    }

    fn draw_table(&self, area: &Area<'_>, size: (u32, u32)) -> Result<()> {
        let columns = [("namespace", 12), ("pod", 140), ("node", 330), ("Value", 450)];
        for (field, left) in columns {
            write(area, self.panel.column(field), (left, 40), 13, FAINT)?;
        }
        let mut rows: Vec<_> = self.answers.iter().flatten().collect();
        let value = |series: &Series| series.points.last().map_or(0.0, |(_, value)| *value);
        rows.sort_by(|a, b| value(b).total_cmp(&value(a)));
        let most = rows.first().map_or(1.0, |row| value(row)).max(1.0);
        let room = f64::from(size.0) - 450.0 - 70.0;
        for (index, row) in rows.iter().enumerate() {
            let top = 62 + i32::try_from(index)? * 26;
            for (label, left) in &columns[..3] {
                write(area, row.labels.get(*label).map_or("", String::as_str), (*left, top), 14, TEXT)?;
            }
            let share = value(row) / most;
            #[expect(clippy::cast_possible_truncation, reason = "a number of pixels")]
            let end = 450 + (room * share) as i32;
            let bar = self.panel.fixed_color(self.panel.column("Value")).unwrap_or(TEXT);
            area.draw(&Rectangle::new([(450, top - 1), (end, top + 15)], bar.filled()))?;
            write(area, &self.panel.shown(value(row)), (end + 8, top), 14, bar)?;
        }
        Ok(())
    }

    /// What is drawn, each with its name and color.
    fn curves(&self) -> Vec<Curve> {
        let mut curves = Vec::new();
        for (query, answer) in self.panel.queries.iter().zip(&self.answers) {
            for series in answer {
                let name = series.labels.iter().fold(query.legend.clone(), |legend, (label, value)| {
                    legend.replace(&format!("{{{{{label}}}}}"), value)
                });
                let color = self.panel.fixed_color(&name).unwrap_or(COLORS[curves.len() % COLORS.len()].1);
                curves.push(Curve { name, color, points: series.points.clone() });
            }
        }
        curves
    }

    fn draw_curves(&self, area: &Area<'_>, size: (u32, u32), range: Range) -> Result<()> {
        let mut curves = self.curves();
        // In minutes, so that the axis has its marks at whole ones.
        for (time, _) in curves.iter_mut().flat_map(|curve| &mut curve.points) {
            *time /= 60.0;
        }
        let layers = if self.panel.is_stacked() {
            stack(&curves)
        } else {
            curves.iter().map(|curve| curve.points.clone()).collect()
        };
        let top = layers.iter().flatten().map(|(_, value)| *value).fold(0.0, f64::max).max(1.0) * 1.1;
        let plot = area.clone().shrink((0, 34), (size.0, size.1 - 34 - 28));
        #[expect(clippy::cast_precision_loss, reason = "seconds since the epoch")]
        let [from, to, step] =
            [range.from, range.to, self.panel.range(range).step].map(|it| it as f64 / 60.0);
        let mut chart = ChartBuilder::on(&plot)
            .margin_right(16)
            .x_label_area_size(22)
            .y_label_area_size(52)
            .build_cartesian_2d(from..to, 0.0..top)?;
        #[expect(
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation,
            reason = "seconds since the epoch"
        )]
        let time = |minutes: &f64| clock((*minutes * 60.0).round() as u64);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(CARD)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .x_labels(6)
            .y_labels(5)
            .label_style(("sans-serif", 12).into_font().color(&FAINT))
            .x_label_formatter(&time)
            .y_label_formatter(&|value| self.panel.tick(*value))
            .draw()?;
        // The highest first, so that each layer lies over the ones above it.
        for (curve, points) in curves.iter().zip(&layers).rev() {
            if self.panel.has_bars() {
                let bar = |(time, value): &(f64, f64)| {
                    Rectangle::new(
                        [(time - step * 0.45, 0.0), (time + step * 0.45, *value)],
                        curve.color.filled(),
                    )
                };
                chart.draw_series(points.iter().filter(|(_, value)| *value > 0.0).map(bar))?;
                continue;
            }
            for part in without_gaps(points, step) {
                if self.panel.is_stacked() {
                    chart.draw_series([Polygon::new(closed(part), blend(curve.color).filled())])?;
                }
                chart.draw_series(LineSeries::new(part.iter().copied(), curve.color.stroke_width(2)))?;
            }
        }
        let mut left = 16;
        let legend_top = i32::try_from(size.1)? - 22;
        for Curve { name, color, .. } in &curves {
            area.draw(&Rectangle::new(
                [(left, legend_top + 5), (left + 14, legend_top + 9)],
                color.filled(),
            ))?;
            write(area, name, (left + 20, legend_top), 13, TEXT)?;
            left += 44 + width_of(name, 13);
        }
        Ok(())
    }
}

/// Each curve lifted by those before it, at the times that it has.
fn stack(curves: &[Curve]) -> Vec<Vec<(f64, f64)>> {
    let below = |index: usize, time: f64| -> f64 {
        let at = |curve: &Curve| {
            curve.points.iter().find(|(at, _)| (at - time).abs() < 0.001).map_or(0.0, |(_, value)| *value)
        };
        curves[..index].iter().map(at).sum()
    };
    let lifted = |(index, curve): (usize, &Curve)| {
        curve.points.iter().map(|(time, value)| (*time, value + below(index, *time))).collect()
    };
    curves.iter().enumerate().map(lifted).collect()
}

/// A line ends where points are missing.
fn without_gaps(points: &[(f64, f64)], step: f64) -> impl Iterator<Item = &[(f64, f64)]> {
    points.chunk_by(move |(before, _), (after, _)| after - before < step * 1.5)
}

fn closed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let ends = [points.last(), points.first()].into_iter().flatten().map(|(time, _)| (*time, 0.0));
    points.iter().copied().chain(ends).collect()
}

/// A layer's color, which hides what is below it.
fn blend(color: RGBColor) -> RGBColor {
    let mix =
        |color: u8, card: u8| u8::try_from((u32::from(color) * 3 + u32::from(card) * 7) / 10).unwrap_or(card);
    RGBColor(mix(color.0, CARD.0), mix(color.1, CARD.1), mix(color.2, CARD.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_lie_on_those_before_them() {
        let curve =
            |points: &[(f64, f64)]| Curve { name: String::new(), color: TEXT, points: points.to_vec() };
        let curves = [curve(&[(0.0, 1.0), (1.0, 2.0)]), curve(&[(1.0, 5.0), (2.0, 5.0)])];
        assert_eq!(stack(&curves), [vec![(0.0, 1.0), (1.0, 2.0)], vec![(1.0, 7.0), (2.0, 5.0)]]);
    }

    #[test]
    fn a_line_ends_where_points_are_missing() {
        let points = [(0.0, 1.0), (5.0, 1.0), (20.0, 1.0)];
        let parts: Vec<_> = without_gaps(&points, 5.0).map(<[_]>::len).collect();
        assert_eq!(parts, [2, 1]);
    }

    #[test]
    fn every_panel_is_drawn_with_its_title_and_its_value() {
        let panels = super::super::panels().unwrap();
        let answer = |panel: &Panel| {
            let labels = [("pod", "web"), ("reason", "PauseExited")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()));
            vec![
                vec![Series { labels: labels.into(), points: vec![(60.0, 7.0), (120.0, 8.0)] }];
                panel.queries.len()
            ]
        };
        let answered: Vec<_> =
            panels.into_iter().map(|panel| Answered { answers: answer(&panel), panel }).collect();
        let range = Range { from: 0, to: 180, step: 60 };
        let drawn = svg(&answered, &Variables::of("web", "1h"), range).unwrap();
        // The two points of a panel of restarts are added.
        for shown in ["Most zombies", "Most restarts", "Pod web", "PauseExited", "00:01", "8/s", ">\n15\n<"] {
            assert!(drawn.contains(shown), "{shown}");
        }
        assert!(!drawn.contains("No data"));
    }
}
