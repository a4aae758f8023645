//! Options of containerd's shim for runc, which ours has, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CreateTaskResponse, DeleteRequest, DeleteResponse, ShutdownRequest, StartRequest, StartResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::empty::Empty;

use crate::pod::{Dialect, Pod};
use crate::{V2, create, exec};

/// A cgroup of a test in some hierarchy, which goes with it.
struct Group(PathBuf);

impl Group {
    fn make(name: &str) -> Self {
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists()).expect("a hierarchy of cgroups");
        let group = Self(root.join(name));
        fs::create_dir(&group.0).expect("make a cgroup");
        group
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(60);
        while let Err(error) = fs::remove_dir(&self.0) {
            assert!(Instant::now() < end, "removing {}: {error}", self.0.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn shutdown(pod: &Pod) {
    let mut request = ShutdownRequest::new();
    request.id = pod.id();
    let _: Empty = pod.client().call(V2, "Shutdown", &request).expect("shut the shim down");
    pod.assert_left();
}

#[test]
fn a_shim_is_in_the_cgroup_that_is_named_for_it() {
    let Some(mut pod) = Pod::prepare("a_shim_is_in_the_cgroup_that_is_named_for_it", "true") else { return };
    let mut options = Options::new();
    options.shim_cgroup = format!("/towline-shim-{}", pod.id());
    let refused = pod.try_launch(&options).unwrap_err();
    assert!(refused.contains("no hierarchy has it"), "{refused}");
    let group = Group::make(options.shim_cgroup.trim_start_matches('/'));
    pod.try_launch(&options).unwrap();
    let table = fs::read_to_string(format!("/proc/{}/cgroup", pod.shim_pid())).unwrap();
    assert!(table.lines().any(|line| line.ends_with(&format!(":{}", options.shim_cgroup))), "{table}");
    shutdown(&pod);
    drop(group);
}

#[test]
fn streams_belong_to_whom_the_options_name() {
    let script = "stat -L -c %u:%g /proc/self/fd/1; while :; do sleep 1; done";
    let Some(pod) = Pod::start("streams_belong_to_whom_the_options_name", Dialect::Flags, script) else { return };
    // Whoever is neither root nor the container's own user would not be left as the owner by the runtime.
    pod.edit_config(|config| config["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 }));
    let mut options = Options::new();
    (options.io_uid, options.io_gid) = (1000, 2000);
    let value = options.write_to_bytes().unwrap();
    let mut request = create(&pod);
    request.options = MessageField::some(Any { type_url: "containerd.runc.v1.Options".to_owned(), value, ..Any::default() });
    let mut client = pod.client();
    let _: CreateTaskResponse = client.call(V2, "Create", &request).unwrap();
    let mut start = StartRequest::new();
    start.id = pod.id();
    let _: StartResponse = client.call(V2, "Start", &start).unwrap();
    pod.wait_text("1000:2000\n");
    let _: Empty = client.call(V2, "Exec", &exec(&pod, "e", "stat -L -c %u:%g /proc/self/fd/1")).unwrap();
    start.exec_id = "e".into();
    let _: StartResponse = client.call(V2, "Start", &start).unwrap();
    pod.wait_text("1000:2000\n0:2000\n");
    let mut kill = containerd_shim_protos::api::KillRequest::new();
    (kill.id, kill.signal, kill.all) = (pod.id(), 9, true);
    let _: Empty = client.call(V2, "Kill", &kill).unwrap();
    for exec_id in ["e", ""] {
        let (mut wait, mut delete) = (WaitRequest::new(), DeleteRequest::new());
        (wait.id, wait.exec_id) = (pod.id(), exec_id.into());
        (delete.id, delete.exec_id) = (pod.id(), exec_id.into());
        let _: WaitResponse = client.call(V2, "Wait", &wait).unwrap();
        let _: DeleteResponse = client.call(V2, "Delete", &delete).unwrap();
    }
    shutdown(&pod);
}
