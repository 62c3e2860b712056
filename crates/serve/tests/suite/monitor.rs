//! The monitor's promises: a thousand good canaries, and bad ones.

use polity_lm::rng::Stream;
use polity_serve::monitor::{Alarm, ArmName, Measure, Monitor, Policy, Then};

/// What a simulated channel is like: rates of thumbs up of canary and stable, and the canary's win rate.
#[derive(Clone, Copy)]
struct World {
    up: [f64; 2],
    wins: f64,
    share: f64,
    votes: usize,
}

/// Runs a channel until its end or a rollback; gives the number of votes until then.
fn run(policy: &Policy, world: World, stream: &mut Stream) -> Option<(usize, Alarm)> {
    let mut monitor = Monitor::new(policy);
    for vote in 1..=world.votes {
        // Everybody's mood swings, by the hour, together.
        let mood = 0.1 * (vote as f64 / 40.0).sin();
        let arm = if stream.f64() < world.share { ArmName::Canary } else { ArmName::Stable };
        let rate = if arm == ArmName::Canary { world.up[0] } else { world.up[1] } + mood;
        let mut alarms = monitor.push(Measure::ThumbsUp, arm, f64::from(stream.f64() < rate));
        alarms.extend(monitor.push(Measure::Error, arm, f64::from(stream.f64() < 0.002)));
        if stream.f64() < 0.2 {
            let tie = stream.f64() < 0.3;
            let won = f64::from(stream.f64() < world.wins);
            alarms.extend(monitor.push(Measure::Preference, ArmName::Canary, if tie { 0.5 } else { won }));
        }
        if let Some(alarm) = alarms.into_iter().find(|alarm| alarm.criterion.then == Then::Rollback) {
            return Some((vote, alarm));
        }
    }
    None
}

/// The share of canaries that are rolled back, and the median number of votes until then.
fn study(policy: &Policy, world: World, canaries: u64) -> (f64, usize) {
    let mut after: Vec<usize> = (0..canaries)
        .filter_map(|n| run(policy, world, &mut Stream::new(11, "canary", &[n])).map(|(votes, _)| votes))
        .collect();
    after.sort_unstable();
    (after.len() as f64 / canaries as f64, after.get(after.len() / 2).copied().unwrap_or(0))
}

/// Acceptance: of 1000 good canaries, looked at after each of 3000 votes, at most a share of alpha is rolled back. These are as good as
/// stable with no margin to spare: the hardest case that the promise covers.
#[test]
fn a_thousand_good_canaries() {
    let exact = "
        [[criterion]]
        measure = \"thumbs_up\"
        worse = \"below\"
        alpha = 0.025
        then = \"rollback\"
        [[criterion]]
        measure = \"preference\"
        worse = \"below\"
        alpha = 0.025
        then = \"rollback\"";
    let exact = Policy::read(exact).unwrap();
    assert!((exact.false_rollbacks_max() - 0.05).abs() < 1e-12);
    for share in [0.05, 0.5] {
        let good = World { up: [0.7, 0.7], wins: 0.5, share, votes: 3000 };
        let (rate, _) = study(&exact, good, 1000);
        println!("no margin, share {share}: {rate} of good canaries rolled back");
        assert!(rate <= 0.05, "{rate}");
        // A test that never speaks would pass; this one must not be that.
        assert!(rate > 0.0, "share {share}");
    }
    let (rate, _) =
        study(&Policy::usual(), World { up: [0.7, 0.7], wins: 0.5, share: 0.1, votes: 3000 }, 1000);
    println!("usual policy: {rate} of good canaries rolled back");
    assert!(rate <= Policy::usual().false_rollbacks_max());
}

#[test]
fn bad_canaries() {
    for (up, wins, share, found_min) in [(0.4, 0.3, 0.1, 0.99), (0.5, 0.5, 0.5, 0.99), (0.7, 0.25, 0.1, 0.9)]
    {
        let (rate, median) = study(&Policy::usual(), World { up: [up, 0.7], wins, share, votes: 3000 }, 200);
        println!(
            "thumbs up {up} against 0.7, wins {wins}, share {share}: {rate} rolled back, median after {median} votes"
        );
        assert!(rate >= found_min, "{rate}");
    }
}

