//! The picture of a timeline: above, the start-up up to the first output, a bar for each step; below, how much of the image was local
//! over the whole time.

use std::fmt::Write as _;
use std::time::Duration;

use towline_lazyfs::daemon::protocol::Progress;

use super::step::{Mark, Step, size};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 40.0;
/// Width of the column with the names of steps.
const NAMES: f64 = 150.0;
/// Room to the right of a bar for its time.
const TIMES: f64 = 90.0;
const ROW: f64 = 26.0;
const CHART: f64 = 180.0;

/// Draws marks, and samples of progress with their times, both in order.
pub fn draw(title: &str, marks: &[Mark], samples: &[(Duration, Progress)]) -> String {
    let start: Vec<&Mark> = start_up(marks);
    let chart_top = 90.0 + ROW * start.len() as f64 + 50.0;
    let height = chart_top + CHART + 60.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, MARGIN, 36.0, "font-size=\"17\"", title);
    bars(&mut svg, &start);
    chart(&mut svg, chart_top, marks, samples);
    svg.push_str("</svg>\n");
    svg
}

/// The steps up to the first output, or to the end where there was none.
fn start_up(marks: &[Mark]) -> Vec<&Mark> {
    let last = marks.iter().position(|mark| matches!(mark.step, Step::FirstOutput { .. } | Step::Exited { .. }));
    let marks = &marks[..last.map_or(marks.len(), |at| at + 1)];
    marks.iter().filter(|mark| !matches!(mark.step, Step::Begin { .. } | Step::Warning { .. })).collect()
}

fn bars(svg: &mut String, marks: &[&Mark]) {
    let total = marks.last().map_or(0.0, |mark| mark.at.as_secs_f64()).max(1e-6);
    let scale = (WIDTH - 2.0 * MARGIN - NAMES - TIMES) / total;
    text(svg, MARGIN, 70.0, "fill=\"#555\"", "until the first output");
    let mut begin = 0.0;
    for (row, mark) in marks.iter().enumerate() {
        let end = mark.at.as_secs_f64();
        let (x, y) = (MARGIN + NAMES + begin * scale, 90.0 + ROW * row as f64);
        let width = ((end - begin) * scale).max(1.0);
        text(svg, MARGIN, y + 14.0, "", mark.step.name());
        rect(svg, (x, y + 2.0), (width, ROW - 9.0), "#2a7fb8", &mark.step.detail());
        text(svg, x + width + 6.0, y + 14.0, "fill=\"#333\"", &format!("{end:.3} s"));
        begin = end;
    }
}

fn chart(svg: &mut String, top: f64, marks: &[Mark], samples: &[(Duration, Progress)]) {
    let end = marks.last().map(|mark| mark.at).into_iter().chain(samples.last().map(|(at, _)| *at)).max();
    let end = end.map_or(0.0, |at| at.as_secs_f64()).max(1e-6);
    let scale = (WIDTH - 2.0 * MARGIN) / end;
    let bottom = top + CHART;
    let x = |at: Duration| MARGIN + at.as_secs_f64() * scale;
    let total = samples.last().map_or(0, |(_, last)| last.bytes_total);
    let heading = if total == 0 { "nothing had to be fetched".to_owned() } else { format!("local, of {}", size(total)) };
    text(svg, MARGIN, top - 12.0, "fill=\"#555\"", &heading);
    if total > 0 {
        let mut points = format!("{MARGIN:.1},{bottom:.1}");
        for (at, progress) in samples {
            let y = bottom - CHART * progress.bytes_local.min(total) as f64 / total as f64;
            write!(points, " {:.1},{y:.1}", x(*at)).expect("writing to a String cannot fail");
        }
        let last = samples.last().map_or(MARGIN, |(at, _)| x(*at));
        writeln!(svg, "<polygon points=\"{points} {last:.1},{bottom:.1}\" fill=\"#9ccbe5\"/>")
            .expect("writing to a String cannot fail");
    }
    rect(svg, (MARGIN, bottom), (WIDTH - 2.0 * MARGIN, 1.0), "#555", "");
    let mut side = 0;
    for mark in marks {
        let shown = matches!(
            mark.step,
            Step::FirstOutput { .. } | Step::Exited { .. } | Step::Complete { .. } | Step::HandedOff | Step::DaemonGone
        );
        if !shown {
            continue;
        }
        rect(svg, (x(mark.at), top), (1.0, CHART), "#b03030", &mark.step.detail());
        // Labels of steps that follow each other closely take turns on three lines; those on the right end at their mark.
        let y = bottom + 16.0 + 14.0 * f64::from(side % 3);
        let anchor = if x(mark.at) > WIDTH / 2.0 { "text-anchor=\"end\" fill=\"#b03030\"" } else { "fill=\"#b03030\"" };
        text(svg, x(mark.at), y, anchor, &format!("{} {:.2} s", mark.step.name(), mark.at.as_secs_f64()));
        side += 1;
    }
}

/// A line of text that begins at a point of its baseline.
pub fn text(svg: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>", escape(text))
        .expect("writing to a String cannot fail");
}

/// A rectangle with a tooltip.
pub fn rect(svg: &mut String, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str, title: &str) {
    writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"><title>{}</title></rect>",
        escape(title)
    )
    .expect("writing to a String cannot fail");
}

/// Text in XML; control characters, which XML cannot have, become `?`.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_every_step_and_no_markup_of_others() {
        let mark = |millis, step| Mark { at: Duration::from_millis(millis), step };
        let progress = |bytes_local| Progress { bytes_total: 100, bytes_local, ..Progress::default() };
        let marks = [
            mark(0, Step::Begin { what: "x".into() }),
            mark(10, Step::Manifest { layers: 1, bytes: 100 }),
            mark(500, Step::FirstOutput { fetched: Some(progress(10)) }),
            mark(2000, Step::Complete { progress: progress(100) }),
        ];
        let samples = [(Duration::from_millis(500), progress(10)), (Duration::from_secs(2), progress(100))];
        let svg = draw("run <a> & \"b\"\x1b", &marks, &samples);
        for part in
            ["run &lt;a&gt; &amp; &quot;b&quot;?", "manifest", "0.500 s", "all local 2.00 s", "<polygon", "local, of 100 B"]
        {
            assert!(svg.contains(part), "{part} is missing in {svg}");
        }
        assert_eq!(svg.matches("<svg").count(), 1);
        assert!(draw("", &[], &[]).contains("nothing had to be fetched"));
    }
}
