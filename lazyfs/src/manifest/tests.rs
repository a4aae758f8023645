use super::*;

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn raw(media_type: &str, text: &str) -> RawManifest {
    let bytes = bytes::Bytes::from(text.replace("DIGEST", A));
    RawManifest { digest: Digest::of(&bytes), bytes, media_type: media_type.to_owned() }
}

fn manifest(layer_type: &str) -> RawManifest {
    raw(
        OCI_MANIFEST,
        &format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","unknown":{{}},
            "config":{{"mediaType":"{OCI_CONFIG}","digest":"DIGEST","size":7}},
            "layers":[{{"mediaType":"{layer_type}","digest":"DIGEST","size":9,"annotations":{{"k":"v"}}}}]}}"#
        ),
    )
}

#[test]
fn layers_of_both_vocabularies_are_read() {
    for (media_type, compression) in [
        ("application/vnd.oci.image.layer.v1.tar", Compression::None),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
        ("application/vnd.docker.image.rootfs.diff.tar", Compression::None),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", Compression::Zstd),
    ] {
        let Document::Image(image) = Document::parse(&manifest(media_type)).unwrap() else {
            panic!("{media_type}: not an image")
        };
        assert_eq!((image.layers[0].compression, image.layers[0].size), (compression, 9), "{media_type}");
        assert_eq!(image.layers[0].annotations["k"], "v");
        assert_eq!(image.config.size, 7);
    }
}

