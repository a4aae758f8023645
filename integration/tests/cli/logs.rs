//! What containers wrote, in both shapes, over several files.

use towline_integration::images;
use towline_integration::towline::PATIENCE;

use crate::rig::store;

#[test]
fn followers_and_later_readers_have_all_of_it() {
    if !images::available("logs::followers_and_later_readers_have_all_of_it") {
        return;
    }
    let (towline, image) = store();
    let wanted: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    for driver in ["k8s-file", "json-file"] {
        let script = "while [ ! -e /go ]; do sleep 0.05; done; seq 20000";
        let args =
            ["run", "-d", "--name", driver, "--log-driver", driver, "--log-opt", "max-size=100k", "--log-opt", "max-file=100"];
        towline.run(&[&args[..], &[&image, "sh", "-c", script]].concat()).success();
        let follower = towline.start(&["logs", "-f", driver]);
        towline.run(&["exec", driver, "touch", "/go"]).success();
        let followed = follower.wait(PATIENCE).success();
        assert!(followed.stdout == wanted, "{driver}: {} bytes followed", followed.stdout.len());
        assert!(towline.run(&["logs", driver]).success().stdout == wanted, "{driver}");
        let home = towline.root().join("containers").join(towline.row(driver)["id"].as_str().unwrap());
        assert!(home.join("log.4").exists(), "{driver}: the log was not rotated");
        let last = towline.run(&["logs", "--tail", "2", "-t", driver]).success();
        let lines: Vec<&str> = last.stdout.lines().collect();
        assert!(lines.len() == 2 && lines[1].contains("Z 20000"), "{last:?}");
        let (moment, _) = lines[1].split_once(' ').unwrap();
        let since = towline.run(&["logs", "--since", moment, driver]).success().stdout;
        assert!(since.ends_with("20000\n") && towline.run(&["logs", "--since", "0s", driver]).success().stdout.is_empty());
    }
    towline.run(&["run", "--name", "none", "--log-driver", "none", &image, "echo", "x"]).success();
    assert!(towline.run(&["logs", "none"]).stderr.contains("--log-driver none"));
    let bad = towline.run(&["run", "--log-opt", "max-size=0", &image, "true"]);
    assert!(bad.code() == Some(125) && bad.stderr.contains("--log-opt"), "{bad:?}");
}
