//! A quota: what nobody uses makes room, what somebody uses stays, and what does not fit is refused.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::Value;
use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::run;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::Rig;
use crate::truth::Truth;

/// What the daemon's log says when something went.
const COLLECTED: &str = "images that nobody used to keep to the quota";

/// Bytes of the only file of each image.
const NOISE: usize = 6_000_000;

/// Images that share nothing, each in a layout of its own; references by name.
fn noise(maker: &Towline, names: &[&str]) -> Vec<String> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let image = |name: &&str| {
        let (dir, tar) = (maker.dir().join(name), maker.dir().join(format!("{name}.tar")));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(name), (0..NOISE).map(|_| next()).collect::<Vec<u8>>()).unwrap();
        let mut command = Command::new("tar");
        command.arg("-C").arg(&dir).arg("-cf").arg(&tar).arg(".");
        run(command, PATIENCE).success();
        let (tar, layout) =
            (tar.display().to_string(), format!("oci:{}:{name}", maker.dir().join("layout").join(name).display()));
        maker.run(&["images", "import", &tar, &format!("{name}:1")]).success();
        fs::create_dir_all(maker.dir().join("layout")).unwrap();
        maker.run(&["images", "export", &format!("{name}:1"), &layout]).success();
        layout
    };
    names.iter().map(image).collect()
}

/// What a quota counts.
fn total(towline: &Towline) -> u64 {
    let usage: Value = serde_json::from_str(&towline.run(&["system", "df", "--format", "json"]).success().stdout).unwrap();
    let bytes = |part: &str| usage[part]["bytes"].as_u64().unwrap();
    ["images", "objects", "large_files", "imported", "indexes"].map(bytes).iter().sum::<u64>()
        + usage["database_bytes"].as_u64().unwrap()
}

#[test]
fn what_nobody_holds_makes_room_and_what_does_not_fit_is_refused() {
    if !images::available("quota::what_nobody_holds_makes_room_and_what_does_not_fit_is_refused") {
        return;
    }
    let maker = Towline::new();
    let [a, b, c] = &noise(&maker, &["a", "b", "c"])[..] else { unreachable!() };
    let towline = Towline::new().with_env("TOWLINE_QUOTA", "16M,low=13M,grace=0");
    let listed = || towline.run(&["images", "ls", "-q"]).success().stdout;
    for image in [a, b] {
        towline.run(&["images", "pull", image]).success();
    }
    towline.run(&["images", "pin", a]).success();
    towline.run(&["images", "pull", c]).success();
    assert_eq!(listed(), format!("{a}\n{c}\n"), "the only one that may go has gone");
    assert!(total(&towline) <= 16_000_000);

    towline.run(&["images", "pin", c]).success();
    let refused = towline.run(&["images", "pull", b]);
    assert!(refused.code() != Some(0) && refused.stderr.contains("the quota is 16 MB"), "{}", refused.stderr);
    let pinned = towline.run(&["images", "rm", a]);
    assert!(pinned.code() != Some(0) && pinned.stderr.contains("it is pinned"), "{}", pinned.stderr);
    towline.run(&["system", "prune", "--all"]).success();
    assert_eq!(listed(), format!("{a}\n{c}\n"));

    let by_image = towline.run(&["system", "df", "--images"]).success().stdout;
    assert!(by_image.lines().filter(|line| line.contains("it is pinned")).count() == 2, "{by_image}");
    towline.run(&["images", "unpin", a]).success();
    towline.run(&["images", "pull", b]).success();
    assert_eq!(listed(), format!("{b}\n{c}\n"));
    let whole = towline.run(&["system", "verify"]);
    assert!(whole.code() == Some(0), "{}{}", whole.stdout, whole.stderr);
}

#[test]
fn what_was_just_pulled_stays_for_the_grace() {
    if !images::available("quota::what_was_just_pulled_stays_for_the_grace") {
        return;
    }
    let maker = Towline::new();
    let [a, b] = &noise(&maker, &["a", "b"])[..] else { unreachable!() };
    let towline = Towline::new().with_env("TOWLINE_QUOTA", "8M,grace=86400");
    towline.run(&["images", "pull", a]).success();
    // Also when the daemon that pulled it has left.
    towline.wait_for_hand_off(PATIENCE);
    let refused = towline.run(&["images", "pull", b]);
    assert!(refused.code() != Some(0) && refused.stderr.contains("pulls of the last 86400 s"), "{}", refused.stderr);
    assert_eq!(towline.run(&["images", "ls", "-q"]).success().stdout, format!("{a}\n"));
}

#[test]
fn containers_start_whatever_is_collected_beside_them() {
    if !images::available("quota::containers_start_whatever_is_collected_beside_them") {
        return;
    }
    let maker = Towline::new();
    let others = noise(&maker, &["a", "b", "c", "d"]);
    let probed = Rig::new(Towline::new(), Quality::LOOPBACK);
    probed.towline.run(&["images", "pull", &probed.image("small:zstd")]).success();
    // The image and one other fit, a second other one does not; nor do all of the others.
    let quota = total(&probed.towline) + NOISE as u64 * 3 / 2;
    let rig = Rig::new(Towline::new().with_env("TOWLINE_QUOTA", &format!("{quota},low=1,grace=0")), Quality::LOOPBACK);
    let (image, truth, ended) = (rig.image("small:zstd"), Truth::of("small"), AtomicBool::new(false));
    let pulls = std::thread::scope(|scope| {
        let puller = scope.spawn(|| {
            let mut pulls = 0;
            while !ended.load(Ordering::Relaxed) {
                for other in &others {
                    let pulled = rig.towline.run(&["images", "pull", other]);
                    let refused = ["the quota is", "keeping to the store's quota"].iter().any(|why| pulled.stderr.contains(why));
                    assert!(pulled.code() == Some(0) || refused, "{}", pulled.stderr);
                    pulls += 1;
                }
            }
            pulls
        });
        // Whatever becomes of this thread, the other one ends.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let end = End(&ended);
        let (begin, mut runs) = (Instant::now(), 0);
        while runs < 6 || !rig.towline.daemon_log().contains(COLLECTED) {
            assert!(begin.elapsed() < 3 * PATIENCE, "nothing was collected: {}", rig.towline.daemon_log());
            runs += 1;
            let args = ["run", "--rm", &image, "probe", "sum", "/data/large", "/data/dir/1", "/data/dir/7"];
            let done = rig.towline.run(&args).success();
            assert_eq!(truth.compare(&done.stdout), (3, Vec::new()), "{}", done.stdout);
        }
        drop(end);
        puller.join().unwrap()
    });
    assert!(pulls >= 2);
    let whole = rig.towline.run(&["system", "verify"]);
    assert!(whole.code() == Some(0), "{}{}", whole.stdout, whole.stderr);
}
