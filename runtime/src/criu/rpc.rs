//! What is asked of criu and what it says: `criu_req`, `criu_opts` and `criu_resp` of images/rpc.proto.

use std::os::fd::RawFd;

use super::wire::{Value, Writer, fields};

/// `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Save processes, and end them unless they are to be left running.
    Dump = 1,
    /// Bring saved processes back.
    Restore = 2,
    /// Save memory only, and track what changes from now on.
    PreDump = 4,
    /// Something happened that the other side may act on.
    Notify = 6,
    /// What the kernel and criu can do.
    FeatureCheck = 9,
    /// criu's version.
    Version = 10,
}

impl Kind {
    fn from_number(number: i64) -> Option<Self> {
        let all = [Self::Dump, Self::Restore, Self::PreDump, Self::Notify, Self::FeatureCheck, Self::Version];
        all.into_iter().find(|kind| *kind as i64 == number)
    }
}

/// `criu_cg_mode`: what criu does about cgroups that it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// Nothing at all.
    Ignore = 0,
    /// Makes those that are missing, with their properties.
    #[default]
    Soft = 3,
    /// Makes all, with their properties.
    Full = 4,
    /// They must not exist.
    Strict = 5,
}

/// `criu_opts`: names and meaning are criu's.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "criu(8) describes them by these names")]
pub struct Options {
    pub images_dir: RawFd,
    pub work_dir: Option<RawFd>,
    pub pid: Option<i32>,
    pub root: String,
    pub log_file: &'static str,
    pub leave_running: bool,
    pub ext_unix_sk: bool,
    pub tcp_established: bool,
    pub tcp_skip_in_flight: bool,
    pub evasive_devices: bool,
    pub shell_job: bool,
    pub file_locks: bool,
    pub link_remap: bool,
    /// Address and port.
    pub page_server: Option<(String, u16)>,
    pub parent_image: Option<String>,
    pub auto_dedup: bool,
    pub lazy_pages: bool,
    pub rst_sibling: bool,
    pub cgroup_mode: CgroupMode,
    /// Controller and path of the cgroup that takes the place of the root.
    pub cgroup_roots: Vec<(String, String)>,
    pub freeze_cgroup: Option<String>,
    /// Mount points in the container, and what is mounted there from outside (on dump: any name).
    pub external_mounts: Vec<(String, String)>,
    pub external: Vec<String>,
    /// Name and descriptor.
    pub inherit_fds: Vec<(String, RawFd)>,
    /// Kind and path.
    pub join_namespaces: Vec<(String, String)>,
    pub empty_namespaces: u32,
    pub config_file: Option<String>,
    pub lsm_profile: Option<String>,
    pub lsm_mount_context: Option<String>,
}

impl Options {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(1, self.images_dir.into()).flag(3, self.leave_running).flag(4, self.ext_unix_sk);
        out.flag(5, self.tcp_established).flag(6, self.evasive_devices).flag(7, self.shell_job).flag(8, self.file_locks);
        // Level 4 is what a report of a failure needs. Notifications are always wanted.
        out.number(9, 4).bytes(10, self.log_file.as_bytes()).flag(12, true).flag(16, self.auto_dedup);
        out.flag(18, self.link_remap).flag(24, true).flag(26, self.rst_sibling).number(34, self.cgroup_mode as i64);
        out.number(38, self.empty_namespaces.into()).flag(46, self.tcp_skip_in_flight).flag(48, self.lazy_pages).flag(50, true);
        // Tracking memory is what makes a later dump build on this one.
        out.flag(15, self.parent_image.is_some());
        for (field, number) in [(2, self.pid), (17, self.work_dir)] {
            if let Some(number) = number {
                out.number(field, number.into());
            }
        }
        let root = Some(&self.root).filter(|root| !root.is_empty());
        for (field, text) in [
            (13, root),
            (14, self.parent_image.as_ref()),
            (44, self.freeze_cgroup.as_ref()),
            (51, self.config_file.as_ref()),
            (53, self.lsm_profile.as_ref()),
            (63, self.lsm_mount_context.as_ref()),
        ] {
            if let Some(text) = text {
                out.bytes(field, text.as_bytes());
            }
        }
        if let Some((address, port)) = &self.page_server {
            out.bytes(11, &message(|out| out.bytes(1, address.as_bytes()).number(2, (*port).into())));
        }
        for (field, pairs) in [(23, &self.external_mounts), (25, &self.cgroup_roots), (39, &self.join_namespaces)] {
            for (one, other) in pairs {
                out.bytes(field, &message(|out| out.bytes(1, one.as_bytes()).bytes(2, other.as_bytes())));
            }
        }
        for (name, fd) in &self.inherit_fds {
            out.bytes(27, &message(|out| out.bytes(1, name.as_bytes()).number(2, (*fd).into())));
        }
        for text in &self.external {
            out.bytes(37, text.as_bytes());
        }
        out.finish()
    }
}

fn message(fill: impl FnOnce(&mut Writer) -> &mut Writer) -> Vec<u8> {
    let mut out = Writer::default();
    fill(&mut out);
    out.finish()
}

