use containerd_shim_protos::bootstrap_api::Extension;
use containerd_shim_protos::protobuf::MessageField;

use super::*;

fn flags() -> Flags {
    Flags { namespace: "default".into(), id: "c1".into(), address: "/run/containerd/containerd.sock".into(), bundle: "/b".into() }
}

fn runtime_options() -> Any {
    let mut options = Options::new();
    options.binary_name = "/opt/oci".into();
    let value = options.write_to_bytes().unwrap();
    Any { type_url: "containerd.runc.v1.Options".into(), value, ..Any::default() }
}

fn params() -> BootstrapParams {
    let mut params = BootstrapParams::new();
    params.instance_id = "c1".into();
    params.namespace = "default".into();
    params.containerd_grpc_address = "/run/x.sock".into();
    params.containerd_ttrpc_address = "unix:///run/x.sock.ttrpc".into();
    params
}

#[test]
fn each_version_of_containerd_is_understood_and_answered() {
    let version = |version: &str| Environment { max_version: Some(version.into()), ..Environment::default() };
    let (launch, protocol) = Launch::read(&flags(), &Environment::default(), &[]).unwrap();
    assert_eq!((protocol, launch.events.to_str()), (Protocol::Address, Some("/run/containerd/containerd.sock.ttrpc")));
    assert_eq!(answer(protocol, "unix:///s").unwrap(), b"unix:///s");
    assert_eq!(launch.options, None);

    let environment = Environment { ttrpc_address: Some("/t".into()), ..version("2") };
    let (launch, protocol) = Launch::read(&flags(), &environment, &runtime_options().write_to_bytes().unwrap()).unwrap();
    assert_eq!((protocol, launch.events.to_str()), (Protocol::Json(2), Some("/t")));
    assert_eq!(launch.options.unwrap().binary_name, "/opt/oci");
    let text = answer(protocol, "unix:///s").unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json, serde_json::json!({ "version": 2, "address": "unix:///s", "protocol": "ttrpc" }));
    assert_eq!(Launch::read(&flags(), &version("9"), &[]).unwrap().1, Protocol::Json(3));

    let mut sent = params();
    let mut extension = Extension::new();
    extension.value = MessageField::some(runtime_options());
    sent.extensions.push(extension);
    sent.socket_dir = Some("/run/short".into());
    let (launch, protocol) = Launch::read(&flags(), &version("3"), &sent.write_to_bytes().unwrap()).unwrap();
    assert_eq!((protocol, launch.events.to_str()), (Protocol::Bootstrap, Some("/run/x.sock.ttrpc")));
    assert_eq!((launch.address.as_str(), launch.socket("g").parent()), ("/run/x.sock", Some(Path::new("/run/short"))));
    assert_eq!(launch.options.unwrap().binary_name, "/opt/oci");
    let result = BootstrapResult::parse_from_bytes(&answer(protocol, "unix:///s").unwrap()).unwrap();
    assert_eq!((result.version, result.address.as_str(), result.protocol.as_str()), (3, "unix:///s", "ttrpc"));
}

#[test]
fn what_is_for_somebody_else_is_refused() {
    let mut other = params();
    other.instance_id = "c2".into();
    for (flags, environment, input) in [
        (flags(), Environment::default(), other.write_to_bytes().unwrap()),
        (flags(), Environment::default(), b"\xff\xff".to_vec()),
        (Flags { id: String::new(), ..flags() }, Environment::default(), vec![]),
        (Flags { namespace: String::new(), ..flags() }, Environment::default(), vec![]),
        (flags(), Environment { max_version: Some("x".into()), ..Environment::default() }, vec![]),
        (flags(), Environment { ttrpc_address: Some("vsock://1:2".into()), ..Environment::default() }, vec![]),
    ] {
        assert!(Launch::read(&flags, &environment, &input).is_err(), "{flags:?} {environment:?} {input:?}");
    }
}

#[test]
fn containers_of_a_pod_have_one_socket() {
    let launch = Launch::read(&flags(), &Environment::default(), &[]).unwrap().0;
    assert_eq!(launch.socket("pod"), launch.clone().socket("pod"));
    assert_ne!(launch.socket("pod"), launch.socket("c1"));
    assert!(launch.socket("pod").as_os_str().len() < 100);
}
