//! containerd: a file that its configuration imports, and a unit for towlined.
//!
//! Of a plugin's section in an imported file containerd takes all or nothing: it replaces that of the main file. So where the main file has sections for
//! CRI, the imported one has them again with what is towline's added.

use std::path::{Path, PathBuf};

use toml::{Table, Value};
use towline_lazyfs::error::{Error, Outcome, Result};

use super::record::Change;
use super::tables::render;

/// CRI's section about registries.
const REGISTRY: &str = "registry";
/// Where containerd's documentation has `hosts.toml`, and where towlined looks for it.
const CERTS: &str = "/etc/containerd/certs.d";

/// Which configuration containerd reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Version 2, of containerd 1.x.
    Two,
    /// Version 3, of containerd 2.x.
    Three,
}

/// What is to be known of this machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// containerd's configuration.
    pub config: PathBuf,
    /// What it reads.
    pub format: Format,
    /// The snapshotter's socket.
    pub socket: PathBuf,
    /// The store.
    pub root: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// The daemon.
    pub towlined: PathBuf,
    /// The OCI runtime.
    pub runtime: PathBuf,
    /// Whether towline's own shim is installed.
    pub has_shim: bool,
    /// Whether Kubernetes' images are pulled by the snapshotter.
    pub cri: bool,
}

impl std::str::FromStr for Format {
    type Err = String;

    /// Of what `containerd --version` says.
    fn from_str(text: &str) -> Result<Self, String> {
        let version = text.split_whitespace().find_map(|word| {
            let word = word.trim_start_matches('v');
            word.starts_with(|c: char| c.is_ascii_digit()).then(|| word.split('.').next()?.parse::<u32>().ok())?
        });
        match version {
            Some(1) => Ok(Self::Two),
            Some(2..) => Ok(Self::Three),
            _ => Err(format!("{text:?} names no version of containerd that is known")),
        }
    }
}

impl Machine {
    /// Where the imported file is.
    pub fn drop_in(&self) -> PathBuf {
        self.config.with_file_name("conf.d").join("towline.toml")
    }

    /// The imported file. `main` is the configuration that is there.
    pub fn drop_in_text(&self, main: &str) -> Result<String> {
        let main = self.parse(main)?;
        // containerd 2.x reads both versions; sections are called as in the main file, so that they can be added to.
        let names = if main.get("version").and_then(Value::as_integer) == Some(2) { Format::Two } else { self.format };
        let mut added = self.additions(names);
        let own = main.get("plugins").and_then(Value::as_table);
        if let (Some(own), Some(Value::Table(plugins))) = (own, added.get_mut("plugins")) {
            for (name, ours) in plugins.iter_mut() {
                if let (Some(Value::Table(theirs)), Value::Table(ours)) = (own.get(name), ours) {
                    // Its own word, in whatever form: `config_path` beside others is an error to containerd.
                    if theirs.contains_key(REGISTRY) {
                        ours.remove(REGISTRY);
                    }
                    let mut both = theirs.clone();
                    merge(&mut both, ours);
                    *ours = both;
                }
            }
        }
        let head = "# Written by `towline system install containerd`; `--undo` takes it away.\n\
                    # Sections of plugins replace those of the main file, so what that has for the plugins below is repeated here.\n";
        Ok(format!("{head}{}", render(&[], &added)))
    }

    /// What makes containerd read the imported file; `None` where it does already.
    pub fn import(&self, main: &str) -> Result<Option<Change>> {
        let drop_in = self.drop_in();
        let parsed = self.parse(main)?;
        let imports = parsed.get("imports").and_then(Value::as_array);
        let imports: Vec<&str> = imports.into_iter().flatten().filter_map(Value::as_str).collect();
        if imports.iter().any(|pattern| covers(pattern, &drop_in)) {
            return Ok(None);
        }
        let all: Vec<Value> =
            imports.iter().copied().chain(drop_in.to_str()).map(|text| Value::String(text.to_owned())).collect();
        let after = render(&[], &Table::from_iter([("imports".to_owned(), Value::Array(all))])).trim_end().to_owned();
        let line = main.lines().map(str::trim_end).find(|line| line.split('=').next().is_some_and(|key| key.trim() == "imports"));
        let whole = line.is_none_or(|line| line.parse::<Table>().is_ok());
        if !whole || (line.is_none() && !imports.is_empty()) {
            return Err(Error::new(Outcome::Unsupported, format!("adding to `imports` of {}", self.config.display()))
                .because("it does not stand on a line of its own")
                .advise(format!("add {:?} to it by hand", drop_in.display().to_string())));
        }
        Ok(Some(Change { path: self.config.clone(), before: line.map(str::to_owned), after }))
    }

    fn parse(&self, main: &str) -> Result<Table> {
        main.parse().map_err(|e| Error::new(Outcome::BadInput, format!("reading {}", self.config.display())).because(e))
    }

