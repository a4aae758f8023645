//! All containers of a store: making, finding and listing them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use towline_lazyfs::daemon::client::Paths;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::store::create_private_dir;

use super::namespace::Namespace;
use super::record::{self, Record};
use super::{id, names};

/// How often a generated name may be taken before making a container fails.
const NAME_ATTEMPTS: usize = 8;

/// The paths of one container.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// What stays: `ROOT/containers/ID`.
    pub home: PathBuf,
    /// What does not outlive a reboot: `STATE/containers/ID`.
    pub state: PathBuf,
}

impl Dirs {
    /// The paths of the container with this id, whether it exists or not.
    pub fn of(paths: &Paths, id: &str) -> Self {
        Self { home: containers(paths).join(id), state: paths.state.join("containers").join(id) }
    }

    /// The record.
    pub fn record(&self) -> PathBuf {
        self.home.join("container.json")
    }

    /// How it ended.
    pub fn exit(&self) -> PathBuf {
        self.home.join("exit")
    }

    /// How it ended before it was started once more.
    pub fn previous_exit(&self) -> PathBuf {
        self.home.join("exit.previous")
    }

    /// What it wrote.
    pub fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    /// What its monitor had to say.
    pub fn monitor_log(&self) -> PathBuf {
        self.home.join("monitor.log")
    }

    /// What its network consists of, while there is one to take back.
    pub fn network(&self) -> PathBuf {
        self.home.join("network.json")
    }

    /// Where its network namespace is kept.
    pub fn network_namespace(&self) -> PathBuf {
        self.state.join("netns")
    }

    /// Its processes.
    pub fn run_state(&self) -> PathBuf {
        self.state.join("state.json")
    }

    /// Where the tree of its image is mounted for the moment in which its root is made, where a process serves that.
    pub fn tree(&self) -> PathBuf {
        self.state.join("tree")
    }

    /// Where its root is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.state.join("rootfs")
    }
}

fn containers(paths: &Paths) -> PathBuf {
    paths.root.join("containers")
}

/// Where the names of a namespace are: links to the directories of containers.
fn names_dir(paths: &Paths, namespace: &Namespace) -> PathBuf {
    match namespace.is_default() {
        true => containers(paths).join("by-name"),
        false => containers(paths).join("by-namespace").join(namespace.as_str()),
    }
}

fn name_link(paths: &Paths, namespace: &Namespace, name: &str) -> PathBuf {
    names_dir(paths, namespace).join(name)
}

/// What the name of a container in a namespace leads to.
fn target(namespace: &Namespace, id: &str) -> PathBuf {
    Path::new(if namespace.is_default() { ".." } else { "../.." }).join(id)
}

/// All namespaces that had names.
fn namespaces(paths: &Paths) -> Result<Vec<Namespace>> {
    let dir = containers(paths).join("by-namespace");
    let mut found = vec![Namespace::default()];
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(Error::io("listing", &dir, e)),
    };
    for entry in entries {
        let name = entry.map_err(|e| Error::io("listing", &dir, e))?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse().ok()));
    }
    Ok(found)
}

/// A new id and a name for it: `wanted`, or a generated one. The name is taken from now on.
pub fn reserve(paths: &Paths, namespace: &Namespace, wanted: Option<&str>) -> Result<(String, String)> {
    let id = id::new()?;
    create_private_dir(&names_dir(paths, namespace))?;
    if let Some(name) = wanted {
        names::check(name)?;
        if claim(paths, namespace, name, &id)? {
            return Ok((id, name.to_owned()));
        }
        return Err(Error::new(Outcome::Busy, format!("naming a container {name}"))
            .because("another container has that name")
            .advise(format!("take another name, or remove it with `towline rm {name}`")));
    }
    for attempt in 0..NAME_ATTEMPTS {
        let name = names::generate(&id, attempt);
        if claim(paths, namespace, &name, &id)? {
            return Ok((id, name));
        }
    }
    Err(Error::new(Outcome::Busy, "generating a container name").because("all were taken").advise("give one with --name"))
}

