//! What is seen of a daemon from outside: metrics while it lives, and the waits of programs also when it has left.

use std::sync::{Arc, Weak};

use super::client::Paths;
use super::server::Daemon;
use crate::error::{Error, Result};
use crate::observe::serve::{Place, listen};
use crate::observe::spans::{Context, Kind, Span};
use crate::observe::{Gauges, Observer};
use crate::store::db::ImageState;
use crate::store::pins::Holder;

impl Daemon {
    pub(super) async fn serve_metrics(self: &Arc<Self>, place: Option<Place>) -> Result<()> {
        let place = place.unwrap_or_else(|| Place::Unix(self.paths.metrics()));
        let daemon = Arc::downgrade(self);
        listen(&place, move || render(daemon.clone())).await
    }

    /// Begins the span of a step.
    pub(crate) fn span(&self, name: &'static str, parent: Option<Context>) -> Span {
        self.fetcher.observer().tracer().begin(name, Kind::Internal, parent)
    }

    /// Keeps the waits for `towline lazy trace`: they are most of interest when everything is local and the daemon gone.
    pub(super) fn leave_waits(&self) {
        if let Err(error) = write(&self.paths, self.fetcher.observer()) {
            tracing::warn!("{}", error.one_line());
        }
    }
}

async fn render(daemon: Weak<Daemon>) -> String {
    let Some(daemon) = daemon.upgrade() else { return "# EOF\n".to_owned() };
    let counted = daemon.database.with(|db| Ok((db.images()?, db.all_pins()?))).await;
    let mut gauges = Gauges { held: daemon.custody.is_held(), hedges: daemon.sources.hedged(), ..Gauges::default() };
    gauges.fallbacks = daemon.snapshotter.get().map_or(0, |snapshotter| snapshotter.fallbacks());
    match counted {
        Ok((images, pins)) => {
            gauges.lazy_images = images.iter().filter(|image| image.state == ImageState::Lazy).count() as u64;
            gauges.store_bytes = images.iter().map(|image| image.bytes_local).sum();
            let is_used = |pin: &&(String, _)| !matches!(Holder::of(&pin.0), Holder::User(_));
            gauges.containers = pins.iter().filter(is_used).count() as u64;
        }
        Err(error) => tracing::warn!("{}", error.one_line()),
    }
    daemon.fetcher.observer().render(&gauges)
}

fn write(paths: &Paths, observer: &Observer) -> Result<()> {
    let path = paths.waits();
    let mut new = tempfile::NamedTempFile::new_in(&paths.state).map_err(|e| Error::io("creating a file in", &paths.state, e))?;
    let waits = observer.waits(|_| true);
    serde_json::to_writer(&mut new, &waits).map_err(|e| Error::io("writing", &path, std::io::Error::from(e)))?;
    new.persist(&path).map_err(|e| Error::io("naming", &path, e.error)).map(drop)
}
