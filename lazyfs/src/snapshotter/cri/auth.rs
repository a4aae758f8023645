//! From what the kubelet sends with a pull to credentials, as containerd reads it.

use base64::Engine as _;

use super::logins::scope;
use super::messages::AuthConfig;
use crate::daemon::protocol::{Credentials, Login};
use crate::error::{Error, Outcome, Result};
use crate::pull::sources::TOKEN_USER;
use crate::reference::Reference;

/// What is to be said to the registry of `image`; `None` where nothing was sent, or it is for another host. Secrets are in no error.
pub fn login(image: &str, sent: &AuthConfig) -> Result<Option<Login>> {
    // What is no name of an image in a registry is containerd's to refuse.
    let Ok(Reference::Registry(registry)) = image.parse::<Reference>() else { return Ok(None) };
    if !sent.server_address.is_empty() && !is_of(&sent.server_address, registry.host()) {
        return Ok(None);
    }
    let credentials = match () {
        () if !sent.username.is_empty() => Credentials { username: sent.username.clone(), secret: sent.password.clone() },
        () if !sent.identity_token.is_empty() => {
            Credentials { username: TOKEN_USER.to_owned(), secret: sent.identity_token.clone() }
        }
        () if !sent.auth.is_empty() => decode(&sent.auth).ok_or_else(|| {
            Error::new(Outcome::BadInput, format!("reading the kubelet's credentials for {image}"))
                .because("`auth` is not USER:PASSWORD in base64")
                .advise("correct the imagePullSecret")
        })?,
        () => return Ok(None),
    };
    Ok(Some(Login { scope: scope(&registry), credentials }))
}

/// Whether an address, with or without scheme and path, is that of a host.
fn is_of(address: &str, host: &str) -> bool {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let named = rest.split('/').next().unwrap_or_default();
    named == host || (host == "docker.io" && ["index.docker.io", "registry-1.docker.io"].contains(&named))
}

fn decode(auth: &str) -> Option<Credentials> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(auth).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    // Some tools pad with it.
    Some(Credentials { username: user.to_owned(), secret: password.trim_end_matches('\0').to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kubelet_sends_is_for_the_repository_that_it_pulls() {
        let plain = |user: &str, password: &str| AuthConfig {
            username: user.to_owned(),
            password: password.to_owned(),
            ..AuthConfig::default()
        };
        let auth = |text: &str| AuthConfig { auth: text.to_owned(), ..AuthConfig::default() };
        let token = AuthConfig { identity_token: "t0ken".to_owned(), ..AuthConfig::default() };
        let at = |address: &str| AuthConfig { server_address: address.to_owned(), ..plain("u", "p") };
        for (image, sent, wanted) in [
            ("a:5000/x:1", plain("u", "p"), Some(("a:5000/x", "u", "p"))),
            ("redis", plain("u", "p"), Some(("docker.io/library/redis", "u", "p"))),
            ("a:5000/x:1", auth("dTpwOng="), Some(("a:5000/x", "u", "p:x"))),
            ("a:5000/x:1", token, Some(("a:5000/x", "<token>", "t0ken"))),
            ("a:5000/x:1", AuthConfig::default(), None),
            ("a:5000/x:1", at("https://a:5000/v2/"), Some(("a:5000/x", "u", "p"))),
            ("a:5000/x:1", at("a:5000"), Some(("a:5000/x", "u", "p"))),
            ("a:5000/x:1", at("https://b"), None),
            ("redis", at("https://index.docker.io/v1/"), Some(("docker.io/library/redis", "u", "p"))),
            ("no reference!", plain("u", "p"), None),
        ] {
            let login = login(image, &sent).unwrap();
            let found = login
                .as_ref()
                .map(|login| (login.scope.as_str(), login.credentials.username.as_str(), login.credentials.secret.as_str()));
            assert_eq!(found, wanted, "{image}");
        }
    }

    #[test]
    fn what_is_no_login_is_refused_without_being_shown() {
        // Not base64; base64 of no text; no colon.
        for text in ["s3cret", "/////w==", "czNjcmV0"] {
            let error = login("a/x", &AuthConfig { auth: text.to_owned(), ..AuthConfig::default() }).unwrap_err().one_line();
            assert!(error.contains("base64") && !error.contains(text) && !error.contains("s3cret"), "{error}");
        }
    }
}