    /// The configuration of a containerd that has none.
    pub fn main_text(&self) -> String {
        let imports = Value::Array(vec![Value::String(self.drop_in().display().to_string())]);
        let version = Value::Integer(version_of(self.format));
        render(&[], &Table::from_iter([("version".to_owned(), version), ("imports".to_owned(), imports)]))
    }

    fn additions(&self, names: Format) -> Table {
        let text = |path: &Path| Value::String(path.display().to_string());
        let string = |text: &str| Value::String(text.to_owned());
        let table =
            |entries: Vec<(&str, Value)>| Value::Table(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
        let exports =
            table(vec![("root", text(&self.root.join("snapshots"))), ("enable_remote_snapshot_annotations", string("true"))]);
        let mut plugin = vec![("type", string("snapshot")), ("address", text(&self.socket))];
        if self.format == Format::Three {
            plugin.push(("exports", exports));
        }
        let runtime = match self.has_shim {
            true => table(vec![("runtime_type", string("io.containerd.towline.v2"))]),
            false => table(vec![
                ("runtime_type", string("io.containerd.runc.v2")),
                ("options", table(vec![("BinaryName", text(&self.runtime))])),
            ]),
        };
        let runtimes = table(vec![("towline", runtime)]);
        let pulls = [("snapshotter", string("towline")), ("disable_snapshot_annotations", Value::Boolean(false))];
        let registry = (REGISTRY, table(vec![("config_path", string(CERTS))]));
        let mut plugins = Vec::new();
        if self.format == Format::Three {
            let unpack = |snapshotter| table(vec![("platform", string("linux")), ("snapshotter", string(snapshotter))]);
            let unpacked = Value::Array(vec![unpack("overlayfs"), unpack("towline")]);
            plugins.push(("io.containerd.transfer.v1.local", table(vec![("unpack_config", unpacked)])));
        }
        match names {
            Format::Two => {
                let mut containerd = vec![("runtimes", runtimes)];
                containerd.extend(self.cri.then_some(pulls).into_iter().flatten());
                let mut cri = vec![("containerd", table(containerd))];
                cri.extend(self.cri.then_some(registry));
                plugins.push(("io.containerd.grpc.v1.cri", table(cri)));
            }
            Format::Three => {
                plugins.push(("io.containerd.cri.v1.runtime", table(vec![("containerd", table(vec![("runtimes", runtimes)]))])));
                if self.cri {
                    plugins.push(("io.containerd.cri.v1.images", table(pulls.into_iter().chain([registry]).collect())));
                }
            }
        }
        let proxy = table(vec![("towline", table(plugin))]);
        let all = [("version", Value::Integer(version_of(names))), ("proxy_plugins", proxy), ("plugins", table(plugins))];
        all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The unit of towlined. Started before containerd, so that a boot finds its snapshots; it takes over from a towlined that a command has
    /// started.
    pub fn unit_text(&self) -> String {
        let Self { towlined, root, state, socket, .. } = self;
        format!(
            "# Written by `towline system install containerd`; `--undo` takes it away.\n\
             [Unit]\nDescription=towlined: lazily pulled images for containerd\nBefore=containerd.service\nAfter=local-fs.target\n\n\
             [Service]\nType=exec\nExecStart={} --root {} --state {} serve --replace --snapshotter {} --cri {}\n\
             Restart=always\nRestartSec=200ms\nKillMode=process\nFileDescriptorStoreMax=8\nOOMScoreAdjust=-999\nLimitNOFILE=65536\n\n\
             [Install]\nWantedBy=multi-user.target\n",
            towlined.display(),
            root.display(),
            state.display(),
            socket.display(),
            state.join("cri.sock").display()
        )
    }
}

fn version_of(format: Format) -> i64 {
    if format == Format::Two { 2 } else { 3 }
}

/// Puts what is in `more` into `table`.
fn merge(table: &mut Table, more: &Table) {
    for (key, value) in more {
        match (table.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(more)) => merge(inner, more),
            // What the user unpacks with already stays.
            (Some(Value::Array(all)), Value::Array(more)) => {
                for one in more {
                    if !all.contains(one) {
                        all.push(one.clone());
                    }
                }
            }
            _ => drop(table.insert(key.clone(), value.clone())),
        }
    }
}

/// Whether an entry of `imports` names the file: as it is, or by a star for its name.
fn covers(pattern: &str, path: &Path) -> bool {
    let pattern = Path::new(pattern);
    let star = pattern.file_name().is_some_and(|name| name == "*.toml" || name == "*");
    pattern == path || (star && pattern.parent() == path.parent())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(format: Format, cri: bool) -> Machine {
        Machine {
            config: "/etc/containerd/config.toml".into(),
            format,
            socket: "/run/towline/snapshotter.sock".into(),
            root: "/var/lib/towline".into(),
            state: "/run/towline".into(),
            towlined: "/usr/local/bin/towlined".into(),
            runtime: "/usr/local/bin/towline-oci".into(),
            has_shim: false,
            cri,
        }
    }

    fn at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(table.get(*first)?, |value, key| value.get(*key))
    }

