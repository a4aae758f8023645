//! What runs in a container: the image's configuration with the user's changes (image-spec, "Conversion to OCI Runtime
//! Configuration").

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use towline_lazyfs::daemon::protocol::Command;
use towline_lazyfs::error::{Error, Outcome, Result};

use super::env::{self, Change};

/// `PATH` where the image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// `USER[:GROUP]`, names or numbers; empty for root.
    pub user: String,
    /// The signal that asks it to end, as the image names it.
    pub stop_signal: String,
}

/// What the user changes.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Replaces the image's entrypoint, and its arguments with it; empty for none.
    pub entrypoint: Option<String>,
    /// Replaces the image's arguments where it is not empty.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: Vec<Change>,
    /// Working directory.
    pub cwd: Option<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
}

impl Plan {
    /// Puts together what runs in a container of `image`, whose configuration document is `config`.
    pub fn new(image: &str, config: &str, changes: Changes) -> Result<Self> {
        let config = ImageConfiguration::from_reader(config.as_bytes()).map_err(|e| {
            Error::new(Outcome::BadInput, format!("reading the configuration of image {image}")).because(e.to_string())
        })?;
        let config = config.config().clone().unwrap_or_default();
        let args = args(&config, &changes);
        if args.first().is_none_or(String::is_empty) {
            return Err(Error::new(Outcome::BadInput, format!("running image {image}"))
                .because("it names no command")
                .advise(format!("give one: `towline run {image} COMMAND`")));
        }
        let mut env = config.env().clone().unwrap_or_default();
        env::default(&mut env, "PATH", DEFAULT_PATH);
        if changes.tty {
            env::default(&mut env, "TERM", "xterm");
        }
        env::apply(&mut env, &changes.env);
        let cwd = changes.cwd.or(config.working_dir().clone()).filter(|dir| !dir.is_empty()).unwrap_or_else(|| "/".into());
        if !cwd.starts_with('/') {
            return Err(Error::new(Outcome::BadInput, format!("running image {image}"))
                .because(format!("working directory `{cwd}` is not absolute"))
                .advise("give one with -w"));
        }
        let user = changes.user.or(config.user().clone()).unwrap_or_default();
        let stop_signal = config.stop_signal().clone().filter(|signal| !signal.is_empty()).unwrap_or_else(|| "SIGTERM".into());
        Ok(Self { args, env, cwd, user, stop_signal })
    }

    /// What runs, as the daemon wants to know it to fetch ahead.
    pub fn command(&self) -> Command {
        let path = self.env.iter().find_map(|entry| entry.strip_prefix("PATH="));
        Command { args: self.args.clone(), path: path.unwrap_or(DEFAULT_PATH).to_owned(), cwd: self.cwd.clone() }
    }
}

fn args(config: &oci_spec::image::Config, changes: &Changes) -> Vec<String> {
    let of_image = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut args = match &changes.entrypoint {
        Some(program) => Some(program.clone()).filter(|program| !program.is_empty()).into_iter().collect(),
        None => of_image(config.entrypoint()),
    };
    if changes.entrypoint.is_none() && changes.command.is_empty() {
        args.extend(of_image(config.cmd()));
    } else {
        args.extend(changes.command.iter().cloned());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(inner: &str) -> String {
        format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{inner}}}"#)
    }

    #[test]
    fn entrypoint_and_command_as_docker_has_them() {
        let image = config(r#"{"Entrypoint":["/e","-x"],"Cmd":["c","d"]}"#);
        let only_command = config(r#"{"Cmd":["c","d"]}"#);
        for (config, entrypoint, command, expected) in [
            (&image, None, vec![], vec!["/e", "-x", "c", "d"]),
            (&image, None, vec!["u"], vec!["/e", "-x", "u"]),
            (&image, Some("/p"), vec![], vec!["/p"]),
            (&image, Some("/p"), vec!["u"], vec!["/p", "u"]),
            (&image, Some(""), vec!["u"], vec!["u"]),
            (&only_command, None, vec![], vec!["c", "d"]),
            (&only_command, None, vec!["u", "v"], vec!["u", "v"]),
        ] {
            let changes = Changes {
                entrypoint: entrypoint.map(str::to_owned),
                command: command.iter().map(|&s: &&str| s.to_owned()).collect(),
                ..Changes::default()
            };
            assert_eq!(Plan::new("i", config, changes).unwrap().args, expected);
        }
        for (config, entrypoint) in [(&config("{}"), None), (&image, Some("")), (&config("null"), None)] {
            let changes = Changes { entrypoint: entrypoint.map(str::to_owned), ..Changes::default() };
            let error = Plan::new("i", config, changes).unwrap_err();
            assert_eq!(error.one_line(), "running image i: it names no command; give one: `towline run i COMMAND`");
        }
    }

    #[test]
    fn the_rest_comes_from_the_image_unless_changed() {
        let image = config(r#"{"Cmd":["c"],"Env":["A=1"],"WorkingDir":"/w","User":"u:g","StopSignal":"SIGQUIT"}"#);
        let plan = Plan::new("i", &image, Changes::default()).unwrap();
        assert_eq!(plan.env, ["A=1".to_owned(), format!("PATH={DEFAULT_PATH}")]);
        assert_eq!((plan.cwd.as_str(), plan.user.as_str(), plan.stop_signal.as_str()), ("/w", "u:g", "SIGQUIT"));
        let changes = Changes { cwd: Some("/x".into()), user: Some("0".into()), tty: true, ..Changes::default() };
        let plan = Plan::new("i", &image, changes).unwrap();
        assert_eq!((plan.cwd.as_str(), plan.user.as_str(), plan.env[2].as_str()), ("/x", "0", "TERM=xterm"));
        let relative = Changes { cwd: Some("x".into()), ..Changes::default() };
        assert!(Plan::new("i", &image, relative).is_err());
        assert!(Plan::new("i", "{", Changes::default()).is_err());
    }
}
