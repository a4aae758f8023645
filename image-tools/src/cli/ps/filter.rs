//! What `--filter` says.

use std::str::FromStr;

use super::engines::ENGINES;

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The beginning of the id.
    Id(String),
    /// A part of the name.
    Name(String),
    /// `running`, `paused`, `exited`, …
    Status(String),
    /// The image's name, or a part of it that ends at a `:` or `/`.
    Ancestor(String),
    /// It ended with this code.
    Exited(u8),
    /// It is connected to this network.
    Network(String),
    /// `towline`, `containerd` or `podman` uses it.
    Engine(String),
}

const STATUSES: [&str; 5] = ["creating", "running", "paused", "exited", "dead"];

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("it is not KEY=VALUE")?;
        let owned = value.to_owned();
        Ok(match key {
            "id" => Self::Id(owned),
            "name" => Self::Name(owned),
            "status" if STATUSES.contains(&value) => Self::Status(owned),
            "status" => return Err(format!("a status is one of {}", STATUSES.join(", "))),
            "ancestor" | "image" => Self::Ancestor(owned),
            "exited" => Self::Exited(value.parse().map_err(|_| format!("`{value}` is no exit code"))?),
            "network" => Self::Network(owned),
            "engine" if ENGINES.contains(&value) => Self::Engine(owned),
            "engine" => return Err(format!("an engine is one of {}", ENGINES.join(", "))),
            _ => return Err("it begins with none of id, name, status, ancestor, exited, network, engine".into()),
        })
    }
}

/// What is asked about a container.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its status, a word.
    pub status: &'a str,
    /// Its image's name.
    pub image: &'a str,
    /// Its exit code.
    pub exit_code: Option<u8>,
    /// Its networks.
    pub networks: &'a [String],
    /// Who made it.
    pub engine: &'a str,
}

impl Filter {
    /// Conditions on different things have to hold all; of those on one thing, one.
    pub fn all(filters: &[Self], subject: &Subject<'_>) -> bool {
        filters.iter().all(|filter| {
            let same = filters.iter().filter(|other| std::mem::discriminant(*other) == std::mem::discriminant(filter));
            same.into_iter().any(|filter| filter.holds(subject))
        })
    }

    fn holds(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Id(begin) => subject.id.starts_with(begin.as_str()),
            Self::Name(part) => subject.name.contains(part.as_str()),
            Self::Status(word) => subject.status == word,
            Self::Ancestor(name) => is_image(subject.image, name),
            Self::Exited(code) => subject.exit_code == Some(*code),
            Self::Network(name) => subject.networks.contains(name),
            Self::Engine(name) => subject.engine == name,
        }
    }
}

fn is_image(image: &str, wanted: &str) -> bool {
    let without_tag = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    };
    let ends = |name: &str| name == wanted || name.strip_suffix(wanted).is_some_and(|before| before.ends_with('/'));
    ends(image) || ends(without_tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let networks = ["lan".to_owned()];
        let subject = Subject {
            id: "abc",
            name: "web-1",
            status: "exited",
            image: "r.example/team/app:1",
            exit_code: Some(3),
            networks: &networks,
            engine: "towline",
        };
        for (texts, holds) in [
            (vec![], true),
            (vec!["name=web"], true),
            (vec!["name=db", "name=web"], true),
            (vec!["name=web", "status=running"], false),
            (vec!["id=ab", "status=exited", "exited=3", "network=lan"], true),
            (vec!["exited=0"], false),
            (vec!["ancestor=app"], true),
            (vec!["ancestor=team/app:1"], true),
            (vec!["ancestor=ap"], false),
            (vec!["network=other"], false),
            (vec!["engine=podman", "engine=towline"], true),
            (vec!["engine=containerd"], false),
        ] {
            let filters: Vec<Filter> = texts.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(Filter::all(&filters, &subject), holds, "{texts:?}");
        }
        for bad in ["", "name", "label=x", "engine=x", "status=up", "exited=x", "exited=256"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad} was taken");
        }
    }
}
