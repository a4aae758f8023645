//! `USER[:GROUP]` to numbers (image-spec, "User").
//!
//! The image's `/etc/passwd` and `/etc/group` are asked only where the text needs them, since reading a file of a lazy image fetches
//! it: root, by name, number or default, and `UID:GID` need neither.

use towline_lazyfs::error::{Error, Outcome, Result};

use super::rootdir::RootDir;

/// Most supplementary groups that are taken from the image (the kernel's NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, ascending.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Finds out who `text` means in the image whose root is `root`.
pub fn resolve(text: &str, root: &RootDir) -> Result<User> {
    resolve_with(text, |file| root.read(file)).map_err(|e| e.during(format!("looking up user `{text}` in the image")))
}

fn resolve_with(text: &str, read: impl Fn(&str) -> Result<Option<String>>) -> Result<User> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let bad = |why: String| Error::new(Outcome::BadInput, "reading USER[:GROUP]").because(why);
    if group.is_some_and(str::is_empty) {
        return Err(bad("the group after `:` is empty".into()));
    }
    let user_number = parse_id(user).map_err(bad)?;
    let is_root = user.is_empty() || user == "root" || user_number == Some(0);
    let group_number = group.map(parse_id).transpose().map_err(bad)?.flatten();
    let passwd = match (is_root, user_number, group_number) {
        (true, ..) => Passwd { name: "root".into(), uid: 0, gid: 0, home: "/root".into() },
        (false, Some(uid), Some(gid)) => return Ok(User { uid, gid, groups: vec![], home: "/".into() }),
        (false, Some(uid), _) => {
            let found = read("/etc/passwd")?.and_then(|file| find_user(&file, |entry| entry.uid == uid));
            // A number need not be in the file.
            found.unwrap_or(Passwd { name: String::new(), uid, gid: 0, home: "/".into() })
        }
        (false, None, _) => {
            let file = read("/etc/passwd")?.unwrap_or_default();
            find_user(&file, |entry| entry.name == user).ok_or_else(|| missing("/etc/passwd", "user", user))?
        }
    };
    let (gid, groups) = match (group, group_number) {
        (Some(_), Some(gid)) => (gid, vec![]),
        (Some("root"), None) => (0, vec![]),
        (Some(name), None) => {
            let file = read("/etc/group")?.unwrap_or_default();
            (find_group(&file, name).ok_or_else(|| missing("/etc/group", "group", name))?, vec![])
        }
        (None, _) if is_root || passwd.name.is_empty() => (passwd.gid, vec![]),
        (None, _) => (passwd.gid, groups_of(&read("/etc/group")?.unwrap_or_default(), &passwd.name)),
    };
    Ok(User { uid: passwd.uid, gid, groups, home: passwd.home })
}

fn missing(file: &str, what: &str, name: &str) -> Error {
    Error::new(Outcome::NotFound, format!("looking into its {file}"))
        .because(format!("it has no {what} {name}"))
        .advise("give numbers: --user UID:GID")
}

/// A decimal id; `None` for a name. Numbers that are no id, such as one with a sign or leading zeros, are refused.
fn parse_id(text: &str) -> Result<Option<u32>, String> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit() || c == b'-' || c == b'+') {
        return Ok(None);
    }
    let wrong = || format!("`{text}` is not an id: a decimal number below 2147483648");
    match text.parse::<u32>() {
        Ok(id) if id <= i32::MAX.unsigned_abs() && id.to_string() == text => Ok(Some(id)),
        _ => Err(wrong()),
    }
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// The first entry of a passwd(5) file that matches; malformed lines are skipped, as libc does.
fn find_user(file: &str, wanted: impl Fn(&Passwd) -> bool) -> Option<Passwd> {
    file.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        let home = if home.starts_with('/') { home } else { "/" };
        let entry = Passwd { name: name.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.into() };
        wanted(&entry).then_some(entry)
    })
}

/// Fields of a line of group(5): name, gid, members.
fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, gid, members, ..] = fields[..] else { return None };
    Some((name, gid.parse().ok()?, members))
}

fn find_group(file: &str, wanted: &str) -> Option<u32> {
    file.lines().filter_map(group_line).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid)
}

fn groups_of(file: &str, user: &str) -> Vec<u32> {
    let member = |members: &str| members.split(',').any(|member| member == user);
    let mut groups: Vec<u32> = file
        .lines()
        .filter_map(group_line)
        .filter(|(.., members)| member(members))
        .map(|(_, gid, _)| gid)
        .take(MAX_GROUPS)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/home/app:/bin/sh\nodd:x:7:7::relative:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:app,odd\napp:x:1001:\nvideo:x:44:apple,app\nbad:x:y:app\n";

    fn files(file: &str) -> Result<Option<String>> {
        Ok(Some(if file == "/etc/passwd" { PASSWD } else { GROUP }.to_owned()))
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> User {
        User { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn names_and_numbers() {
        for (text, expected) in [
            ("app", user(1000, 1001, &[10, 44], "/home/app")),
            ("1000", user(1000, 1001, &[10, 44], "/home/app")),
            ("app:wheel", user(1000, 10, &[], "/home/app")),
            ("app:5", user(1000, 5, &[], "/home/app")),
            ("1000:app", user(1000, 1001, &[], "/home/app")),
            ("odd", user(7, 7, &[10], "/")),
            ("4242", user(4242, 0, &[], "/")),
            ("0:wheel", user(0, 10, &[], "/root")),
            (":video", user(0, 44, &[], "/root")),
        ] {
            assert_eq!(resolve_with(text, files).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn the_image_is_not_asked_where_it_need_not_be() {
        let never = |file: &str| -> Result<Option<String>> { panic!("{file} was read") };
        for (text, uid, gid) in [("", 0, 0), ("root", 0, 0), ("0", 0, 0), ("0:0", 0, 0), ("root:root", 0, 0), ("5:6", 5, 6)] {
            let user = resolve_with(text, never).unwrap();
            assert_eq!((user.uid, user.gid), (uid, gid), "{text}");
        }
    }

    #[test]
    fn what_is_no_user_is_refused() {
        for text in ["nobody", "app:nogroup", "1:", "app:", "01", "-1", "+1", "4294967296", "2147483648", "1:-1", "1:01"] {
            assert!(resolve_with(text, files).is_err(), "{text} was taken");
        }
        let none = |_: &str| Ok(None);
        assert!(resolve_with("app", none).is_err());
        assert_eq!(resolve_with("9", none).unwrap(), user(9, 0, &[], "/"));
    }
}
