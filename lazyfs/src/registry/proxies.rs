//! Proxies, as environments name them. This crate reads no environment: whoever starts the daemon hands them over.

use std::fmt;

use reqwest::{ClientBuilder, NoProxy, Proxy, Url};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Outcome, Result};

/// Never asked through a proxy, as other tools have it: a proxy elsewhere cannot reach this machine's loopback.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// Through whom hosts are reached. `Debug` and `Display` leave passwords out.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxies {
    /// For addresses that begin with `http://` (`HTTP_PROXY`).
    pub http: Option<String>,
    /// For addresses that begin with `https://` (`HTTPS_PROXY`).
    pub https: Option<String>,
    /// Hosts, domains and networks that are reached without, with commas between (`NO_PROXY`).
    pub none: Option<String>,
}

impl Proxies {
    /// As the variables of an environment say it; `variable` looks one up. As elsewhere, the names in lower case come first.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let given = |name: &str| {
            [name.to_ascii_lowercase(), name.to_owned()].iter().find_map(|name| variable(name).filter(|value| !value.is_empty()))
        };
        let all = || given("ALL_PROXY");
        let (http, https) = (given("HTTP_PROXY").or_else(all), given("HTTPS_PROXY").or_else(all));
        Self { none: given("NO_PROXY").filter(|_| http.is_some() || https.is_some()), http, https }
    }

    /// Whether no host is reached through a proxy.
    pub fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    pub(super) fn apply(&self, builder: ClientBuilder) -> Result<ClientBuilder> {
        let except = match &self.none {
            Some(none) => format!("{LOOPBACK},{none}"),
            None => LOOPBACK.to_owned(),
        };
        let mut builder = builder.no_proxy();
        for (address, make) in [(&self.http, Proxy::http as fn(Url) -> _), (&self.https, Proxy::https)] {
            let Some(address) = address else { continue };
            let bad = |why: String| {
                Error::new(Outcome::BadInput, format!("reading the proxy address {}", without_secret(address)))
                    .because(why)
                    .advise("write http://HOST:PORT")
            };
            let with_scheme = if address.contains("://") { address.clone() } else { format!("http://{address}") };
            let url = Url::parse(&with_scheme).map_err(|e| bad(e.to_string()))?;
            if !matches!(url.scheme(), "http" | "https") {
                return Err(bad(format!("a proxy that is reached by `{}` is not supported", url.scheme())));
            }
            let proxy: Proxy = make(url).map_err(|e| bad(e.without_url().to_string()))?;
            builder = builder.proxy(proxy.no_proxy(NoProxy::from_string(&except)));
        }
        Ok(builder)
    }
}

impl fmt::Display for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("no proxy");
        }
        let shown = |address: &Option<String>| address.as_deref().map_or_else(|| "none".to_owned(), without_secret);
        write!(f, "proxies http={} https={}", shown(&self.http), shown(&self.https))?;
        self.none.iter().try_for_each(|none| write!(f, " except {none}"))
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The address without user and password.
fn without_secret(address: &str) -> String {
    match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read() {
        let read = |pairs: &[(&str, &str)]| {
            let proxies = Proxies::from_variables(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()));
            proxies.to_string()
        };
        for (pairs, wanted) in [
            (&[][..], "no proxy"),
            (&[("NO_PROXY", "a")], "no proxy"),
            (&[("HTTPS_PROXY", "b"), ("https_proxy", "a"), ("NO_PROXY", "x,y")], "proxies http=none https=a except x,y"),
            (&[("ALL_PROXY", "a"), ("HTTP_PROXY", "")], "proxies http=a https=a"),
        ] {
            assert_eq!(read(pairs), wanted, "{pairs:?}");
        }
    }

    #[test]
    fn bad_proxies_are_refused_and_secrets_not_shown() {
        let with = |https: &str| Proxies { https: Some(https.to_owned()), ..Proxies::default() };
        for (address, why) in [("socks5://a:1", "`socks5` is not supported"), ("http://", "empty host"), ("a b", "invalid")] {
            let error = with(address).apply(ClientBuilder::new()).map(drop).unwrap_err().one_line();
            assert!(error.contains(why), "{address}: {error}");
        }
        let secret = with("http://user:hunter2@proxy:3128");
        assert!(secret.apply(reqwest::Client::builder()).is_ok());
        assert_eq!(format!("{secret}"), "proxies http=none https=http://proxy:3128");
        assert_eq!(format!("{:?}", with("user:hunter2@proxy")), "proxies http=none https=proxy");
    }
}
