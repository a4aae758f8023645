//! The picture of a trace: a bar for each wait, as long as it took, from its beginning on.

use super::waits::Named;
use crate::timeline::svg::{rect, text};

const WIDTH: f64 = 1100.0;
const MARGIN: f64 = 30.0;
/// Width of the column with the names of files.
const NAMES: f64 = 330.0;
const TOP: f64 = 80.0;
/// The longest name that is shown, characters; the tooltip has all of it.
const LONGEST: usize = 46;
/// How many waits get a line; the picture says how many more there were.
const LINES: usize = 600;

/// Draws waits that are sorted by their beginning.
pub fn draw(title: &str, waits: &[Named]) -> String {
    let shown = &waits[..waits.len().min(LINES)];
    let row = if shown.len() > 150 { 10.0 } else { 16.0 };
    let height = TOP + row * shown.len() as f64 + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"{}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        row - 4.0
    );
    text(&mut svg, MARGIN, 34.0, "font-size=\"17\"", title);
    let begin = shown.first().map_or(0, |wait| wait.begin_us);
    let end = shown.iter().map(|wait| wait.begin_us + wait.waited_us).max().unwrap_or(begin);
    let total = ((end - begin) as f64).max(1.0);
    let waited: u64 = waits.iter().map(|wait| wait.waited_us).sum();
    let more = if waits.len() > shown.len() { format!("; the first {LINES} are shown") } else { String::new() };
    let summary = format!("{} waits, {:.3} s in all, within {:.3} s{more}", waits.len(), waited as f64 / 1e6, total / 1e6);
    text(&mut svg, MARGIN, 56.0, "font-size=\"13\" fill=\"#555\"", &summary);
    let scale = (WIDTH - 2.0 * MARGIN - NAMES) / total;
    for (line, wait) in shown.iter().enumerate() {
        let y = TOP + row * line as f64;
        let count = wait.path.chars().count();
        let name: String = match count > LONGEST {
            true => std::iter::once('…').chain(wait.path.chars().skip(count - LONGEST + 1)).collect(),
            false => wait.path.clone(),
        };
        text(&mut svg, MARGIN, y + row - 4.0, "fill=\"#333\"", &name);
        let x = MARGIN + NAMES + (wait.begin_us - begin) as f64 * scale;
        let width = (wait.waited_us as f64 * scale).max(1.0);
        let fill = if wait.error.is_some() { "#c0392b" } else { "#2a7fb8" };
        let part = wait.range.as_ref().map(|range| format!(" bytes {} to {}", range.start, range.end)).unwrap_or_default();
        let why = wait.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        let tip = format!("{} waited {:.1} ms for {}{part}{why}", wait.program, wait.waited_us as f64 / 1e3, wait.path);
        rect(&mut svg, (x, y + 1.0), (width, row - 3.0), fill, &tip);
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wait_has_a_bar_in_its_colour() {
        let wait = |n: u64, error: Option<&str>| Named {
            begin_us: 1_000_000 + n * 1000,
            waited_us: 500,
            program: "sh".into(),
            pid: 1,
            path: format!("/usr/<{n}>/{}", "x".repeat(60)),
            range: (n == 1).then_some(5..9),
            error: error.map(str::to_owned),
        };
        let svg = draw("a & b", &[wait(0, None), wait(1, None), wait(2, Some("gone"))]);
        assert_eq!((svg.matches("#2a7fb8").count(), svg.matches("#c0392b").count()), (2, 1));
        for part in ["a &amp; b", "3 waits, 0.002 s in all, within 0.003 s", "bytes 5 to 9", "&lt;2&gt;", ": gone", "…xxx"] {
            assert!(svg.contains(part), "{part} is missing in {svg}");
        }
        let many: Vec<Named> = (0..LINES as u64 + 5).map(|n| wait(n, None)).collect();
        assert!(draw("t", &many).contains("the first 600 are shown"));
        assert!(draw("t", &[]).contains("0 waits"));
    }
}
