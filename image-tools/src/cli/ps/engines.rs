//! What other engines use of the store, by its pins: neither containerd nor podman is asked, and neither has to run.

use std::collections::BTreeMap;

use towline_lazyfs::digest::Digest;
use towline_lazyfs::store::pins::Holder;

use crate::container::namespace::Namespace;

/// The engine of the containers that `towline run` made.
pub const OWN: &str = "towline";
/// All of them.
pub const ENGINES: [&str; 3] = [OWN, "containerd", "podman"];

/// An image that another engine needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its name.
    pub engine: &'static str,
    /// The image.
    pub image: Digest,
    /// What it calls the image, where a pin says so.
    pub reference: Option<String>,
    /// What needs it there, sorted: keys of snapshots, digests of layers.
    pub used_by: Vec<String>,
}

impl Need {
    /// What needs it, in two words.
    pub fn summary(&self) -> String {
        let what = if self.engine == "podman" { "layer" } else { "snapshot" };
        match self.used_by.len() {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        }
    }
}

/// The images that other engines need, each once for an engine; for another namespace than the default one only what is in containerd's of that name.
pub fn needs(pins: &[(String, Digest)], namespace: &Namespace) -> Vec<Need> {
    let mut found = BTreeMap::<(&'static str, Digest), Need>::new();
    for (pin, image) in pins {
        let (engine, user, reference) = match Holder::of(pin) {
            Holder::Snapshot(key) => ("containerd", key, None),
            Holder::Layer(_, layer, reference) => ("podman", layer.to_string(), Some(reference)),
            _ => continue,
        };
        if !namespace.is_default() && (engine != "containerd" || user.split('/').next() != Some(namespace.as_str())) {
            continue;
        }
        let need =
            found.entry((engine, *image)).or_insert_with(|| Need { engine, image: *image, reference, used_by: Vec::new() });
        need.used_by.push(user);
    }
    let mut needs: Vec<Need> = found.into_values().collect();
    for need in &mut needs {
        need.used_by.sort();
        need.used_by.dedup();
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_comes_once_for_each_engine() {
        let [one, two] = [b"one", b"two"].map(|image| Digest::of(image));
        let layer = |number, text: &[u8]| Holder::Layer(number, Digest::of(text), "localhost:5000/a:1".into()).pin();
        let pins = [
            ("0a1b".to_owned(), one),
            (Holder::Snapshot("default/2/sha256:ab".into()).pin(), one),
            (Holder::Snapshot("default/1/sha256:cd".into()).pin(), one),
            (Holder::Snapshot("k8s.io/7/abc".into()).pin(), two),
            (layer(0, b"x"), two),
            (layer(1, b"x"), two),
            (layer(0, b"y"), one),
            (Holder::User(one).pin(), one),
        ];
        let everywhere = Namespace::default();
        let other = needs(&pins, &"k8s.io".parse().unwrap());
        assert_eq!(other.iter().map(|need| (need.engine, need.image)).collect::<Vec<_>>(), [("containerd", two)]);
        let needs = needs(&pins, &everywhere);
        let of = |engine: &str, image: Digest| needs.iter().find(|need| need.engine == engine && need.image == image).unwrap();
        assert_eq!(needs.len(), 4);
        assert_eq!(of("containerd", one).used_by, ["default/1/sha256:cd", "default/2/sha256:ab"]);
        assert_eq!((of("containerd", one).summary(), of("podman", two).summary()), ("2 snapshots".into(), "1 layer".into()));
        assert_eq!(of("podman", two).reference.as_deref(), Some("localhost:5000/a:1"));
    }
}