/// A request.
pub(super) fn request(kind: Kind, options: Option<&Options>) -> Vec<u8> {
    message(|out| {
        out.number(1, kind as i64);
        if let Some(options) = options {
            out.bytes(2, &options.encode());
        }
        if kind == Kind::FeatureCheck {
            // mem_track and lazy_pages: is it so?
            out.bytes(5, &message(|out| out.number(1, 1).number(2, 1)));
        }
        out
    })
}

/// The answer to a notification.
pub(super) fn acknowledge(success: bool) -> Vec<u8> {
    message(|out| out.number(1, Kind::Notify as i64).number(3, success.into()))
}

/// `criu_resp`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// To which kind of request; `None` for one that is not known here.
    pub kind: Option<Kind>,
    /// Whether it was done.
    pub success: bool,
    /// Name and pid of a notification.
    pub notify: Option<(String, Option<i32>)>,
    /// The errno of a failure.
    pub errno: Option<i32>,
    /// What criu says of a failure.
    pub message: Option<String>,
    /// mem_track and lazy_pages.
    pub features: (bool, bool),
    /// Major and minor version.
    pub version: Option<(u32, u32)>,
}

impl Response {
    /// The error says what is wrong with the packet.
    pub(super) fn decode(packet: &[u8]) -> Result<Self, &'static str> {
        let mut response = Self::default();
        for (field, value) in fields(packet)? {
            match (field, &value) {
                (1, _) => response.kind = value.number().and_then(Kind::from_number),
                (2, _) => response.success = value.number() == Some(1),
                (5, Value::Bytes(bytes)) => {
                    let inner = fields(bytes)?;
                    let name = find(&inner, 1).and_then(Value::text).unwrap_or_default();
                    let pid = find(&inner, 2).and_then(Value::number).and_then(|pid| i32::try_from(pid).ok());
                    response.notify = Some((name, pid.filter(|pid| *pid > 0)));
                }
                (7, _) => response.errno = value.number().and_then(|number| i32::try_from(number).ok()),
                (8, Value::Bytes(bytes)) => {
                    let inner = fields(bytes)?;
                    let is = |field| find(&inner, field).and_then(Value::number) == Some(1);
                    response.features = (is(1), is(2));
                }
                (9, _) => response.message = value.text(),
                (10, Value::Bytes(bytes)) => {
                    let inner = fields(bytes)?;
                    let part = |field| find(&inner, field).and_then(Value::number).and_then(|part| u32::try_from(part).ok());
                    response.version = part(1).zip(part(2));
                }
                _ => {}
            }
        }
        Ok(response)
    }
}

fn find<'a>(fields: &'a [(u32, Value<'a>)], wanted: u32) -> Option<&'a Value<'a>> {
    fields.iter().find(|(field, _)| *field == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_and_a_failure_are_read() {
        let notify =
            message(|out| out.number(1, 6).number(2, 1).bytes(5, &message(|out| out.bytes(1, b"post-restore").number(2, 42))));
        let read = Response::decode(&notify).unwrap();
        assert_eq!((read.kind, read.success, read.notify), (Some(Kind::Notify), true, Some(("post-restore".into(), Some(42)))));
        let failure = message(|out| out.number(1, 1).number(2, 0).number(7, 3).bytes(9, b"no"));
        let read = Response::decode(&failure).unwrap();
        assert_eq!((read.kind, read.success, read.errno), (Some(Kind::Dump), false, Some(3)));
        assert_eq!(read.message.as_deref(), Some("no"));
        let version = message(|out| out.number(1, 10).number(2, 1).bytes(10, &message(|out| out.number(1, 3).number(2, 17))));
        assert_eq!(Response::decode(&version).unwrap().version, Some((3, 17)));
        assert!(Response::decode(&failure[..failure.len() - 1]).is_err());
        assert_eq!(Response::decode(&[0x08, 99]).unwrap().kind, None);
    }

    #[test]
    fn options_have_the_numbers_of_rpc_proto() {
        let options = Options {
            images_dir: 7,
            pid: Some(1234),
            external_mounts: vec![("/data".into(), "/host".into())],
            inherit_fds: vec![("pipe:[1]".into(), 1)],
            cgroup_roots: vec![("cpu".into(), "/c".into())],
            ..Options::default()
        };
        let request = request(Kind::Restore, Some(&options));
        let outer = fields(&request).unwrap();
        assert_eq!(outer[0], (1, Value::Number(2)));
        let Value::Bytes(bytes) = outer[1].1 else { panic!("options are a message") };
        let inner = fields(bytes).unwrap();
        assert_eq!(find(&inner, 1), Some(&Value::Number(7)));
        assert_eq!(find(&inner, 2), Some(&Value::Number(1234)));
        assert_eq!(find(&inner, 3), None);
        assert_eq!(find(&inner, 23).and_then(Value::text).as_deref(), Some("\n\u{5}/data\u{12}\u{5}/host"));
        assert_eq!(find(&inner, 27).and_then(Value::text).as_deref(), Some("\n\u{8}pipe:[1]\u{10}\u{1}"));
        assert_eq!(find(&inner, 25).and_then(Value::text).as_deref(), Some("\n\u{3}cpu\u{12}\u{2}/c"));
    }
}