/// Makes the link that holds a name; false where another container has it.
fn claim(paths: &Paths, namespace: &Namespace, name: &str, id: &str) -> Result<bool> {
    let (link, target) = (name_link(paths, namespace, name), target(namespace, id));
    for _ in 0..2 {
        // The directory comes first, so that a link without a directory is known to be a leftover.
        let home = containers(paths).join(id);
        create_private_dir(&home)?;
        match std::os::unix::fs::symlink(&target, &link) {
            Ok(()) => return Ok(true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists && link.exists() => {
                std::fs::remove_dir(&home).map_err(|e| Error::io("removing", &home, e))?;
                return Ok(false);
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => remove_if_there(&link)?,
            Err(e) => return Err(Error::io("creating", &link, e)),
        }
    }
    Ok(false)
}

/// Gives up the name and the directories of a container.
pub fn forget(paths: &Paths, id: &str, name: Option<&str>) -> Result<()> {
    let dirs = Dirs::of(paths, id);
    if let Some(name) = name {
        // Without a record nothing says in which namespace it is.
        for namespace in namespaces(paths)? {
            let link = name_link(paths, &namespace, name);
            // The name may have gone to another container if this one was half-removed before.
            if std::fs::read_link(&link).is_ok_and(|found| found == target(&namespace, id)) {
                remove_if_there(&link)?;
            }
        }
    }
    for dir in [&dirs.state, &dirs.home] {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("removing", dir, e)),
            _ => {}
        }
    }
    Ok(())
}

/// Gives a container another name.
pub fn rename(paths: &Paths, mut record: Record, name: &str) -> Result<()> {
    let tried = || format!("renaming container {} to {name}", record.name);
    names::check(name).map_err(|e| e.during(tried()))?;
    let namespace = record.namespace.clone();
    let (link, target) = (name_link(paths, &namespace, name), target(&namespace, &record.id));
    if std::fs::symlink_metadata(&link).is_ok() && !link.exists() {
        remove_if_there(&link)?;
    }
    match std::os::unix::fs::symlink(&target, &link) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::new(Outcome::Busy, tried()).because("a container has that name").advise("take another name"));
        }
        Err(e) => return Err(Error::io("creating", &link, e)),
    }
    let old = std::mem::replace(&mut record.name, name.to_owned());
    // The new name leads to it already: whoever is killed in between leaves a container with two.
    record::write_json(&Dirs::of(paths, &record.id).record(), &record)?;
    remove_if_there(&name_link(paths, &namespace, &old))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("removing", path, e)),
        _ => Ok(()),
    }
}

/// Ids of all containers, also of those whose record is missing.
pub fn ids(paths: &Paths) -> Result<Vec<String>> {
    let dir = containers(paths);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("listing", &dir, e)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| Error::io("listing", &dir, e))?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit())) {
            ids.push(name.to_owned());
        }
    }
    ids.sort();
    Ok(ids)
}

/// Ids of all containers of a namespace.
pub fn ids_in(paths: &Paths, namespace: &Namespace) -> Result<Vec<String>> {
    Ok(ids(paths)?.into_iter().filter(|id| is_in(paths, namespace, id)).collect())
}

/// Whether a container is in a namespace. One whose record is missing or broken has to be somewhere, to be removed.
fn is_in(paths: &Paths, namespace: &Namespace, id: &str) -> bool {
    match load(paths, id) {
        Ok(Some(record)) => record.namespace == *namespace,
        Ok(None) | Err(_) => namespace.is_default(),
    }
}

