//! What every failure of the engine has to be.

use towline_integration::images::Layout;
use towline_integration::process::Finished;
use towline_integration::towline::Towline;

/// Asserts exit code 125 and one line on standard error that has all words of `wanted`, in any case of letters.
pub fn is_one_clear_line(what: &str, done: &Finished, wanted: &[&str]) {
    assert_eq!(done.code(), Some(125), "{what}: exit code\nstdout: {}\nstderr: {}", done.stdout, done.stderr);
    let lines: Vec<&str> = done.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "{what}: one line, not\n{}", done.stderr);
    let line = lines[0].to_lowercase();
    for word in wanted {
        assert!(line.contains(&word.to_lowercase()), "{what}: the line does not say '{word}': {}", lines[0]);
    }
    assert!(lines[0].len() < 600, "{what}: the line is {} characters long: {}", lines[0].len(), lines[0]);
    assert!(done.stdout.is_empty(), "{what}: {}", done.stdout);
}

/// Asserts that a good image runs on the same store.
pub fn next_run_works(what: &str, towline: &Towline) {
    let done = towline.run(&["run", "--rm", &Layout::built("small").reference("zstd"), "cat", "/data/changed"]);
    assert_eq!((done.code(), done.stdout.as_str()), (Some(0), "second\n"), "after {what}: {}", done.stderr);
}
