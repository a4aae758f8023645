//! The counters, in the names that are documented in docs/observability.md.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::error::Outcome;

/// Upper bounds of the histogram of waits, seconds: from a local answer to the deadline of a demand.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Why bytes were fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A program waits for them.
    Demand,
    /// They lie beside what a program waits for, or a profile says that one soon will.
    Prefetch,
    /// The image is to become local.
    Background,
}

impl Origin {
    /// Its name in metrics and spans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Prefetch => "prefetch",
            Self::Background => "background",
        }
    }
}

impl EncodeLabelValue for Origin {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOrigin {
    origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySpanOutcome {
    outcome: &'static str,
}

/// What is asked for only when somebody reads the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Images that are not complete.
    pub lazy_images: u64,
    /// Bytes of the compressed images that are local, of those that are not complete, and of complete ones.
    pub store_bytes: u64,
    /// Containers and mounts that pin an image.
    pub containers: u64,
    /// Whether the trigger's device is held for a successor of this daemon.
    pub held: bool,
    /// How often a second host was asked because the first was late.
    pub hedges: u64,
    /// How many layers containerd unpacked since their images could not be lazy.
    pub fallbacks: u64,
}

#[derive(Debug)]
pub(super) struct Metrics {
    bytes: Family<ByOrigin, Counter<u64, AtomicU64>>,
    waits: Histogram,
    errors: Family<ByKind, Counter<u64, AtomicU64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { bytes: Family::default(), waits: Histogram::new(BUCKETS), errors: Family::default() }
    }
}

impl Metrics {
    pub(super) fn fetched(&self, origin: Origin, bytes: u64) {
        self.bytes.get_or_create(&ByOrigin { origin }).inc_by(bytes);
    }

    pub(super) fn waited(&self, time: Duration) {
        self.waits.observe(time.as_secs_f64());
    }

    pub(super) fn failed(&self, outcome: Outcome) {
        // As in the protocol: `not-found`, `unavailable`, …
        let kind = serde_json::to_value(outcome).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
        self.errors.get_or_create(&ByKind { kind }).inc();
    }

    pub(super) fn render(&self, gauges: &Gauges, (exported, dropped): (u64, u64)) -> String {
        let mut registry = Registry::with_prefix("towline");
        registry.register("fetch_bytes", "Bytes received of layers, by what they were fetched for", self.bytes.clone());
        registry.register_with_unit("demand", "Waits of programs for content", Unit::Seconds, self.waits.clone());
        registry.register("demand_errors", "Waits that ended with an error, by its kind", self.errors.clone());
        let spans = Family::<BySpanOutcome, Counter<u64, AtomicU64>>::default();
        for (outcome, count) in [("exported", exported), ("dropped", dropped)] {
            spans.get_or_create(&BySpanOutcome { outcome }).inc_by(count);
        }
        registry.register("spans", "OpenTelemetry spans that a collector took, and that were dropped", spans);
        let gauge = |value: u64| {
            let gauge = Gauge::<i64>::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            gauge
        };
        let hedges = Counter::<u64, AtomicU64>::default();
        hedges.inc_by(gauges.hedges);
        registry.register("fetch_hedges", "Requests that a second host was asked for since the first was late", hedges);
        let fallbacks = Counter::<u64, AtomicU64>::default();
        fallbacks.inc_by(gauges.fallbacks);
        registry.register(
            "snapshotter_fallbacks",
            "Layers that containerd pulled and unpacked since their image could not be lazy",
            fallbacks,
        );
        registry.register("lazy_images", "Images that are not complete", gauge(gauges.lazy_images));
        registry.register("pinned_containers", "Containers and mounts that use an image", gauge(gauges.containers));
        registry.register_with_unit("store", "Compressed bytes of images that are local", Unit::Bytes, gauge(gauges.store_bytes));
        registry.register("holder_up", "Whether the FUSE device is held for the next daemon", gauge(u64::from(gauges.held)));
        let mut out = String::new();
        // Writing into a string does not fail.
        text::encode(&mut out, &registry).map(|()| out).unwrap_or_default()
    }
}
