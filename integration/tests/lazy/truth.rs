//! What the files of the small image really contain, by unpacking its layers with tar.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use towline_integration::images::Layout;
use towline_integration::process::run;

const UNPACK: Duration = Duration::from_secs(60);

/// Path to sum and size of each regular file, as `probe sum` prints them.
#[derive(Debug, PartialEq, Eq)]
pub struct Truth {
    files: BTreeMap<String, String>,
}

impl Truth {
    /// Unpacks and merges the layers of an image.
    pub fn of(image: &str) -> Self {
        let layout = Layout::built(image);
        let merged = tempfile::tempdir().unwrap();
        for layer in layout.manifest("gzip")["layers"].as_array().unwrap() {
            let upper = tempfile::tempdir().unwrap();
            let mut tar = Command::new("tar");
            tar.arg("-xzf").arg(layout.blob_path(layer["digest"].as_str().unwrap())).arg("-C").arg(upper.path());
            run(tar, UNPACK).success();
            apply_whiteouts(upper.path(), merged.path());
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(upper.path().join(".")).arg(merged.path());
            run(copy, UNPACK).success();
        }
        Self::of_dir(merged.path())
    }

    /// What a directory has.
    pub fn of_dir(dir: &Path) -> Self {
        let mut files = BTreeMap::new();
        collect(dir, dir, &mut files);
        Self { files }
    }

    /// Regular files, hard links counted each.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// `sum=… size=…` of a file.
    pub fn of_file(&self, path: &str) -> &str {
        &self.files[path]
    }

    /// Takes lines of `probe sum`: how many were right, and those that were an error or wrong.
    ///
    /// # Panics
    /// When a file was read with content that is not the image's: no failure may look like that.
    pub fn compare(&self, output: &str) -> (usize, Vec<String>) {
        let mut right = 0;
        let mut failed = Vec::new();
        for line in output.lines() {
            let Some((path, said)) = line.rsplit_once(" errno=").or_else(|| line.rsplit_once(" sum=")) else { continue };
            if line.contains(" errno=") {
                failed.push(line.to_owned());
            } else if let Some(truth) = self.files.get(path) {
                assert_eq!(&format!("sum={said}"), truth, "{path} was read with wrong content");
                right += 1;
            }
        }
        (right, failed)
    }
}

/// Removes from `lower` what the whiteouts in `upper` say, and the whiteouts.
fn apply_whiteouts(upper: &Path, lower: &Path) {
    for entry in fs::read_dir(upper).unwrap().flatten() {
        let name = entry.file_name();
        let Some(gone) = name.to_str().and_then(|name| name.strip_prefix(".wh.")) else {
            if entry.file_type().unwrap().is_dir() {
                apply_whiteouts(&entry.path(), &lower.join(name));
            }
            continue;
        };
        fs::remove_file(entry.path()).unwrap();
        if gone == ".wh..opq" {
            fs::remove_dir_all(lower).unwrap();
            fs::create_dir(lower).unwrap();
        } else {
            fs::remove_file(lower.join(gone)).unwrap();
        }
    }
}

fn collect(root: &Path, dir: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect(root, &entry.path(), files);
        } else if kind.is_file()
            && let Some(path) = entry.path().strip_prefix(root).unwrap().to_str().filter(|path| !path.contains('\n'))
        {
            let bytes = fs::read(entry.path()).unwrap();
            files.insert(format!("/{path}"), format!("sum={:016x} size={}", fnv(&bytes), bytes.len()));
        }
    }
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
