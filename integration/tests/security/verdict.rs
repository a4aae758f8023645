//! What a case found, for ours and for a reference.

use std::time::Duration;

use towline_integration::bundle::{Container, Done, Subject};

/// How long a reference may hang.
const LIMIT: Duration = Duration::from_secs(15);

/// Fails when ours has flaws; a reference's are printed: they show that the case can fail.
#[track_caller]
pub fn judge(case: &str, flaws: &[String]) {
    let subject = Subject::from_env();
    if subject == Subject::Towline {
        assert!(flaws.is_empty(), "{case}:\n{}", flaws.join("\n"));
        return;
    }
    for flaw in flaws {
        println!("{subject:?} fails {case}: {flaw}");
    }
    if flaws.is_empty() {
        println!("{subject:?} passes {case}");
    }
}

/// Runs the container; that it hangs is a flaw.
pub fn run(container: &Container, flaws: &mut Vec<String>) -> Option<Done> {
    match container.try_run(LIMIT) {
        Ok(done) => Some(done),
        Err(late) => {
            flaws.push(format!("it hangs: {late}"));
            None
        }
    }
}
