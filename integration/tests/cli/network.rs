//! Networks by Debian's CNI plugins.

use std::fs;
use std::path::Path;

use towline_integration::images;
use towline_integration::process::wait_until;
use towline_integration::towline::PATIENCE;

use crate::rig::Lan;

const SERVER: [&str; 6] = ["httpd", "-f", "-p", "80", "-h", "/data"];

fn available(test: &str) -> bool {
    images::available(test)
}

#[test]
fn containers_reach_each_other_and_their_ports_and_leave_nothing() {
    if !available("network::containers_reach_each_other_and_their_ports_and_leave_nothing") {
        return;
    }
    let lan = Lan::new();
    // Without a configuration a container has loopback and no more, and a program that reads its output sees no remark.
    let alone = lan.run(&["run", "--rm", &lan.image, "ls", "/sys/class/net"]).success();
    assert_eq!((alone.stdout.as_str(), alone.stderr.as_str()), ("lo\n", ""));
    lan.run(&["network", "create", "--subnet", "10.86.77.0/24", &lan.name]).success();
    assert!(lan.run(&["network", "ls", "-q"]).success().stdout.contains(&lan.name));

    let mut args = vec!["run", "-d", "--name", "web", "--net", &lan.name, "-p", "8080:80", "-p", "127.0.0.1::81/udp", &lan.image];
    args.extend(SERVER);
    lan.run(&args).success();
    let row = lan.row("web");
    let ip = row["ip"][0].as_str().unwrap().to_owned();
    assert!(ip.starts_with("10.86.77."), "{row}");
    assert!(row["ports"].to_string().contains("0.0.0.0:8080->80/tcp"), "{row}");

    // From another container by address, and from this machine by the port.
    let fetch = format!("until wget -q -O - http://{ip}/changed; do sleep 0.1; done; cat /etc/hosts /etc/resolv.conf; hostname");
    let client = lan.run(&[
        "run",
        "--rm",
        "--net",
        &lan.name,
        "--dns",
        "10.9.9.9",
        "--dns-search",
        "lan",
        "--add-host",
        "db:10.1.1.1",
        "--add-host",
        "gate:host-gateway",
        "--hostname",
        "client",
        "--ip",
        "10.86.77.99",
        &lan.image,
        "sh",
        "-c",
        &fetch,
    ]);
    let client = client.success().stdout;
    for part in [
        "second\n",
        "10.86.77.99\tclient ",
        "10.1.1.1\tdb",
        "10.86.77.1\tgate",
        "search lan\nnameserver 10.9.9.9\n",
        "\nclient\n",
    ] {
        assert!(client.contains(part), "no {part:?} in {client}");
    }
    for address in ["127.0.0.1", "10.86.77.1"] {
        let fetched = lan.shell(&format!("curl -s -m 20 http://{address}:8080/changed"));
        assert_eq!(fetched.stdout, "second\n", "{address}: {fetched:?}");
    }
    // The port is taken, by towline's word and not by chance.
    let plain = lan.run(&["run", "-d", "--name", "plain", "--net", &lan.name, &lan.image, "sleep", "1000"]);
    plain.success();
    lan.run(&["network", "check", "plain"]).success();
    lan.run(&["rm", "-f", "plain"]).success();
    let second = lan.run(&["run", "--rm", "--net", &lan.name, "-p", "8080:80", &lan.image, "true"]);
    assert!(second.code() == Some(125) && second.stderr.contains("another program or container has it"), "{second:?}");
    let busy = lan.run(&["network", "rm", &lan.name]);
    assert!(busy.stderr.contains("is connected to it"), "{busy:?}");

    lan.run(&["rm", "-f", "web"]).success();
    assert_eq!(lan.left(), "");
    lan.run(&["network", "rm", &lan.name]).success();
    assert_eq!(lan.shell("ip -o link show type bridge").stdout, "");
}

#[test]
fn what_killed_monitors_and_reboots_leave_is_taken_back() {
    if !available("network::what_killed_monitors_and_reboots_leave_is_taken_back") {
        return;
    }
    let lan = Lan::new();
    lan.run(&["network", "create", "--subnet", "10.86.78.0/24", &lan.name]).success();
    let start = |name: &str| {
        let port = if name == "killed" { "8081:80" } else { "8082:80" };
        lan.run(&["run", "-d", "--name", name, "--net", &lan.name, "-p", port, &lan.image, "sleep", "1000"]).success();
        assert!(lan.left().contains("10.86.78."));
        let init = i32::try_from(lan.row(name)["pid"].as_i64().unwrap()).unwrap();
        let mut all = lan.towline.monitors();
        all.push(init);
        lan.towline.kill(&all);
    };
    // The next container with a network takes it back.
    start("killed");
    assert_ne!(lan.left(), "");
    lan.run(&["run", "--rm", "--net", &lan.name, &lan.image, "true"]).success();
    assert_eq!(lan.left(), "");
    lan.run(&["rm", "killed"]).success();

    // A reboot: /run is empty, the namespace is gone; only leases and records are left on the disk.
    start("rebooted");
    let state = lan.towline.state();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| Path::new(path).starts_with(&state));
    let mut below: Vec<&str> = below.collect();
    below.reverse();
    for mount in below {
        nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
    fs::remove_dir_all(state.join("containers")).unwrap();
    lan.run(&["rm", "rebooted"]).success();
    wait_until("the interface of a namespace that is gone to go", PATIENCE, || !lan.left().contains("veth"));
    let left: Vec<String> = lan.left().lines().map(str::to_owned).collect();
    // Rules are no more after a reboot; here the bridge's masquerading is, since nobody emptied the kernel's tables.
    assert!(left.iter().all(|line| line.contains("name: \\\"") || line.starts_with(':')), "{left:?}");
}

#[test]
fn failures_say_why_and_leave_nothing() {
    if !available("network::failures_say_why_and_leave_nothing") {
        return;
    }
    let lan = Lan::new();
    let fails = |args: &[&str], part: &str| {
        let mut all = vec!["run", "--rm", "--name", "f"];
        all.extend(args);
        all.extend([lan.image.as_str(), "true"]);
        let done = lan.run(&all);
        assert!(done.code() == Some(125) && done.stderr.contains(part), "{part}: {done:?}");
        assert_eq!(lan.towline.containers().len(), 0, "{part}");
        assert_eq!(lan.left(), "", "{part}");
    };
    fails(&["--net", "nowhere"], "no file in");
    fails(&["-p", "80:80"], "has no network");
    fails(&["--net", "none", "--net", "host"], "cannot be had with another");
    fs::create_dir_all(lan.configurations()).unwrap();
    let write = |plugins: &str| {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"{}","plugins":[{plugins}]}}"#, lan.name);
        fs::write(lan.configurations().join("10-own.conflist"), text).unwrap();
    };
    let bridge = r#"{"type":"bridge","bridge":"tl-test0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.86.79.0/24"}}"#;
    write(&format!(r#"{bridge},{{"type":"no-such-plugin"}}"#));
    fails(&["--net", &lan.name], "there is no such plugin");
    write(bridge);
    fails(&["--net", &lan.name, "-p", "80:80"], "portMappings");
    write(r#"{"type":"bridge","ipam":{"type":"host-local","subnet":"nonsense"}}"#);
    fails(&["--net", &lan.name], "nonsense");
}