/// The record of a container; `None` where there is none (yet).
pub fn load(paths: &Paths, id: &str) -> Result<Option<Record>> {
    let path = Dirs::of(paths, id).record();
    let record: Option<Record> = record::read_json(&path)?;
    match record {
        Some(record) if record.version != record::VERSION => Err(Error::new(
            Outcome::Unsupported,
            format!("reading {}", path.display()),
        )
        .because(format!("it has version {}, this program knows {}", record.version, record::VERSION))),
        other => Ok(other),
    }
}

/// The id that a name, an id or the beginning of an id means in a namespace.
pub fn find(paths: &Paths, namespace: &Namespace, wanted: &str) -> Result<String> {
    let tried = || format!("looking up container {wanted}");
    if names::check(wanted).is_ok()
        && let Ok(target) = std::fs::read_link(name_link(paths, namespace, wanted))
        && let Some(id) = target.file_name().and_then(|name| name.to_str())
    {
        return Ok(id.to_owned());
    }
    let begins = |id: &String| !wanted.is_empty() && id.starts_with(wanted);
    let mut matching = ids(paths)?.into_iter().filter(begins).filter(|id| is_in(paths, namespace, id));
    match (matching.next(), matching.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => Err(Error::new(Outcome::BadInput, tried())
            .because("more than one container has an id that begins so")
            .advise("give more digits")),
        (None, _) => Err(Error::new(Outcome::NotFound, tried())
            .because(match namespace.is_default() {
                true => "there is no container of that name or id".to_owned(),
                false => format!("there is no container of that name or id in namespace {namespace}"),
            })
            .advise("see `towline ps -a`")),
    }
}

