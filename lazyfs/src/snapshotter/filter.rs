//! containerd's filters, as far as snapshots have fields: `labels."a/b"==c,parent=="x"`. All selectors of a filter have to match, and one
//! filter of several. The operator `~=` (a regular expression) is refused: containerd itself evaluates the filters of its users, and asks a
//! snapshotter for no such thing.

use super::grpc::{Code, Status};
use super::messages::Info;

/// A field and what it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selector {
    field: Vec<String>,
    /// Whether it has to be equal, and to what; without it the field has to be there.
    wanted: Option<(bool, String)>,
}

/// Several filters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(Vec<Vec<Selector>>);

impl Filters {
    /// Reads them.
    pub fn parse(filters: &[String]) -> Result<Self, Status> {
        let read = |text: &String| {
            let mut rest = text.as_str();
            let bad = |why: &str| Status::new(Code::InvalidArgument, format!("reading the filter {text:?}: {why}"));
            let mut selectors = Vec::new();
            loop {
                selectors.push(selector(&mut rest).map_err(|why| bad(&why))?);
                match rest.strip_prefix(',') {
                    Some(more) => rest = more,
                    None if rest.is_empty() => return Ok(selectors),
                    None => return Err(bad(&format!("a comma is missing before {rest:?}"))),
                }
            }
        };
        filters.iter().filter(|text| !text.is_empty()).map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Whether one of them matches; where there is none, everything does.
    pub fn match_info(&self, info: &Info) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.iter().all(|selector| selector.matches(info)))
    }
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let path: Vec<&str> = self.field.iter().map(String::as_str).collect();
        let value = match path.as_slice() {
            ["name"] => Some(info.name.as_str()),
            ["parent"] => Some(info.parent.as_str()),
            ["kind"] => Some(["Unknown", "View", "Active", "Committed"][usize::try_from(info.kind).unwrap_or(0).min(3)]),
            // A key may be written without quotes, with its dots.
            ["labels", key @ ..] => info.labels.get(&key.join(".")).map(String::as_str),
            _ => None,
        };
        match &self.wanted {
            None => value.is_some_and(|value| !value.is_empty()),
            Some((equal, wanted)) => (value.unwrap_or_default() == wanted) == *equal,
        }
    }
}

fn selector(rest: &mut &str) -> Result<Selector, String> {
    let mut field = vec![word(rest, &['.', '=', '!', '~', ','])?];
    while let Some(more) = rest.strip_prefix('.') {
        *rest = more;
        field.push(word(rest, &['.', '=', '!', '~', ','])?);
    }
    let equal = match rest.get(..2) {
        Some("==") => true,
        Some("!=") => false,
        Some("~=") => return Err("the operator ~= is not supported".to_owned()),
        _ => return Ok(Selector { field, wanted: None }),
    };
    *rest = &rest[2..];
    Ok(Selector { field, wanted: Some((equal, word(rest, &[','])?)) })
}

/// A word, or a quoted text.
fn word(rest: &mut &str, ends: &[char]) -> Result<String, String> {
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find(ends).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        *rest = after;
        return Ok(word.to_owned());
    };
    let mut word = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                *rest = &quoted[at + 1..];
                return Ok(word);
            }
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\\' | '/'))) => word.push(escaped),
                _ => return Err("it has an escape that is not known".to_owned()),
            },
            c => word.push(c),
        }
    }
    Err("a quote is missing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn filters_select_as_containerds_own() {
        let labels = BTreeMap::from([("containerd.io/snapshot.ref".to_owned(), "sha256:ab".to_owned())]);
        let info = Info { name: "n".into(), parent: "default/1/p, \"q".into(), kind: 3, labels, ..Info::default() };
        for (filters, matches) in [
            (&[][..], true),
            (&[""], true),
            (&[r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="default/1/p, \"q""#], true),
            (&[r#"labels."containerd.io/snapshot.ref"==sha256:cd"#], false),
            (&["name==n,kind==Committed"], true),
            (&["name==n,kind!=Committed"], false),
            (&["name==x", "kind==Committed"], true),
            (&["labels.nothing"], false),
            (&[r#"labels."containerd.io/snapshot.ref""#], true),
            (&["labels.nothing!=a"], true),
        ] {
            let filters: Vec<String> = filters.iter().map(|&text| text.to_owned()).collect();
            assert_eq!(Filters::parse(&filters).unwrap().match_info(&info), matches, "{filters:?}");
        }
        for bad in [r#"name=="a"#, r#"name=="a"b"#, r#"name=="\q""#, "name~=a"] {
            assert_eq!(Filters::parse(&[bad.to_owned()]).unwrap_err().code, Code::InvalidArgument, "{bad}");
        }
    }
}
