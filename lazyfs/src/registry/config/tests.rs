//! Configuration files, good and bad, as tables.

use std::path::Path;

use super::*;
use crate::reference::Reference;

fn reference(text: &str) -> RegistryReference {
    match text.parse().unwrap() {
        Reference::Registry(reference) => reference,
        _ => panic!("{text} is no registry"),
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn places(dir: &Path) -> Places {
    Places {
        hosts: vec![dir.join("own"), dir.join("containerd")],
        registries: Some(dir.join("registries.conf")),
        certs: vec![dir.join("certs"), dir.join("docker")],
    }
}

/// `ADDRESS tags|- digests|-` of each.
fn asked(places: &Places, text: &str) -> Vec<String> {
    let show =
        |e: &Endpoint| format!("{e} {}{}", if e.serves.tags { "t" } else { "-" }, if e.serves.digests { "d" } else { "-" });
    places.endpoints(&reference(text), false).unwrap().iter().map(show).collect()
}

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

#[test]
fn hosts_files_are_read_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("own/docker.io/hosts.toml"),
        r#"server = "https://registry-1.docker.io"
           [host."https://z.example:5000"]
           capabilities = ["pull"]
           ca = "ca.crt"
           client = [["c.cert", "/c.key"], ["both.pem", ""]]
           dial_timeout = "1m0.5s"
           [host."https://z.example:5000".header]
           x-one = "1"
           x-more = ["2", "3"]
           [host."http://a.example/sub/"]
           capabilities = ["pull", "resolve"]
           override_path = true
           skip_verify = true
           [host."127.0.0.1:5000"]
           ca = ["/1", "2"]"#,
    );
    let endpoints = places(dir.path()).endpoints(&reference("redis"), false).unwrap();
    let shown: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
    assert_eq!(
        shown,
        [
            "https://z.example:5000/v2/library/redis",
            "http://a.example/sub/library/redis",
            "http://127.0.0.1:5000/v2/library/redis",
            "https://docker.io/v2/library/redis"
        ]
    );
    let [z, a, local, own] = &endpoints[..] else { panic!("{endpoints:?}") };
    let base = dir.path().join("own/docker.io");
    assert_eq!(z.tls.authorities, [base.join("ca.crt")]);
    assert_eq!(z.tls.identities[0].key.as_deref(), Some(Path::new("/c.key")));
    assert_eq!((&z.tls.identities[1].certificate, &z.tls.identities[1].key), (&base.join("both.pem"), &None));
    assert_eq!((z.serves.tags, z.serves.digests, z.connect.unwrap().as_millis()), (false, true, 60_500));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(z.headers, [pair("x-one", "1"), pair("x-more", "2"), pair("x-more", "3")]);
    assert_eq!((z.namespace.as_deref(), own.namespace.as_deref()), (Some("docker.io"), None));
    assert!(a.tls.skip_verify && a.transport == Transport::Plain && own.transport == Transport::Tls);
    assert_eq!(local.tls.authorities, [Path::new("/1").to_owned(), base.join("2")]);
}

#[test]
fn the_first_that_knows_the_registry_decides() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let places = places(dir.path());
    assert_eq!(asked(&places, "r.io/x"), ["https://r.io/v2/x td"]);
    write(&at("registries.conf"), "[[registry]]\nlocation = \"r.io\"\n[[registry.mirror]]\nlocation = \"c.example\"");
    assert_eq!(asked(&places, "r.io/x"), ["https://c.example/v2/x td", "https://r.io/v2/x td"]);
    write(&at("containerd/_default/hosts.toml"), "[host.\"https://b.example\"]");
    assert_eq!(asked(&places, "r.io/x"), ["https://b.example/v2/x td", "https://r.io/v2/x td"]);
    write(&at("own/r.io/hosts.toml"), "[host.\"https://a.example\"]");
    assert_eq!(asked(&places, "r.io/x"), ["https://a.example/v2/x td", "https://r.io/v2/x td"]);
    assert_eq!(asked(&places, "q.io/x"), ["https://b.example/v2/x td", "https://q.io/v2/x td"]);
    // With a port, as containerd writes it where colons are not possible.
    write(&at("own/r.io_5000_/hosts.toml"), "server = \"http://only.example\"");
    assert_eq!(asked(&places, "r.io:5000/x"), ["http://only.example/v2/x td"]);
    // Blocked is blocked.
    write(&at("registries.conf.d/1.conf"), "[[registry]]\nprefix = \"r.io/bad\"\nlocation = \"r.io/bad\"\nblocked = true");
    assert!(places.endpoints(&reference("r.io/bad/x"), false).unwrap_err().one_line().contains("1.conf blocks it"));
    assert!(places.endpoints(&reference("r.io/badge"), false).is_ok());
}

