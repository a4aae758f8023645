//! How the fetcher behaves; everything that a measurement wants to vary.

use std::time::Duration;

use crate::error::{Error, Outcome, Result};

/// Limits and sizes of the fetcher. Bytes are compressed bytes of blobs where nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchConfig {
    /// A request for a file that a program waits for goes on behind that file until it has this size. 0: not at all.
    ///
    /// A request costs a round trip whatever its size; up to about bandwidth x round trip the bytes behind the file cost little more.
    pub readahead: u64,
    /// The size that this grows to where programs keep asking for files near each other.
    pub readahead_max: u64,
    /// Missing files that lie right before it are fetched along up to this size, if anything behind it is.
    pub readbehind: u64,
    /// How far, in bytes of content, a large file that a program reads in order is fetched ahead of it; 0: not at all.
    pub read_window: u64,
    /// Requests for waiting programs that run at the same time.
    pub demand_parallel: usize,
    /// Files that are fetched at the same time because a program is about to open them; 0: none are. They share the line, and the first is
    /// wanted first.
    pub ahead: usize,
    /// After this a program that waits gets an error.
    pub demand_deadline: Duration,
    /// Whether the rest of the image is fetched without being asked for.
    pub background: bool,
    /// How long no program must have waited before background requests run.
    pub background_idle: Duration,
    /// Size of a background request while programs keep waiting for files now and then.
    pub background_first: u64,
    /// Size that background requests grow to in quiet times.
    pub background_max: u64,
    /// How long no program must have waited before regions where programs just waited are fetched further.
    pub prefetch_idle: Duration,
    /// Size of such a prefetch, and of one part of a directory in which programs wait; 0: neither.
    pub prefetch: u64,
    /// Requests for what an access profile names that run at the same time.
    pub prefetch_parallel: usize,
    /// Bytes between two wanted parts that are fetched along rather than starting another request.
    pub hole: u64,
    /// Whether indexes of layers that somebody pushed beside an image are used.
    pub referrers: UseReferrers,
    /// How much of a background request is still let through when a program begins to wait.
    pub yield_bytes: u64,
    /// How long a request that waits for the whole image bears failures that may pass.
    pub patience: Duration,
    /// Pause after the first failure; doubles with each one that follows.
    pub backoff_first: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
}

/// Use of indexes that somebody pushed beside an image. What programs read until the layer is complete is what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UseReferrers {
    /// `off`: the layers stream.
    Never,
    /// `on`: where they are trusted no less than the image. That is so where a tag names it, since whoever can push an index can move the tag.
    /// For an image that is pinned by digest, or must be signed, it is so where the index is signed, too.
    Trusted,
    /// `always`: for such images, too.
    Always,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            readahead: 96 << 10,
            readahead_max: 192 << 10,
            readbehind: 24 << 10,
            read_window: 4 << 20,
            demand_parallel: 8,
            ahead: 4,
            demand_deadline: Duration::from_secs(30),
            background: true,
            background_idle: Duration::from_millis(150),
            background_first: 256 << 10,
            background_max: 4 << 20,
            prefetch_idle: Duration::from_millis(4),
            prefetch: 96 << 10,
            prefetch_parallel: 12,
            hole: 16 << 10,
            referrers: UseReferrers::Trusted,
            yield_bytes: 64 << 10,
            patience: Duration::from_secs(60),
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(20),
        }
    }
}

impl FetchConfig {
    /// Changes the defaults by `name=value,name=value`. Bytes are plain numbers, times milliseconds, switches `on` or `off`; the
    /// names are those of the fields with dashes for underscores or as they are.
    pub fn parse(text: &str) -> Result<Self> {
        let mut config = Self::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let tried = || format!("reading the fetch option `{item}`");
            let (name, value) = item
                .split_once('=')
                .ok_or_else(|| Error::new(Outcome::BadInput, tried()).because("it is not of the form NAME=VALUE"))?;
            config.set(&name.replace('-', "_"), value).map_err(|why| Error::new(Outcome::BadInput, tried()).because(why))?;
        }
        Ok(config)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|_| format!("`{value}` is not a number"));
        let time = || number().map(Duration::from_millis);
        match name {
            "readahead" => self.readahead = number()?,
            "readahead_max" => self.readahead_max = number()?,
            "readbehind" => self.readbehind = number()?,
            "read_window" => self.read_window = number()?,
            "demand_parallel" => self.demand_parallel = usize::try_from(number()?.clamp(1, 64)).expect("at most 64"),
            "ahead" => self.ahead = usize::try_from(number()?.min(64)).expect("at most 64"),
            "demand_deadline" => self.demand_deadline = time()?,
            "background" => self.background = switch(value)?,
            "referrers" => {
                self.referrers = match value {
                    "on" => UseReferrers::Trusted,
                    "off" => UseReferrers::Never,
                    "always" => UseReferrers::Always,
                    _ => return Err(format!("`{value}` is none of on, off and always")),
                }
            }
            "background_idle" => self.background_idle = time()?,
            "background_first" => self.background_first = number()?.max(4096),
            "background_max" => self.background_max = number()?.max(4096),
            "prefetch_idle" => self.prefetch_idle = time()?,
            "prefetch" => self.prefetch = number()?,
            "prefetch_parallel" => self.prefetch_parallel = usize::try_from(number()?.clamp(1, 64)).expect("at most 64"),
            "hole" => self.hole = number()?,
            "yield_bytes" => self.yield_bytes = number()?,
            "patience" => self.patience = time()?,
            "backoff_first" => self.backoff_first = time()?,
            "backoff_max" => self.backoff_max = time()?,
            _ => return Err("there is no option of that name".to_owned()),
        }
        Ok(())
    }
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{value}` is neither on nor off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let config = FetchConfig::parse("readahead=0, background=off,background-idle=20").unwrap();
        let wanted =
            FetchConfig { readahead: 0, background: false, background_idle: Duration::from_millis(20), ..FetchConfig::default() };
        assert_eq!(config, wanted);
        assert_eq!(FetchConfig::parse("").unwrap(), FetchConfig::default());
        for (value, wanted) in [("on", UseReferrers::Trusted), ("off", UseReferrers::Never), ("always", UseReferrers::Always)] {
            assert_eq!(FetchConfig::parse(&format!("referrers={value}")).unwrap().referrers, wanted);
        }
        for (text, why) in [
            ("readahead", "NAME=VALUE"),
            ("readahead=x", "not a number"),
            ("background=1", "neither on nor off"),
            ("referrers=no", "none of on, off and always"),
            ("speed=1", "no option of that name"),
        ] {
            assert!(FetchConfig::parse(text).unwrap_err().one_line().contains(why), "{text}");
        }
    }
}
