//! Writes TOML: the crate that reads it would bring its own writer, and these are a few tables.

use std::fmt::Write as _;

use toml::{Table, Value};

/// The tables below `path` with their headers.
pub fn render(path: &[String], table: &Table) -> String {
    let mut out = String::new();
    let is_table = |value: &Value| {
        value.is_table() || value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(Value::is_table))
    };
    let (tables, plain): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| is_table(value));
    if !path.is_empty() && (!plain.is_empty() || tables.is_empty()) {
        write(&mut out, &format!("\n[{}]\n", dotted(path)));
    }
    let indent = if path.is_empty() { "" } else { "  " };
    for (name, value) in plain {
        write(&mut out, &format!("{indent}{} = {}\n", key(name), inline(value)));
    }
    for (name, value) in tables {
        let below: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
        match value {
            Value::Table(table) => out.push_str(&render(&below, table)),
            several => {
                for one in several.as_array().into_iter().flatten().filter_map(Value::as_table) {
                    write(&mut out, &format!("\n[[{}]]\n", dotted(&below)));
                    for (name, value) in one {
                        write(&mut out, &format!("  {} = {}\n", key(name), inline(value)));
                    }
                }
            }
        }
    }
    out
}

fn write(out: &mut String, text: &str) {
    write!(out, "{text}").expect("writing into a string does not fail");
}

fn dotted(path: &[String]) -> String {
    path.iter().map(|part| key(part)).collect::<Vec<_>>().join(".")
}

fn key(text: &str) -> String {
    let bare = !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-');
    if bare { text.to_owned() } else { string(text) }
}

/// A basic string, whose escapes TOML has in common with JSON.
fn string(text: &str) -> String {
    serde_json::to_string(text).expect("text is text").replace('\u{7f}', "\\u007F")
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(is) => is.to_string(),
        Value::Datetime(time) => time.to_string(),
        Value::Array(all) => format!("[{}]", all.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Value::Table(table) => {
            let all: Vec<String> = table.iter().map(|(name, value)| format!("{} = {}", key(name), inline(value))).collect();
            format!("{{ {} }}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let text = r#"
            version = 2
            [plugins."io.containerd.grpc.v1.cri"]
              sandbox_image = "a\"b\\c \u007F ü"
              ports = [1, 2]
              ratio = 0.5
              [plugins."io.containerd.grpc.v1.cri".cni]
                conf_dir = "/etc/cni"
              [plugins."io.containerd.grpc.v1.cri".empty]
            [[plugins.transfer.unpack]]
              platform = "linux"
              inner = { x = true }
            [[plugins.transfer.unpack]]
              platform = "other"
        "#;
        let table: Table = text.parse().unwrap();
        let written = render(&[], &table);
        assert_eq!(written.parse::<Table>().unwrap(), table, "{written}");
        let below = render(&["a".into(), "b.c".into()], &"x = 1".parse().unwrap());
        assert_eq!(below, "\n[a.\"b.c\"]\n  x = 1\n");
    }
}
