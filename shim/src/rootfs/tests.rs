use super::options::{Parsed, attributes, beneath, layers};
use rustix::mount::MountAttrFlags;

use super::*;

fn options(text: &[&str]) -> Vec<String> {
    text.iter().map(|option| (*option).to_owned()).collect()
}

#[test]
fn options_go_to_whom_they_belong() {
    let parsed = Parsed::new(&options(&["ro", "nosuid", "exec", "rprivate", "workdir=/w", "index=off", "volatile"])).unwrap();
    assert_eq!(parsed.flags, MountFlags::RDONLY | MountFlags::NOSUID);
    assert_eq!(parsed.propagation.len(), 1);
    assert_eq!(parsed.data, ["workdir=/w", "index=off", "volatile"]);
    let parsed = Parsed::new(&options(&["ro", "rbind", "rw"])).unwrap();
    assert_eq!(parsed.flags, MountFlags::BIND | MountFlags::REC);
    for bad in ["loop", "uidmap=0:1:2", "gidmap=0:1:2", "lowerdir=/a\0b"] {
        assert!(Parsed::new(&options(&[bad])).is_err(), "{bad}");
    }
}

#[test]
fn flags_become_attributes() {
    let both = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    assert_eq!(attributes(MountFlags::RDONLY | MountFlags::NODEV | MountFlags::RELATIME), Some(both));
    assert_eq!(attributes(MountFlags::SYNCHRONOUS), None);
}

#[test]
fn layers_are_separated_by_colons() {
    let shown = |text| layers(text).iter().map(|(key, path)| format!("{key}={path}")).collect::<Vec<_>>();
    assert_eq!(shown("/a"), ["lowerdir+=/a"]);
    assert_eq!(shown("/a:/b\\:c:/d\\\\"), ["lowerdir+=/a", "lowerdir+=/b:c", "lowerdir+=/d\\"]);
    assert_eq!(shown("/a::/b"), ["lowerdir+=/a", "datadir+=/b"]);
}

#[test]
fn a_target_stays_within_the_root() {
    assert_eq!(beneath(Path::new("/t"), "/a/./b").unwrap(), Path::new("/t/a/b"));
    for bad in ["..", "/../x", "a/../../x"] {
        assert!(beneath(Path::new("/t"), bad).is_err(), "{bad}");
    }
}

fn is_mounted(target: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == target.to_str())
}

fn message(kind: &str, source: &str, options: Vec<String>) -> Mount {
    let mut mount = Mount::new();
    (mount.type_, mount.source, mount.options) = (kind.into(), source.into(), options);
    mount
}

/// Few layers, and so many that their names have no room in a page.
#[test]
fn layers_of_any_number_are_mounted_and_taken_away() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP layers_of_any_number_are_mounted_and_taken_away: needs root");
        return;
    }
    // The upper layer of an overlay is on no overlay, which /tmp of a container may be: on a tmpfs.
    let dir = tempfile::tempdir().unwrap();
    mount_all(&[message("tmpfs", "tmpfs", options(&["nosuid", "nodev", "mode=700"]))], dir.path()).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for name in ["upper", "work", "root"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    for count in [2, 60] {
        let lower: Vec<String> = (0..count).map(|number| path(&format!("{}-{number}", "layer".repeat(20)))).collect();
        for (number, layer) in lower.iter().enumerate() {
            std::fs::create_dir_all(layer).unwrap();
            std::fs::write(format!("{layer}/{number}"), "").unwrap();
        }
        let given = vec![
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", path("upper")),
            format!("workdir={}", path("work")),
        ];
        let root = dir.path().join("root");
        let mounted = mount_all(&[message("overlay", "overlay", given)], &root);
        match mounted {
            Err(error) if count > 2 && error.one_line().contains("os error 22") => {
                println!("SKIP layers_of_any_number_are_mounted_and_taken_away: {}", error.one_line());
                break;
            }
            other => other.unwrap(),
        }
        assert!((0..count).all(|number| root.join(number.to_string()).exists()));
        unmount_all(&root).unwrap();
        assert!(!is_mounted(&root));
    }
    // What failed half-way leaves nothing.
    let bad = [
        message("bind", &path("upper"), options(&["rbind", "ro"])),
        message("overlay", "overlay", options(&["lowerdir=/no/such"])),
    ];
    assert!(mount_all(&bad, &dir.path().join("root")).is_err());
    assert!(!is_mounted(&dir.path().join("root")));
    unmount_all(dir.path()).unwrap();
}