#[test]
fn what_is_not_an_image_is_refused_in_one_line() {
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let config = r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"DIGEST","size":1}"#;
    let huge = raw(OCI_MANIFEST, &" ".repeat(5 << 20));
    let v1 = raw("application/vnd.docker.distribution.manifest.v1+prettyjws", r#"{"schemaVersion":1}"#);
    for (document, outcome, why) in [
        (huge, Outcome::BadInput, "at most 4194304"),
        (v1, Outcome::Unsupported, "schema 1"),
        (raw(OCI_MANIFEST, "{"), Outcome::BadInput, "EOF"),
        (raw(OCI_MANIFEST, "[]"), Outcome::BadInput, "invalid"),
        (raw(OCI_MANIFEST, r#"{"schemaVersion":3}"#), Outcome::BadInput, "not 2"),
        (raw("text/html", r#"{"schemaVersion":2}"#), Outcome::Unsupported, "`text/html` is not an image"),
        (raw(OCI_MANIFEST, r#"{"schemaVersion":2}"#), Outcome::BadInput, "`config` is missing"),
        (raw(OCI_INDEX, r#"{"schemaVersion":2}"#), Outcome::BadInput, "`manifests` is missing"),
        (raw(OCI_MANIFEST, &format!(r#"{{"schemaVersion":2,{config}}}"#)), Outcome::BadInput, "`layers` is missing"),
        (raw(OCI_MANIFEST, &format!(r#"{{"schemaVersion":2,{config},"layers":[]}}"#)), Outcome::BadInput, "0 layers"),
        (raw(OCI_MANIFEST, r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#), Outcome::BadInput, "both layers and manifests"),
        (RawManifest { media_type: OCI_INDEX.to_owned(), ..manifest(gzip) }, Outcome::BadInput, "calls itself"),
        (
            raw(
                OCI_MANIFEST,
                &format!(r#"{{"schemaVersion":2,{},"layers":[]}}"#, config.replace(OCI_CONFIG, "application/vnd.x")),
            ),
            Outcome::Unsupported,
            "not a container image",
        ),
        (manifest("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), Outcome::Unsupported, "foreign layer"),
        (
            manifest("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
            Outcome::Unsupported,
            "it is encrypted; towline has no",
        ),
        (manifest("application/vnd.oci.image.layer.v1.tar+encrypted"), Outcome::Unsupported, "decrypt the image first"),
        (
            manifest("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd+encrypted"),
            Outcome::Unsupported,
            "it is encrypted",
        ),
        (manifest("application/x"), Outcome::Unsupported, "`application/x`"),
    ] {
        let error = Document::parse(&document).unwrap_err();
        assert!(error.one_line().contains(why), "{why}: {error:?}");
        assert_eq!(error.outcome(), outcome, "{error:?}");
        assert!(error.one_line().starts_with("reading manifest sha256:"), "{error:?}");
    }
}

#[test]
fn the_platform_is_chosen() {
    let entry =
        |size: u64, platform: &str| format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"DIGEST","size":{size}{platform}}}"#);
    let of = |size, arch: &str, variant: &str| {
        let variant = if variant.is_empty() { String::new() } else { format!(r#","variant":"{variant}""#) };
        entry(size, &format!(r#","platform":{{"os":"linux","architecture":"{arch}"{variant}}}"#))
    };
    let entries = [
        of(1, "unknown", ""),
        of(2, "arm", "v6"),
        of(3, "arm", "v7"),
        of(4, "amd64", ""),
        of(5, "arm64", ""),
        of(6, "amd64", "v3"),
    ];
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
    let Document::Index(index) = Document::parse(&raw(OCI_INDEX, &text)).unwrap() else { panic!("not an index") };
    let platform = |architecture: &str, variant: Option<&str>| Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.map(str::to_owned),
    };
    for (architecture, variant, size) in [
        ("amd64", None, 4),
        ("amd64", Some("v3"), 6),
        ("amd64", Some("v2"), 4),
        ("arm", Some("v7"), 3),
        ("arm", None, 3),
        ("arm64", Some("v8"), 5),
    ] {
        assert_eq!(index.select(&platform(architecture, variant)).unwrap().size, size, "{architecture} {variant:?}");
    }
    let none = index.select(&platform("riscv64", None)).unwrap_err();
    assert_eq!(none.outcome(), Outcome::NotFound);
    assert!(none.one_line().contains("linux/riscv64") && none.one_line().contains("linux/arm/v6"), "{none:?}");
}

#[test]
fn the_configuration_keeps_what_a_container_needs() {
    let text = format!(
        r#"{{"os":"linux","architecture":"amd64","history":[{{"x":1}}],"rootfs":{{"type":"layers","diff_ids":["{A}"]}},
        "config":{{"Entrypoint":null,"Cmd":["python3"],"Env":["PATH=/bin"],"User":"1000:1000","WorkingDir":"/app",
        "Labels":{{"a":"b"}},"StopSignal":"SIGINT","Volumes":{{"/data":{{}}}},"ExposedPorts":{{"80/tcp":{{}}}}}}}}"#
    );
    let config = Config::parse(text.as_bytes(), 1).unwrap();
    assert_eq!((config.cmd, config.entrypoint), (vec!["python3".to_owned()], vec![]));
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1000:1000", "/app"));
    assert_eq!((config.volumes, config.stop_signal.as_deref()), (vec!["/data".to_owned()], Some("SIGINT")));
    let bare = Config::parse(format!(r#"{{"rootfs":{{"diff_ids":["{A}"]}}}}"#).as_bytes(), 1).unwrap();
    assert!(bare.env.is_empty() && bare.user.is_empty());

    for (text, layers, why) in [
        ("", 0, "EOF"),
        (r#"{"rootfs":{"type":"layers","diff_ids":[]}}"#, 1, "0 diff_ids for 1 layers"),
        (r#"{"rootfs":{"type":"other"}}"#, 0, "not `layers`"),
        (r#"{"rootfs":{"diff_ids":["md5:1"]}}"#, 1, "not a digest"),
        (r#"{"rootfs":{},"config":{"Env":["PATH"]}}"#, 0, "not NAME=value"),
        (r#"{"rootfs":{},"config":{"Cmd":["a\u0000"]}}"#, 0, "NUL"),
        (r#"{"rootfs":{},"config":{"Cmd":"sh"}}"#, 0, "invalid type"),
    ] {
        let error = Config::parse(text.as_bytes(), layers).unwrap_err();
        assert!(error.one_line().contains(why), "{text}: {error:?}");
    }
}
