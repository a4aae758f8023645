//! Holds docs/conformance.md against the cases of `tests/oci`.

#![allow(clippy::print_stdout, reason = "tests talk to the person who runs them")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The functions with `#[test]` of a file.
fn tests_of(source: &str) -> BTreeSet<&str> {
    let after_mark = source.split("#[test]\nfn ").skip(1);
    after_mark.filter_map(|rest| rest.split('(').next()).collect()
}

#[test]
fn every_named_case_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../docs/conformance.md")).expect("read docs/conformance.md");
    // A row ends with "`file`: `case`, `case`".
    let mut named = BTreeSet::new();
    let mut unnamed = Vec::new();
    for row in page.lines().filter(|line| line.starts_with('|') && line.contains("`: `")) {
        let (left, cases) = row.rsplit_once("`: `").expect("it was just found");
        let file = left.rsplit('`').next().expect("a split has a last part");
        let source =
            fs::read_to_string(root.join(format!("tests/oci/{file}.rs"))).unwrap_or_else(|error| panic!("{file}: {error}"));
        let existing = tests_of(&source);
        let cases: BTreeSet<&str> =
            cases.split('`').map(|part| part.trim_matches([',', ' ', '|'])).filter(|part| !part.is_empty()).collect();
        let missing: Vec<_> = cases.difference(&existing).collect();
        assert!(missing.is_empty(), "docs/conformance.md names {missing:?}, which {file}.rs does not have");
        unnamed.extend(existing.difference(&cases).map(|case| format!("{file}::{case}")));
        assert!(named.insert(file.to_owned()), "{file} has two rows");
    }
    for entry in fs::read_dir(root.join("tests/oci")).expect("list the cases").flatten() {
        let source = fs::read_to_string(entry.path()).expect("read a file of cases");
        let file = entry.file_name().to_string_lossy().trim_end_matches(".rs").to_owned();
        if !named.contains(&file) {
            unnamed.extend(tests_of(&source).iter().map(|case| format!("{file}::{case}")));
        }
    }
    assert!(named.len() > 10, "docs/conformance.md has only the rows {named:?}");
    // Cases are added more often than this page is written; a case without a row is no fault of the case.
    for case in unnamed {
        println!("docs/conformance.md does not name {case}");
    }
}