/// Like [`find`], with the record.
pub fn find_record(paths: &Paths, namespace: &Namespace, wanted: &str) -> Result<Record> {
    let id = find(paths, namespace, wanted)?;
    load(paths, &id)?.ok_or_else(|| {
        Error::new(Outcome::NotFound, format!("looking up container {wanted}"))
            .because("it has no record: making it was interrupted")
            .advise(format!("remove it with `towline rm {}`", super::id::short(&id)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &Path) -> Paths {
        Paths { root: dir.join("root"), state: dir.join("state") }
    }

    #[test]
    fn a_name_is_taken_once_and_free_again_after() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let (id, name) = reserve(&paths, &Namespace::default(), Some("web")).unwrap();
        assert_eq!(name, "web");
        assert_eq!(reserve(&paths, &Namespace::default(), Some("web")).unwrap_err().outcome(), Outcome::Busy);
        assert_eq!(ids(&paths).unwrap(), std::slice::from_ref(&id));
        for wanted in ["web", &id, &id[..5]] {
            assert_eq!(find(&paths, &Namespace::default(), wanted).unwrap(), id);
        }
        forget(&paths, &id, Some("web")).unwrap();
        assert_eq!(ids(&paths).unwrap(), Vec::<String>::new());
        reserve(&paths, &Namespace::default(), Some("web")).unwrap();
    }

    #[test]
    fn a_name_whose_container_is_gone_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let (id, _) = reserve(&paths, &Namespace::default(), Some("web")).unwrap();
        std::fs::remove_dir(Dirs::of(&paths, &id).home).unwrap();
        let (other, _) = reserve(&paths, &Namespace::default(), Some("web")).unwrap();
        // What is left of the first must not take the name from the second.
        forget(&paths, &id, Some("web")).unwrap();
        assert_eq!(find(&paths, &Namespace::default(), "web").unwrap(), other);
    }

    #[test]
    fn a_container_is_found_by_its_new_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let (id, name) = reserve(&paths, &Namespace::default(), Some("web")).unwrap();
        reserve(&paths, &Namespace::default(), Some("db")).unwrap();
        let plan = crate::spec::process::Plan {
            args: vec!["x".into()],
            env: vec![],
            cwd: "/".into(),
            user: String::new(),
            stop_signal: String::new(),
        };
        let image = towline_lazyfs::digest::Digest::of(b"");
        let settings = crate::spec::settings::Settings::default();
        let version = record::VERSION;
        let record = Record {
            version,
            id: id.clone(),
            name,
            image_name: "i".into(),
            image,
            created: 0,
            creator: None,
            boot: None,
            plan,
            settings,
            remove_at_exit: false,
            namespace: Namespace::default(),
        };
        assert_eq!(rename(&paths, record.clone(), "db").unwrap_err().outcome(), Outcome::Busy);
        assert_eq!(rename(&paths, record.clone(), "../x").unwrap_err().outcome(), Outcome::BadInput);
        rename(&paths, record, "front").unwrap();
        assert_eq!(
            (find(&paths, &Namespace::default(), "front").unwrap(), load(&paths, &id).unwrap().unwrap().name),
            (id, "front".into())
        );
        assert_eq!(find(&paths, &Namespace::default(), "web").unwrap_err().outcome(), Outcome::NotFound);
    }

    #[test]
    fn namespaces_have_names_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let spaces: [Namespace; 3] = ["default", "k8s.io", "team"].map(|name| name.parse().unwrap());
        let ids: Vec<String> = spaces.iter().map(|space| reserve(&paths, space, Some("web")).unwrap().0).collect();
        for (space, id) in spaces.iter().zip(&ids) {
            assert_eq!(&find(&paths, space, "web").unwrap(), id);
            assert_eq!(reserve(&paths, space, Some("web")).unwrap_err().outcome(), Outcome::Busy);
            std::fs::write(Dirs::of(&paths, id).record(), record_of(id, space)).unwrap();
            assert_eq!(&find(&paths, space, id).unwrap(), id);
        }
        for (space, id) in spaces.iter().zip(&ids) {
            assert_eq!(ids_in(&paths, space).unwrap(), std::slice::from_ref(id));
        }
        let error = find(&paths, &spaces[2], &ids[1]).unwrap_err();
        assert!(error.outcome() == Outcome::NotFound && error.one_line().contains("in namespace team"), "{error:?}");
        rename(&paths, load(&paths, &ids[1]).unwrap().unwrap(), "front").unwrap();
        assert_eq!(find(&paths, &spaces[1], "front").unwrap(), ids[1]);
        assert!(find(&paths, &spaces[1], "web").is_err() && find(&paths, &spaces[2], "web").is_ok());
        forget(&paths, &ids[2], Some("web")).unwrap();
        assert!(find(&paths, &spaces[2], "web").is_err() && find(&paths, &spaces[0], "web").is_ok());
        reserve(&paths, &spaces[2], Some("web")).unwrap();
    }

    /// A record as the program before this one wrote it, where the namespace is the default one.
    fn record_of(id: &str, namespace: &Namespace) -> String {
        let mut record = serde_json::json!({
            "version": record::VERSION, "id": id, "name": "web", "image_name": "i", "image": towline_lazyfs::digest::Digest::of(b""),
            "created": 0, "creator": null, "settings": crate::spec::settings::Settings::default(), "remove_at_exit": false,
            "plan": {"args": ["x"], "env": [], "cwd": "/", "user": "", "stop_signal": ""},
        });
        if !namespace.is_default() {
            record["namespace"] = namespace.as_str().into();
        }
        record.to_string()
    }

    #[test]
    fn what_means_no_container_or_several_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        for _ in 0..17 {
            reserve(&paths, &Namespace::default(), None).unwrap();
        }
        let twice = (0..16)
            .map(|digit| format!("{digit:x}"))
            .find(|digit| ids(&paths).unwrap().iter().filter(|id| id.starts_with(digit.as_str())).count() > 1);
        assert_eq!(find(&paths, &Namespace::default(), &twice.unwrap()).unwrap_err().outcome(), Outcome::BadInput);
        for wanted in ["", "..", "by-name", "nobody"] {
            assert_eq!(find(&paths, &Namespace::default(), wanted).unwrap_err().outcome(), Outcome::NotFound, "{wanted}");
        }
    }
}
