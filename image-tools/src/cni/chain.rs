//! The plugins of a network, one after the other: each ADD gets the result of the one before; DEL goes the other way round, with the result
//! of the last.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use towline_lazyfs::error::{Error, Outcome, Result};

use super::config::{self, Network};
use super::plugin::{self, Call, DEADLINE, Verb};

/// One interface of a container.
#[derive(Clone, Copy, Debug)]
pub struct Attachment<'a> {
    /// The container's id.
    pub container: &'a str,
    /// Its network namespace; none where it is gone.
    pub namespace: Option<&'a Path>,
    /// The interface in it.
    pub interface: &'a str,
    /// What plugins that declare it are told at run time, by capability.
    pub capabilities: &'a Map<String, Value>,
    /// Directories of plugins.
    pub dirs: &'a [PathBuf],
}

impl Attachment<'_> {
    fn call(&self, verb: Verb) -> Call<'_> {
        Call {
            verb,
            container: self.container,
            namespace: self.namespace,
            interface: self.interface,
            dirs: self.dirs,
            deadline: DEADLINE,
        }
    }

    /// Connects it; the result of the last plugin. When it fails, what the first plugins did is still there: see [`Attachment::del`].
    pub fn add(&self, network: &Network) -> Result<Value> {
        let mut result = None;
        for part in &network.plugins {
            let config = configuration(network, part, self.capabilities, result.as_ref());
            result = plugin::run(kind(part), &self.call(Verb::Add), &config)?;
        }
        result.ok_or_else(|| {
            Error::new(Outcome::BadInput, format!("connecting to network {}", network.name)).because("it has no plugin")
        })
    }

    /// Disconnects it, whatever of it is there. All plugins are asked; the first failure is returned.
    pub fn del(&self, network: &Network, result: Option<&Value>) -> Result<()> {
        let mut first = Ok(());
        // Plugins take no result before this version of the protocol.
        let result = result.filter(|_| !network.version.starts_with("0.1") && !is_before_0_4(&network.version));
        for part in network.plugins.iter().rev() {
            let config = configuration(network, part, self.capabilities, result);
            let done = plugin::run(kind(part), &self.call(Verb::Del), &config).map(drop);
            first = first.and(done);
        }
        first
    }

    /// Whether everything is still as it was made.
    pub fn check(&self, network: &Network, result: &Value) -> Result<()> {
        if is_before_0_4(&network.version) {
            return Err(Error::new(Outcome::Unsupported, format!("checking network {}", network.name))
                .because(format!("its cniVersion {} has no CHECK", network.version))
                .advise("write a cniVersion of 0.4.0 or later into its configuration"));
        }
        for part in &network.plugins {
            let config = configuration(network, part, self.capabilities, Some(result));
            plugin::run(kind(part), &self.call(Verb::Check), &config)?;
        }
        Ok(())
    }
}

fn is_before_0_4(version: &str) -> bool {
    ["0.1", "0.2", "0.3"].iter().any(|old| version.starts_with(old))
}

fn kind(part: &Map<String, Value>) -> &str {
    part.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// What a plugin reads: its part, with what it cannot know.
fn configuration(network: &Network, part: &Map<String, Value>, told: &Map<String, Value>, previous: Option<&Value>) -> Value {
    let mut config = part.clone();
    config.insert("name".into(), json!(network.name));
    config.insert("cniVersion".into(), json!(network.version));
    let told: Map<String, Value> =
        told.iter().filter(|(name, _)| config::declares(part, name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    if !told.is_empty() {
        config.insert("runtimeConfig".into(), Value::Object(told));
    }
    if let Some(previous) = previous {
        config.insert("prevResult".into(), previous.clone());
    }
    Value::Object(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_told_what_it_declares_and_no_more() {
        let text = r#"{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"a","capabilities":{"ips":true}},{"type":"b"}]}"#;
        let network = Network::parse(text).unwrap();
        let told = json!({"ips": ["10.0.0.9"], "portMappings": []});
        let told = told.as_object().unwrap();
        let first = configuration(&network, &network.plugins[0], told, None);
        let expected = json!({"type": "a", "name": "n", "cniVersion": "0.4.0", "capabilities": {"ips": true},
            "runtimeConfig": {"ips": ["10.0.0.9"]}});
        assert_eq!(first, expected);
        let second = configuration(&network, &network.plugins[1], told, Some(&json!({"ips": []})));
        assert_eq!(second, json!({"type": "b", "name": "n", "cniVersion": "0.4.0", "prevResult": {"ips": []}}));
    }
}
