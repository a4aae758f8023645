//! What every failure of the engine has to be.

use towline_integration::images::Layout;
use towline_integration::process::Finished;
use towline_integration::towline::Towline;

/// Asserts exit code 125 and one line of `towline:` at the end of standard error, after nothing but progress, that has all words
/// of `wanted`, in any case of letters.
pub fn is_one_clear_line(what: &str, done: &Finished, wanted: &[&str]) {
    assert_eq!(done.code(), Some(125), "{what}: exit code\nstdout: {}\nstderr: {}", done.stdout, done.stderr);
    let lines: Vec<&str> = done.stderr.lines().filter(|line| !line.trim().is_empty() && !is_progress(line)).collect();
    assert!(lines.len() == 1 && lines[0].starts_with("towline: "), "{what}: one line, not\n{}", done.stderr);
    let line = lines[0].to_lowercase();
    for word in wanted {
        assert!(line.contains(&word.to_lowercase()), "{what}: the line does not say '{word}': {}", lines[0]);
    }
    assert!(lines[0].len() < 700, "{what}: the line is {} characters long: {}", lines[0].len(), lines[0]);
    assert!(done.stdout.is_empty(), "{what}: {}", done.stdout);
}

/// A line of the timeline: a time or blanks in its first columns.
fn is_progress(line: &str) -> bool {
    line.starts_with("  ")
}

/// Asserts that a good image runs on the same store.
pub fn next_run_works(what: &str, towline: &Towline) {
    let done = towline.run(&["run", "--rm", &Layout::built("small").reference("zstd"), "cat", "/data/changed"]);
    assert_eq!((done.code(), done.stdout.as_str()), (Some(0), "second\n"), "after {what}: {}", done.stderr);
}
