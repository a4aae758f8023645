//! Changes of an image's configuration, written as instructions of a Containerfile: `CMD ["a", "b"]`, `ENV A=b`.
//!
//! Text stands for itself: no variables are put in. ENTRYPOINT takes away the CMD of the image below unless CMD is given, too, as it does in builds.

use std::str::FromStr;

use serde_json::{Map, Value, json};

/// Longest range of ports of one EXPOSE.
const MAX_PORTS: u16 = 4096;

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Arguments, or program and arguments.
    Cmd(Vec<String>),
    /// Program and its first arguments.
    Entrypoint(Vec<String>),
    /// Environment variables.
    Env(Vec<(String, String)>),
    /// Ports, `80/tcp`.
    Expose(Vec<String>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// `USER[:GROUP]`.
    User(String),
    /// Directories that hold data.
    Volume(Vec<String>),
    /// Working directory; a relative one is below that of the image.
    Workdir(String),
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (name, rest) = text.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((text, ""));
        let rest = rest.trim();
        let name = name.to_ascii_uppercase();
        // Those take away what the image has.
        if rest.is_empty() && !matches!(name.as_str(), "CMD" | "ENTRYPOINT") {
            return Err(format!("`{text}` has no value"));
        }
        match name.as_str() {
            "CMD" => command(rest).map(Self::Cmd),
            "ENTRYPOINT" => command(rest).map(Self::Entrypoint),
            "ENV" => pairs(rest).map(Self::Env),
            "LABEL" => pairs(rest).map(Self::Label),
            "EXPOSE" => Ok(Self::Expose(words(rest)?.iter().map(|word| ports(word)).collect::<Result<Vec<_>, _>>()?.concat())),
            "USER" if rest.contains(char::is_whitespace) => Err(format!("`{rest}` is no USER[:GROUP]")),
            "USER" => Ok(Self::User(rest.to_owned())),
            "VOLUME" => volumes(rest).map(Self::Volume),
            "WORKDIR" => Ok(Self::Workdir(rest.to_owned())),
            _ => Err(format!("`{name}` is none of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR")),
        }
    }
}

/// A JSON list, or a line for the shell; nothing for none.
fn command(text: &str) -> Result<Vec<String>, String> {
    match text {
        "" => Ok(Vec::new()),
        text if text.starts_with('[') => list(text),
        text => Ok(["/bin/sh", "-c", text].map(str::to_owned).to_vec()),
    }
}

fn list(text: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(text).map_err(|e| format!("`{text}` begins as a JSON list of strings and is none: {e}"))
}

fn volumes(text: &str) -> Result<Vec<String>, String> {
    let all = if text.starts_with('[') { list(text)? } else { words(text)? };
    match all.iter().find(|path| !path.starts_with('/')) {
        Some(relative) => Err(format!("the directory `{relative}` is not absolute")),
        None => Ok(all),
    }
}

/// `NAME=VALUE …`, or `NAME VALUE` where what follows is one value.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split_ascii_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once(|c: char| c.is_ascii_whitespace()).ok_or_else(|| format!("`{text}` has no value"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let one = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{word}` is not NAME=VALUE")),
    };
    words(text)?.into_iter().map(one).collect()
}

/// Words between white space; quotes and backslashes take its meaning away.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some('"') | None, '\\') => {
                let next = characters.next().ok_or_else(|| format!("`{text}` ends with a backslash"))?;
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(format!("`{text}` has a quotation mark without its other one"));
    }
    words.extend(word);
    Ok(words)
}

