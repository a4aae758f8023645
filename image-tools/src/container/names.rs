//! Container names: which ones are allowed, and the ones that are made up.

use towline_lazyfs::error::{Error, Outcome, Result};

/// Longest name in bytes: a name is also a file name and a hostname.
const MAX: usize = 63;

const FIRST: [&str; 32] = [
    "amber",
    "ancient",
    "bold",
    "brave",
    "bright",
    "brisk",
    "calm",
    "coastal",
    "copper",
    "eager",
    "early",
    "faithful",
    "gentle",
    "golden",
    "hardy",
    "idle",
    "jolly",
    "keen",
    "lively",
    "lucky",
    "merry",
    "misty",
    "nimble",
    "patient",
    "proud",
    "quiet",
    "salty",
    "silver",
    "steady",
    "swift",
    "tidal",
    "weathered",
];

const SECOND: [&str; 32] = [
    "anchor", "barge", "beacon", "bollard", "brig", "buoy", "caravel", "clipper", "compass", "cutter", "dinghy", "dory", "ferry",
    "frigate", "galleon", "halyard", "harbour", "hawser", "jetty", "ketch", "lantern", "lighter", "lugger", "packet", "pilot",
    "rudder", "schooner", "sextant", "skiff", "sloop", "trawler", "tugboat",
];

/// A name for the container with this id; `attempt` counts those that were taken.
pub fn generate(id: &str, attempt: usize) -> String {
    let digit = |at: usize| usize::from_str_radix(id.get(at..at + 2).unwrap_or("0"), 16).unwrap_or(0);
    let pair = format!("{}-{}", FIRST[digit(0) % FIRST.len()], SECOND[digit(2) % SECOND.len()]);
    if attempt == 0 { pair } else { format!("{pair}-{}", id.get(4..4 + 2 * attempt.min(8)).unwrap_or("0")) }
}

/// Checks a name that a user chose.
pub fn check(name: &str) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::new(Outcome::BadInput, format!("naming a container {:?}", name.chars().take(80).collect::<String>()))
            .because(why)
            .advise("use letters, digits, `_`, `.` and `-`, beginning with a letter or digit"))
    };
    if name.len() > MAX {
        return refuse("it has more than 63 bytes");
    }
    if !name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric()) {
        return refuse("it does not begin with a letter or digit");
    }
    if !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c)) {
        return refuse("it has other characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_allowed_and_differ_by_attempt() {
        let id = super::super::id::new().unwrap();
        let names: Vec<_> = (0..10).map(|attempt| generate(&id, attempt)).collect();
        for name in &names {
            check(name).unwrap();
        }
        assert_ne!(names[0], names[1]);
        assert_ne!(names[1], names[2]);
    }

    #[test]
    fn names_stay_one_path_component() {
        for good in ["a", "A.b_c-9", "0", &"x".repeat(63)] {
            check(good).unwrap();
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "ä", "a\n", "a\0", &"x".repeat(64)] {
            assert!(check(bad).is_err(), "{bad:?} was taken");
        }
    }
}
