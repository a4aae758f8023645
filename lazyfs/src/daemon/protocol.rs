//! What `towlined` and its clients say to each other: JSON documents, one a line, over a Unix stream socket.
//!
//! ```text
//! client: Hello                              server: Welcome; where the versions differ that is all
//! client: Hello with `replace`               server: Welcome, then Done or Failed, and then it leaves; versions may differ
//! client: Request                            server: Event*, then Done(reply) or Failed(error)
//! client: Request                            …
//! ```
//!
//! A client that closes its end cancels what it asked for, except that an image which was attached for lazy use stays attached
//! until it is complete.

use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Outcome};
use crate::layer::LayerKind;
use crate::observe::Wait;
use crate::observe::spans::Context;
use crate::registry::Proxies;
use crate::rootfs::plan::{By, RootPlan, Writable};

/// Version of this protocol; both sides must have the same, since they are installed together.
pub const VERSION: u32 = 3;

/// Longest line in bytes that either side accepts.
pub const MAX_LINE: usize = 16 * 1024 * 1024;

/// First line of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// Asks the server to leave everything to a successor that is about to start. Of all there is in this protocol, this and
    /// [`Message::Welcome`] must keep their meaning from version to version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

/// What a client can ask for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Makes an image available.
    Pull(PullRequest),
    /// Pins an image for a container and says what its root consists of. [`Reply::Prepared`].
    Prepare {
        /// Image name as it was pulled, or its digest.
        image: String,
        /// The container that the pin belongs to.
        container: String,
    },
    /// Says what a container is about to run, so that what it needs first is fetched before it asks. [`Reply::Ok`], at once.
    Ahead {
        /// The image.
        image: Digest,
        /// What runs.
        command: Command,
        /// The span of the start; what programs wait for from now on belongs to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace: Option<Context>,
    },
    /// The last waits of programs for content. [`Reply::Waits`].
    Waits,
    /// Serves the tree of an image from user space at a directory, read-only, until [`Request::UnmountTree`]. [`Reply::Ok`].
    MountTree {
        /// Image name as it was pulled, or its digest.
        image: String,
        /// An absolute path.
        dir: PathBuf,
    },
    /// Ends [`Request::MountTree`]. [`Reply::Ok`].
    UnmountTree {
        /// The same path.
        dir: PathBuf,
    },
    /// Brings a file of an image into the store because a program waits for it: all of it as an object, or of a large file a range into
    /// the layer's data file. [`Reply::Ok`] once it is there.
    Bring {
        /// The image.
        image: Digest,
        /// Digest of the file's content.
        content: Digest,
        /// Which bytes of the content; `None` for all of it.
        range: Option<Range<u64>>,
        /// The thread that waits; 0 where it is not known.
        caller: u32,
    },
    /// Reads the whole blob of a layer from where the image was pulled from, verified, into a file. [`Reply::Ok`].
    Blob {
        /// The image.
        image: Digest,
        /// Digest of the blob.
        layer: Digest,
        /// A file that exists and is empty; an absolute path.
        into: PathBuf,
    },
    /// Pushes the access profile of an image to where the image came from. [`Reply::Pushed`].
    PushProfile {
        /// The image.
        image: Digest,
    },
    /// Ends the pin of a container; not an error where there is none. [`Reply::Ok`].
    Release {
        /// The container.
        container: String,
    },
    /// Reports progress of an image until it is complete. [`Reply::Ok`] once it is; [`Event::HandedOff`] may come before.
    Watch {
        /// The image.
        image: Digest,
    },
    /// Removes what no image names. [`Reply::Removed`].
    Prune,
    /// Reads everything that is stored. [`Reply::Verified`].
    Verify {
        /// Removes damaged objects and indexes, and fetches the former again.
        repair: bool,
    },
    /// Removes an image name, and the image with its content where this was its last name. [`Reply::Removed`].
    RemoveImage {
        /// Image name or digest.
        image: String,
    },
}

