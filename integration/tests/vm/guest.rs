//! A guest that says what it has (init.sh).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use towline_integration::process::{Finished, Job, run, wait_until};
use towline_integration::towline::bin_dir;

/// A kernel boots in two seconds, emulated and on a busy host in a minute.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Whether this host's /dev/kvm runs kernels.
pub fn runs_kernels() -> bool {
    run(command(&bin_dir().join("towline-vmm"), &["probe"]), DEADLINE).code() == Some(0)
}

pub fn command(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

pub fn md5(path: &Path) -> String {
    let done = run(command(Path::new("md5sum"), &[&path.display().to_string()]), DEADLINE).success();
    done.stdout.split(' ').next().expect("a sum").trim_start_matches('\\').to_owned()
}

/// What guests boot, and where their files are.
pub struct Guest {
    dir: tempfile::TempDir,
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Where a guest's first root file system is that was made before: in the test machine that takes long.
pub const INITRD: &str = "TOWLINE_TEST_INITRD";

/// Makes a guest's first root file system in a directory.
pub fn build_initrd(dir: &Path) -> PathBuf {
    let (echo, initrd) = (dir.join("echo-vsock"), dir.join("initrd"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm");
    let mut compile = Command::new("cc");
    compile.args(["-static", "-O1", "-o"]).arg(&echo).arg(folder.join("echo-vsock.c"));
    run(compile, DEADLINE).success();
    let mut build = Command::new("bash");
    build
        .arg(folder.join("guest.sh"))
        .arg(super::work().join("testbed/modules"))
        .arg(folder.join("init.sh"))
        .arg(&initrd)
        .arg(&echo);
    run(build, DEADLINE).success();
    initrd
}

/// A file in an EROFS image.
pub struct Image {
    pub content: PathBuf,
    pub image: PathBuf,
}

/// A machine that runs.
pub struct Running {
    pub job: Job,
    console: PathBuf,
}

impl Guest {
    /// `None` where kernels do not run.
    pub fn new(test: &str) -> Option<Self> {
        if !runs_kernels() {
            println!(
                "SKIP {test}: this host's /dev/kvm runs no kernel; the_cases_hold_in_the_test_machine runs it in the test machine"
            );
            return None;
        }
        let made = super::work().join("testbed");
        let kernel = made.join("vmlinux");
        if !kernel.exists() {
            println!("SKIP {test}: {} is not there: make testbed", kernel.display());
            return None;
        }
        let dir = tempfile::tempdir().expect("make a directory");
        let initrd = std::env::var_os(INITRD).map_or_else(|| build_initrd(dir.path()), PathBuf::from);
        Some(Self { dir, kernel, initrd })
    }

    /// A path for something of this guest.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of so many bytes that are not alike.
    pub fn file(&self, name: &str, len: usize) -> PathBuf {
        let path = self.dir.path().join(name);
        let bytes: Vec<u8> = (0..len).map(|at| ((at / 7) ^ (at / 4096) ^ name.len()) as u8).collect();
        std::fs::write(&path, bytes).expect("write a file");
        path
    }

    /// An image with one file of so many bytes.
    pub fn erofs(&self, name: &str, len: usize) -> Image {
        let tree = self.dir.path().join(format!("{name}.tree"));
        std::fs::create_dir(&tree).expect("make a directory");
        let content = tree.join("file");
        std::fs::rename(self.file(&format!("{name}.content"), len), &content).expect("move a file");
        let image = self.dir.path().join(name);
        run(command(Path::new("mkfs.erofs"), &[&image.display().to_string(), &tree.display().to_string()]), DEADLINE).success();
        let file = std::fs::File::options().write(true).open(&image).expect("open an image");
        let len = file.metadata().expect("look at an image").len().next_multiple_of(2 << 20);
        file.set_len(len).expect("extend an image");
        Image { content, image }
    }

    /// Starts a machine with `more` of the configuration than it needs.
    pub fn start(&self, command_line: &str, more: &Value) -> Running {
        let console = self.dir.path().join("console");
        drop(std::fs::remove_file(&console));
        let mut config = json!({
            "kernel": self.kernel,
            "initrd": self.initrd,
            "memory-mib": 160,
            "console": console,
            "command-line": command_line,
        });
        let fields = config.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        let path = self.dir.path().join("machine.json");
        std::fs::write(&path, config.to_string()).expect("write a configuration");
        let job = Job::start(command(&bin_dir().join("towline-vmm"), &["run", "--config", &path.display().to_string()]));
        Running { job, console }
    }

    /// Runs one to its end: how it ended, and what its console shows.
    pub fn run(&self, command_line: &str, more: &Value) -> (Finished, String) {
        let Running { job, console } = self.start(command_line, more);
        let done = job.wait(DEADLINE);
        (done, std::fs::read_to_string(console).unwrap_or_default())
    }
}

impl Running {
    /// Waits until the guest says `what`. What it has said by then.
    pub fn wait_for(&self, what: &str) -> String {
        let said = || std::fs::read_to_string(&self.console).unwrap_or_default();
        wait_until(&format!("the guest to say {what:?}"), DEADLINE, || said().contains(what));
        said()
    }
}
