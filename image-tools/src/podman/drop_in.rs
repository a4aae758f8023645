//! `containers.conf.d/towline.conf`: podman's word for what towline-oci can do.

use std::path::Path;

use super::WRITTEN;

/// As it is in `contrib`, for whoever copies it.
const CONTRIB: &str = include_str!("../../../contrib/podman/towline.conf");
/// How the list of places of the runtime begins in it.
const PLACES: &str = "towline-oci = [";
/// The line that makes it the default.
const DEFAULT: &str = "#runtime = \"towline-oci\"";

/// The file; `runtime` is looked for first where it is an absolute path. `default`: podman uses it unless told otherwise.
pub fn text(runtime: &Path, default: bool) -> String {
    let mut text = CONTRIB.to_owned();
    if runtime.is_absolute() && !text.contains(&quoted(runtime)) {
        text = text.replacen(PLACES, &format!("{PLACES}{}, ", quoted(runtime)), 1);
    }
    if default {
        text = text.replacen(DEFAULT, DEFAULT.trim_start_matches('#'), 1);
    }
    format!("{WRITTEN}{text}")
}

/// A path as TOML has texts.
pub fn quoted(path: &Path) -> String {
    // Basic strings of TOML and texts of JSON escape alike, but for one character that JSON leaves as it is.
    serde_json::to_string(&path.display().to_string()).expect("a text").replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_in_names_the_runtime_and_parses() {
        for (runtime, default, first) in
            [("/opt/bin/towline-oci", true, "/opt/bin/towline-oci"), ("towline-oci", false, "/usr/local/bin/towline-oci")]
        {
            let text = text(Path::new(runtime), default);
            let parsed: toml::Table = text.parse().unwrap();
            let engine = parsed["engine"].as_table().unwrap();
            assert_eq!(engine["runtimes"]["towline-oci"][0].as_str(), Some(first));
            assert_eq!(engine.get("runtime").and_then(toml::Value::as_str), default.then_some("towline-oci"));
            assert!(engine["runtime_supports_json"].as_array().unwrap().iter().any(|name| name.as_str() == Some("towline-oci")));
        }
    }
}
