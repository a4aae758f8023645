//! Credential helpers: programs `docker-credential-NAME` (docker-credential-helpers, "get").

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::registry::Credential;

/// How long a helper may take; it may have to ask somebody over the network.
const DEADLINE: Duration = Duration::from_secs(30);
/// The longest answer that is read, bytes.
const MAX_ANSWER: u64 = 64 * 1024;
/// What helpers say when they know nothing (docker-credential-helpers, credentials/error.go).
const UNKNOWN: &str = "credentials not found in native keychain";

/// Asks a helper for a host's credentials; `None` where it has none.
pub(super) fn get(name: &str, host: &str) -> Result<Option<Credential>> {
    let tried = || format!("asking docker-credential-{name} for the credentials of {host}");
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(Error::new(Outcome::BadInput, tried()).because("that is no name of a helper"));
    }
    ask(Command::new(format!("docker-credential-{name}")), host, DEADLINE).map_err(|e| e.during(tried()))
}

fn ask(mut program: Command, host: &str, deadline: Duration) -> Result<Option<Credential>> {
    let failed = |what: &str, e: std::io::Error| Error::new(Outcome::Io, what.to_owned()).because(e);
    let mut child = program
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed("starting it", e).advise("install it, or remove its name from the file of credentials"))?;
    // Keys of the Hub are as docker writes them.
    let key = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let mut stdin = child.stdin.take().expect("it is piped");
    // A helper that needs no key may have closed its end.
    match stdin.write_all(key.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => return Err(failed("writing to it", e)),
        _ => drop(stdin),
    }
    let stdout = child.stdout.take().expect("it is piped");
    let (sender, answer) = mpsc::channel();
    // A thread: what the helper has started may hold the pipe for ever.
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.take(MAX_ANSWER + 1).read_to_end(&mut text).map(|_| text);
        // Nobody waits any longer after the deadline.
        sender.send(read).unwrap_or_default();
    });
    let begin = Instant::now();
    let answer = answer.recv_timeout(deadline);
    let status = end(&mut child, deadline.saturating_sub(begin.elapsed()));
    let text = match answer {
        Ok(read) => read.map_err(|e| failed("reading its answer", e))?,
        Err(_) => Vec::new(),
    };
    let status = status.map_err(|e| failed("waiting for it", e))?.ok_or_else(|| {
        Error::new(Outcome::Unavailable, "waiting for it")
            .because(format!("it had not answered after {} s", deadline.as_secs_f32()))
            .advise("does it wait for somebody to type something? Log in, or give --creds")
    })?;
    if !status.success() {
        let said: String = String::from_utf8_lossy(&text).trim().chars().take(200).collect();
        return match said.contains(UNKNOWN) {
            true => Ok(None),
            false => Err(Error::new(Outcome::Denied, "reading its answer").because(format!("it ended with {status}: {said}"))),
        };
    }
    parse(&text)
}

/// Waits for the end, and brings it about at the deadline: `None`.
fn end(child: &mut Child, left: Duration) -> std::io::Result<Option<std::process::ExitStatus>> {
    let give_up = Instant::now() + left;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= give_up {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn parse(text: &[u8]) -> Result<Option<Credential>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    // The parser's message could quote the secret.
    let bad = || Error::new(Outcome::BadInput, "reading its answer").because("it is not JSON with Username and Secret");
    let Answer { username, secret } =
        (text.len() as u64 <= MAX_ANSWER).then(|| serde_json::from_slice(text).ok()).flatten().ok_or_else(bad)?;
    Ok(match username.as_str() {
        _ if secret.is_empty() => None,
        super::TOKEN_USER => Some(Credential::IdentityToken(secret)),
        _ => Some(Credential::Password { user: username, password: secret }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helper(script: &str) -> Command {
        let mut program = Command::new("sh");
        program.args(["-c", script, "helper"]);
        program
    }

    #[test]
    fn helpers_answer_fail_or_are_ended() {
        let answer = r#"read -r key; test "$1" = get && printf '{"ServerURL":"x","Username":"%s","Secret":"s"}' "$key""#;
        let password = |user: &str| Credential::Password { user: user.into(), password: "s".into() };
        let long = Duration::from_secs(30);
        assert_eq!(ask(helper(answer), "a.io", long).unwrap(), Some(password("a.io")));
        assert_eq!(ask(helper(answer), "docker.io", long).unwrap(), Some(password("https://index.docker.io/v1/")));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(ask(helper(token), "a.io", long).unwrap(), Some(Credential::IdentityToken("t".into())));
        let unknown = format!("echo '{UNKNOWN}'; exit 1");
        assert_eq!(ask(helper(&unknown), "a.io", long).unwrap(), None);
        for (script, why) in [("echo locked; exit 1", "locked"), ("echo hunter2", "not JSON"), ("yes", "not JSON")] {
            let error = ask(helper(script), "a.io", long).unwrap_err().one_line();
            assert!((error.contains(why) || script == "yes") && !error.contains("hunter2"), "{script}: {error}");
        }
        // What it has started holds the pipe open.
        let error = ask(helper("sleep 60 & sleep 60"), "a.io", Duration::from_millis(100)).unwrap_err();
        assert!(error.one_line().contains("had not answered after 0.1 s"), "{error:?}");
        assert!(get("../x", "a.io").unwrap_err().one_line().contains("no name of a helper"));
        assert!(get("towline-none", "a.io").unwrap_err().one_line().contains("install it"));
    }
}
