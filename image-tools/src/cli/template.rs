//! What `--format` says: a table, JSON, or a template as docker's users write it, of which `{{.FIELD}}` and `{{json .FIELD}}` are known.

use std::str::FromStr;

use serde_json::Value;
use towline_lazyfs::error::{Error, Outcome};

use crate::failure::Failure;

/// How things are printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// One array of objects.
    Json,
    /// A line for each.
    Template(Template),
}

/// A template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, json: bool },
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            _ if text.contains("{{") => Template::parse(text).map(Self::Template),
            _ => Err("it is none of table, json and a template such as '{{.Names}}'".into()),
        }
    }
}

impl Template {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").ok_or("`{{` is not closed")?;
            parts.push(Part::Text(unescape(before)));
            parts.push(field(action)?);
            rest = after;
        }
        parts.push(Part::Text(unescape(rest)));
        Ok(Self(parts))
    }

    /// The line for a document.
    pub fn render(&self, document: &Value) -> Result<String, Failure> {
        let mut line = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Field { path, json } => {
                    let value = look_up(document, path)?;
                    match value {
                        Value::String(text) if !json => line.push_str(text),
                        Value::Null if !json => {}
                        other => line.push_str(&other.to_string()),
                    }
                }
            }
        }
        line.push('\n');
        Ok(line)
    }
}

fn field(action: &str) -> Result<Part, String> {
    let action = action.trim();
    let (json, path) = match action.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, action),
    };
    let names = path.strip_prefix('.').ok_or_else(|| unknown(action))?;
    let path: Vec<String> = if names.is_empty() { Vec::new() } else { names.split('.').map(str::to_owned).collect() };
    let is_name = |name: &String| !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    if !path.iter().all(is_name) {
        return Err(unknown(action));
    }
    Ok(Part::Field { path, json })
}

fn unknown(action: &str) -> String {
    format!(
        "`{{{{{action}}}}}` is not known: of templates only {{{{.FIELD}}}} and {{{{json .FIELD}}}} are; use --format json and jq"
    )
}

/// Shells pass `\t` and `\n` on as they are.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn look_up<'a>(document: &'a Value, path: &[String]) -> Result<&'a Value, Failure> {
    path.iter().try_fold(document, |value, name| {
        value.get(name).ok_or_else(|| {
            let known = value.as_object().map(|all| all.keys().cloned().collect::<Vec<_>>().join(", ")).unwrap_or_default();
            Error::new(Outcome::BadInput, format!("printing {{{{.{}}}}}", path.join(".")))
                .because(format!("there is no {name}; there is {known}"))
                .into()
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_put_in() {
        let document = json!({"Id": "abc", "State": {"Pid": 7, "Error": null}, "Args": ["a"]});
        for (text, line) in [
            ("{{.Id}}", "abc\n"),
            ("{{ .Id }}\\t{{.State.Pid}}!", "abc\t7!\n"),
            ("{{json .Id}}", "\"abc\"\n"),
            ("{{.Args}}", "[\"a\"]\n"),
            ("<{{.State.Error}}>", "<>\n"),
            ("{{json .State}}", "{\"Error\":null,\"Pid\":7}\n"),
        ] {
            let Ok(Format::Template(template)) = text.parse() else { panic!("{text} was refused") };
            assert_eq!(template.render(&document).unwrap(), line, "{text}");
        }
        let Ok(Format::Template(template)) = "{{.State.Nothing}}".parse() else { panic!() };
        assert!(template.render(&document).unwrap_err().line.contains("there is Error, Pid"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for bad in ["", "yaml", "{{.Id", "{{range .X}}{{end}}", "{{Id}}", "{{.A..B}}", "{{.A b}}", "{{json}}"] {
            assert!(bad.parse::<Format>().is_err(), "{bad} was taken");
        }
        assert_eq!("table".parse(), Ok(Format::Table));
    }
}
