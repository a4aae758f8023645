//! The process itself.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use towline_lazyfs::daemon::protocol::Failure;
use towline_lazyfs::descriptors;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::rootfs::plan::RootPlan;
use towline_lazyfs::tree::erofs::read::StoredTree;
use towline_lazyfs::treefs::layers::Layers;
use towline_lazyfs::treefs::{TreeMount, View};

/// Longest plan in bytes that is read.
const MAX_PLAN: u64 = 1 << 20;

/// At most one failure in this time is told to the container's user; the daemon's log has all.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Serves the tree of the plan on standard input at `dir`, until nothing has it mounted any more. The line on standard output says why it
/// cannot, or `null` once it serves. The exit code is for nobody.
pub fn run(dir: &Path) -> Result<u8> {
    let (sender, ended) = mpsc::channel();
    let mounted = mount(dir, sender);
    let failure: Option<Failure> = mounted.as_ref().err().map(Failure::from);
    let mut line = serde_json::to_vec(&failure).expect("an error has only string keys");
    line.push(b'\n');
    let mut stdout = std::io::stdout();
    stdout.write_all(&line).and_then(|()| stdout.flush()).map_err(|e| Error::io("writing to", "standard output", e))?;
    let mounted = mounted?;
    // Without an end to wait for, as the thread that serves cannot be gone before it has said so.
    ended.recv().map_err(|e| Error::new(Outcome::Io, "serving a tree").because(e))?;
    // Whatever is mounted there by now is not this one.
    std::mem::forget(mounted);
    Ok(0)
}

fn mount(dir: &Path, ended: mpsc::Sender<()>) -> Result<TreeMount> {
    let plan = read_plan()?;
    descriptors::allow()?;
    rustix::thread::set_name(c"towline-tree").map_err(|e| Error::io("naming", "this process", e))?;
    let last = Mutex::<Option<Instant>>::default();
    let say = move |error: &Error| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= TELL_EVERY) {
            *last = Some(Instant::now());
            // Whoever listened may have been killed.
            writeln!(std::io::stderr(), "a program gets EIO: {}", error.one_line()).unwrap_or_default();
        }
    };
    let tree = StoredTree::open(&plan.tree)?;
    let contents = Arc::new(Layers::open(&plan, Box::new(say))?);
    let said = move || ended.send(()).unwrap_or_default();
    TreeMount::mount(tree, contents, View::BelowOverlay, "the image's tree", dir, said)
}

fn read_plan() -> Result<RootPlan> {
    const TRIED: &str = "reading what to serve from standard input";
    let mut line = String::new();
    BufReader::new(std::io::stdin().lock().take(MAX_PLAN)).read_line(&mut line).map_err(|e| Error::io(TRIED, "", e))?;
    serde_json::from_str(&line).map_err(|e| Error::new(Outcome::BadInput, TRIED).because(e))
}