/// Looking after every vote at a fixed test's 5 % would take most good canaries back: the test above can fail.
#[test]
fn a_test_that_is_not_meant_to_be_looked_at_often_is_no_good_here() {
    let mut back = 0;
    for n in 0..200 {
        let mut stream = Stream::new(12, "peek", &[n]);
        let (mut wins, mut bad) = (0.0, false);
        for vote in 1..=3000 {
            wins += f64::from(stream.f64() < 0.5);
            let z = (wins - 0.5 * f64::from(vote)) / (0.25 * f64::from(vote)).sqrt();
            bad |= vote > 20 && z < -1.645;
        }
        back += usize::from(bad);
    }
    assert!(back > 60, "{back} of 200");
}

#[test]
fn policies_are_checked() {
    let criterion = |more: &str| {
        format!("[[criterion]]\nmeasure = \"thumbs_up\"\nworse = \"below\"\nthen = \"alarm\"\n{more}")
    };
    let check = |more: &str, says: &str| {
        let error = Policy::read(&criterion(more)).unwrap_err();
        assert!(error.contains(says), "{error}");
    };
    check("", "missing field `alpha`");
    check("alpha = 0", "expected a number between 0 and 1");
    check("alpha = 0.1\nmargin = 1", "margin");
    check("alpha = 0.1\nagainst = 2", "from 0 to 1");
    check("alpha = 0.1\nagainst = 0.3\nmargin = 0.4", "nothing could be worse");
    check("alpha = 0.1\narm = \"stable\"", "compared with itself");
    let error =
        Policy::read(&criterion("alpha = 0.1\narm = \"stable\"\nagainst = 0.5").replace("alarm", "rollback"))
            .unwrap_err();
    assert!(error.contains("only a canary"), "{error}");
    check("alpha = 0.1\nmood = 1", "unknown field `mood`");
    assert!(Policy::read(&criterion("alpha = 0.1\narm = \"stable\"\nagainst = 0.6")).is_ok());
    assert!(Policy::read("").unwrap().criteria.is_empty());
    let usual = Policy::usual();
    assert!((usual.false_rollbacks_max() - 0.05).abs() < 1e-12, "the text says 5 %");
}

/// A criterion against a rate, by hand: the first bets of `stats` on values below ½.
#[test]
fn a_rate_is_bet_against_directly() {
    let text = "[[criterion]]\nmeasure = \"error\"\narm = \"stable\"\nworse = \"above\"\nagainst = 0.1\nalpha = 0.05\nthen = \"alarm\"";
    let mut monitor = Monitor::new(&Policy::read(text).unwrap());
    assert!(monitor.push(Measure::Error, ArmName::Canary, 1.0).is_empty(), "not its arm");
    assert!(monitor.push(Measure::Refusal, ArmName::Stable, 1.0).is_empty(), "not its measure");
    assert_eq!(monitor.standings().next().unwrap().1.n, 0);
    // The first bet is at its cap, ½ of the capital over the null: 1 + (½ / 0.1) 0.9 = 5.5.
    assert!(monitor.push(Measure::Error, ArmName::Stable, 1.0).is_empty());
    let standing = monitor.standings().next().unwrap().1;
    assert!((standing.p_anytime - 1.0 / 5.5).abs() < 1e-12, "{standing:?}");
    // The second too: 30.25 > 20.
    let alarms = monitor.push(Measure::Error, ArmName::Stable, 1.0);
    assert_eq!(alarms.len(), 1);
    assert!(monitor.push(Measure::Error, ArmName::Stable, 1.0).is_empty(), "an alarm is raised once");
}

#[test]
fn the_page_has_the_usual_policy() {
    let page = include_str!("../../../../docs/serving.md");
    assert!(page.contains(polity_serve::monitor::USUAL_POLICY.trim_end()), "docs/serving.md has another one");
}
