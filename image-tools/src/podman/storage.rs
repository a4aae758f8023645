//! `storage.conf`: one line in it tells podman where to look for layers. The rest of the file is its owner's, and stays byte for byte.

use std::path::Path;

use towline_lazyfs::error::{Error, Outcome, Result};

use super::WRITTEN;
use super::drop_in::quoted;

/// Ends the lines that are ours.
const MARK: &str = " # towline";
const HEADER: &str = "[storage.options]";
const KEY: &str = "additionallayerstores";

/// What podman uses now, for a file that has to be written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Now {
    /// Where images and containers are.
    pub graph_root: String,
    /// Where what does not outlive a reboot is.
    pub run_root: String,
}

/// A file that says what podman does by itself, so that the line has a place.
pub fn new(now: &Now) -> String {
    let quoted = |text: &str| quoted(Path::new(text));
    format!(
        "{WRITTEN}[storage]\ndriver = \"overlay\"\nrunroot = {}\ngraphroot = {}\n",
        quoted(&now.run_root),
        quoted(&now.graph_root)
    )
}

/// The file with the line; `None` where it has it. `path` is for messages.
pub fn add(text: &str, dir: &Path, path: &Path) -> Result<Option<String>> {
    let tried = || format!("adding the layer store to {}", path.display());
    let value = format!("{}:ref", dir.display());
    let parsed = parse(text, path)?;
    let storage = parsed.get("storage").and_then(toml::Value::as_table);
    match storage.and_then(|storage| storage.get("driver")).and_then(toml::Value::as_str) {
        None | Some("overlay" | "") => {}
        Some(driver) => {
            return Err(Error::new(Outcome::Unsupported, tried())
                .because(format!("its driver is {driver}, and only `overlay` has layer stores"))
                .advise("`podman system reset` and driver = \"overlay\" begin anew"));
        }
    }
    if let Some(stores) = storage.and_then(|storage| storage.get("options")?.get(KEY)).map(stores) {
        if stores.contains(&value) {
            return Ok(None);
        }
        return Err(Error::new(Outcome::Busy, tried())
            .because(format!("it has {KEY} = {stores:?} already"))
            .advise(format!("add \"{value}\" to that by hand")));
    }
    let line = format!("{KEY} = [{}]{MARK}\n", quoted(Path::new(&value)));
    let mut new = String::new();
    let mut added = false;
    for own in text.split_inclusive('\n') {
        new += own;
        if !added && own.split('#').next().unwrap_or_default().trim() == HEADER {
            if !own.ends_with('\n') {
                new += "\n";
            }
            new += &line;
            added = true;
        }
    }
    if !added {
        if !text.is_empty() && !text.ends_with('\n') {
            new += "\n";
        }
        new += &format!("{HEADER}{MARK}\n{line}");
    }
    // Where the table stands under another spelling, there are two of it now.
    parse(&new, path).map_err(|_| {
        Error::new(Outcome::Unsupported, tried())
            .because(format!("it has {HEADER} in a form that cannot be added to"))
            .advise(format!("add {KEY} = [\"{value}\"] by hand"))
    })?;
    Ok(Some(new))
}

/// The file without our lines; `None` where nothing else is left of it.
pub fn remove(text: &str) -> Option<String> {
    let rest: String =
        text.split_inclusive('\n').filter(|line| !line.trim_end().ends_with(MARK.trim_start()) || !is_ours(line)).collect();
    (!rest.starts_with(WRITTEN)).then_some(rest)
}

fn is_ours(line: &str) -> bool {
    let line = line.trim_end();
    line.strip_suffix(MARK).is_some_and(|own| own == HEADER || own.starts_with(KEY))
}

/// The stores that are named, as a list or with commas between.
fn stores(value: &toml::Value) -> Vec<String> {
    match value {
        toml::Value::Array(all) => all.iter().filter_map(|one| Some(one.as_str()?.to_owned())).collect(),
        other => other.as_str().unwrap_or_default().split(',').map(str::to_owned).collect(),
    }
}

fn parse(text: &str, path: &Path) -> Result<toml::Table> {
    text.parse().map_err(|e: toml::de::Error| {
        Error::new(Outcome::BadInput, format!("reading {}", path.display()))
            .because(e.message().to_owned())
            .advise("mend it first")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/etc/containers/storage.conf";

    fn added(text: &str) -> Result<Option<String>> {
        add(text, Path::new("/var/lib/towline/layers"), Path::new(PATH))
    }

    #[test]
    fn the_line_comes_and_goes_and_the_rest_stays() {
        let ours = "additionallayerstores = [\"/var/lib/towline/layers:ref\"] # towline\n";
        for (before, after) in [
            (
                "[storage]\ndriver = \"overlay\"\n",
                format!("[storage]\ndriver = \"overlay\"\n[storage.options] # towline\n{ours}"),
            ),
            (
                "# own\n[storage]\n[storage.options] # mine\nx = 1\n\n[storage.options.overlay]\n",
                format!("# own\n[storage]\n[storage.options] # mine\n{ours}x = 1\n\n[storage.options.overlay]\n"),
            ),
            ("", format!("[storage.options] # towline\n{ours}")),
        ] {
            let text = added(before).unwrap().unwrap();
            assert_eq!(text, after);
            assert_eq!(added(&text).unwrap(), None, "it is there");
            assert_eq!(remove(&text).as_deref(), Some(before));
            assert_eq!(remove(before).as_deref(), Some(before), "nothing of ours");
        }
    }

    #[test]
    fn a_file_of_our_own_goes_as_a_whole() {
        let now = Now { graph_root: "/g \"1\"".into(), run_root: "/r".into() };
        let text = added(&new(&now)).unwrap().unwrap();
        let parsed: toml::Table = text.parse().unwrap();
        assert_eq!(parsed["storage"]["graphroot"].as_str(), Some("/g \"1\""));
        assert_eq!(parsed["storage"]["options"]["additionallayerstores"][0].as_str(), Some("/var/lib/towline/layers:ref"));
        assert_eq!(remove(&text), None);
    }

    #[test]
    fn what_cannot_be_added_to_is_refused() {
        for (text, why) in [
            ("[storage", "mend it"),
            ("[storage]\ndriver = \"vfs\"\n", "its driver is vfs"),
            ("[storage.options]\nadditionallayerstores = [\"/other:ref\"]\n", "/other:ref"),
            ("[storage]\noptions = { x = 1 }\n", "by hand"),
        ] {
            let error = added(text).unwrap_err().one_line();
            assert!(error.contains(why) && error.contains(PATH), "{error}");
        }
    }
}
