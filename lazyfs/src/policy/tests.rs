//! Policies, keys and signatures, good and bad. Keys are made here, except for those kinds that only openssl makes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::identity::SignedIdentity;
use super::kept::Vouched;
use super::key::Key;
use super::signature::Claim;
use super::*;
use crate::digest::Digest;

const ACCEPT: &str = r#"[{"type":"insecureAcceptAnything"}]"#;
const REJECT: &str = r#"[{"type":"reject"}]"#;
const HEX: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A key that signs.
pub(crate) struct Signer(EcdsaKeyPair, SystemRandom);

impl Signer {
    pub(crate) fn new() -> Self {
        let random = SystemRandom::new();
        let text = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, text.as_ref(), &random).unwrap(), random)
    }

    fn pem(&self) -> String {
        let head = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
        let text = STANDARD.encode([head, self.0.public_key().as_ref()].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{}\n{}\n-----END PUBLIC KEY-----\n", &text[..64], &text[64..])
    }

    /// As `keyData` of a policy has it.
    pub(crate) fn data(&self) -> String {
        STANDARD.encode(self.pem())
    }

    pub(crate) fn sign(&self, payload: &str) -> Signature {
        let signature = self.0.sign(&self.1, payload.as_bytes()).unwrap().as_ref().to_vec();
        Signature { payload: payload.into(), signature }
    }
}

pub(crate) fn payload(digest: &Digest, reference: &str) -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"{reference}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    )
}

fn policy(text: &str) -> Result<Policy> {
    Policy::parse(Path::new("/p.json"), text.as_bytes())
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

#[test]
fn the_most_specific_scope_wins() {
    let scopes = [
        "",
        "example.com",
        "example.com/a",
        "example.com/a/b",
        "example.com/a/b:one",
        &format!("example.com/a/b@sha256:{HEX}"),
        "*.example.com",
        "*.deep.example.com",
        "localhost:5000",
        "docker.io/library",
    ];
    // Each scope has another number of requirements.
    let entry = |(n, scope): (usize, &&str)| {
        let one = r#"{"type":"reject"}"#;
        format!(r#""{scope}":[{}]"#, vec![one; n + 2].join(","))
    };
    let entries: Vec<String> = scopes.iter().enumerate().map(entry).collect();
    let text = format!(
        r#"{{"default":{REJECT},"transports":{{"docker":{{{}}},"oci":{{"/tmp":{ACCEPT},"/tmp/none:t":{REJECT},"":{REJECT}}},
        "docker-archive":{{"":{ACCEPT}}},"atomic":{{"x":{ACCEPT}}}}}}}"#,
        entries.join(",")
    );
    let policy = policy(&text).unwrap();
    let pinned = format!("example.com/a/b:one@sha256:{HEX}");
    let other = format!("example.com/a/b:one@sha256:{}", HEX.replace('a', "b"));
    for (text, scope) in [
        ("example.com/a/b:one", "example.com/a/b:one"),
        ("example.com/a/b:two", "example.com/a/b"),
        ("example.com/a/b/c:one", "example.com/a/b"),
        ("example.com/a/bc:one", "example.com/a"),
        ("example.com/b", "example.com"),
        // A tag beside a digest says nothing.
        (&pinned, scopes[5]),
        (&other, "example.com/a/b"),
        ("sub.example.com/x", "*.example.com"),
        ("sub.example.com:443/x", "*.example.com"),
        ("x.deep.example.com/x", "*.deep.example.com"),
        ("deep.example.com/x", "*.example.com"),
        ("example.com:5000/a/b:one", ""),
        ("notexample.com/x", ""),
        ("localhost:5000/x", "localhost:5000"),
        ("redis", "docker.io/library"),
    ] {
        let rule = policy.rule(&reference(text));
        let wanted = scopes.iter().position(|known| *known == scope).unwrap() + 2;
        assert_eq!(rule.requirements.len(), wanted, "{text}: {}", rule.scope());
    }
    for (text, scope) in [
        ("oci:/tmp/none", "oci /tmp"),
        ("oci:/tmp/none:t", "oci /tmp/none:t"),
        ("oci:/none", "transport oci"),
        ("oci-archive:/tmp/a.tar", "default"),
        ("docker-archive:/tmp/a.tar", "transport docker-archive"),
    ] {
        assert_eq!(policy.rule(&reference(text)).scope(), scope, "{text}");
    }
}

