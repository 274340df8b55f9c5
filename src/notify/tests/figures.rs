//! Nothing lost, nothing twice, in figures: messages that were due, sent, lost and double, through outages of every kind, kills at every moment and a storm.

use super::{
    telegram::{Fault, Mood, Pace},
    *,
};
use crate::{fault::Faults, notify::flush};

/// How long a test waits for an answer that never comes.
const SHORT: Duration = Duration::from_secs(1);

/// What people were told of deployments whose subjects are known.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Figures {
    due: usize,
    sent: usize,
    lost: usize,
    double: usize,
}

impl Figures {
    /// An end is told by a message that rings and that names its subject, by itself or by the live message that it answers.
    fn of(api: &BotApi, subjects: &[String]) -> Self {
        let all = api.accepted();
        let told: Vec<String> =
            all.iter().filter(|a| !a.silent && a.file.is_none()).map(|ring| api.whole(ring)).collect();
        let mut figures = Self { due: subjects.len(), ..Self::default() };
        for subject in subjects {
            let names = |text: &&String| [" ", "\n"].iter().any(|end| text.contains(&format!("{subject}{end}")));
            let times = told.iter().filter(names).count();
            figures.sent += times.min(1);
            figures.lost += usize::from(times == 0);
            figures.double += times.saturating_sub(1);
        }
        figures
    }

    fn and(self, other: Self) -> Self {
        Self {
            due: self.due + other.due,
            sent: self.sent + other.sent,
            lost: self.lost + other.lost,
            double: self.double + other.double,
        }
    }

    #[expect(clippy::print_stdout, reason = "the figures are what this test is run for")]
    fn print(self, of: &str) {
        println!("{of}: {} messages due, {} sent, {} lost, {} double", self.due, self.sent, self.lost, self.double);
    }
}

/// What is in the way, and how it goes away.
enum Way {
    /// Nobody listens.
    Down,
    /// The next requests go wrong.
    Fault(Fault),
    /// Until somebody puts it right and starts the daemon again.
    Mood(Mood),
    /// The group has a new number.
    Moves,
}

#[tokio::test]
async fn an_outage_of_every_kind_in_the_middle_loses_nothing() -> Done {
    let ways = [
        ("connection refused", Way::Down),
        ("hanging", Way::Fault(Fault::Silence)),
        ("hung up", Way::Fault(Fault::Hangup)),
        ("500", Way::Fault(Fault::Broken)),
        ("429", Way::Fault(Fault::TooMany(1))),
        ("400 markup", Way::Fault(Fault::BadMarkup)),
        ("400", Way::Fault(Fault::BadRequest("something else"))),
        ("no JSON", Way::Fault(Fault::NotJson)),
        ("401", Way::Mood(Mood::Revoked)),
        ("403", Way::Mood(Mood::Blocked)),
        ("chat gone", Way::Mood(Mood::NoChat)),
        ("chat moves", Way::Moves),
    ];
    let mut total = Figures::default();
    for (name, way) in ways {
        let figures = outage(&way).await?;
        figures.print(name);
        assert_eq!((figures.lost, figures.double), (0, 0), "{name}");
        total = total.and(figures);
    }
    total.print("all outages");
    // The one case in which the Bot API leaves no choice.
    let lost_answer = outage(&Way::Fault(Fault::LostAnswer)).await?;
    lost_answer.print("an answer that was lost");
    assert_eq!(lost_answer.lost, 0);
    assert!(lost_answer.double <= 1, "{lost_answer:?}");
    Ok(())
}

