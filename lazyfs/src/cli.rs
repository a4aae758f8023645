//! The flags of `towlined`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use towline_lazyfs::observe::serve::Place;
use towline_lazyfs::rootfs::probe::Wanted;
use towline_lazyfs::snapshotter::Options;
use towline_lazyfs::store::quota::Quota;

/// Serves one store: fetches content on demand and in the background, and leaves when nothing is lazy any more.
#[derive(Parser)]
#[command(name = "towlined", version)]
pub struct Arguments {
    /// The store.
    #[arg(long, env = "TOWLINE_ROOT", default_value = "/var/lib/towline")]
    pub root: PathBuf,
    /// State that does not outlive a reboot: socket, lock, log, FUSE trigger.
    #[arg(long, env = "TOWLINE_STATE", default_value = "/run/towline")]
    pub state: PathBuf,
    /// Directory with HOST/hosts.toml, asked before containerd's and registries.conf.
    #[arg(long, env = "TOWLINE_REGISTRY_CONFIG", default_value = "/etc/towline/hosts.d")]
    pub registry_config: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Serves until nothing is lazy any more. Writes one line to standard output when it is ready, or why it cannot serve.
    Serve {
        /// How to fetch, for measurements: `readahead=BYTES`, `background=on|off` and others, with commas between.
        #[arg(long, env = "TOWLINE_FETCH", default_value = "")]
        fetch: String,
        /// Takes the place of the towlined that runs, which leaves its FUSE trigger to this one: containers notice nothing.
        #[arg(long)]
        replace: bool,
        /// How images are mounted: `auto`, as this machine can; `tree`, as on kernels that mount EROFS from block devices only; `fuse`, from user
        /// space even where everything is local
        #[arg(long, env = "TOWLINE_MOUNTS", default_value = "auto")]
        mounts: Wanted,
        /// Where metrics for Prometheus are served: ADDRESS:PORT or unix:/DIR/NAME [default: unix:STATE/metrics.sock]
        #[arg(long, env = "TOWLINE_METRICS")]
        metrics: Option<Place>,
        /// How much the store may hold: HIGH[,low=LOW][,grace=SECONDS]. HIGH and LOW are bytes (20G) or a share of the file system (80%). Above
        /// HIGH images that nothing uses are removed down to LOW [80% of HIGH]; one that was asked for within the grace [60] stays
        #[arg(long, env = "TOWLINE_QUOTA", value_name = "QUOTA")]
        quota: Option<Quota>,
        #[command(flatten)]
        snapshotter: Snapshotter,
    },
}

/// For containerd's `[proxy_plugins.towline]`.
#[derive(Args)]
pub struct Snapshotter {
    /// Serves containerd's snapshotter on this socket, and stays while it does
    #[arg(long = "snapshotter", env = "TOWLINE_SNAPSHOTTER", value_name = "SOCKET")]
    socket: Option<PathBuf>,
    /// containerd's own socket: it is asked which image a layer is of, where the client does not say it
    #[arg(long, env = "TOWLINE_CONTAINERD", value_name = "SOCKET", default_value = "/run/containerd/containerd.sock")]
    containerd: PathBuf,
    /// Serves the kubelet's image service on this socket, handed on to containerd: with `--image-service-endpoint` there, what it has for credentials is used for lazy pulls
    #[arg(long, env = "TOWLINE_CRI", value_name = "SOCKET", requires = "socket")]
    cri: Option<PathBuf>,
    /// Lets containerd pull and unpack images that cannot be pulled lazily; without it such a pull fails
    #[arg(long)]
    snapshotter_fallback: bool,
    /// The signature policy for what containerd pulls [default: /etc/containers/policy.json, where there is one]
    #[arg(long, env = "TOWLINE_SIGNATURE_POLICY", value_name = "FILE")]
    signature_policy: Option<PathBuf>,
}

impl Snapshotter {
    /// What is served; `None` where nothing is.
    pub fn options(self) -> Option<Options> {
        let system = PathBuf::from("/etc/containers/policy.json");
        Some(Options {
            socket: self.socket?,
            containerd: self.containerd,
            cri: self.cri,
            fallback: self.snapshotter_fallback,
            signature_policy: self.signature_policy.or_else(|| system.symlink_metadata().is_ok().then_some(system)),
        })
    }
}
