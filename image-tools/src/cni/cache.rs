//! Results where libcni keeps them, `CACHE/results/NETWORK-CONTAINER-INTERFACE`, so that other tools that look there find our containers. What
//! we need ourselves to disconnect a container is beside its record (`crate::network`).

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use towline_lazyfs::error::{Error, Result};

use super::config::Network;

/// One result.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The network.
    pub network: &'a Network,
    /// The container's id.
    pub container: &'a str,
    /// The interface in it.
    pub interface: &'a str,
}

impl Entry<'_> {
    fn path(&self, cache: &Path) -> PathBuf {
        cache.join("results").join(format!("{}-{}-{}", self.network.name, self.container, self.interface))
    }

    /// Writes it.
    pub fn write(&self, cache: &Path, capabilities: &Map<String, Value>, result: &Value) -> Result<()> {
        let path = self.path(cache);
        let dir = cache.join("results");
        std::fs::create_dir_all(&dir).map_err(|e| Error::io("creating", &dir, e))?;
        let document = self.document(capabilities, result);
        crate::container::record::write_json(&path, &document)
    }

    /// Version 1 of libcni's format.
    fn document(&self, capabilities: &Map<String, Value>, result: &Value) -> Value {
        let mut document = json!({
            "kind": "cniCacheV1",
            "containerId": self.container,
            "config": STANDARD.encode(&self.network.text),
            "ifName": self.interface,
            "networkName": self.network.name,
            "result": result,
        });
        if !capabilities.is_empty() {
            document["capabilityArgs"] = Value::Object(capabilities.clone());
        }
        document
    }

    /// Removes it, where it is.
    pub fn remove(&self, cache: &Path) -> Result<()> {
        let path = self.path(cache);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", path, e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_libcnis() {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::parse(r#"{"name":"n","cniVersion":"0.4.0","plugins":[{"type":"a"}]}"#).unwrap();
        let entry = Entry { network: &network, container: "c1", interface: "eth0" };
        let told = json!({"portMappings": [{"hostPort": 80}]});
        entry.write(dir.path(), told.as_object().unwrap(), &json!({"cniVersion": "0.4.0"})).unwrap();
        let path = dir.path().join("results/n-c1-eth0");
        let golden = json!({
            "kind": "cniCacheV1",
            "containerId": "c1",
            "config": "eyJuYW1lIjoibiIsImNuaVZlcnNpb24iOiIwLjQuMCIsInBsdWdpbnMiOlt7InR5cGUiOiJhIn1dfQ==",
            "ifName": "eth0",
            "networkName": "n",
            "result": {"cniVersion": "0.4.0"},
            "capabilityArgs": {"portMappings": [{"hostPort": 80}]},
        });
        assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap(), golden);
        entry.remove(dir.path()).unwrap();
        entry.remove(dir.path()).unwrap();
        assert!(!path.exists());
    }
}
