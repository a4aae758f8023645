//! The unit that keeps the layer store there, for systemd or for a user's own.

use std::ffi::OsStr;
use std::path::Path;

use super::WRITTEN;

/// Its name.
pub const NAME: &str = "towline-layers.service";

/// The file; `arguments` are those of `towline` before the verb.
pub fn text<'a>(towline: &'a Path, arguments: impl Iterator<Item = &'a OsStr>, dir: &'a Path, is_root: bool) -> String {
    let words: Vec<String> = [towline.as_os_str()]
        .into_iter()
        .chain(arguments)
        .chain(["system", "layers"].map(OsStr::new))
        .chain([dir.as_os_str()])
        .map(word)
        .collect();
    let (target, network) = match is_root {
        true => {
            ("multi-user.target", "After=network-online.target\nWants=network-online.target\nBefore=podman-restart.service\n")
        }
        false => ("default.target", ""),
    };
    // Containers that run need the process that serves them: it ends by itself with the last of them.
    format!(
        "{WRITTEN}[Unit]\nDescription=Layers of images for podman, from the store of towline\n{network}\n[Service]\nType=notify\n\
         ExecStart={}\nKillMode=process\nRestart=on-failure\n\n[Install]\nWantedBy={target}\n",
        words.join(" ")
    )
}

/// A word of a command line (systemd.service(5), "Command lines").
fn word(text: &OsStr) -> String {
    let text = text.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    if text.contains(|c: char| c.is_whitespace() || "\"';\\".contains(c)) { format!("\"{text}\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_systemd_reads_them() {
        let arguments = ["--root", "/a b", "--x", "50%\"$"].map(OsStr::new);
        let text = text(Path::new("/usr/bin/towline"), arguments.into_iter(), Path::new("/layers"), true);
        let line = text.lines().find(|line| line.starts_with("ExecStart")).unwrap();
        assert_eq!(line, r#"ExecStart=/usr/bin/towline --root "/a b" --x "50%%\"$$" system layers /layers"#);
        assert!(text.contains("KillMode=process") && text.contains("WantedBy=multi-user.target"));
    }
}