/// `80`, `80/udp`, `8000-8010/tcp`.
fn ports(text: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("`{text}` is no PORT[-PORT][/tcp|/udp|/sctp]");
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (first, last) = (number(first)?, number(last)?);
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") || last < first || last - first >= MAX_PORTS {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// Changes the `config` of an image's configuration.
pub fn apply(config: &mut Map<String, Value>, changes: &[Change]) {
    let has_cmd = changes.iter().any(|change| matches!(change, Change::Cmd(_)));
    for change in changes {
        match change {
            Change::Cmd(args) => drop(config.insert("Cmd".into(), json!(args))),
            Change::Entrypoint(args) => {
                config.insert("Entrypoint".into(), json!(args));
                if !has_cmd {
                    config.remove("Cmd");
                }
            }
            Change::Env(pairs) => set_env(config, pairs),
            Change::Label(pairs) => add(config, "Labels", pairs.iter().map(|(name, value)| (name.clone(), json!(value)))),
            Change::Expose(ports) => add(config, "ExposedPorts", ports.iter().map(|port| (port.clone(), json!({})))),
            Change::Volume(paths) => add(config, "Volumes", paths.iter().map(|path| (path.clone(), json!({})))),
            Change::User(user) => drop(config.insert("User".into(), json!(user))),
            Change::Workdir(dir) => {
                let before = config.get("WorkingDir").and_then(Value::as_str).filter(|dir| !dir.is_empty()).unwrap_or("/");
                let dir = if dir.starts_with('/') { dir.clone() } else { format!("{}/{dir}", before.trim_end_matches('/')) };
                config.insert("WorkingDir".into(), json!(dir));
            }
        }
    }
}

fn set_env(config: &mut Map<String, Value>, pairs: &[(String, String)]) {
    let before = config.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut env: Vec<String> = before.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    for (name, value) in pairs {
        let entry = format!("{name}={value}");
        match env.iter_mut().find(|known| known.split('=').next() == Some(name)) {
            Some(known) => *known = entry,
            None => env.push(entry),
        }
    }
    config.insert("Env".into(), json!(env));
}

fn add(config: &mut Map<String, Value>, key: &str, more: impl Iterator<Item = (String, Value)>) {
    let mut all = match config.remove(key) {
        Some(Value::Object(all)) => all,
        _ => Map::new(),
    };
    all.extend(more);
    config.insert(key.into(), Value::Object(all));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(before: Value, changes: &[&str]) -> Value {
        let Value::Object(mut config) = before else { panic!("no object") };
        let changes: Vec<Change> = changes.iter().map(|text| text.parse().unwrap()).collect();
        apply(&mut config, &changes);
        Value::Object(config)
    }

    #[test]
    fn instructions_change_the_configuration_as_a_build_would() {
        for (before, changes, after) in [
            (json!({"Cmd": ["x"]}), &[r#"CMD ["a", "b c"]"#][..], json!({"Cmd": ["a", "b c"]})),
            (json!({}), &["cmd echo $HOME"], json!({"Cmd": ["/bin/sh", "-c", "echo $HOME"]})),
            (json!({"Cmd": ["x"]}), &[r#"ENTRYPOINT ["e"]"#], json!({"Entrypoint": ["e"]})),
            (json!({"Cmd": ["x"]}), &[r#"CMD ["y"]"#, r#"ENTRYPOINT ["e"]"#], json!({"Entrypoint": ["e"], "Cmd": ["y"]})),
            (json!({"Entrypoint": ["e"]}), &["ENTRYPOINT"], json!({"Entrypoint": []})),
            (
                json!({"Env": ["A=1", "B=2"]}),
                &["ENV B=3 C='d e' D=\"f\\\"g\""],
                json!({"Env": ["A=1", "B=3", "C=d e", "D=f\"g"]}),
            ),
            (json!({}), &["ENV A b c"], json!({"Env": ["A=b c"]})),
            (json!({"Env": null}), &["ENV A="], json!({"Env": ["A="]})),
            (json!({"Labels": {"a": "1"}}), &["LABEL b=2 a=3"], json!({"Labels": {"a": "3", "b": "2"}})),
            (
                json!({}),
                &["EXPOSE 80 53/UDP 7-8"],
                json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "7/tcp": {}, "8/tcp": {}}}),
            ),
            (json!({}), &["VOLUME /a '/b c'", r#"VOLUME ["/d"]"#], json!({"Volumes": {"/a": {}, "/b c": {}, "/d": {}}})),
            (json!({"User": "a"}), &["USER 5:6"], json!({"User": "5:6"})),
            (json!({"WorkingDir": "/a"}), &["WORKDIR b", "WORKDIR c"], json!({"WorkingDir": "/a/b/c"})),
            (json!({"WorkingDir": ""}), &["WORKDIR b"], json!({"WorkingDir": "/b"})),
            (json!({"WorkingDir": "/a"}), &["WORKDIR /b c"], json!({"WorkingDir": "/b c"})),
        ] {
            assert_eq!(changed(before, changes), after, "{changes:?}");
        }
    }

    #[test]
    fn what_is_no_instruction_is_refused() {
        for bad in [
            "",
            "RUN true",
            "ENV",
            "ENV A",
            "ENV A=b =c",
            "ENV A=b c",
            "ENV A='b",
            "LABEL a\\",
            "CMD [\"a\"",
            "CMD [1]",
            "EXPOSE 0",
            "EXPOSE 70000",
            "EXPOSE 9-8",
            "EXPOSE 1-65535",
            "EXPOSE 80/icmp",
            "USER",
            "USER a b",
            "VOLUME a",
            "VOLUME [\"/a\", 1]",
            "WORKDIR",
        ] {
            assert!(bad.parse::<Change>().is_err(), "{bad}");
        }
    }
}
