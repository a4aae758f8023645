//! Environment variables: the image's, those of files and flags, and how they are put together.

/// A change of the environment: a variable and its value, or none to take the variable away.
pub type Change = (String, Option<String>);

/// Parses `NAME=VALUE`, or `NAME` for the value that `inherited` knows.
pub fn parse(text: &str, inherited: impl Fn(&str) -> Option<String>) -> Result<Change, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, inherited(text)),
    };
    if name.is_empty() {
        return Err(format!("`{text}` has no variable name"));
    }
    if text.contains('\0') {
        return Err(format!("`{name}` contains a NUL"));
    }
    Ok((name.to_owned(), value))
}

/// Parses a file of variables: one a line as for [`parse`], without quoting; empty lines and those that begin with `#` are
/// comments.
pub fn parse_file(text: &str, inherited: impl Fn(&str) -> Option<String>) -> Result<Vec<Change>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| parse(line, &inherited).map_err(|why| format!("line {}: {why}", number + 1))).collect()
}

/// Applies changes to an environment; a variable that is there keeps its place.
pub fn apply(env: &mut Vec<String>, changes: &[Change]) {
    for (name, value) in changes {
        let at = env.iter().position(|entry| is_for(entry, name));
        match (at, value) {
            (Some(at), Some(value)) => env[at] = format!("{name}={value}"),
            (None, Some(value)) => env.push(format!("{name}={value}")),
            (Some(at), None) => drop(env.remove(at)),
            (None, None) => {}
        }
    }
}

/// Adds a variable where it is not set.
pub fn default(env: &mut Vec<String>, name: &str, value: &str) {
    if !env.iter().any(|entry| is_for(entry, name)) {
        env.push(format!("{name}={value}"));
    }
}

fn is_for(entry: &str, name: &str) -> bool {
    entry.strip_prefix(name).is_some_and(|rest| rest.starts_with('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Option<String> {
        (name == "HOST").then(|| "h".to_owned())
    }

    #[test]
    fn later_changes_win_in_place() {
        let mut env = vec!["A=1".to_owned(), "AB=2".to_owned(), "C=3".to_owned()];
        let changes = ["A=x=y", "D=", "HOST", "C"].map(|text| parse(text, host).unwrap());
        apply(&mut env, &changes);
        default(&mut env, "A", "no");
        default(&mut env, "E", "5");
        assert_eq!(env, ["A=x=y", "AB=2", "D=", "HOST=h", "E=5"]);
    }

    #[test]
    fn files_and_bad_variables() {
        let file = "# comment\n\nA=1 # kept\nHOST\n B=\"q\"\n";
        let changes = parse_file(file, host).unwrap();
        let expected = [("A", Some("1 # kept")), ("HOST", Some("h")), (" B", Some("\"q\""))];
        assert_eq!(changes, expected.map(|(n, v)| (n.to_owned(), v.map(str::to_owned))));
        assert_eq!(parse_file("A=1\n=2\n", host).unwrap_err(), "line 2: `=2` has no variable name");
        assert!(parse("", host).is_err() && parse("A=\0", host).is_err());
    }
}
