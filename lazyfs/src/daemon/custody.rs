//! The trigger of this daemon, and whoever keeps its device for the next one.
//!
//! ```text
//! (none) --mount--> served + guard --unmount--> (none), the holder ends
//!        --adopt-->       |         --leave---> (none), the holder keeps it for the next daemon
//! ```
//!
//! The guard is a task that sees to it that there is always a holder: it starts one beside the first container, and another when that one
//! was killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::client::Paths;
use crate::error::{Error, Result};
use crate::holder::{Bond, Keeper};
use crate::task::blocking;
use crate::trigger::{Kept, Resolver, Trigger};

/// First and longest pause before another holder is started.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The one trigger of a daemon.
#[derive(Debug)]
pub struct Custody {
    paths: Paths,
    keeper: Arc<Keeper>,
    served: Mutex<Option<Served>>,
    /// Whether somebody keeps the device at this moment.
    held: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Served {
    trigger: Trigger,
    note: String,
    guard: JoinHandle<()>,
}

impl Custody {
    /// No trigger yet.
    pub fn new(paths: Paths, keeper: Keeper) -> Self {
        Self { paths, keeper: Arc::new(keeper), served: Mutex::default(), held: Arc::default() }
    }

    /// The device that an earlier daemon has left.
    pub async fn take(&self) -> Result<Option<Kept>> {
        let keeper = self.keeper.clone();
        blocking("asking for the FUSE trigger's device", move || keeper.take()).await
    }

    /// Goes on with the trigger of an earlier daemon. Where that is not possible its device is closed, which fails whoever waits, and
    /// containers that run keep what is local; the log says why. Says whether it went on.
    pub async fn adopt(&self, kept: Kept, resolver: Arc<dyn Resolver>) -> Result<bool> {
        let note = kept.note.clone();
        if kept.is_alive() {
            match Trigger::adopt(&self.paths.trigger(), kept, resolver) {
                Ok(trigger) => {
                    tracing::info!("going on with the FUSE trigger of an earlier towlined");
                    *self.served.lock().await = Some(self.served(trigger)?);
                    return Ok(true);
                }
                Err(error) => {
                    tracing::warn!("{}; a new one is mounted, containers that run keep what is local", error.one_line())
                }
            }
        } else {
            tracing::warn!("somebody has ended the FUSE connection of an earlier towlined; a new trigger is mounted");
        }
        self.release(note).await.map(|()| false)
    }

    /// Mounts the trigger where none is.
    pub async fn mount(&self, resolver: impl FnOnce() -> Arc<dyn Resolver>) -> Result<()> {
        let mut served = self.served.lock().await;
        if let Some(dead) = served.take_if(|served| !served.trigger.is_connected()) {
            tracing::warn!("the FUSE connection was ended from outside: mounting another trigger");
            self.end(dead).await?;
        }
        if served.is_none() {
            *served = Some(self.served(Trigger::mount(&self.paths.trigger(), resolver())?)?);
        }
        Ok(())
    }

    /// Whether somebody keeps the device for the next daemon.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes the trigger away for good.
    pub async fn unmount(&self) -> Result<()> {
        match self.served.lock().await.take() {
            Some(served) => self.end(served).await,
            None => Ok(()),
        }
    }

    /// Makes sure that the device is kept, so that [`Self::leave`] loses nothing.
    pub async fn secure(&self) -> Result<()> {
        let kept = match &*self.served.lock().await {
            Some(served) => served.trigger.kept()?,
            None => return Ok(()),
        };
        let keeper = self.keeper.clone();
        blocking("leaving the FUSE trigger's device", move || keeper.keep(&kept)).await.map(drop)
    }

    /// Leaves the trigger to the next daemon: nobody is answered any more. Says whether there was one.
    pub async fn leave(&self) -> Result<bool> {
        self.secure().await?;
        let Some(served) = self.served.lock().await.take() else { return Ok(false) };
        blocking("leaving the FUSE trigger", move || served.trigger.leave()).await?;
        // Last: by its connection the holder knows that somebody serves.
        served.guard.abort();
        Ok(true)
    }

    fn served(&self, trigger: Trigger) -> Result<Served> {
        let kept = trigger.kept()?;
        let note = kept.note.clone();
        Ok(Served { trigger, note, guard: tokio::spawn(guard(self.keeper.clone(), Arc::new(kept), self.held.clone())) })
    }

    async fn end(&self, served: Served) -> Result<()> {
        served.guard.abort();
        self.held.store(false, Ordering::Relaxed);
        // Its copy of the device must be closed when the trigger is.
        drop(served.guard.await);
        let unmounted = blocking("unmounting the FUSE trigger", move || served.trigger.unmount()).await;
        unmounted.and(self.release(served.note).await)
    }

    async fn release(&self, note: String) -> Result<()> {
        let keeper = self.keeper.clone();
        blocking("closing the FUSE trigger's device", move || keeper.release(&note)).await
    }
}

/// Keeps the device kept.
async fn guard(keeper: Arc<Keeper>, kept: Arc<Kept>, held: Arc<AtomicBool>) {
    let mut pause = PAUSE.0;
    loop {
        let (with, what) = (keeper.clone(), kept.clone());
        match blocking("leaving the FUSE trigger's device", move || with.keep(&what)).await {
            Ok(None) => return held.store(true, Ordering::Relaxed),
            Ok(Some(bond)) => {
                tracing::info!("a holder keeps the FUSE trigger's device");
                held.store(true, Ordering::Relaxed);
                let ended = gone(bond).await;
                held.store(false, Ordering::Relaxed);
                if !kept.is_alive() {
                    return;
                }
                match ended {
                    Ok(()) => tracing::warn!("the holder of the FUSE trigger was ended from outside: starting another"),
                    Err(error) => tracing::warn!("{}", error.one_line()),
                }
                pause = PAUSE.0;
            }
            Err(error) => tracing::warn!(
                "nobody keeps the FUSE trigger's device: if this towlined is killed now, files that are not local fail: {}",
                error.one_line()
            ),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Ends when the holder does.
async fn gone(bond: Bond) -> Result<()> {
    let failed = |e| Error::io("watching", "the holder of the FUSE trigger", e);
    // Only waited with; that its socket keeps packets apart makes no difference to that.
    let socket = std::os::unix::net::UnixStream::from(bond.0);
    socket.set_nonblocking(true).map_err(failed)?;
    let socket = tokio::net::UnixStream::from_std(socket).map_err(failed)?;
    // It says nothing unless it is asked, so what there is to read is its end.
    socket.readable().await.map_err(failed)
}
