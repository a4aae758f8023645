//! Annotations `org.systemd.property.NAME`: further properties of the unit, with values in GVariant's text form, as runc and
//! crun take them: `true`, `'text'`, `uint64 5`, `['a', 'b']`, `@as []`. A name that ends in `Sec` is a time in seconds; systemd's
//! own properties end in `USec` and are microseconds.

use std::collections::BTreeMap;

use crate::error::{Error, Outcome, Result};
use crate::systemd::{Property, Value};

const PREFIX: &str = "org.systemd.property.";

/// The properties that `annotations` ask for.
pub(super) fn properties(annotations: &BTreeMap<String, String>) -> Result<Vec<Property>> {
    let ours = annotations.iter().filter_map(|(key, text)| Some((key.strip_prefix(PREFIX)?, text)));
    ours.map(|(name, text)| {
        property(name, text)
            .map_err(|why| Error::new(Outcome::BadInput, format!("annotation {PREFIX}{name} {text:?}")).because(why))
    })
    .collect()
}

fn property(name: &str, text: &str) -> Result<Property, &'static str> {
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err("the name of a property has at least three letters and nothing else");
    }
    let value = parse(text)?;
    match name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U') && !stem.is_empty()) {
        Some(stem) => Ok((format!("{stem}USec"), Value::U64(microseconds(&value)?))),
        None => Ok((name.to_owned(), value)),
    }
}

fn microseconds(value: &Value) -> Result<u64, &'static str> {
    let seconds = match value {
        Value::Byte(value) => u64::from(*value),
        Value::U16(value) => u64::from(*value),
        Value::U32(value) => u64::from(*value),
        Value::U64(value) => *value,
        Value::I16(value) => u64::try_from(*value).map_err(|_| "a time is not negative")?,
        Value::I32(value) => u64::try_from(*value).map_err(|_| "a time is not negative")?,
        Value::I64(value) => u64::try_from(*value).map_err(|_| "a time is not negative")?,
        _ => return Err("a time is a number of seconds"),
    };
    seconds.checked_mul(1_000_000).ok_or("the time is too long")
}

/// The subset of GVariant's text form (GLib, "GVariant Text Format") that properties of units have.
fn parse(text: &str) -> Result<Value, &'static str> {
    let mut parser = Parser { rest: text };
    let value = parser.value()?;
    parser.skip_space();
    if parser.rest.is_empty() { Ok(value) } else { Err("something follows the value") }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, text: &str) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &'a str {
        self.skip_space();
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c))).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn value(&mut self) -> Result<Value, &'static str> {
        self.skip_space();
        match self.rest.chars().next().ok_or("there is no value")? {
            '\'' | '"' => self.text().map(Value::Text),
            '[' => self.array(None),
            '@' => {
                self.rest = &self.rest[1..];
                let kind = self.word();
                match kind.strip_prefix('a') {
                    Some(element @ ("s" | "y" | "b" | "n" | "q" | "i" | "u" | "x" | "t" | "o")) => self.array(Some(element)),
                    Some(_) => Err("arrays are of texts or numbers"),
                    None => self.typed(kind),
                }
            }
            _ => self.plain(),
        }
    }

    fn plain(&mut self) -> Result<Value, &'static str> {
        match self.word() {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "" => Err("this is neither a number, a text in quotes, true, false nor an array"),
            keyword @ ("byte" | "int16" | "uint16" | "int32" | "uint32" | "int64" | "uint64" | "boolean" | "string"
            | "objectpath") => {
                let kind = match keyword {
                    "byte" => "y",
                    "int16" => "n",
                    "uint16" => "q",
                    "int32" => "i",
                    "uint32" => "u",
                    "int64" => "x",
                    "uint64" => "t",
                    "boolean" => "b",
                    "string" => "s",
                    _ => "o",
                };
                self.typed(kind)
            }
            word => number("i", word),
        }
    }

    /// A value behind its type. Types do not nest.
    fn typed(&mut self, kind: &str) -> Result<Value, &'static str> {
        self.skip_space();
        if self.rest.starts_with(['\'', '"']) {
            return convert(kind, Value::Text(self.text()?));
        }
        match self.word() {
            word @ ("true" | "false") => convert(kind, Value::Bool(word == "true")),
            word => number(kind, word),
        }
    }

    fn text(&mut self) -> Result<String, &'static str> {
        let mut characters = self.rest.chars();
        let quote = characters.next().ok_or("there is no text")?;
        let mut out = String::new();
        loop {
            match characters.next().ok_or("a text has no end")? {
                c if c == quote => break,
                '\0' => return Err("a text has a zero byte"),
                '\\' => match characters.next().ok_or("a text has no end")? {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    c @ ('\\' | '\'' | '"') => out.push(c),
                    _ => return Err("a text has an escape that is not known"),
                },
                c => out.push(c),
            }
        }
        self.rest = characters.as_str();
        Ok(out)
    }

    fn array(&mut self, element: Option<&str>) -> Result<Value, &'static str> {
        if !self.eat("[") {
            return Err("an array begins with [");
        }
        let mut values: Vec<Value> = Vec::new();
        while !self.eat("]") {
            if !values.is_empty() && !self.eat(",") {
                return Err("values of an array are separated by commas");
            }
            self.skip_space();
            if self.rest.starts_with(['[', '@']) {
                return Err("arrays are of texts or numbers");
            }
            let value = match element {
                Some(kind) => self.typed(kind)?,
                None => self.value()?,
            };
            if values.first().is_some_and(|first| first.signature() != value.signature()) {
                return Err("values of an array have one type");
            }
            values.push(value);
        }
        let signature = match (element, values.first()) {
            (Some(element), _) => element.to_owned(),
            (None, Some(first)) => first.signature(),
            (None, None) => return Err("an empty array says its type: @as []"),
        };
        Ok(Value::Array(signature, values))
    }
}

