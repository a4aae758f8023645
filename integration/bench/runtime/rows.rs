//! The rows of the table: for each, one command line a subject.

use crate::setup::{Bench, Kind};

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Run,
    Cycle,
    Exec,
}

/// One row.
pub struct Row {
    pub name: String,
    /// At most this times crun's median.
    pub goal: Option<f64>,
    action: Action,
    pub kind: Kind,
}

/// A subject's name and its command line, for hyperfine.
pub struct Contender {
    pub name: &'static str,
    pub command: String,
}

const ROWS: [(Action, Kind, Option<f64>); 6] = [
    (Action::Run, Kind::Spec, Some(0.6)),
    (Action::Cycle, Kind::Spec, Some(0.6)),
    (Action::Exec, Kind::Spec, Some(0.7)),
    (Action::Run, Kind::Podman, Some(0.4)),
    (Action::Cycle, Kind::Podman, None),
    (Action::Exec, Kind::Podman, Some(0.8)),
];

/// All rows.
pub fn all(_bench: &Bench) -> Vec<Row> {
    let name = |action| match action {
        Action::Run => "run",
        Action::Cycle => "create+start+wait+delete",
        Action::Exec => "exec /bin/true",
    };
    ROWS.into_iter()
        .map(|(action, kind, goal)| Row { name: format!("{}, {}", name(action), kind.name()), goal, action, kind })
        .collect()
}

impl Row {
    /// The container that `exec` wants to be there already.
    pub fn needs_container(&self) -> bool {
        self.action == Action::Exec
    }

    /// The command of every subject; where it makes sense the floor's too.
    pub fn contenders(&self, bench: &Bench) -> Vec<Contender> {
        let bundle = bench.bundle(self.kind).display().to_string();
        let mut all: Vec<Contender> = bench
            .subjects
            .iter()
            .map(|subject| {
                let (binary, state) = (subject.binary.display(), bench.state(subject));
                let state = state.display();
                let command = match self.action {
                    Action::Run => format!("{binary} --root {state} run --bundle {bundle} bench-{}", subject.name),
                    Action::Cycle => {
                        format!("{} {binary} {state} {bundle} bench-{}", bench.cycle.display(), subject.name)
                    }
                    Action::Exec => format!("{binary} --root {state} exec {} /bin/true", container_id(subject.name)),
                };
                Contender { name: subject.name, command }
            })
            .collect();
        if self.action != Action::Exec {
            all.push(Contender { name: "floor", command: format!("{} {bundle}/rootfs /bin/true", bench.floor.display()) });
        }
        all
    }
}

/// The id of the container that a subject's `exec` goes into.
pub fn container_id(subject: &str) -> String {
    format!("alive-{subject}")
}
