//! Network configurations: files `*.conflist` with a list of plugins, `*.conf` and `*.json` with one.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use towline_lazyfs::error::{Error, Outcome, Result};

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Most plugins of a network.
const MAX_PLUGINS: usize = 32;

/// Versions of the protocol that are spoken.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The version of the protocol that its plugins are spoken to in.
    pub version: String,
    /// The plugins' own parts, in order; each has a `type`.
    pub plugins: Vec<Map<String, Value>>,
    /// The document as it was read.
    pub text: String,
}

/// A file, and the network in it, or what is wrong with it.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub network: Result<Network, String>,
}

impl Network {
    /// Reads a document. Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let Value::Object(document) = document else { return Err("it is no object".into()) };
        let name = text_of(&document, "name")?.ok_or("it has no name")?.to_owned();
        check_name(&name)?;
        let version = text_of(&document, "cniVersion")?.unwrap_or("0.1.0").to_owned();
        if !VERSIONS.contains(&version.as_str()) {
            return Err(format!("cniVersion {version:?} is none of {}", VERSIONS.join(", ")));
        }
        let plugins = match document.get("plugins") {
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err("plugins is no list".into()),
            None => vec![Value::Object(document)],
        };
        if plugins.is_empty() || plugins.len() > MAX_PLUGINS {
            return Err(format!("it has {} plugins, and not 1 to {MAX_PLUGINS}", plugins.len()));
        }
        let plugins = plugins.into_iter().map(check_plugin).collect::<Result<_, _>>()?;
        Ok(Self { name, version, plugins, text: text.to_owned() })
    }

    /// Whether a plugin takes what `capability` names at run time.
    pub fn takes(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| declares(plugin, capability))
    }
}

/// Whether a plugin's part says that it takes something at run time.
pub fn declares(plugin: &Map<String, Value>, capability: &str) -> bool {
    plugin.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
}

/// Checks the name of a network: it becomes a part of file names.
pub fn check_name(name: &str) -> Result<(), String> {
    let begins = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if !begins || name.len() > 128 || !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c)) {
        let shown: String = name.chars().take(80).collect();
        return Err(format!(
            "{shown:?} is no name of a network: letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
        ));
    }
    Ok(())
}

fn check_plugin(plugin: Value) -> Result<Map<String, Value>, String> {
    let Value::Object(plugin) = plugin else { return Err("a plugin is no object".into()) };
    let kind = text_of(&plugin, "type")?.ok_or("a plugin has no type")?;
    // It names a file in a directory of plugins.
    if kind.is_empty() || kind.starts_with('.') || kind.contains(['/', '\0']) {
        return Err(format!("type {kind:?} is no name of a plugin"));
    }
    Ok(plugin)
}

fn text_of<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{key} is no text")),
    }
}

/// All files of a directory that may be configurations, in the order in which others take the first of them.
pub fn list(dir: &Path) -> Result<Vec<Found>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("listing", dir, e)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("listing", dir, e))?.path();
        let known = path.extension().and_then(|end| end.to_str()).is_some_and(|end| matches!(end, "conf" | "conflist" | "json"));
        if known {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.into_iter().map(|path| Found { network: read(&path), path }).collect())
}

fn read(path: &Path) -> Result<Network, String> {
    let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > MAX_FILE {
        return Err(format!("it has {length} bytes, more than {MAX_FILE}"));
    }
    Network::parse(&std::fs::read_to_string(path).map_err(|e| e.to_string())?)
}

/// The network with this name; `None` where no file has it.
pub fn look_up(dir: &Path, name: &str) -> Result<Option<Network>> {
    let mut found = list(dir)?.into_iter().filter_map(|found| found.network.ok());
    Ok(found.find(|network| network.name == name))
}

/// As [`look_up`], where there must be one.
pub fn find(dir: &Path, name: &str) -> Result<Network> {
    let all = list(dir)?;
    let broken: Vec<String> = all
        .iter()
        .filter_map(|found| Some(format!("{} cannot be used: {}", found.path.display(), found.network.as_ref().err()?)))
        .collect();
    if let Some(network) = all.into_iter().filter_map(|found| found.network.ok()).find(|network| network.name == name) {
        return Ok(network);
    }
    let mut why = format!("no file in {} has it", dir.display());
    for line in broken {
        why = format!("{why}; {line}");
    }
    Err(Error::new(Outcome::NotFound, format!("looking up network {name}"))
        .because(why)
        .advise("see `towline network ls`, or make one with `towline network create`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_single_plugins() {
        let list = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true,"x":false}}]}"#;
        let network = Network::parse(list).unwrap();
        assert_eq!((network.name.as_str(), network.version.as_str(), network.plugins.len()), ("n", "1.0.0", 2));
        assert!(network.takes("portMappings") && !network.takes("x") && !network.takes("ips"));
        let single = Network::parse(r#"{"name":"one","type":"ptp","ipam":{}}"#).unwrap();
        assert_eq!((single.version.as_str(), single.plugins.len()), ("0.1.0", 1));
        assert_eq!(single.plugins[0]["type"], "ptp");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let many = format!(r#"{{"name":"n","plugins":[{}]}}"#, [r#"{"type":"a"}"#; 33].join(","));
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"name":"n"}"#,
            r#"{"name":1,"type":"a"}"#,
            r#"{"name":"../n","type":"a"}"#,
            r#"{"name":"","type":"a"}"#,
            r#"{"name":"n","plugins":[]}"#,
            r#"{"name":"n","plugins":{}}"#,
            r#"{"name":"n","plugins":[1]}"#,
            r#"{"name":"n","plugins":[{}]}"#,
            r#"{"name":"n","plugins":[{"type":"../bin/sh"}]}"#,
            r#"{"name":"n","plugins":[{"type":""}]}"#,
            r#"{"name":"n","cniVersion":"9.0.0","type":"a"}"#,
            &many,
        ] {
            assert!(Network::parse(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn the_first_file_with_a_name_counts_and_broken_ones_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("20.conf", r#"{"name":"a","type":"second"}"#);
        write("10.conflist", r#"{"name":"a","plugins":[{"type":"first"}]}"#);
        write("05.conf", "{");
        write("note.txt", r#"{"name":"b","type":"x"}"#);
        assert_eq!(find(dir.path(), "a").unwrap().plugins[0]["type"], "first");
        let error = find(dir.path(), "b").unwrap_err().one_line();
        assert!(error.contains("05.conf cannot be used"), "{error}");
        assert!(look_up(&dir.path().join("none"), "a").unwrap().is_none());
    }
}
