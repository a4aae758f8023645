use super::*;
use crate::digest::Digest;

fn payer(name: &str) -> Payer {
    Payer::image(Digest::of(name.as_bytes()))
}

type Waits = std::pin::Pin<Box<dyn Future<Output = Turn>>>;

/// Turns that were asked for, in a line; those that have come are held.
struct Asked {
    turns: Arc<Turns>,
    waiting: Vec<(&'static str, Waits)>,
    held: Vec<(&'static str, Turn)>,
}

impl Asked {
    fn new(limit: usize) -> Self {
        Self { turns: Turns::new(limit), waiting: Vec::new(), held: Vec::new() }
    }

    fn ask(&mut self, who: &'static str, kind: Kind, bytes: u64) {
        let turns = Arc::clone(&self.turns);
        self.waiting.push((who, Box::pin(async move { turns.turn(payer(who), kind, bytes).await })));
        self.poll();
    }

    fn ask_often(&mut self, who: &'static str, times: usize, bytes: u64) {
        (0..times).for_each(|_| self.ask(who, Kind::Demand, bytes));
    }

    fn poll(&mut self) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for (who, mut turn) in std::mem::take(&mut self.waiting) {
            match turn.as_mut().poll(&mut context) {
                std::task::Poll::Ready(turn) => self.held.push((who, turn)),
                std::task::Poll::Pending => self.waiting.push((who, turn)),
            }
        }
    }

    /// Everything of the first turn of `who` has come.
    fn finish(&mut self, who: &str) {
        let at = self.held.iter().position(|(held, _)| *held == who).unwrap();
        let (_, mut turn) = self.held.remove(at);
        turn.used(u64::MAX);
        drop(turn);
        self.poll();
    }

    fn running(&self, who: &str) -> usize {
        self.held.iter().filter(|(held, _)| *held == who).count()
    }
}

#[test]
fn alone_a_payer_has_all_places_and_no_limit() {
    let mut asked = Asked::new(4);
    asked.ask_often("a", 6, 1000);
    assert_eq!(asked.running("a"), 4);
    assert_eq!(asked.turns.largest(&payer("a"), Kind::Demand), u64::MAX);
    assert!(!asked.turns.is_in_the_way(&payer("a"), Kind::Demand, u64::MAX));
    asked.finish("a");
    assert_eq!(asked.running("a"), 4, "a place is left empty");
}

#[test]
fn whoever_comes_later_has_a_place_at_once_and_its_share_of_the_next() {
    let mut asked = Asked::new(4);
    asked.ask_often("a", 50, 1000);
    asked.ask_often("b", 50, 1000);
    assert_eq!((asked.running("a"), asked.running("b")), (4, 2));
    (0..2).for_each(|_| asked.finish("a"));
    assert_eq!((asked.running("a"), asked.running("b")), (2, 2), "the places are not shared again");
    assert_eq!(asked.turns.largest(&payer("a"), Kind::Demand), SHARED);
    assert!(asked.turns.is_in_the_way(&payer("a"), Kind::Demand, SHARED + 1));
    assert!(!asked.turns.is_in_the_way(&payer("a"), Kind::Demand, SHARED));
}

#[test]
fn where_not_all_have_a_place_whoever_was_given_less_is_next() {
    let mut asked = Asked::new(1);
    ["b", "c", "d", "e"].into_iter().for_each(|who| asked.ask(who, Kind::Demand, 10));
    assert_eq!(asked.held.len(), 4, "four times the limit");
    asked.ask("a", Kind::Demand, 1000);
    assert_eq!(asked.running("a"), 0, "five times the limit");
    asked.finish("b");
    asked.ask("f", Kind::Demand, 10);
    asked.finish("a");
    assert_eq!(asked.running("f"), 1);
    // First come, but it was given more than those that waited meanwhile.
    for who in ["a", "b", "g"] {
        asked.ask(who, Kind::Demand, 10);
    }
    for (done, next) in [("c", "g"), ("d", "b"), ("e", "a")] {
        assert_eq!(asked.running(next), 0, "{next} is before {done}");
        asked.finish(done);
        assert_eq!(asked.running(next), 1, "{next} is behind {done}");
    }
}

#[test]
fn what_was_not_used_is_given_back_and_who_has_gone_is_passed_over() {
    let mut asked = Asked::new(1);
    asked.ask("a", Kind::Demand, 1_000_000);
    // Nothing of it came: it is owed nothing less than the other.
    asked.held.clear();
    asked.ask("a", Kind::Demand, 10);
    let state = asked.turns.state();
    assert_eq!(state.accounts[&payer("a")].given, state.clock + 10);
    drop(state);

    asked.ask_often("a", 3, 10);
    drop(asked.waiting.remove(0));
    asked.finish("a");
    assert_eq!((asked.running("a"), asked.waiting.len()), (1, 1));
    asked.finish("a");
    asked.finish("a");
    assert!(asked.waiting.is_empty() && asked.turns.state().accounts.values().all(Account::is_idle));
}

#[test]
fn guesses_for_others_have_one_small_request_at_a_time_while_a_program_waits() {
    let mut asked = Asked::new(4);
    (0..6).for_each(|_| asked.ask("a", Kind::Guess, 1000));
    assert_eq!(asked.running("a"), 6, "guesses are limited by whoever makes them");
    asked.ask("b", Kind::Demand, 1000);
    assert_eq!(asked.running("b"), 1);
    assert!(asked.turns.is_in_the_way(&payer("a"), Kind::Guess, SHARED_GUESS + 1));
    assert_eq!(asked.turns.largest(&payer("a"), Kind::Guess), SHARED_GUESS);
    (0..6).for_each(|_| asked.finish("a"));
    (0..3).for_each(|_| asked.ask("a", Kind::Guess, 1000));
    assert_eq!(asked.running("a"), 1);
    asked.finish("b");
    assert_eq!(asked.running("a"), 3, "nobody wants the line, and it is idle");

    asked.ask("a", Kind::Demand, 10);
    assert!(!asked.turns.is_in_the_way(&payer("a"), Kind::Guess, u64::MAX), "an image is in its own way");
}

#[tokio::test]
async fn a_payer_has_a_bounded_number_of_seats() {
    let turns = Turns::new(2);
    let held = [turns.seat(payer("a")).await, turns.seat(payer("a")).await];
    let mut third = tokio::task::spawn({
        let turns = Arc::clone(&turns);
        async move { turns.seat(payer("a")).await }
    });
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut third).await.is_err());
    drop(turns.seat(payer("b")).await);
    drop(held);
    drop(third.await.unwrap());
    drop(turns.seat(payer("b")).await);
    assert!(turns.seats.lock().unwrap().len() <= 1, "seats of those that are gone are kept");
}
