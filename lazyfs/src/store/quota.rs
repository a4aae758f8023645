//! How much a store may hold, how much it does, and what goes first.
//!
//! ```text
//!             low mark          high mark
//! |---------------|------------------|-----------> bytes on the disk
//!   collected down to here            collected from here on; what is only fetched in the background rests
//! ```
//!
//! Counted is what was pulled ([`super::usage::Usage::total`]), not what containers wrote. Between two looks at everything a [`Meter`] adds
//! what is stored.

use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

/// The unit in which files take room.
const BLOCK: u64 = 4096;

/// How long an image is kept after it was pulled or asked for, whoever uses it.
const GRACE: Duration = Duration::from_secs(60);

/// Where the low mark is, in percent of the high one, where nothing is said.
const LOW_PERCENT: u64 = 80;

/// A mark, as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Bytes(u64),
    /// Of the file system that the store is on.
    Percent(u64),
}

/// What the user allows a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    high: Mark,
    low: Option<Mark>,
    /// How long an image is kept after it was pulled or asked for.
    pub grace: Duration,
}

/// The marks in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Above this images are removed.
    pub high: u64,
    /// Until no more than this is left.
    pub low: u64,
}

impl FromStr for Quota {
    type Err = String;

    /// `HIGH[,low=LOW][,grace=SECONDS]`; marks are bytes with K, M, G, T (powers of 1000), or percent of the file system.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut items = text.split(',').map(str::trim);
        let high = items.next().unwrap_or_default().parse()?;
        let mut quota = Self { high, low: None, grace: GRACE };
        for item in items {
            match item.split_once('=') {
                Some(("low", value)) => quota.low = Some(value.parse()?),
                Some(("grace", value)) => {
                    let seconds = value.parse().map_err(|_| format!("`{value}` is not a number of seconds"))?;
                    quota.grace = Duration::from_secs(seconds);
                }
                _ => return Err(format!("`{item}` is neither low=MARK nor grace=SECONDS")),
            }
        }
        match (quota.high, quota.low) {
            (Mark::Bytes(high), Some(Mark::Bytes(low))) | (Mark::Percent(high), Some(Mark::Percent(low))) if low > high => {
                Err("the low mark is above the high one".to_owned())
            }
            _ => Ok(quota),
        }
    }
}

impl FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else { return bytes(text).map(Self::Bytes) };
        match percent.parse() {
            Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
            _ => Err(format!("`{text}` is not between 1% and 100%")),
        }
    }
}

/// Reads a number of bytes: `12`, `500M`, `20G`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return Err("one unit of K, M, G, T at most".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "a number such as 500M or 20G is expected".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "that is more than any disk has".to_owned())
}

impl Quota {
    /// The marks for the store at `root`.
    pub fn marks(&self, root: &Path) -> Result<Marks> {
        let stat = rustix::fs::statvfs(root).map_err(|e| Error::io("looking at the file system of", root, e))?;
        let size = stat.f_blocks.saturating_mul(stat.f_frsize);
        let bytes = |mark: Mark| match mark {
            Mark::Bytes(bytes) => bytes,
            Mark::Percent(percent) => size / 100 * percent,
        };
        let high = bytes(self.high);
        Ok(Marks { high, low: self.low.map_or(high / 100 * LOW_PERCENT, bytes).min(high) })
    }
}

/// What a store holds as far as is known, and what it may.
#[derive(Debug, Default)]
pub struct Meter {
    used: AtomicU64,
    /// 0: no limit.
    limit: AtomicU64,
    is_measured: AtomicBool,
}

impl Meter {
    /// A file of this length was stored.
    pub fn add(&self, length: u64) {
        self.used.fetch_add(on_disk(length), Ordering::Relaxed);
    }

    /// Everything was looked at, and takes this many bytes.
    pub fn measured(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
        self.is_measured.store(true, Ordering::Relaxed);
    }

    /// Whether everything was ever looked at.
    pub fn is_measured(&self) -> bool {
        self.is_measured.load(Ordering::Relaxed)
    }

    /// Sets what the store may hold.
    pub fn limit(&self, bytes: u64) {
        self.limit.store(bytes.max(1), Ordering::Relaxed);
    }

    /// Bytes on the disk, as far as is known.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether it is more than it may be.
    pub fn is_over(&self) -> bool {
        self.check().is_err()
    }

    /// Fails with [`Outcome::NoSpace`] where it is more than it may be.
    pub fn check(&self) -> Result<()> {
        let (used, limit) = (self.used(), self.limit.load(Ordering::Relaxed));
        if limit == 0 || used <= limit {
            return Ok(());
        }
        Err(Error::new(Outcome::NoSpace, "keeping to the store's quota")
            .because(format!("it holds {} MB of {} MB", used / 1_000_000, limit / 1_000_000))
            .advise("remove containers and images that are not needed (`towline system df`), or raise the quota"))
    }
}

/// Bytes that a file takes on the disk.
pub fn on_disk(length: u64) -> u64 {
    length.next_multiple_of(BLOCK)
}

/// Something that images share: an object, or what is kept of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shared {
    /// A file.
    Object(Digest),
    /// Index and large files of a layer.
    Layer(Digest),
}