#[test]
fn links_do_not_lead_around_a_scope() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
    let real = std::fs::canonicalize(dir.path().join("real")).unwrap();
    let text = format!(r#"{{"default":{ACCEPT},"transports":{{"oci":{{"{}":{REJECT}}}}}}}"#, real.display());
    let rule = policy(&text).unwrap().rule(&reference(&format!("oci:{}/link:t", dir.path().display())));
    assert!(rule.check_possible().is_err(), "{rule:?}");
}

#[test]
fn bad_policies_are_refused() {
    let scope = |requirement: &str| format!(r#"{{"default":[{requirement}]}}"#);
    let signed = |rest: &str| scope(&format!(r#"{{"type":"sigstoreSigned"{rest}}}"#));
    let identity = |identity: &str| signed(&format!(r#","keyPath":"/k","signedIdentity":{identity}"#));
    let transport = |name: &str, text: &str| format!(r#"{{"default":{ACCEPT},"transports":{{"{name}":{{"{text}":{REJECT}}}}}}}"#);
    for (text, why) in [
        (String::new(), "EOF"),
        ("{}".to_owned(), "missing field `default`"),
        (r#"{"default":[]}"#.to_owned(), "default: the list of requirements is empty"),
        (format!(r#"{{"default":{ACCEPT},"more":1}}"#), "unknown field `more`"),
        (format!(r#"{{"default":{ACCEPT},"default":{ACCEPT}}}"#), "duplicate field `default`"),
        (format!(r#"{{"default":{ACCEPT}}} x"#), "trailing"),
        (format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"a":{ACCEPT},"a":{REJECT}}}}}}}"#), "`a` is there twice"),
        (format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{}},"docker":{{}}}}}}"#), "`docker` is there twice"),
        (
            format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"a":[]}}}}}}"#),
            "scope \"a\": the list of requirements is empty",
        ),
        (format!(r#"{{"default":{ACCEPT},"transports":[]}}"#), "an object"),
        (scope(r#"{"type":"acceptAll"}"#), "unknown variant `acceptAll`"),
        (scope("{}"), "missing field `type`"),
        (scope(r#"{"type":"reject","keyPath":"/k"}"#), "unknown field `keyPath`"),
        (scope(r#"{"type":"reject","type":"reject"}"#), "duplicate field `type`"),
        (scope(r#"{"type":"signedBy","keyType":"GPGKeys","keyFile":"/k"}"#), "unknown field `keyFile`"),
        (signed(""), "exactly one of keyPath"),
        (signed(r#","keyPath":"/k","keyData":"aGk=""#), "and has 2"),
        (signed(r#","keyPath":"/k","keyPath":"/l""#), "duplicate field `keyPath`"),
        (signed(r#","keyPath":"k""#), "`k` is not absolute"),
        (signed(r#","keyPaths":[]"#), "names no key"),
        (signed(r#","keyData":"%""#), "not base64"),
        (signed(r#","keyPath":7"#), "invalid type"),
        (identity(r#"{"type":"matchAll"}"#), "unknown variant `matchAll`"),
        (identity(r#"{"type":"matchExact","prefix":"a"}"#), "unknown field `prefix`"),
        (identity(r#"{"type":"exactReference"}"#), "missing field `dockerReference`"),
        (identity(r#"{"type":"exactReference","dockerReference":"a/b"}"#), "neither tag nor digest"),
        (identity(r#"{"type":"exactReference","dockerReference":"A:b"}"#), "no reference"),
        (identity(r#"{"type":"exactRepository","dockerRepository":"a/b:c"}"#), "has a tag"),
        (identity(r#"{"type":"remapIdentity","prefix":"","signedPrefix":"b.io"}"#), "is not HOST"),
        (identity(r#"{"type":"remapIdentity","prefix":"a.io/x:1","signedPrefix":"b.io"}"#), "is not HOST"),
        (identity(r#"{"type":"remapIdentity","prefix":"busybox","signedPrefix":"b.io"}"#), "is not HOST"),
        (transport("docker", "*.a*.com"), "wildcard"),
        (transport("docker", "a*.com"), "wildcard"),
        (transport("docker", "https://a.com"), "in full"),
        (transport("oci", "/"), "for the whole transport"),
        (transport("oci", "a"), "absolute path"),
        (transport("docker-archive", "/a"), "no scope but"),
    ] {
        let error = policy(&text).expect_err(&text);
        assert_eq!(error.outcome(), Outcome::BadInput, "{text}");
        assert!(error.one_line().contains(why) && error.one_line().contains("/p.json"), "{text}: {error:?}");
    }
    let missing = Policy::read(Path::new("/nowhere/policy.json")).unwrap_err();
    assert!(missing.one_line().contains("/nowhere/policy.json"), "{missing:?}");
}

#[test]
fn what_cannot_be_verified_is_refused_and_never_accepted() {
    for (requirement, why) in [
        (r#"{"type":"reject"}"#, "images of this scope are refused"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}"#, "signedBy (GPG signatures)"),
        (r#"{"type":"signedBaseLayer","baseLayerIdentity":{"type":"matchExact"}}"#, "signedBaseLayer"),
        (r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i"}}"#, "keyless"),
        (r#"{"type":"sigstoreSigned","pki":{"caRootsPath":"/c"}}"#, "certificates"),
        (r#"{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"/r"}"#, "rekor"),
    ] {
        // Whatever stands beside it.
        for text in [requirement.to_owned(), format!(r#"{{"type":"insecureAcceptAnything"}},{requirement}"#)] {
            let rule = policy(&format!(r#"{{"default":[{text}]}}"#)).unwrap().rule(&reference("a.io/b:c"));
            let error = rule.decide(&[Digest::of(b"")], &[]).unwrap_err();
            assert_eq!(error.outcome(), Outcome::Denied, "{text}");
            let line = error.one_line();
            for part in ["a.io/b:c", "/p.json (default)", why, "; "] {
                assert!(line.contains(part), "{part}: {line}");
            }
        }
    }
}

#[test]
fn an_image_needs_a_signature_by_the_key_about_itself() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let (image, index, other) = (Digest::of(b"image"), Digest::of(b"index"), Digest::of(b"other"));
    let name = "example.com/a/b:1";
    let text = |key: &str| format!(r#"{{"default":[{{"type":"sigstoreSigned","keyData":"{key}"}}]}}"#);
    let rule = policy(&text(&signer.data())).unwrap().rule(&reference(name));
    assert!(rule.needs_signatures());
    let good = signer.sign(&payload(&image, name));
    let mut tampered = good.clone();
    tampered.payload = payload(&other, name).into();
    let mut cut = good.clone();
    cut.signature.pop();
    let typed = payload(&image, name).replace("cosign container", "other");
    for (what, signatures, wanted) in [
        ("good", vec![good.clone()], Ok(())),
        ("of the index", vec![signer.sign(&payload(&index, name))], Ok(())),
        ("after others", vec![stranger.sign(&payload(&image, name)), cut.clone(), good.clone()], Ok(())),
        ("none", vec![], Err("no signature of it is known")),
        ("a stranger's", vec![stranger.sign(&payload(&image, name))], Err("it is not by this key")),
        ("changed text", vec![tampered.clone()], Err("or what it signs was changed")),
        ("cut", vec![cut.clone()], Err("it is not by this key")),
        ("empty", vec![Signature { payload: vec![], signature: vec![] }], Err("it is not by this key")),
        ("of another image", vec![signer.sign(&payload(&other, name))], Err("it is about another image, sha256:")),
        ("of another tag", vec![signer.sign(&payload(&image, "example.com/a/b:2"))], Err("it is about example.com/a/b:2")),
        ("of the repository", vec![signer.sign(&payload(&image, "example.com/a/b"))], Err("needs matchRepository")),
        ("of another type", vec![signer.sign(&typed)], Err("`other image signature`")),
        ("not JSON", vec![signer.sign("x")], Err("malformed")),
        ("many", vec![cut.clone(), cut.clone(), cut.clone(), cut.clone(), cut], Err("and 2 more")),
    ] {
        let decided = rule.decide(&[image, index], &signatures);
        match (decided, wanted) {
            (Ok(accepted), Ok(())) => assert!(accepted.by[0].contains("for example.com/a/b:1"), "{what}: {accepted:?}"),
            (Err(error), Err(why)) => {
                assert_eq!(error.outcome(), Outcome::Denied, "{what}");
                assert!(error.one_line().contains(why), "{what}: {error:?}");
            }
            (decided, wanted) => panic!("{what}: {decided:?} instead of {wanted:?}"),
        }
    }
    // Several keys: any of them; several requirements: all of them.
    let keys = format!(r#"{{"default":[{{"type":"sigstoreSigned","keyDatas":["{}","{}"]}}]}}"#, stranger.data(), signer.data());
    policy(&keys).unwrap().rule(&reference(name)).decide(&[image], std::slice::from_ref(&good)).unwrap();
    let both = format!(
        r#"{{"default":[{{"type":"sigstoreSigned","keyData":"{}"}},{{"type":"sigstoreSigned","keyData":"{}"}}]}}"#,
        stranger.data(),
        signer.data()
    );
    let rule = policy(&both).unwrap().rule(&reference(name));
    assert!(rule.decide(&[image], std::slice::from_ref(&good)).is_err());
    assert_eq!(rule.decide(&[image], &[good.clone(), stranger.sign(&payload(&image, name))]).unwrap().by.len(), 2);
    // A key that is none is an error of the policy, also beside a good one.
    let broken = format!(r#"{{"default":[{{"type":"sigstoreSigned","keyDatas":["{}","aGk="]}}]}}"#, signer.data());
    let error = policy(&broken).unwrap().rule(&reference(name)).decide(&[image], &[good]).unwrap_err();
    assert!(error.one_line().contains("reading the public key"), "{error:?}");
}

#[test]
fn identities_match_as_podman_has_it() {
    use SignedIdentity::{Exact, RepoDigestOrExact, Repository};
    let parse = |text: &str| {
        let text = format!(r#"{{"default":[{{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{text}}}]}}"#);
        match policy(&text).unwrap().default.remove(0) {
            document::Requirement::Sigstore { identity, .. } => identity,
            other => panic!("{other:?}"),
        }
    };
    let exact = parse(r#"{"type":"exactReference","dockerReference":"busybox:1"}"#);
    let repository = parse(r#"{"type":"exactRepository","dockerRepository":"busybox"}"#);
    let remap = parse(r#"{"type":"remapIdentity","prefix":"mirror:5000/hub","signedPrefix":"docker.io"}"#);
    let host = parse(r#"{"type":"remapIdentity","prefix":"mirror:5000","signedPrefix":"a.io/x"}"#);
    let pinned = format!("a.io/b@sha256:{HEX}");
    let both = format!("a.io/b:1@sha256:{HEX}");
    for (identity, image, signed, fits) in [
        (&Exact, "a.io/b:1", "a.io/b:1", true),
        (&Exact, "a.io/b:1", "a.io/b", false),
        (&Exact, &pinned, "a.io/b:1", false),
        (&Exact, &pinned, &pinned, true),
        (&RepoDigestOrExact, "a.io/b:1", "a.io/b:1", true),
        (&RepoDigestOrExact, "a.io/b:1", "a.io/b:2", false),
        (&RepoDigestOrExact, "a.io/b:latest", "a.io/b", false),
        (&RepoDigestOrExact, &pinned, "a.io/b:2", true),
        (&RepoDigestOrExact, &both, "a.io/b:2", true),
        (&RepoDigestOrExact, &pinned, "a.io/b", false),
        (&RepoDigestOrExact, &pinned, "a.io/c:2", false),
        (&RepoDigestOrExact, "redis:1", "docker.io/library/redis:1", true),
        (&Repository, "a.io/b:1", "a.io/b", true),
        (&Repository, "a.io/b:1", "a.io/b:2", true),
        (&Repository, &pinned, "a.io/b", true),
        (&Repository, "a.io/b:1", "a.io/b/c", false),
        (&Repository, "a.io/b:1", "b:1", false),
        (&Repository, "a.io/b:1", "", false),
        (&Repository, "a.io/b:1", "oci:/b", false),
        (&exact, "a.io/b:1", "docker.io/library/busybox:1", true),
        (&exact, "a.io/b:1", "busybox:2", false),
        (&exact, "oci:/b", "busybox:1", true),
        (&repository, "oci:/b", "busybox", true),
        (&repository, "docker-archive:/b", "busybox:7", true),
        (&repository, "oci:/b", "redis", false),
        (&Repository, "oci:/b", "a.io/b", false),
        (&RepoDigestOrExact, "oci:/b:1", "a.io/b:1", false),
        (&remap, "mirror:5000/hub/library/redis:1", "redis:1", true),
        (&remap, "mirror:5000/hub/library/redis:1", "mirror:5000/hub/library/redis:1", false),
        (&remap, "mirror:5000/hubx/redis:1", "mirror:5000/hubx/redis:1", true),
        (&remap, "a.io/b:1", "a.io/b:1", true),
        (&host, "mirror:5000/b:1", "a.io/x/b:1", true),
        (&host, "mirror:50001/b:1", "a.io/x/b:1", false),
    ] {
        let decided = identity.check(&reference(image), signed);
        assert_eq!(decided.is_ok(), fits, "{identity} of {image}, signed {signed}: {decided:?}");
    }
}

#[test]
fn claims_are_read_strictly() {
    let digest = Digest::of(b"x");
    let good = payload(&digest, "a.io/b");
    assert_eq!(Claim::parse(good.as_bytes()).unwrap(), Claim { digest, reference: "a.io/b".to_owned() });
    let annotated = good.replace("null", r#"{"creator":"me","timestamp":1}"#);
    Claim::parse(annotated.as_bytes()).unwrap();
    for (from, to) in [
        ("\"type\"", "\"kind\""),
        ("\"optional\"", "\"extra\""),
        ("\"docker-reference\"", "\"reference\""),
        ("sha256:", "sha512:"),
        ("\"identity\"", "\"type\":\"cosign container image signature\",\"identity\""),
        ("\"critical\":{", "\"critical\":{\"x\":1,"),
        ("}", ""),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(Claim::parse(good.replacen(from, to, 1).as_bytes()).is_err(), "{from} -> {to}");
    }
}

#[test]
fn keys_are_read_or_refused() {
    let signer = Signer::new();
    let pem = signer.pem();
    let signature = signer.sign("text");
    assert!(Key::parse(pem.as_bytes()).unwrap().verifies(b"text", &signature.signature));
    let crlf = pem.replace('\n', "\r\n");
    assert!(Key::parse(crlf.as_bytes()).unwrap().verifies(b"text", &signature.signature));
    let two = format!("{pem}{pem}");
    let der = STANDARD.decode(pem.lines().skip(1).take(2).collect::<String>()).unwrap();
    let wrap = |der: &[u8]| format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", STANDARD.encode(der));
    for (text, why) in [
        ("", "no line"),
        ("hello", "no line"),
        (&*pem.replace("PUBLIC KEY", "PRIVATE KEY"), "of the kind `PRIVATE KEY`"),
        (&*two, "more than one key"),
        (&*pem.replace("-----END", "-----STOP"), "no end"),
        (&*pem.replace("MFk", "MF%"), "not base64"),
        (&*wrap(&[]), "not a SubjectPublicKeyInfo"),
        (&*wrap(&der[..der.len() - 1]), "not a SubjectPublicKeyInfo"),
        (&*wrap(&[der.clone(), vec![0]].concat()), "something follows"),
        // P-521, and an algorithm that nobody has.
        (
            &*wrap(b"\x30\x16\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x23\x03\x02\x00\x04"),
            "other than P-256",
        ),
        (&*wrap(b"\x30\x0b\x30\x05\x06\x03\x2b\x65\x71\x03\x02\x00\x04"), "none of ECDSA"),
        (&*wrap(b"\x30\x84\xff\xff\xff\xff\x00"), "not a SubjectPublicKeyInfo"),
    ] {
        match Key::parse(text.as_bytes()) {
            Err(found) => assert!(found.contains(why), "{why}: {found}"),
            Ok(_) => panic!("{why}: taken"),
        }
    }
    // Nothing that was cut anywhere is taken, and nothing panics.
    for end in 0..der.len() {
        assert!(Key::parse(wrap(&der[..end]).as_bytes()).is_err(), "{end}");
    }
}

/// The kinds of keys that cosign and openssl make.
#[test]
#[allow(clippy::print_stdout, reason = "the summary of `make test` counts these lines")]
fn openssl_s_signatures_verify() {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |args: &[&str]| std::process::Command::new("openssl").args(args).current_dir(dir.path()).output();
    if openssl(&["version"]).is_err() {
        println!("SKIP policy::openssl_s_signatures_verify: openssl is not installed");
        return;
    }
    let done = |args: &[&str]| {
        let output = openssl(args).unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(dir.path().join("text"), "text").unwrap();
    for (kind, make, sign) in [
        ("p256", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"][..], &["-rawin", "-digest", "sha256"][..]),
        ("p384", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], &["-rawin", "-digest", "sha256"]),
        ("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], &["-rawin", "-digest", "sha256"]),
        ("ed25519", &["-algorithm", "ED25519"], &["-rawin"]),
    ] {
        done(&[&["genpkey", "-out", "key"], make].concat());
        done(&["pkey", "-in", "key", "-pubout", "-out", "pub"]);
        done(&[&["pkeyutl", "-sign", "-inkey", "key", "-in", "text", "-out", "signature"], sign].concat());
        let key = Key::parse(&std::fs::read(dir.path().join("pub")).unwrap()).unwrap();
        let signature = std::fs::read(dir.path().join("signature")).unwrap();
        assert!(key.verifies(b"text", &signature), "{kind}");
        assert!(!key.verifies(b"texts", &signature), "{kind}");
    }
}

#[test]
fn kept_signatures_have_a_version() {
    let golden = concat!(
        r#"{"version":1,"digests":["sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],"#,
        r#""signatures":[{"payload":"dGV4dA==","signature":"AP8="}]}"#
    );
    let vouched = Vouched {
        digests: vec![Digest::from_hex(HEX).unwrap()],
        signatures: vec![Signature { payload: b"text".to_vec(), signature: vec![0, 255] }],
    };
    assert_eq!(String::from_utf8(vouched.to_bytes()).unwrap(), golden);
    assert_eq!(Vouched::from_bytes(golden.as_bytes()).unwrap(), vouched);
    for (from, to) in [("\"version\":1", "\"version\":2"), ("dGV4dA==", "%"), ("sha256:", "md5:"), ("}]}", "}],\"x\":1}")] {
        assert!(Vouched::from_bytes(golden.replace(from, to).as_bytes()).is_err(), "{from} -> {to}");
    }
}
