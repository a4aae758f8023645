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