/// [`Request::Pull`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// The reference as the user wrote it; a relative `oci:` directory has been made absolute.
    pub reference: String,
    /// How much has to be local before the request ends.
    pub until: PullUntil,
    /// When a source is asked although an image of that name is known.
    pub policy: PullPolicy,
    /// `os/architecture[/variant]`; `None` means this machine's.
    pub platform: Option<String>,
    /// The manifest that the reference is known to mean, which is then asked for in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// Credentials for the hosts that may be asked.
    pub credentials: Vec<Login>,
    /// What the client would have started the daemon with.
    pub settings: ClientSettings,
    /// Talk plain HTTP to the registry even if it is not on this machine.
    pub plain_http: bool,
    /// The span that the pull is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Context>,
}

/// What a container runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Where programs are looked for, as in `PATH`.
    pub path: String,
    /// Working directory.
    pub cwd: String,
}

/// How much of an image has to be local before a pull ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullUntil {
    /// Its tree and mapping table: containers can start, content follows in the background.
    Startable,
    /// Everything, and every layer verified.
    Complete,
}

/// When to ask the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// Only for an image that is not known.
    Missing,
    /// Always; content that is there already is not fetched again.
    Always,
}

/// What a client would start the daemon with, so that a running one can say where it differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientSettings {
    /// Directory with registry configuration.
    pub registry_config: Option<PathBuf>,
    /// Proxies.
    pub proxies: Proxies,
    /// The signature policy. Of all settings this one always counts: the daemon has none of its own.
    pub signature_policy: Option<PathBuf>,
}

/// Credentials and where they are good for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// `HOST[:PORT][/PATH]`; all repositories below.
    pub scope: String,
    /// What to say there.
    pub credentials: Credentials,
}

/// Credentials for a registry. Not shown by `Debug`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// User name; `<token>` says that the secret is an identity token.
    pub username: String,
    /// Password or token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.username)
    }
}

/// One line of the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// Answer to [`Hello`].
    Welcome {
        /// [`VERSION`] of the server.
        version: u32,
        /// Process id of the server.
        pid: u32,
    },
    /// Something happened on the way.
    Event(Event),
    /// The request succeeded.
    Done(Reply),
    /// The request failed.
    Failed(Failure),
}

/// What happens while a request is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The reference was resolved to an image.
    Resolved {
        /// Digest of the image's manifest for the platform.
        image: Digest,
        /// The layers, bottom first.
        layers: Vec<LayerSummary>,
    },
    /// The index of a layer is known: its table of contents was read, or the whole layer streamed past.
    LayerIndexed {
        /// Position of the layer, 0 at the bottom.
        layer: usize,
        /// Bytes received for it.
        bytes: u64,
    },
    /// A layer without a table of contents streams past; the image cannot start before it has.
    LayerStreaming {
        /// Position of the layer, 0 at the bottom.
        layer: usize,
        /// Compressed bytes so far.
        bytes: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// Tree and mapping table are written; the image can start.
    Startable {
        /// Inodes in the tree.
        entries: u64,
        /// Bytes of regular files in the tree, uncompressed.
        content_bytes: u64,
    },
    /// How much is local. Sent at most a few times a second.
    Progress(Progress),
    /// Something that the user should know and that is not fatal, such as a registry that does not answer.
    Warning {
        /// One line.
        text: String,
    },
    /// Every layer is local and verified.
    Complete(Progress),
    /// The FUSE trigger is unmounted; the server is about to exit.
    HandedOff,
    /// Another server takes over; this one is about to exit.
    Replaced,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// Digest of the compressed blob.
    pub digest: Digest,
    /// Length of the compressed blob, bytes.
    pub size: u64,
    /// How its bytes can be reached.
    pub kind: LayerKind,
}

/// How much of an image is local, and what was fetched for it since the server started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Compressed bytes of all layers.
    pub bytes_total: u64,
    /// Compressed bytes of the parts that are local.
    pub bytes_local: u64,
    /// Compressed bytes received because a program waited for them.
    pub fetched_demand: u64,
    /// Compressed bytes received since they lie beside what a program waited for.
    pub fetched_readahead: u64,
    /// Compressed bytes received because an access profile names them.
    #[serde(default)]
    pub fetched_prefetch: u64,
    /// Compressed bytes received in the background.
    pub fetched_background: u64,
    /// Bytes received of manifests, configurations and indexes.
    pub fetched_index: u64,
    /// Files that a program waited for.
    pub demanded_files: u64,
}