#[test]
fn registries_are_rewritten_by_the_longest_prefix() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("registries.conf"),
        r#"unqualified-search-registries = ["docker.io"]
           short-name-mode = "enforcing"
           [aliases]
           "a" = "docker.io/library/a"
           [[registry]]
           prefix = "r.io/team"
           location = "inner.example:5000/mirror"
           insecure = true
           [[registry]]
           prefix = "*.wild.io"
           location = "inner.example/all"
           [[registry]]
           location = "d.io"
           mirror-by-digest-only = true
           [[registry.mirror]]
           location = "m.example/d"
           [[registry]]
           location = "e.io"
           [[registry.mirror]]
           location = "m.example/tags"
           pull-from-mirror = "tag-only"
           [[registry.mirror]]
           location = "m.example/digests"
           pull-from-mirror = "digest-only"
           insecure = true"#,
    );
    write(&dir.path().join("registries.conf.d/2.conf"), "[[registry]]\nprefix = \"r.io\"\nlocation = \"late.example\"");
    write(&dir.path().join("registries.conf.d/1.conf"), "[[registry]]\nprefix = \"r.io\"\nlocation = \"early.example\"");
    write(&dir.path().join("registries.conf.d/README"), "no configuration");
    let places = places(dir.path());
    let pinned = |text: &str| format!("{text}@{DIGEST}");
    for (text, wanted) in [
        ("r.io/team/x", vec!["https://inner.example:5000/mirror/x"]),
        ("r.io/teammate", vec!["https://late.example/teammate"]),
        ("a.wild.io/x", vec!["https://inner.example/all/x"]),
        ("wild.io/x", vec!["https://wild.io/x"]),
        ("d.io/x:1", vec!["https://d.io/x"]),
        (&pinned("d.io/x"), vec!["https://m.example/d/x", "https://d.io/x"]),
        ("e.io/x:1", vec!["https://m.example/tags/x", "https://e.io/x"]),
        (&pinned("e.io/x"), vec!["https://m.example/digests/x", "https://e.io/x"]),
    ] {
        let wanted: Vec<String> = wanted
            .iter()
            .map(|address| {
                let (scheme, rest) = address.split_once("://").unwrap();
                let (host, repository) = rest.split_once('/').unwrap();
                format!("{scheme}://{host}/v2/{repository} td")
            })
            .collect();
        assert_eq!(asked(&places, text), wanted, "{text}");
    }
    let insecure = places.endpoints(&reference("r.io/team/x"), false).unwrap().remove(0);
    assert!(insecure.tls.skip_verify && insecure.transport == Transport::TlsThenPlain);
    assert!(places.searched().unwrap().is_empty());
    write(&dir.path().join("registries.conf.d/3.conf"), "unqualified-search-registries = [\"x.io\", \"docker.io\"]");
    assert_eq!(places.searched().unwrap(), ["x.io", "docker.io"]);
}

#[test]
fn certificates_are_those_of_the_first_directory() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["certs/r.io:5000/ca.crt", "certs/r.io:5000/me.cert", "certs/r.io:5000/me.key", "docker/r.io:5000/other.crt"] {
        write(&at(name), "");
    }
    let tls = places(dir.path()).endpoints(&reference("r.io:5000/x"), false).unwrap().remove(0).tls;
    assert_eq!(tls.authorities, [at("certs/r.io:5000/ca.crt")]);
    assert_eq!(tls.identities[0].key, Some(at("certs/r.io:5000/me.key")));
    for (gone, why) in [("me.key", "me.key is missing"), ("me.cert", "authorities are called *.crt")] {
        std::fs::remove_file(at("certs/r.io:5000").join(gone)).unwrap();
        let error = places(dir.path()).endpoints(&reference("r.io:5000/x"), false).unwrap_err().one_line();
        assert!(error.contains(why), "{error}");
        write(&at("certs/r.io:5000").join(gone), "");
    }
}

#[test]
fn bad_files_are_refused_with_their_name_and_reason() {
    let hosts = "own/r.io/hosts.toml";
    for (name, text, why) in [
        (hosts, "server = 1", "invalid type"),
        (hosts, "server", "expected"),
        (hosts, "sever = \"x\"", "unknown field `sever`"),
        (hosts, "[host.\"ftp://x\"]", "neither http nor https"),
        (hosts, "[host.\"https://\"]", "HOST[:PORT]"),
        (hosts, "[host.\"https://user@x\"]", "HOST[:PORT]"),
        (hosts, "[host.\"https://x\"]\ncapabilities = [\"fly\"]", "the capability `fly`"),
        (hosts, "[host.\"https://x\"]\nclient = [[\"a\", \"b\", \"c\"]]", "3 paths are not a pair"),
        (hosts, "[host.\"https://x\"]\nca = 7", "a path, or a list of paths"),
        (hosts, "[host.\"https://x\"]\nrewrite = 7", "unknown field `rewrite`"),
        (hosts, "[host.\"https://x\"]\ndial_timeout = \"5\"", "is not a time"),
        (hosts, "[host.\"https://x\"]\ndial_timeout = \"0s\"", "is not a time"),
        (hosts, "[host.\"https://x\"]\ndial_timeout = \"5 parsecs\"", "is not a time"),
        (hosts, "[host.\"https://x\".header]\na = 1", "neither a text nor a list"),
        ("registries.conf", "[registries.search]\nregistries = []", "version 1"),
        ("registries.conf", "[[registry]]\nblocked = true", "neither prefix nor location"),
        ("registries.conf", "[[registry]]\nprefix = \"https://x\"", "has a scheme"),
        ("registries.conf", "[[registry]]\nprefix = \"*x\"", "not of the form *.DOMAIN"),
        ("registries.conf", "[[registry]]\nlocation = \"r.io\"\nextra = 1", "unknown field `extra`"),
        ("registries.conf.d/x.conf", "nonsense", "expected"),
        (
            "registries.conf",
            "[[registry]]\nlocation = \"r.io\"\n[[registry.mirror]]\nlocation = \"x\"\npull-from-mirror = \"often\"",
            "`often` is none of",
        ),
        (
            "registries.conf",
            "[[registry]]\nlocation = \"r.io\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"x\"\npull-from-mirror = \"all\"",
            "exclude each other",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join(name), text);
        let error = places(dir.path()).endpoints(&reference("r.io/x"), false).unwrap_err();
        assert_eq!(error.outcome(), Outcome::BadInput, "{text}");
        assert!(error.one_line().contains(name) && error.one_line().contains(why), "{text}: {error:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join(hosts), &"#".repeat((1 << 20) + 1));
    assert!(places(dir.path()).endpoints(&reference("r.io/x"), false).unwrap_err().one_line().contains("more than 1048576"));
}