    #[test]
    fn what_is_there_stays_and_ours_is_added() {
        const CRI: &str = "io.containerd.grpc.v1.cri";
        let main = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"pause\"\n\
                    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"x\"\n\
                    [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"/opt\"\n";
        let table: Table = machine(Format::Two, true).drop_in_text(main).unwrap().parse().unwrap();
        for (path, wanted) in [
            (&["proxy_plugins", "towline", "address"][..], Some("/run/towline/snapshotter.sock")),
            (&["plugins", CRI, "sandbox_image"], Some("pause")),
            (&["plugins", CRI, "containerd", "snapshotter"], Some("towline")),
            (&["plugins", CRI, "containerd", "runtimes", "runc", "runtime_type"], Some("x")),
            (&["plugins", CRI, "containerd", "runtimes", "towline", "options", "BinaryName"], Some("/usr/local/bin/towline-oci")),
            (&["plugins", CRI, "registry", "config_path"], Some("/etc/containerd/certs.d")),
            (&["plugins", "io.containerd.internal.v1.opt", "path"], None),
        ] {
            assert_eq!(at(&table, path).and_then(Value::as_str), wanted, "{path:?}");
        }
        let annotations = at(&table, &["plugins", CRI, "containerd", "disable_snapshot_annotations"]);
        assert_eq!(annotations, Some(&Value::Boolean(false)));
        let without = machine(Format::Two, false).drop_in_text(main).unwrap().parse::<Table>().unwrap();
        assert_eq!(at(&without, &["plugins", CRI, "containerd", "snapshotter"]), None);

        let three: Table = machine(Format::Three, true).drop_in_text("version = 3\n").unwrap().parse().unwrap();
        assert_eq!(
            at(&three, &["plugins", "io.containerd.cri.v1.images", "snapshotter"]).and_then(Value::as_str),
            Some("towline")
        );
        let exports = at(&three, &["proxy_plugins", "towline", "exports", "enable_remote_snapshot_annotations"]);
        assert_eq!(exports.and_then(Value::as_str), Some("true"));
        assert_eq!(
            at(&three, &["plugins", "io.containerd.transfer.v1.local", "unpack_config"]).unwrap().as_array().unwrap().len(),
            2
        );
        assert_eq!(
            at(&three, &["plugins", "io.containerd.cri.v1.images", "registry", "config_path"]).and_then(Value::as_str),
            Some("/etc/containerd/certs.d")
        );
        // Whoever has a word about registries keeps it.
        let own = format!("{main}[plugins.\"{CRI}\".registry.mirrors.\"docker.io\"]\nendpoint = [\"http://m\"]\n");
        let own: Table = machine(Format::Two, true).drop_in_text(&own).unwrap().parse().unwrap();
        assert!(at(&own, &["plugins", CRI, "registry", "mirrors", "docker.io", "endpoint"]).is_some());
        assert_eq!(at(&own, &["plugins", CRI, "registry", "config_path"]), None);
        // An old file under a new containerd: old names, and what is new beside them.
        let old: Table = machine(Format::Three, true).drop_in_text(main).unwrap().parse().unwrap();
        assert_eq!(at(&old, &["plugins", CRI, "sandbox_image"]).and_then(Value::as_str), Some("pause"));
        assert!(at(&old, &["proxy_plugins", "towline", "exports"]).is_some() && old["version"].as_integer() == Some(2));
        assert!(machine(Format::Two, true).drop_in_text("version = [").is_err());
    }

    #[test]
    fn the_file_is_imported_once_and_only_where_that_is_sure() {
        let machine = machine(Format::Two, true);
        let ours = "/etc/containerd/conf.d/towline.toml";
        for (main, wanted) in [
            ("version = 2\n", Some((None, format!("imports = [\"{ours}\"]")))),
            ("version = 2\nimports = [\"/a\"]\n", Some((Some("imports = [\"/a\"]"), format!("imports = [\"/a\", \"{ours}\"]")))),
            ("imports = [\"/etc/containerd/conf.d/*.toml\"]\n", None),
            (&format!("imports = [\"{ours}\"]\n"), None),
        ] {
            let change = machine.import(main).unwrap();
            let found = change.as_ref().map(|change| (change.before.as_deref(), change.after.clone()));
            assert_eq!(found, wanted, "{main}");
            if let Some(change) = change {
                assert_eq!(machine.import(&change.apply(main)).unwrap(), None, "{main}");
            }
        }
        assert_eq!(machine.import("imports = [\n\"/a\"]\n").unwrap_err().outcome(), Outcome::Unsupported);
        assert_eq!(machine.import(&machine.main_text()).unwrap(), None);
    }

    #[test]
    fn versions_are_read_as_containerd_says_them() {
        for (text, wanted) in [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", Some(Format::Two)),
            ("containerd github.com/containerd/containerd v1.7.13 7c3aca7a", Some(Format::Two)),
            ("containerd github.com/containerd/containerd/v2 v2.0.0 207ad711", Some(Format::Three)),
            ("2.1", Some(Format::Three)),
            ("containerd", None),
        ] {
            assert_eq!(text.parse::<Format>().ok(), wanted, "{text}");
        }
    }
}