/// A value under a type that is named before it.
fn convert(kind: &str, value: Value) -> Result<Value, &'static str> {
    match (kind, value) {
        ("o", Value::Text(text)) => Ok(Value::Path(text)),
        (kind, value) if value.signature() == kind => Ok(value),
        _ => Err("the value is not of the type before it"),
    }
}

fn number(kind: &str, word: &str) -> Result<Value, &'static str> {
    fn read<T: TryFrom<i128>>(word: &str) -> Result<T, &'static str> {
        let (negative, digits) = match word.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, word.strip_prefix('+').unwrap_or(word)),
        };
        let parsed = match digits.strip_prefix("0x") {
            Some(digits) => i128::from_str_radix(digits, 16),
            None => digits.parse(),
        };
        let magnitude = parsed.ok().filter(|_| digits.starts_with(|c: char| c.is_ascii_digit())).ok_or("this is not a number")?;
        T::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| "the number does not fit its type")
    }
    Ok(match kind {
        "y" => Value::Byte(read(word)?),
        "n" => Value::I16(read(word)?),
        "q" => Value::U16(read(word)?),
        "i" => Value::I32(read(word)?),
        "u" => Value::U32(read(word)?),
        "x" => Value::I64(read(word)?),
        "t" => Value::U64(read(word)?),
        _ => return Err("the value is not of the type before it"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_become_properties() {
        let cases = [
            ("CollectMode", "'inactive-or-failed'", ("CollectMode", Value::text("inactive-or-failed"))),
            ("Description", "\"it's\\n\"", ("Description", Value::text("it's\n"))),
            ("SendSIGHUP", "true", ("SendSIGHUP", Value::Bool(true))),
            ("TasksMax", "uint64 5", ("TasksMax", Value::U64(5))),
            ("TasksMax", "@t 5", ("TasksMax", Value::U64(5))),
            ("KillSignal", "15", ("KillSignal", Value::I32(15))),
            ("CPUWeight", "uint64 0x10", ("CPUWeight", Value::U64(16))),
            ("TimeoutStopUSec", "uint64 123456789", ("TimeoutStopUSec", Value::U64(123_456_789))),
            ("TimeoutStopSec", "uint64 2", ("TimeoutStopUSec", Value::U64(2_000_000))),
            ("RuntimeMaxSec", "7", ("RuntimeMaxUSec", Value::U64(7_000_000))),
            ("Wants", "['a.target', 'b.target']", ("Wants", Value::texts(["a.target", "b.target"]))),
            ("After", "@as []", ("After", Value::texts::<&str>([]))),
            ("AllowedCPUs", "@ay [1, 255]", ("AllowedCPUs", Value::bytes(&[1, 255]))),
            ("AllowedCPUs", "[byte 3]", ("AllowedCPUs", Value::bytes(&[3]))),
        ];
        for (name, text, (wanted, value)) in cases {
            let annotations =
                BTreeMap::from([(format!("{PREFIX}{name}"), text.to_owned()), ("other".to_owned(), "[".to_owned())]);
            assert_eq!(properties(&annotations).unwrap(), [(wanted.to_owned(), value)], "{name} {text}");
        }
    }

    #[test]
    fn bad_annotations_are_refused_and_named() {
        let deep = "[".repeat(100_000);
        let cases = [
            ("A", "true"),
            ("Some_Thing", "true"),
            ("Name", ""),
            ("Name", "text"),
            ("Name", "'open"),
            ("Name", "'a' 'b'"),
            ("Name", "[]"),
            ("Name", "['a' 'b']"),
            ("Name", "['a', 1]"),
            ("Name", "['a',"),
            ("Name", "byte 256"),
            ("Name", "uint32 -1"),
            ("Name", "3000000000"),
            ("Name", "@as 'a'"),
            ("Name", "@s 1"),
            ("Name", "'\\q'"),
            ("RuntimeMaxSec", "-1"),
            ("RuntimeMaxSec", "'x'"),
            ("RuntimeMaxSec", "uint64 18446744073709551615"),
            ("Name", &deep),
        ];
        for (name, text) in cases {
            let annotations = BTreeMap::from([(format!("{PREFIX}{name}"), text.to_owned())]);
            let error = properties(&annotations).unwrap_err();
            assert_eq!(error.outcome(), Outcome::BadInput, "{name} {text:.20}");
            assert!(error.one_line().contains(name));
        }
    }
}