impl Progress {
    /// Whole per cent of the compressed bytes that are local; 100 only when all are.
    pub fn percent(&self) -> u64 {
        if self.bytes_local >= self.bytes_total {
            return 100;
        }
        (self.bytes_local * 100 / self.bytes_total).min(99)
    }

    /// All bytes received for the image.
    pub fn fetched(&self) -> u64 {
        self.fetched_demand + self.fetched_readahead + self.fetched_prefetch + self.fetched_background + self.fetched_index
    }
}

/// How a request ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Nothing more to say.
    Ok,
    /// [`Request::Pull`].
    Pulled {
        /// Canonical name of the image.
        name: String,
        /// Digest of its manifest.
        image: Digest,
        /// Whether all content is local.
        complete: bool,
        /// Whether a source had to be asked.
        fetched: bool,
    },
    /// [`Request::PushProfile`].
    Pushed {
        /// Digest of the artifact's manifest.
        artifact: Digest,
    },
    /// [`Request::Prepare`].
    Prepared(Prepared),
    /// [`Request::Waits`], oldest first.
    Waits {
        /// For all images together.
        waits: Vec<Wait>,
    },
    /// [`Request::Verify`].
    Verified(Verified),
    /// [`Request::RemoveImage`], [`Request::Prune`].
    Removed {
        /// Whether the image itself went with its last name.
        image_removed: bool,
        /// Bytes that became free.
        bytes_freed: u64,
    },
}

/// What a look at everything has found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verified {
    /// Objects that were read.
    pub objects: u64,
    /// Images whose files were read.
    pub images: u64,
    /// Layer indexes that were read.
    pub indexes: u64,
    /// What is damaged, one line each.
    pub damage: Vec<String>,
    /// Of these, what was removed, and is fetched again.
    pub repaired: usize,
}

/// What a container's root consists of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// Digest of the image's manifest.
    pub image: Digest,
    /// Canonical name of the image, or its digest where it has none.
    pub name: String,
    /// The EROFS image with all metadata.
    pub tree: PathBuf,
    /// The devices that it names, in its order.
    pub devices: Vec<PathBuf>,
    /// Data layers for overlayfs, first searched first.
    pub data: Vec<PathBuf>,
    /// Whether content may still be missing; then the data layers include the FUSE trigger.
    pub lazy: bool,
    /// How the tree comes into the kernel.
    #[serde(default)]
    pub by: By,
    /// The image configuration document (image-spec, "Image Configuration"), verbatim JSON.
    pub config: String,
}

impl Prepared {
    /// The root, with a writable layer or read-only.
    pub fn root(&self, writable: Option<Writable>) -> RootPlan {
        RootPlan { tree: self.tree.clone(), devices: self.devices.clone(), data: self.data.clone(), writable, by: self.by }
    }
}

/// A failed request: an [`Error`] as data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    outcome: Outcome,
    tried: String,
    causes: Vec<String>,
    advice: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            causes.push(inner.to_string());
            cause = inner.source();
        }
        Self { outcome: error.outcome(), tried: error.to_string(), causes, advice: error.advice().map(str::to_owned) }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let mut error = Error::new(failure.outcome, failure.tried);
        if !failure.causes.is_empty() {
            error = error.because(failure.causes.join(": "));
        }
        match failure.advice {
            Some(advice) => error.advise(advice),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_wire() {
        let error = Error::new(Outcome::Integrity, "fetching a")
            .because(Error::new(Outcome::Io, "reading b").because("short read"))
            .advise("ask the owner");
        let line = serde_json::to_string(&Message::Failed(Failure::from(&error))).unwrap();
        let Message::Failed(failure) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
        let back = Error::from(failure);
        assert_eq!((back.outcome(), back.one_line()), (error.outcome(), error.one_line()));
    }

    #[test]
    fn percent_is_100_only_when_complete() {
        let at = |bytes_local| Progress { bytes_total: 1000, bytes_local, ..Progress::default() }.percent();
        assert_eq!((at(0), at(996), at(1000)), (0, 99, 100));
        assert_eq!(Progress::default().percent(), 100);
    }
}
