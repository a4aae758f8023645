//! What `make bench-containerd` does with the CRI, as a kubelet does: a pod first, then an image is pulled and a container of it started.
//!
//! ```text
//! bench-cri SOCKET DIR pod               makes a pod, whose logs are in DIR; prints its id
//! bench-cri SOCKET DIR start POD IMAGE   pulls and starts, and prints the container's output until `READY ...`; where the time went on stderr
//! bench-cri SOCKET DIR end POD           takes it all away
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to the person who runs it")]

use std::path::Path;
use std::time::{Duration, Instant};

use towline_integration::cri::Cri;
use towline_integration::cri::messages::*;

/// For the first output.
const PATIENCE: Duration = Duration::from_secs(300);
/// `NamespaceMode`: that of the host. A pod without a network of its own needs no CNI.
const NODE: i32 = 2;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let [socket, dir, rest @ ..] = words.as_slice() else { panic!("usage: bench-cri SOCKET DIR pod|start|end ...") };
    let (cri, sandbox) = (Cri::new(Path::new(socket)), sandbox(dir));
    match rest {
        ["pod"] => {
            let request = RunPodSandboxRequest { config: Some(sandbox), runtime_handler: String::new() };
            println!("{}", cri.call::<PodId>("RunPodSandbox", &request).pod_sandbox_id);
        }
        ["start", pod, image] => start(&cri, sandbox, Path::new(dir), pod, image),
        ["end", pod] => {
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                cri.call::<Empty>(method, &PodId { pod_sandbox_id: (*pod).to_owned() });
            }
        }
        _ => panic!("no such command: {rest:?}"),
    }
}

fn namespaces() -> Option<NamespaceOption> {
    Some(NamespaceOption { network: NODE, pid: CONTAINER, ipc: POD })
}

fn sandbox(dir: &str) -> PodSandboxConfig {
    let name = "towline-bench".to_owned();
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: name.clone(), uid: name.clone(), namespace: name.clone(), attempt: 0 }),
        // It would be that of the host.
        hostname: String::new(),
        log_directory: dir.to_owned(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("/{name}"),
            security_context: Some(LinuxSandboxSecurityContext { namespace_options: namespaces() }),
        }),
    }
}

fn start(cri: &Cri, sandbox: PodSandboxConfig, dir: &Path, pod: &str, image: &str) {
    let begin = Instant::now();
    let mut steps = String::new();
    let mut step = |name: &str| steps += &format!("{name} {:.3} ", begin.elapsed().as_secs_f64());
    cri.pull(image, None).unwrap_or_else(|status| panic!("PullImage: {status:?}"));
    step("pulled");
    let name = format!("c{}", std::process::id());
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.clone(), attempt: 0 }),
        image: Some(ImageSpec { image: image.to_owned() }),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: None,
            security_context: Some(LinuxContainerSecurityContext { namespace_options: namespaces() }),
        }),
        ..ContainerConfig::default()
    };
    let (config, sandbox_config) = (Some(config), Some(sandbox));
    let request = CreateContainerRequest { pod_sandbox_id: pod.to_owned(), config, sandbox_config };
    let container = cri.call::<ContainerId>("CreateContainer", &request);
    step("created");
    cri.call::<Empty>("StartContainer", &container);
    step("started");
    let log = dir.join(format!("{name}.log"));
    loop {
        // A time, the stream and a tag are before each line.
        let text = std::fs::read_to_string(&log).unwrap_or_else(|error| panic!("reading {}: {error}", log.display()));
        if let Some(ready) = text.lines().find_map(|line| line.splitn(4, ' ').nth(3).filter(|line| line.starts_with("READY"))) {
            println!("{ready}");
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "no first output; the log: {text}");
        std::thread::sleep(Duration::from_millis(1));
    }
    step("ready");
    eprintln!("{steps}");
}
