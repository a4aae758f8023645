//! What every failure of the engine has to be.

use towline_integration::images::Layout;
use towline_integration::process::Finished;
use towline_integration::towline::Towline;

/// Asserts exit code 125 and one line of `towline:` at the end of standard error, after nothing but progress, that has all words
/// of `wanted`, in any case of letters.
///
/// # Panics
/// When it is not.
pub fn is_one_clear_line(what: &str, done: &Finished, wanted: &[&str]) {
    if let Err(flaw) = one_clear_line(what, done, wanted) {
        panic!("{flaw}");
    }
}

/// The same, for tables that collect what is wrong with all their rows.
pub fn one_clear_line(what: &str, done: &Finished, wanted: &[&str]) -> Result<(), String> {
    let lines: Vec<&str> = done.stderr.lines().filter(|line| !line.trim().is_empty() && !is_progress(line)).collect();
    let flaw = if done.code() != Some(125) {
        format!("exit code {:?}", done.code())
    } else if lines.len() != 1 || !lines[0].starts_with("towline: ") {
        "not one line".to_owned()
    } else if let Some(word) = wanted.iter().find(|word| !lines[0].to_lowercase().contains(&word.to_lowercase())) {
        format!("the line does not say '{word}'")
    } else if lines[0].len() >= 700 {
        format!("the line is {} characters long", lines[0].len())
    } else {
        return Ok(());
    };
    Err(format!("{what}: {flaw}\nstdout: {}\nstderr: {}", done.stdout, done.stderr))
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
