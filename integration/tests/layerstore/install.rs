//! `towline system install podman`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use towline_integration::images;
use towline_integration::towline::Towline;

#[test]
fn configuration_is_shown_written_and_taken_back() {
    const TEST: &str = "install::configuration_is_shown_written_and_taken_back";
    if !images::available(TEST) {
        return;
    }
    let towline = Towline::new();
    let config = towline.dir().join("etc");
    let containers = config.join("containers");
    fs::create_dir_all(&containers).unwrap();
    let storage = containers.join("storage.conf");
    let own = "# mine\n[storage]\ndriver = \"overlay\"\n\n[storage.options]\nmountopt = \"nodev\"\n";
    fs::write(&storage, own).unwrap();
    fs::set_permissions(&storage, fs::Permissions::from_mode(0o640)).unwrap();
    let install = |more: &[&str]| {
        let config = config.display().to_string();
        let args = ["system", "install", "podman", "--config", &config, "--no-start"];
        towline.run(&[&args[..], more].concat())
    };
    let files = || {
        let mut all = Vec::new();
        let mut pending = vec![config.clone()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(&dir).unwrap().flatten() {
                match entry.path().is_dir() {
                    true => pending.push(entry.path()),
                    false => all.push(entry.path().strip_prefix(&config).unwrap().display().to_string()),
                }
            }
        }
        all.sort();
        all
    };

    let shown = install(&["--print"]).success().stdout;
    assert!(
        shown.contains("additionallayerstores") && shown.contains("ExecStart=") && shown.contains("runtime_supports_json"),
        "{shown}"
    );
    assert_eq!(files(), ["containers/storage.conf"], "nothing was written");

    let layers = towline.root().join("layers");
    for _ in 0..2 {
        install(&["--default-runtime"]).success();
        assert_eq!(
            files(),
            ["containers/containers.conf.d/towline.conf", "containers/storage.conf", "systemd/system/towline-layers.service"]
        );
        let text = fs::read_to_string(&storage).unwrap();
        let line = format!("additionallayerstores = [\"{}:ref\"] # towline\n", layers.display());
        assert_eq!(text, own.replace("[storage.options]\n", &format!("[storage.options]\n{line}")));
        assert_eq!(fs::metadata(&storage).unwrap().permissions().mode() & 0o777, 0o640);
    }
    assert!(layers.is_dir(), "podman fails where the directory is missing");
    let drop_in = fs::read_to_string(containers.join("containers.conf.d/towline.conf")).unwrap();
    assert!(drop_in.contains("\nruntime = \"towline-oci\"\n"), "{drop_in}");

    install(&["--undo"]).success();
    assert_eq!(files(), ["containers/storage.conf"]);
    assert_eq!(fs::read_to_string(&storage).unwrap(), own);
    // What somebody else has put there stays.
    fs::create_dir_all(containers.join("containers.conf.d")).unwrap();
    fs::write(containers.join("containers.conf.d/towline.conf"), "# mine\n").unwrap();
    let refused = install(&[]);
    assert!(refused.code() == Some(125) && refused.stderr.contains("not from this command"), "{}", refused.stderr);
    install(&["--undo"]).success();
    assert_eq!(fs::read_to_string(containers.join("containers.conf.d/towline.conf")).unwrap(), "# mine\n");
}
