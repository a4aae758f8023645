//! What most tests here stand on: a store, a link, a registry; and containers that wait for the test's word.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use towline_integration::link::{Link, Quality};
use towline_integration::process::wait_until;
use towline_integration::registry::{Registry, reference};
use towline_integration::towline::{PATIENCE, Towline};

/// Dropped in this order: containers and daemon end before their registry.
pub struct Rig {
    pub towline: Towline,
    pub link: Link,
    pub registry: Registry,
}

impl Rig {
    pub fn new(towline: Towline, quality: Quality) -> Self {
        Self::with(Registry::start(), towline, quality)
    }

    /// For measurements: a registry that keeps no access log.
    pub fn quiet(towline: Towline, quality: Quality) -> Self {
        Self::with(Registry::start_quiet(), towline, quality)
    }

    fn with(registry: Registry, towline: Towline, quality: Quality) -> Self {
        let link = Link::start(registry.address(), quality).unwrap();
        Self { towline, link, registry }
    }

    /// A reference to an image, through the link.
    pub fn image(&self, name: &str) -> String {
        reference(self.link.address(), name)
    }

    /// Starts a detached container that has the directory `sync` of the sandbox as /sync.
    pub fn start(&self, name: &str, image: &str, command: &[&str]) -> Stepped<'_> {
        let sync = self.towline.dir().join("sync");
        fs::create_dir_all(&sync).unwrap();
        let (image, volume) = (self.image(image), format!("{}:/sync", sync.display()));
        let mut args = vec!["run", "-d", "--name", name, "-v", &volume, &image];
        args.extend_from_slice(command);
        self.towline.run(&args).success();
        Stepped { towline: &self.towline, name: name.to_owned(), sync }
    }

    /// As [`Self::script`], when the programs themselves are here: a page of a program that nobody can bring ends it.
    pub fn resident_script(&self, name: &str, tag: &str, script: &str) -> Stepped<'_> {
        self.script(name, tag, &format!("probe sum /bin/probe /bin/busybox > /dev/null\n{script}"))
    }

    /// Starts a shell script in a container of the small image; the script has `wait_for WORD`, see [`Stepped::go`].
    pub fn script(&self, name: &str, tag: &str, script: &str) -> Stepped<'_> {
        let script = format!("wait_for() {{ while [ ! -e /sync/$1 ]; do sleep 0.05; done; }}\n{script}");
        self.start(name, &format!("small:{tag}"), &["/bin/sh", "-c", &script])
    }
}

/// A running container that the test leads step by step.
pub struct Stepped<'a> {
    pub towline: &'a Towline,
    pub name: String,
    sync: PathBuf,
}

impl Stepped<'_> {
    /// What it has printed.
    pub fn output(&self) -> String {
        self.towline.run(&["logs", &self.name]).success().stdout
    }

    /// Waits until it has printed `text`; everything that it has printed by then.
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_for_within(text, PATIENCE)
    }

    pub fn wait_for_within(&self, text: &str, deadline: Duration) -> String {
        let mut output = String::new();
        wait_until(
            &format!("'{text}' from container {} (log of the daemon: {})", self.name, self.towline.daemon_log()),
            deadline,
            || {
                output = self.output();
                output.contains(text)
            },
        );
        output
    }

    /// Lets its `wait_for WORD` return.
    pub fn go(&self, word: &str) {
        fs::write(self.sync.join(word), "").unwrap();
    }
}

/// The part of `output` after the line `mark`.
pub fn after<'a>(output: &'a str, mark: &str) -> &'a str {
    output.split_once(&format!("{mark}\n")).unwrap_or_else(|| panic!("no line '{mark}' in {output}")).1
}
