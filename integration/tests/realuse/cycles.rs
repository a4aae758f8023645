//! Cycles of work, and the daemons that are killed meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use towline_integration::process::wait_until;

use super::machine::{Machine, failed};
use super::node::{PATIENCE, text};
use super::random::Random;
use super::work::{ALL, Work};

/// A kill: whom, and when.
#[derive(Clone, Copy, Debug)]
struct Kill {
    containerd: bool,
    towlined: bool,
    after: Duration,
    down: Duration,
}

impl Kill {
    /// In two of five cycles one.
    fn draw(random: &mut Random) -> Option<Self> {
        let (hit, who) = (random.below(5) < 2, random.below(3));
        let (after, down) =
            (Duration::from_millis(random.below(25) * random.below(25)), Duration::from_millis(random.below(300)));
        hit.then_some(Self { containerd: who != 1, towlined: who != 0, after, down })
    }

    fn strike(self, machine: &Machine) {
        // Moments are what this is about; nothing is waited for.
        std::thread::sleep(self.after);
        if self.containerd {
            machine.node.kill();
        }
        if self.towlined {
            machine.kill_daemon();
        }
        std::thread::sleep(self.down);
        if self.towlined {
            machine.start_daemon();
        }
        if self.containerd {
            machine.node.start();
        }
        // containerd tries a refused connection again after up to three seconds, and says until then that nobody is there.
        wait_until("containerd to have found towlined", PATIENCE, || {
            machine.ctr(&["snapshots", "--snapshotter", "towline", "ls"]).is_ok()
        });
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(otherwise, |text| text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

#[test]
fn a_mix_of_everything_leaves_nothing_and_loses_nothing() {
    const TEST: &str = "cycles::a_mix_of_everything_leaves_nothing_and_loses_nothing";
    let (seed, cycles) = (number("TOWLINE_SEED", 20_261_128), number("TOWLINE_CYCLES", 40));
    println!("TOWLINE_SEED={seed} TOWLINE_CYCLES={cycles}");
    let Some(machine) = Machine::new(TEST) else { return };
    let mut random = Random::new(seed);
    let started = Instant::now();
    let steady = Steady::start(&machine);
    let (mut kills, mut interrupted) = (0, 0);
    for cycle in 0..cycles {
        let work = ALL[usize::try_from(random.below(ALL.len() as u64)).expect("an index")];
        let kill = Kill::draw(&mut random);
        let mut own = Random::new(random.below(u64::MAX));
        let id = format!("{}-{cycle}", machine.node.name());
        println!(
            "{:5.1} s {cycle}: {}{}",
            started.elapsed().as_secs_f32(),
            work.0,
            kill.map_or_else(String::new, |kill| format!(", {kill:?}"))
        );
        kills += u64::from(kill.is_some());
        interrupted += u64::from(run(&machine, work, kill, &id, &mut own));
    }
    steady.end(&machine);
    println!("{cycles} cycles, {kills} kills, {interrupted} interrupted, {:?}", started.elapsed());
    wait_until("the images to be removed", PATIENCE, || {
        machine.remove_images().is_ok() && machine.left().iter().all(|left| !left.starts_with("image"))
    });
    let gone = |left: &dyn Fn() -> Vec<String>| {
        let end = Instant::now() + Duration::from_secs(60);
        while !left().is_empty() {
            assert!(Instant::now() < end, "left: {:#?}", left());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    gone(&|| machine.left());
    machine.stop_daemon();
    gone(&|| machine.left_of_daemon());
}

/// One cycle; whether it was interrupted, and repeated.
fn run(machine: &Machine, work: Work, kill: Option<Kill>, id: &str, random: &mut Random) -> bool {
    let outcome = std::thread::scope(|scope| {
        let killer = scope.spawn(move || kill.inspect(|kill| kill.strike(machine)));
        let outcome = (work.1)(machine, id, random);
        killer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome
    });
    let Err(why) = outcome else { return false };
    assert!(kill.is_some(), "{} fails though nobody was killed: {why}", work.0);
    println!("        interrupted: {}", why.lines().last().unwrap_or_default());
    machine.clean(id);
    let again = machine.pull().and_then(|()| (work.1)(machine, &format!("{id}-again"), random));
    again.unwrap_or_else(|why| panic!("{} fails when it is repeated: {why}", work.0));
    true
}

/// A container that runs all the time, and counts.
struct Steady {
    id: String,
}

impl Steady {
    fn start(machine: &Machine) -> Self {
        let steady = Self { id: format!("{}-steady", machine.node.name()) };
        let uri = format!("file://{}", text(&machine.node.path("out/steady")));
        let script = "trap 'echo last $n; exit 5' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
        let done = machine.run(&["--detach", "--log-uri", &uri], &steady.id, script);
        assert!(done.status.success(), "{}", failed(&done));
        steady
    }

    fn end(self, machine: &Machine) {
        let status = || machine.status(&self.id).expect("the status of the container that counts");
        assert_eq!(status(), "RUNNING");
        machine.ctr(&["task", "kill", "--signal", "15", &self.id]).expect("kill it");
        wait_until("its end", PATIENCE, || status() == "STOPPED");
        let log = fs::read_to_string(machine.node.path("out/steady")).expect("read its log");
        let lines: Vec<&str> = log.lines().collect();
        let (last, counted) = lines.split_last().expect("lines");
        // The signal may come between counting and printing.
        let known = [0, 1].map(|more| format!("last {}", counted.len() + more));
        assert!(known.iter().any(|known| known == last), "{last}, not {known:?}");
        for (number, line) in (1..).zip(counted) {
            assert_eq!(line, &format!("{number}"));
        }
        machine.clean(&self.id);
    }
}
