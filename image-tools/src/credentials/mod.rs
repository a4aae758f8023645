//! Credentials where login tools keep them (containers-auth.json(5), docker's `config.json`).
//!
//! `REGISTRY_AUTH_FILE` is the only file where it is set. Else these are asked in turn, and the first that knows the repository counts:
//! `$XDG_RUNTIME_DIR/containers/auth.json` (without the variable `/run/containers/UID/auth.json`), `$XDG_CONFIG_HOME` or
//! `~/.config` `/containers/auth.json`, `$DOCKER_CONFIG` or `~/.docker` `/config.json`. Within a file: the helper of that host,
//! the entry with the longest path, the helper for everything.

mod helper;

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use towline_lazyfs::daemon::protocol::Credentials;
use towline_lazyfs::error::{Error, Result};
use towline_lazyfs::registry::{AuthFile, Credential};

/// User name of an identity token (docker's convention, which the daemon's protocol shares).
const TOKEN_USER: &str = "<token>";
/// The largest file that is read, bytes; the parser's own limit is lower.
const MAX_FILE: u64 = 2 << 20;

/// The files that there are.
pub struct Files(Vec<(PathBuf, AuthFile)>);

/// What was found for a repository.
pub struct Found {
    pub credentials: Credentials,
    /// Where, for people.
    pub source: String,
}

impl Files {
    /// Reads the files; `variable` looks up what the environment says.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths(&variable) {
            let failed = |e| Error::io("reading", &path, e);
            let file = match std::fs::File::open(&path) {
                Ok(file) => file,
                Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => continue,
                Err(e) => return Err(failed(e)),
            };
            let mut text = Vec::new();
            file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
            let parsed = AuthFile::parse(&text, &path.display().to_string())?;
            files.push((path, parsed));
        }
        Ok(Self(files))
    }

    /// The credentials for a repository of a host.
    pub fn find(&self, host: &str, repository: &str) -> Result<Option<Found>> {
        for (path, file) in &self.0 {
            let found = match (file.helper_of(host), file.credential(host, repository), file.store()) {
                (Some(name), ..) => {
                    (helper::get(name, host)?, format!("docker-credential-{name}, which {} names", path.display()))
                }
                (None, Some(credential), _) => (Some(credential.clone()), path.display().to_string()),
                (None, None, Some(name)) => {
                    (helper::get(name, host)?, format!("docker-credential-{name}, which {} names", path.display()))
                }
                (None, None, None) => continue,
            };
            if let (Some(credential), source) = found {
                return Ok(Some(Found { credentials: spoken(credential), source }));
            }
        }
        Ok(None)
    }
}

/// As the daemon's protocol has them.
fn spoken(credential: Credential) -> Credentials {
    match credential {
        Credential::Password { user, password } => Credentials { username: user, secret: password },
        Credential::IdentityToken(token) => Credentials { username: TOKEN_USER.to_owned(), secret: token },
    }
}

fn paths(variable: &impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let given = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = given("REGISTRY_AUTH_FILE") {
        return vec![only];
    }
    let home = |below: &str| given("HOME").map(|home| home.join(below));
    let runtime = given("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let user = rustix::process::geteuid();
    let runtime = runtime.unwrap_or_else(|| Path::new("/run/containers").join(user.to_string()).join("auth.json"));
    let config = given("XDG_CONFIG_HOME").or_else(|| home(".config")).map(|dir| dir.join("containers/auth.json"));
    let docker = given("DOCKER_CONFIG").or_else(|| home(".docker")).map(|dir| dir.join("config.json"));
    [Some(runtime), config, docker].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(pairs: &'a [(&'a str, PathBuf)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone().into())
    }

    #[test]
    fn the_first_file_that_knows_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        // dTpw = u:p, djpw = v:p, dzpw = w:p
        write("run/containers/auth.json", r#"{"auths":{"a.io/team":{"auth":"dTpw"}}}"#);
        write("config/containers/auth.json", r#"{"auths":{"a.io":{"auth":"djpw"}}}"#);
        write("home/.docker/config.json", r#"{"auths":{"a.io":{"auth":"dzpw"},"b.io":{"identitytoken":"t"}}}"#);
        write("only.json", r#"{"auths":{"c.io":{"auth":"dTpw"}}}"#);
        let at = |name: &str| dir.path().join(name);
        let pairs = [("XDG_RUNTIME_DIR", at("run")), ("XDG_CONFIG_HOME", at("config")), ("HOME", at("home"))];
        let files = Files::read(environment(&pairs)).unwrap();
        for (host, repository, wanted) in
            [("a.io", "team/x", Some("u")), ("a.io", "other", Some("v")), ("b.io", "x", Some("<token>")), ("c.io", "x", None)]
        {
            let found = files.find(host, repository).unwrap();
            assert_eq!(found.map(|found| found.credentials.username).as_deref(), wanted, "{host}/{repository}");
        }
        let only = [("REGISTRY_AUTH_FILE", at("only.json")), ("HOME", at("home"))];
        let files = Files::read(environment(&only)).unwrap();
        assert!(files.find("c.io", "x").unwrap().is_some() && files.find("b.io", "x").unwrap().is_none());
        write("only.json", "{");
        assert!(Files::read(environment(&only)).is_err_and(|e| e.one_line().contains("only.json")));
    }
}