/// Four deployments: one that is over before the outage, one that ends in it, one that begins and ends in it, one after it.
async fn outage(way: &Way) -> Result<Figures, Box<dyn std::error::Error>> {
    let mut api = BotApi::start();
    let desk = Desk::new().await?;
    let post = || Post { patience: SHORT, ..desk.post(desk.config(&api, "")) };
    let mut running = desk.run_post(post());
    desk.begin("before", None).await.fail_in_test(&["FAILED"]).await;
    running.tick();
    desk.settled().await;
    let mut middle = desk.begin("middle", None).await;
    running.tick();
    desk.settled().await;

    match way {
        Way::Down => api.stop(),
        Way::Fault(fault) => api.faults([fault.clone(), fault.clone()]),
        Way::Mood(mood) => api.set_mood(*mood),
        Way::Moves => api.set_mood(Mood::Migrated),
    }
    middle.succeed_from(Stage::Backup).await;
    desk.begin("inside", None).await.fail_in_test(&["FAILED"]).await;
    running.tick();
    if matches!(way, Way::Down | Way::Mood(_)) {
        while desk.waiting().await.1.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    match way {
        Way::Down => api.restart(),
        Way::Mood(_) => {
            running.stop().await;
            api.set_mood(Mood::Well);
            running = desk.run_post(Post { patience: SHORT, ..desk.post(desk.config(&api, "")) });
        }
        Way::Fault(_) | Way::Moves => {}
    }
    desk.begin("after", None).await.fail_in_test(&["FAILED"]).await;
    running.tick();
    desk.settled().await;
    running.stop().await;
    let written = desk.registry.outbox_figures().await?;
    assert_eq!((written.waiting, written.due), (0, written.sent + written.dropped), "{written:?}");
    Ok(Figures::of(&api, &["before", "middle", "inside", "after"].map(str::to_owned)))
}

/// A SIGKILL at each moment of each kind of message.
#[tokio::test]
async fn a_kill_at_any_moment_loses_nothing() -> Done {
    let mut total = Figures::default();
    for kind in ["begun", "end", "log", "edit"] {
        for moment in ["intent", "effect", "record"] {
            if kind == "edit" && moment != "effect" {
                continue;
            }
            let api = BotApi::start();
            let desk = Desk::new().await?;
            let pause = desk.dir.path().join("pause");
            let faults = Faults::parse(&format!("report:{kind}:{moment}=pause:{}", pause.display()))?;
            let running = desk.run_post(Post { faults, ..desk.post(desk.config(&api, "")) });
            let mut playing = desk.begin("killed", None).await;
            let log = desk.config(&api, "").server.logs_dir.join(format!("{}.log", playing.id));
            std::fs::create_dir_all(log.parent().ok_or("no directory")?)?;
            std::fs::write(log, "2026-11-21T10:15:30.123Z test    | everything\n")?;
            running.tick();
            if kind != "begun" {
                desk.settled().await;
            }
            let lines: Vec<String> = (0..40).map(|n| format!("line {n}")).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            if kind != "begun" {
                playing.fail_in_test(&lines).await;
            }
            while !pause.exists() {
                running.tick();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            running.kill().await;
            if kind == "begun" {
                playing.fail_in_test(&lines).await;
            }
            let running = desk.run(desk.config(&api, ""));
            desk.settled().await;
            running.stop().await;
            let figures = Figures::of(&api, &["killed".to_owned()]);
            let twice = usize::from((kind, moment) == ("end", "effect"));
            assert_eq!((figures.lost, figures.double), (0, twice), "{kind} {moment}: {:#?}", api.accepted());
            let files = api.accepted().iter().filter(|a| a.file.is_some()).count();
            assert_eq!(files, 1 + usize::from((kind, moment) == ("log", "effect")), "{kind} {moment}");
            assert!(api.accepted().iter().filter(|a| a.silent && a.file.is_none()).count() <= 1, "one live message");
            assert!(desk.registry.outbox_figures().await?.doubtful <= 1);
            total = total.and(figures);
        }
    }
    total.print("killed at every moment");
    assert_eq!(total.double, 1, "only between Telegram's acceptance and our note");
    Ok(())
}

/// Two hundred deployments one after the other, with a stop of Telegram in the middle and a chat that refuses what comes too fast.
#[tokio::test]
async fn a_storm_of_deployments_is_told_completely() -> Done {
    let mut api = BotApi::start();
    api.set_mood(Mood::Paced);
    api.set_pace(Pace { gap: QUICK.gap / 2, most: QUICK.most, window: QUICK.window / 2 });
    let desk = Desk::new().await?;
    let running = desk.run(desk.config(&api, ""));
    let mut subjects = Vec::new();
    for n in 0..200 {
        let subject = format!("change-{n}");
        match n {
            80 => api.stop(),
            120 => api.restart(),
            _ => {}
        }
        let mut playing = desk.begin(&subject, None).await;
        running.tick();
        playing.fail_in_test(&["FAILED"]).await;
        running.tick();
        subjects.push(subject);
    }
    let all = async {
        while desk.waiting().await.0 > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(150), all).await.expect("the outbox empties");
    running.stop().await;
    let figures = Figures::of(&api, &subjects);
    figures.print("a storm of 200");
    assert_eq!((figures.sent, figures.lost, figures.double), (200, 0, 0));
    let rung: Vec<String> = api.rung().iter().map(|ring| api.whole(ring)).collect();
    let order: Vec<usize> =
        subjects.iter().filter_map(|s| rung.iter().position(|t| t.contains(&format!("{s}\n")))).collect();
    assert!(order.is_sorted(), "the oldest first");
    Ok(())
}

/// The longest and oddest of what a commit can say.
#[tokio::test]
async fn hostile_words_are_told_whole_and_inert() -> Done {
    let api = BotApi::start();
    let desk = Desk::new().await?;
    let hostile = [
        format!("{} long", "<b>&amp;🏴 ".repeat(10_000)),
        "</code></pre><a href=\"tg://user?id=1\">x</a> *b* _i_ [l](http://x) `c` ||s||".to_owned(),
        "\u{202e}gnp.exe \u{2067}rtl\u{2069} @everyone /start #tag $(reboot) 👩‍👩‍👧 e\u{301}".to_owned(),
        "\u{1b}[31mred\u{7}\r\nsecond line".to_owned(),
    ];
    for subject in &hostile {
        let mut playing = desk.begin(subject, None).await;
        flush(desk.post(desk.config(&api, "operators = [1]")), Duration::from_secs(60)).await?;
        playing.fail_in_test(&[subject, "FAILED"]).await;
        flush(desk.post(desk.config(&api, "operators = [1]")), Duration::from_secs(60)).await?;
    }
    let accepted = api.accepted();
    assert_eq!(accepted.len(), 2 * hostile.len(), "a live message and an end each: {accepted:#?}");
    for message in accepted {
        assert!(message.html, "its markup was read: {}", message.raw);
        let bad = message.text.chars().find(|c| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c));
        assert_eq!(bad, None, "{:?}", message.text);
        assert!(!message.raw.contains("tg://") || message.raw.contains("href=&quot;tg://"), "{}", message.raw);
    }
    Ok(())
}
