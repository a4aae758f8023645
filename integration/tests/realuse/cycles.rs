//! Cycles of work, and the daemons that are killed meanwhile.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use towline_integration::process::wait_until;

use super::machine::{Machine, failed};
use super::node::{PATIENCE, text};
use super::random::Random;
use super::work::{ALL, ALONE};

/// How many cycles run side by side.
const LANES: u64 = 2;

/// What all lanes and the killer know.
struct Scene<'a> {
    machine: &'a Machine,
    steady: &'a str,
    started: Instant,
    /// Who takes the image away writes.
    image: RwLock<()>,
    /// Held by the killer while something is down, and by who repeats what was interrupted. Taken after `image`.
    calm: Mutex<()>,
    /// Kills that began and kills whose victims are back, together: odd while one lasts.
    strikes: AtomicU64,
}

impl Scene<'_> {
    fn say(&self, text: &str) {
        println!("{:6.1} s {text}", self.started.elapsed().as_secs_f32());
    }

    /// Kills someone now and then, until `over`.
    fn kill(&self, random: &mut Random, over: &AtomicBool) {
        // Moments are what this is about; nothing is waited for.
        while !over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(random.below(2500)));
            let _calm = self.calm.lock().expect("a lane has failed");
            self.strikes.fetch_add(1, Ordering::SeqCst);
            self.strike(random);
            self.strikes.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn strike(&self, random: &mut Random) {
        let (machine, whom, down) = (self.machine, random.below(5), Duration::from_millis(random.below(300)));
        let (containerd, towlined) = ([0, 2].contains(&whom), [1, 2].contains(&whom));
        self.say(&format!(
            "kill {}",
            ["containerd", "towlined", "both", "a shim", "a shim"][usize::try_from(whom).expect("small")]
        ));
        if containerd {
            machine.node.kill();
        }
        if towlined {
            machine.kill_daemon();
        }
        if whom > 2 {
            machine.kill_shim(random, self.steady);
        }
        std::thread::sleep(down);
        if towlined {
            machine.start_daemon();
        }
        if containerd {
            machine.node.start();
        }
        // containerd tries a refused connection again after up to three seconds, and says until then that nobody is there.
        wait_until("containerd to have found towlined", PATIENCE, || {
            machine.ctr(&["snapshots", "--snapshotter", "towline", "ls"]).is_ok()
        });
    }

    /// Cycles one after another; how many were interrupted, and repeated.
    fn lane(&self, cycles: impl Iterator<Item = u64>, random: &mut Random) -> usize {
        cycles.filter(|cycle| self.cycle(*cycle, random)).count()
    }

    fn cycle(&self, cycle: u64, random: &mut Random) -> bool {
        let work = ALL[usize::try_from(random.below(ALL.len() as u64)).expect("an index")];
        let id = format!("{}-{cycle}", self.machine.node.name());
        let failure = "another lane has failed";
        let (_alone, _beside) = match work.0 {
            ALONE => (Some(self.image.write().expect(failure)), None),
            _ => (None, Some(self.image.read().expect(failure))),
        };
        self.say(&format!("{cycle}: {}", work.0));
        let before = self.strikes.load(Ordering::SeqCst);
        let Err(why) = (work.1)(self.machine, &id, random) else { return false };
        let disturbed = before % 2 == 1 || self.strikes.load(Ordering::SeqCst) != before;
        assert!(disturbed, "{} fails though nobody was killed: {why}", work.0);
        self.say(&format!("{cycle}: interrupted: {}", why.lines().last().unwrap_or_default()));
        let _calm = self.calm.lock().expect("the killer has failed");
        self.machine.clean(&id);
        let again = self.machine.pull().and_then(|()| (work.1)(self.machine, &format!("{id}-again"), random));
        again.unwrap_or_else(|why| panic!("{} fails when it is repeated: {why}", work.0));
        true
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
    let steady = Steady::start(&machine);
    let scene = Scene {
        machine: &machine,
        steady: &steady.id,
        started: Instant::now(),
        image: RwLock::default(),
        calm: Mutex::default(),
        strikes: AtomicU64::new(0),
    };
    let over = AtomicBool::new(false);
    let interrupted: usize = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let (scene, cycles) = (&scene, (lane..cycles).step_by(usize::try_from(LANES).expect("small")));
                scope.spawn(move || scene.lane(cycles, &mut Random::new(seed + lane)))
            })
            .collect();
        let killer = scope.spawn(|| scene.kill(&mut Random::new(seed + LANES), &over));
        let ended: Vec<_> = lanes.into_iter().map(ScopedJoinHandle::join).collect();
        over.store(true, Ordering::SeqCst);
        killer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ended.into_iter().map(|lane| lane.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum()
    });
    let kills = scene.strikes.into_inner() / 2;
    println!("{cycles} cycles, {kills} kills, {interrupted} interrupted, {:?}", scene.started.elapsed());
    steady.end(&machine);
    assert_nothing_is_left(&machine);
}

fn assert_nothing_is_left(machine: &Machine) {
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
    println!("{} files of sockets that killed shims have left", machine.stale_sockets());
    machine.stop_daemon();
    gone(&|| machine.left_of_daemon());
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
