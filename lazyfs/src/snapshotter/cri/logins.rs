//! Pulls of the kubelet that go on, and the credentials that came with them.

use std::sync::{Arc, Mutex};

use crate::daemon::protocol::Login;
use crate::reference::{Reference, RegistryReference};

/// All of them, oldest first.
#[derive(Debug, Default)]
pub struct Logins {
    lent: Mutex<Vec<(u64, Login)>>,
}

/// Credentials are lent until this is dropped.
#[derive(Debug)]
pub struct Lent {
    logins: Arc<Logins>,
    number: u64,
    login: Login,
}

impl Logins {
    /// For as long as a pull goes on.
    pub fn lend(self: &Arc<Self>, login: Login) -> Lent {
        let mut lent = self.lent.lock().expect("no holder of this lock panics");
        let number = lent.last().map_or(0, |(last, _)| last + 1);
        lent.push((number, login.clone()));
        Lent { logins: self.clone(), number, login }
    }

    /// Those for an image. Of several pulls of one repository the oldest counts: one with wrong credentials does not last.
    pub fn get(&self, reference: &str) -> Option<Login> {
        let Ok(Reference::Registry(registry)) = reference.parse() else { return None };
        let scope = scope(&registry);
        let lent = self.lent.lock().expect("no holder of this lock panics");
        lent.iter().find(|(_, login)| login.scope == scope).map(|(_, login)| login.clone())
    }
}

impl Lent {
    /// What is lent.
    pub fn login(&self) -> &Login {
        &self.login
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.logins.lent.lock().expect("no holder of this lock panics").retain(|(number, _)| *number != self.number);
    }
}

/// What the kubelet sends is good for the repository that it pulls, and for nothing else.
pub(super) fn scope(registry: &RegistryReference) -> String {
    format!("{}/{}", registry.host(), registry.repository())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::protocol::Credentials;

    #[test]
    fn credentials_are_those_of_the_oldest_pull_of_the_repository_that_goes_on() {
        let logins = Arc::new(Logins::default());
        let login = |scope: &str, secret: &str| Login {
            scope: scope.to_owned(),
            credentials: Credentials { username: "u".to_owned(), secret: secret.to_owned() },
        };
        let secret = |reference: &str| logins.get(reference).map(|login| login.credentials.secret);
        let first = logins.lend(login("a:1/x", "1"));
        let second = logins.lend(login("a:1/x", "2"));
        assert_eq!(secret("a:1/x:tag").as_deref(), Some("1"));
        assert_eq!(secret("a:1/x@sha256:0000000000000000000000000000000000000000000000000000000000000000").as_deref(), Some("1"));
        for other in ["a:1/y:tag", "a:2/x:tag", "x:tag", "not a reference", "oci:a:1/x"] {
            assert_eq!(secret(other), None, "{other}");
        }
        drop(first);
        assert_eq!(secret("a:1/x").as_deref(), Some("2"));
        assert_eq!(second.login().credentials.secret, "2");
        drop(second);
        assert_eq!(secret("a:1/x"), None);
    }
}
