use super::*;

fn digest(n: u8) -> Digest {
    Digest::of(&[n])
}

fn ranges(list: &[(u64, u64)]) -> Vec<Range<u64>> {
    list.iter().map(|(start, end)| *start..*end).collect()
}

fn sample() -> Profile {
    let large = Access::of(digest(1), "/usr/bin/program".into(), 200_000, 3, ranges(&[(131_080, 131_090), (0, 17_000)]));
    Profile::new(digest(9), 950, [large, Access::whole(digest(2), "/etc/passwd".into(), 100, 20)])
}

#[test]
fn golden_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/profile-v1");
    let bytes = sample().to_bytes();
    if std::env::var_os("TOWLINE_WRITE_GOLDEN").is_some() {
        std::fs::write(path, &bytes).unwrap();
    }
    assert_eq!(std::fs::read(path).unwrap(), bytes, "the format has changed: give it another version");
    assert_eq!(Profile::parse(&bytes).unwrap(), sample());
}

#[test]
fn ranges_are_widened_and_merged() {
    type Case<'a> = (&'a str, u64, &'a [(u64, u64)], &'a [(u64, u64)]);
    let cases: &[Case<'_>] = &[
        ("to the grain", 200_000, &[(131_080, 131_090), (0, 17_000)], &[(0, 32_768), (131_072, 147_456)]),
        ("touching ones become one", 200_000, &[(16_384, 32_768), (0, 1)], &[(0, 32_768)]),
        ("not beyond the end", 20_000, &[(17_000, 99_000)], &[(16_384, 20_000)]),
        ("what is not in the file is nothing", 20_000, &[(20_000, 30_000), (5, 5)], &[]),
    ];
    for (name, size, parts, wanted) in cases {
        let access = Access::of(digest(1), String::new(), *size, 0, ranges(parts));
        assert_eq!(access.ranges(), ranges(wanted), "{name}");
        assert!(!access.is_whole(), "{name}");
    }
    assert!(Access::of(digest(1), String::new(), 20_000, 0, ranges(&[(0, 1), (17_000, 18_000)])).is_whole());
}

#[test]
fn several_recordings_make_one() {
    let mut profile = sample();
    let more = Access::of(digest(1), "/usr/bin/program".into(), 200_000, 30, ranges(&[(32_768, 40_000)]));
    let early = Access::whole(digest(3), "/etc/early".into(), 7, 1);
    profile.merge(&Profile::new(digest(9), 1200, [early, more]));
    let seen: Vec<_> = profile.accesses().iter().map(|access| (access.path.as_str(), access.at, access.bytes())).collect();
    assert_eq!(seen, [("/etc/early", 1, 7), ("/usr/bin/program", 3, 65_536), ("/etc/passwd", 20, 100)]);
    assert_eq!((profile.starts, profile.milliseconds, profile.bytes()), (2, 1200, 65_643));
    assert_eq!(Profile::parse(&profile.to_bytes()).unwrap(), profile);
}

#[test]
fn what_is_no_profile_is_refused() {
    let good = String::from_utf8(sample().to_bytes()).unwrap();
    let first = digest(1).to_string();
    let cases: Vec<(&str, String, &str)> = vec![
        ("nothing", String::new(), "EOF"),
        ("another document", "{\"version\":1}".into(), "missing field"),
        ("a newer version", good.replacen("\"version\":1", "\"version\":2", 1), "version 2"),
        ("an unknown field", good.replacen("\"starts\"", "\"stars\"", 1), "unknown field"),
        ("no digest", good.replacen(&first, "sha256:12", 1), "sha256"),
        ("twice the same content", good.replacen(&digest(2).to_string(), &first, 1), "the same content"),
        ("a range beyond the end", good.replacen("[131072,16384]", "[131072,163840]", 1), "wrong place"),
        ("a range that wraps", good.replacen("[131072,16384]", "[131072,18446744073709551615]", 1), "wrong place"),
        ("an empty range", good.replacen("[131072,16384]", "[131072,0]", 1), "wrong place"),
        ("ranges that overlap", good.replacen("[131072,16384]", "[16384,16384]", 1), "wrong place"),
        ("a negative offset", good.replacen("[131072,16384]", "[-1,16384]", 1), "invalid value"),
        ("a long path", good.replacen("/etc/passwd", &"x".repeat(5000), 1), "5000 bytes"),
        ("truncated", good[..good.len() - 3].to_owned(), "EOF"),
    ];
    for (name, text, why) in cases {
        let error = Profile::parse(text.as_bytes()).expect_err(name).one_line();
        assert!(error.contains(why), "{name}: {error}");
    }
    let huge = vec![b' '; usize::try_from(MAX_PROFILE).unwrap() + 1];
    assert!(Profile::parse(&huge).unwrap_err().one_line().contains("at most"));
}