/// An image, to be weighed.
#[derive(Clone, Debug)]
pub struct Weighed {
    /// The image.
    pub image: Digest,
    /// Whether it may go.
    pub removable: bool,
    /// When it was last pulled or used.
    pub last_used: SystemTime,
    /// What it needs, each once, and what that takes on the disk.
    pub parts: Vec<(Shared, u64)>,
    /// What its own files take.
    pub own: u64,
}

/// Which of the images have to go so that of `used` bytes no more than `wanted` are left, or all that may. They go in the order in which
/// they are given.
pub fn choose(images: &[Weighed], used: u64, wanted: u64) -> Vec<Digest> {
    let mut namers: HashMap<Shared, u32> = HashMap::new();
    for (part, _) in images.iter().flat_map(|image| &image.parts) {
        *namers.entry(*part).or_default() += 1;
    }
    let (mut left, mut gone) = (used, Vec::new());
    for image in images.iter().filter(|image| image.removable) {
        if left <= wanted {
            break;
        }
        left = left.saturating_sub(image.own);
        for (part, bytes) in &image.parts {
            let count = namers.get_mut(part).expect("they were all counted");
            *count -= 1;
            if *count == 0 {
                left = left.saturating_sub(*bytes);
            }
        }
        gone.push(image.image);
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read_or_refused() {
        let of = |text: &str| text.parse::<Quota>();
        let second = Duration::from_secs;
        for (text, high, low, grace) in [
            ("20G", Mark::Bytes(20_000_000_000), None, second(60)),
            ("80%,low=70%", Mark::Percent(80), Some(Mark::Percent(70)), second(60)),
            ("500M, low=0, grace=5", Mark::Bytes(500_000_000), Some(Mark::Bytes(0)), second(5)),
            ("1T,grace=0,low=10%", Mark::Bytes(1_000_000_000_000), Some(Mark::Percent(10)), second(0)),
        ] {
            assert_eq!(of(text), Ok(Quota { high, low, grace }));
        }
        for bad in ["", "x", "0%", "101%", "20G,15G", "20G,low=21G", "50%,low=60%", "20G,grace=x", "20G,low", "-1", "1.5G"] {
            assert!(of(bad).is_err(), "{bad}");
        }
        let marks = |text: &str| of(text).unwrap().marks(Path::new("/")).unwrap();
        assert_eq!(marks("1000"), Marks { high: 1000, low: 800 });
        let (half, all) = (marks("50%,low=100%".replace("100", "50").as_str()), marks("100%"));
        assert!(half.high == half.low && half.high > 0 && all.high / 2 - half.high < 100);
        assert_eq!(marks("5,low=90%").low, 5, "the low mark is never above the high one");
    }

    #[test]
    fn bytes_have_units() {
        for (text, value) in
            [("0", 0), ("12", 12), ("3K", 3000), ("500M", 500_000_000), ("20G", 20_000_000_000), ("1T", 1_000_000_000_000)]
        {
            assert_eq!(bytes(text), Ok(value));
        }
        for bad in ["", "K", "-1", "1.5G", "1GG", "1g", "99999999999T", "20 G"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_oldest_go_until_enough_is_free_and_what_is_shared_goes_with_the_last() {
        let part = |name: u8, bytes: u64| (Shared::Object(Digest::of(&[name])), bytes);
        let image = |name: &str, removable: bool, parts: &[(Shared, u64)]| Weighed {
            image: Digest::of(name.as_bytes()),
            removable,
            last_used: SystemTime::now(),
            parts: parts.to_vec(),
            own: 1,
        };
        let shared = part(0, 100);
        let images = [
            image("oldest", true, &[shared, part(1, 10)]),
            image("used", false, &[part(2, 1000)]),
            image("middle", true, &[shared, part(3, 20), (Shared::Layer(Digest::of(&[3])), 5)]),
            image("newest", true, &[part(4, 40), part(2, 1000)]),
        ];
        let total = 100 + 10 + 1000 + 20 + 5 + 40 + 4;
        for (wanted, expected) in [
            (total, &[][..]),
            (total - 1, &["oldest"]),
            (total - 11, &["oldest"]),
            (total - 12, &["oldest", "middle"]),
            (total - 137, &["oldest", "middle"]),
            (total - 138, &["oldest", "middle", "newest"]),
            (0, &["oldest", "middle", "newest"]),
        ] {
            let expected: Vec<Digest> = expected.iter().map(|name| Digest::of(name.as_bytes())).collect();
            assert_eq!(choose(&images, total, wanted), expected, "{wanted}");
        }
    }

    #[test]
    fn a_meter_counts_whole_blocks_and_has_no_limit_by_itself() {
        let meter = Meter::default();
        meter.measured(1 << 40);
        assert!(!meter.is_over() && meter.is_measured());
        meter.limit(10_000);
        assert_eq!(meter.check().unwrap_err().outcome(), Outcome::NoSpace);
        meter.measured(4096);
        meter.add(1);
        assert_eq!(meter.used(), 8192);
        assert!(!meter.is_over());
        meter.add(4096);
        assert!(meter.is_over());
    }
}
