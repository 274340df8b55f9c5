//! The bot, from the chat's side: the real daemon, real deployments, and the stand-in of the Bot API. Threats 3, 23 and 25.

use std::process::Command;

use serde_json::Value;

use crate::support::{
    Ran, Site, free_port, http,
    telegram::{Accepted, BotApi, CHAT, Fault, Mood, OPERATOR, SECOND_OPERATOR, STRANGER, Said, TOKEN, TOPIC},
};

fn site(api: &BotApi) -> Site {
    Site::process().with_telegram(api).with("operators = [10001, 10002]").with("[smoke]\nbake = \"0s\"")
}

/// A site with one version live, whose bot listens.
fn live(api: &BotApi) -> Site {
    let mut site = site(api);
    site.push("the first");
    site.deploy(0);
    site.serve();
    site.wait_for_log("listens to 2 operators");
    site
}

#[track_caller]
fn expect_all(message: &Accepted, parts: &[&str]) {
    for part in parts {
        assert!(message.text.contains(part), "no `{part}` in:\n{}", message.text);
    }
}

/// Asks something harmless, and waits for the answer: everything said before was heard by then.
#[track_caller]
fn heard(api: &BotApi) {
    let before = api.accepted().iter().filter(|m| m.text.contains("what you can say here")).count();
    api.says(OPERATOR, "/help");
    let answered = |api: &BotApi| api.accepted().iter().filter(|m| m.text.contains("what you can say here")).count();
    api.wait_until("the answer to /help", |api| answered(api) > before);
}

/// Presses a yes under the newest question, as the first operator.
#[track_caller]
fn say_yes(api: &BotApi, words: &str) -> i64 {
    let question = api.wait_for_button(words);
    api.presses(OPERATOR, question.id, words)
}

/// The message with a question that says these words.
#[track_caller]
fn question_about(api: &BotApi, words: &str) -> Accepted {
    let asks = |m: &Accepted| m.text.contains(words) && m.buttons.iter().flatten().any(|(b, _)| b.contains("Approve"));
    let find = |api: &BotApi| api.accepted().into_iter().find(asks);
    api.wait_until(words, |api| find(api).is_some());
    find(api).unwrap()
}

fn count(site: &Site) -> usize {
    site.history().len()
}

fn ended(deployment: &Value) -> bool {
    deployment["finished_at"].is_string()
}

// ---- the story

#[test]
fn from_a_push_to_a_rollback_and_back_with_buttons() {
    let api = BotApi::start();
    let mut site = site(&api).with_environment("approval = true");
    site.serve();
    let push = |site: &Site, version: &str| {
        site.version(version);
        let commit = site.push(&format!("version {version}"));
        assert_eq!(site.webhook(&format!("d-{version}"), &site.push_body("main", &commit)).status, 202);
        site.wait_for("the wait", |d| d["commit"] == *commit && d["status"] == "awaiting_approval")
    };
    for version in ["one", "two"] {
        let id = push(&site, version)["id"].as_i64().unwrap();
        let shown = question_about(&api, &format!("version {version}"));
        expect_all(&shown, &["waits for approval before migrate"]);
        let first = api.presses(OPERATOR, shown.id, "Approve");
        assert_eq!(api.wait_for_answer(first).text, "press once more to confirm");
        assert_eq!(site.show(id)["status"], "awaiting_approval", "one press changes nothing");
        let sure = api.wait_for_button(&format!("Sure? Approve {id}"));
        let second = api.presses(OPERATOR, sure.id, "Sure?");
        assert_eq!(api.wait_for_answer(second).text, "it goes on");
        let done = site.wait_for("its end", |d| d["id"] == id && ended(d));
        assert_eq!((&done["status"], &done["approval"]["by"]), (&"succeeded".into(), &"@ada".into()), "{done:#}");
        site.expect_page(version);
        let bare = |api: &BotApi| api.accepted().iter().any(|m| m.id == shown.id && m.buttons.is_empty());
        api.wait_until("a question without buttons", bare);
        api.wait_for_words(&format!("approve deployment {id}: it goes on, said @ada"));
    }

    // Back: what is live is healthy, so a person has to know better.
    let shown = api.wait_for_button("Roll back");
    api.presses(OPERATOR, shown.id, "Roll back");
    let preview = api.wait_for_words("deployment 2 (");
    expect_all(&preview, &["Roll ", "back to deployment 1?", "→ deployment 1 (", "1 commit goes:", "version two"]);
    expect_all(&preview, &["data stays as it is", "the live version is healthy", "for @ada, within five minutes"]);
    let yes = api.presses(OPERATOR, preview.id, "in spite of that");
    assert_eq!(api.wait_for_answer(yes).text, "deployment 3 is in the queue");
    let back = site.wait_for("its end", |d| d["id"] == 3 && ended(d));
    assert_eq!((&back["status"], &back["rollback"]["to"]), (&"succeeded".into(), &1.into()), "{back:#}");
    assert_eq!((&back["trigger"]["by"], &back["rollback"]["forced"]), (&"@ada".into(), &true.into()));
    site.expect_page("one");

    // And forward again, by command.
    api.says(OPERATOR, "/rollback 2 it was the database after all");
    let forward = api.wait_for_words("it was the database after all");
    expect_all(&forward, &["back to deployment 2?", "1 commit comes:"]);
    api.presses(OPERATOR, forward.id, forward.buttons[0][0].0.as_str());
    let there = site.wait_for("its end", |d| d["id"] == 4 && ended(d));
    assert_eq!(there["rollback"]["reason"], "it was the database after all");
    site.expect_page("two");
}

// ---- commands

#[test]
fn commands_that_read_are_answered_and_the_menu_has_them() {
    let api = BotApi::start();
    let site = live(&api);
    let menu = api.menu();
    assert!(menu.iter().any(|(name, what)| name == "rollback" && what.contains("reason")), "{menu:?}");
    api.says(OPERATOR, "/status");
    let place = format!("{}/production", site.app);
    expect_all(&api.wait_for_words("🟢"), &[&place, "deployment 1", "the first", "service running"]);
    api.says(OPERATOR, "/history");
    expect_all(&api.wait_for_words("succeeded, live"), &["✅ 1 ", &place, "the first"]);
    // In a group a command may name its bot; another bot's is not ours, and neither is a word that we do not know.
    let answers = api.accepted().len();
    for not_ours in ["/status@other_bot", "/weather", "hello", "what about /status"] {
        api.says(OPERATOR, not_ours);
    }
    api.says(OPERATOR, "/SHOW@Refit_Test_Bot 1");
    api.wait_until("the deployment", |api| api.accepted().len() > answers);
    expect_all(&api.accepted()[answers], &["deployed", &place, "the first"]);
    assert_eq!(api.accepted().len(), answers + 1, "{:#?}", api.accepted());
    api.says(OPERATOR, "/show 99");
    expect_all(&api.wait_for_words("there is no deployment 99"), &["⚠️"]);
    api.says(OPERATOR, "/rollback");
    expect_all(&api.wait_for_words("a reason is needed"), &["/rollback [env] [N] reason"]);
    // An edited or a forwarded command is nobody's word; an old one was said while nobody listened.
    for said in [
        Said { edited: true, ..Said::new(OPERATOR, "/deploy") },
        Said { forwarded: true, ..Said::new(OPERATOR, "/deploy") },
        Said { age: 3600, ..Said::new(OPERATOR, "/deploy") },
        Said { age: 3600, ..Said::new(OPERATOR, "/deploy") },
    ] {
        api.said(&said);
    }
    heard(&api);
    let late = api.accepted().iter().filter(|m| m.text.contains("I was away")).count();
    let asked = api.accepted().iter().filter(|m| m.text.contains("❓")).count();
    assert_eq!((late, asked), (1, 0));
    // A topic's question is answered there.
    api.said(&Said { thread: Some(TOPIC), ..Said::new(OPERATOR, "/logs 1") });
    let log = api.wait_for_words("the log of deployment 1");
    assert_eq!(log.thread, Some(TOPIC));
    assert_eq!(count(&site), 1, "nothing of this deploys");
}

#[test]
fn a_long_log_comes_as_a_file_without_its_secrets() {
    let api = BotApi::start();
    let mut site = site(&api)
        .env("DB_PASSWORD", "correct horse battery")
        .with("[start.secrets]\nDB_PASSWORD = { env = \"DB_PASSWORD\" }")
        .with("[[test]]\nname = \"unit\"\nrun = \"sh test.sh\"");
    site.write("test.sh", "for n in $(seq 400); do echo line $n of the tests: correct horse battery; done\n");
    site.push("talks a lot");
    site.deploy(0);
    site.serve();
    api.says(OPERATOR, "/logs");
    let message = api.wait_for_words("the log of deployment 1");
    let file = message.file.expect("a file");
    let text = String::from_utf8(file.content).unwrap();
    assert_eq!(file.name, "deployment_1.log");
    assert!(text.contains("line 400 of the tests: [masked]") && !text.contains("correct horse"), "{text}");
}

#[test]
fn several_places_are_asked_about_or_named() {
    let api = BotApi::start();
    let dev = format!("[environments.dev]\nbranch = \"main\"\nport = {}", free_port());
    let mut site = site(&api).with(&dev);
    site.edit_config("[environments.production]", "[environments.staging]");
    site.push("both");
    site.serve();
    api.says(OPERATOR, "/deploy");
    let which = api.wait_for_words("Which one is meant?");
    let words: Vec<&str> = which.buttons.iter().flatten().map(|(text, _)| text.as_str()).collect();
    let (dev, staging) = (format!("{}/dev", site.app), format!("{}/staging", site.app));
    assert_eq!(words, [dev.as_str(), staging.as_str()]);
    api.presses(OPERATOR, which.id, &staging);
    expect_all(&api.wait_for_button("Yes, deploy"), &[&format!("Deploy {staging}?"), "live now: nothing"]);
    api.says(OPERATOR, "/deploy staging main");
    let question = api.wait_for_words(&format!("Deploy main to {staging}?"));
    api.presses(OPERATOR, question.id, "Yes");
    let done = site.wait_for("its end", ended);
    assert_eq!((&done["environment"], &done["ref"]), (&"staging".into(), &"main".into()));
    assert_eq!((&done["trigger"]["kind"], &done["trigger"]["by"]), (&"telegram".into(), &"@ada".into()));
    api.says(OPERATOR, "/deploy nowhere main");
    expect_all(&api.wait_for_words("there is a word too many"), &["/deploy [env] [ref]"]);
}

// ---- who may

#[test]
fn strangers_get_no_answer_and_leave_a_line() {
    let api = BotApi::start();
    let site = live(&api);
    api.says(OPERATOR, "/deploy");
    let question = api.wait_for_button("Yes, deploy");
    let (yes, elsewhere) = (question.buttons[0][0].1.clone(), -1_005_555_555_555);
    let before = api.accepted();

    api.says(STRANGER, "/deploy");
    api.says(STRANGER, "/status");
    api.said(&Said { chat: elsewhere, ..Said::new(OPERATOR, "/deploy") });
    api.said(&Said { chat: i64::try_from(OPERATOR).unwrap(), ..Said::new(OPERATOR, "/status") });
    api.said(&Said { chat: elsewhere, ..Said::new(STRANGER, "/deploy") });
    api.presses_data(STRANGER, question.id, &yes);
    api.presses_in(elsewhere, OPERATOR, 5, &yes);
    api.wait_until_all_is_heard();
    assert_eq!((api.accepted(), api.answers()), (before, Vec::new()), "nobody was answered");
    assert_eq!(count(&site), 1);
    let log = site.daemon_log();
    for line in [
        "a command from user 66666 (@mallory) in chat -1001234567890 was ignored: the user is not one of `telegram.operators`",
        "a command from user 10001 (@ada) in chat -1005555555555 was ignored: the chat is neither",
        "a command from user 66666 (@mallory) in chat -1005555555555 was ignored: neither the user nor the chat",
        "a button from user 66666 (@mallory) in chat -1001234567890 was ignored",
        "a button from user 10001 (@ada) in chat -1005555555555 was ignored",
    ] {
        assert!(log.contains(line), "no `{line}` in\n{log}");
    }
    // The one who was asked may still answer.
    api.presses_data(OPERATOR, question.id, &yes);
    site.wait_for("its end", |d| d["id"] == 2 && ended(d));
}

#[test]
fn a_button_is_good_once_for_the_one_who_was_asked() {
    let api = BotApi::start();
    let site = live(&api);
    api.says(OPERATOR, "/deploy");
    let question = api.wait_for_button("Yes, deploy");
    let [yes, no] = [0, 1].map(|n| question.buttons[0][n].1.clone());
    let other = api.presses(SECOND_OPERATOR, question.id, "Yes");
    let answer = api.wait_for_answer(other);
    assert!(answer.alert && answer.text.starts_with("somebody else was asked"), "{answer:?}");
    let made_up = api.presses_data(OPERATOR, question.id, "yes:00000000000000000000000000000000");
    assert!(api.wait_for_answer(made_up).text.contains("not known"));
    api.presses_data(OPERATOR, question.id, "';DROP TABLE buttons;--");
    // Twice at once, and a third time: both in one answer of the Bot API.
    let presses = [1, 2].map(|_| api.presses_data(OPERATOR, question.id, &yes));
    let answers = presses.map(|press| api.wait_for_answer(press).text);
    assert_eq!(answers, ["deployment 2 is in the queue", "you have answered this already"]);
    let late = api.presses_data(SECOND_OPERATOR, question.id, &yes);
    assert!(api.wait_for_answer(late).text.starts_with("somebody else"), "its buttons were never theirs");
    let changed = api.presses_data(OPERATOR, question.id, &no);
    assert_eq!(api.wait_for_answer(changed).text, "you have answered this already");
    site.wait_for("its end", |d| d["id"] == 2 && ended(d));
    // Telegram may deliver what it delivered before, as often as it likes.
    for update in presses {
        api.delivers_again(update);
    }
    heard(&api);
    assert_eq!(count(&site), 2, "{:#?}", site.history());
    // A newer question takes the place of an older one.
    api.says(OPERATOR, "/rerun 1");
    let older = api.wait_for_button("Yes, run it again");
    api.says(OPERATOR, "/deploy main");
    api.wait_for_words("Deploy main to");
    let press = api.presses(OPERATOR, older.id, "Yes");
    assert_eq!(api.wait_for_answer(press).text, "this question is too old: ask again");
    // And a no is a no.
    let newer = api.wait_for_button("Yes, deploy");
    api.presses(OPERATOR, newer.id, "No");
    api.wait_for_words("not done, said @ada");
    assert_eq!(count(&site), 2);
    let log = site.daemon_log();
    assert!(log.contains("a press by user 10002 in chat -1001234567890 was refused: somebody else was asked"), "{log}");
}

#[test]
fn a_press_that_telegram_has_forgotten_still_counts() {
    let api = BotApi::start();
    let site = live(&api);
    api.says(OPERATOR, "/deploy");
    let question = api.wait_for_button("Yes, deploy");
    let data = question.buttons[0][0].1.clone();
    api.presses_data(OPERATOR, question.id, &data);
    api.forget_queries();
    site.wait_for("its end", |d| d["id"] == 2 && ended(d));
    api.wait_for_words("deployment 2 is in the queue, said @ada");
}

// ---- crashes

#[test]
fn a_press_has_its_effect_once_wherever_the_daemon_is_killed() {
    let api = BotApi::start();
    let mut site = live(&api);
    let mut deployments = 1;
    for (n, point) in ["bot:intent", "bot:effect", "bot:record"].into_iter().enumerate() {
        site.kill_daemon();
        site.set_env("REFIT_FAULT", &format!("{point}=kill"));
        site.serve();
        // A deployment, and a rollback, whose preview fits no more once it was done.
        let order = if n == 1 { "/rollback it is worse" } else { "/deploy" };
        api.says(OPERATOR, order);
        let words = if n == 1 { "in spite of that" } else { "Yes, deploy" };
        let press = say_yes(&api, words);
        site.wait_for_the_daemons_end();
        site.set_env("REFIT_FAULT", "");
        site.serve();
        deployments += 1;
        site.wait_for("its end", |d| d["id"] == deployments && ended(d));
        api.wait_until_all_is_heard();
        api.delivers_again(press);
        heard(&api);
        assert_eq!(count(&site), usize::try_from(deployments).unwrap(), "{point}: {:#?}", site.history());
    }
    let kinds: Vec<bool> = site.history().iter().rev().map(|d| d["rollback"].is_object()).collect();
    assert_eq!(kinds, [false, false, true, false]);
}

// ---- the line to Telegram

#[test]
fn a_second_poller_is_explained_and_survived() {
    let api = BotApi::start();
    let site = live(&api);
    let port: u16 = api.url().rsplit(':').next().unwrap().parse().unwrap();
    let path = format!("/bot{TOKEN}/getUpdates");
    for _ in 0..3 {
        assert_eq!(http(port, "POST", &path, &[("content-type", "application/json")], b"{}").unwrap().status, 200);
        site.wait_for_log("another program asks for this bot's updates");
    }
    heard(&api);
    let log = site.daemon_log();
    assert!(log.contains("@BotFather") && log.contains("the bot hears again"), "{log}");
    assert!(!log.contains(TOKEN) && !log.contains(&TOKEN[10..]), "the token is in the log: {log}");
}

#[test]
fn a_webhook_of_another_is_left_alone_and_our_own_is_taken_away() {
    let api = BotApi::start();
    let mut site = site(&api);
    api.set_webhook_by_hand("https://other.example/their/hook");
    site.serve();
    site.wait_for_log("sent to a webhook of another program");
    assert!(api.webhook().is_some());
    api.set_webhook_by_hand("https://deploy.example/hooks/telegram");
    heard(&api);
    assert_eq!(api.webhook(), None);
    assert!(site.daemon_log().contains("the webhook of an earlier configuration is taken away"));
}

#[test]
fn by_webhook_only_telegram_is_heard() {
    let api = BotApi::start();
    let mut site = site(&api);
    site.edit_config(
        "operators = [10001, 10002]",
        "operators = [10001, 10002]\nwebhook = \"https://deploy.example/hooks/telegram\"",
    );
    site.push("the first");
    site.serve();
    site.wait_for_log("updates are sent to https://deploy.example/hooks/telegram");
    let (_, secret) = api.webhook().expect("it was set");
    let send = |secret: &str, body: &str| {
        let header = ("X-Telegram-Bot-Api-Secret-Token", secret);
        http(site.http, "POST", "/hooks/telegram", &[header], body.as_bytes()).unwrap().status
    };
    let update = |number: i64| api.update(number).to_string();
    let deploy = update(api.says(OPERATOR, "/deploy"));
    for wrong in ["", "0", &"0".repeat(64), &secret[1..]] {
        assert_eq!(send(wrong, &deploy), 401, "{wrong}");
    }
    assert_eq!(http(site.http, "POST", "/hooks/telegram", &[], deploy.as_bytes()).unwrap().status, 401);
    assert_eq!(http(site.http, "GET", "/hooks/telegram", &[], b"").unwrap().status, 404);
    assert_eq!(send(&secret, "{}"), 400);
    assert_eq!(api.accepted(), [], "none of these was heard");
    assert_eq!((send(&secret, &deploy), send(&secret, &deploy)), (200, 200));
    let question = api.wait_for_button("Yes, deploy");
    assert_eq!(api.accepted().len(), 1, "the second was the same");
    let yes = update(api.presses(OPERATOR, question.id, "Yes"));
    let stranger = update(api.says(STRANGER, "/deploy"));
    assert_eq!((send(&secret, &yes), send(&secret, &yes), send(&secret, &stranger)), (200, 200, 200));
    site.wait_for("its end", ended);
    assert_eq!(count(&site), 1);
    assert!(!site.daemon_log().contains(&secret));
}

// ---- setting it up

#[test]
fn the_test_says_what_is_wrong_and_leaves_nothing_behind() {
    let api = BotApi::start();
    let mut site = site(&api);
    let ran = site.refit(&["telegram", "test"]).expect(0);
    for part in ["@refit_test_bot", "send", "edit", "delete", "2 operators"] {
        assert!(ran.stdout.contains(part), "{ran:?}");
    }
    assert_eq!(api.accepted(), [], "its message is deleted");
    let failing = |site: &Site, step: &str, what: &str| {
        let ran = site.refit(&["telegram", "test", "--format", "json"]).expect(69);
        let last = ran.json().as_array().unwrap().last().unwrap().clone();
        assert_eq!((&last["step"], &last["ok"]), (&step.into(), &false.into()), "{last:#}");
        assert!(last["detail"].as_str().unwrap().contains(what), "{last:#}");
        assert!(!ran.stdout.contains(&TOKEN[10..]) && !ran.stderr.contains(&TOKEN[10..]), "{ran:?}");
    };
    api.set_mood(Mood::NoChat);
    failing(&site, "send", "the bot is not in the chat -1001234567890");
    api.set_mood(Mood::Blocked);
    failing(&site, "send", "the bot was put out of the chat");
    api.set_mood(Mood::Migrated);
    failing(&site, "send", "the group became the supergroup -1009999999999");
    api.set_mood(Mood::Well);
    api.faults_on("sendMessage", [Fault::BadRequest("not enough rights to send text messages to the chat")]);
    failing(&site, "send", "may not write there");
    api.faults_on("editMessageText", [Fault::BadRequest("message can't be edited")]);
    failing(&site, "edit", "message can't be edited");
    api.set_webhook_by_hand("https://other.example/hook");
    failing(&site, "listen", "a webhook of another program");
    site.edit_config("operators = [10001, 10002]", "operators = [10001, 10002]\nthread = 12");
    failing(&site, "send", "has no such topic");
    site.set_env("TELEGRAM_API_TOKEN", "123456789:AAWrongButOfTheRightShape-0123456789ab");
    failing(&site, "token", "check `telegram.token`");
    // Without one, reports go to the terminal, which is said once.
    site.set_env("TELEGRAM_API_TOKEN", "");
    assert!(site.refit(&["telegram", "test"]).expect(69).stderr.contains("not set or empty"));
    site.push("one");
    site.serve();
    site.wait_for_log("listening on");
    assert_eq!(site.daemon_log().matches("the token of [telegram] is not set or empty").count(), 1);
}

#[test]
fn the_chats_id_is_found_and_no_update_is_taken_away() {
    let api = BotApi::start();
    let mut site = site(&api);
    assert!(site.refit(&["telegram", "chats"]).expect(0).stdout.contains("press Start"));
    api.said(&Said { thread: Some(TOPIC), ..Said::new(OPERATOR, "/status") });
    api.said(&Said { chat: 66_666, ..Said::new(STRANGER, "/start") });
    let table = site.refit(&["telegram", "chats"]).expect(0).stdout;
    for part in ["-1001234567890", "supergroup", "Deployments", "77", "10001 (ada)", "66666", "private"] {
        assert!(table.contains(part), "no `{part}` in {table}");
    }
    // Before there is a configuration.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut bare = Command::new(env!("CARGO_BIN_EXE_refit"));
    bare.args(["telegram", "chats", "--format", "json", "--api-url", &api.url(), "--token-env", "MY_BOT"]);
    bare.env_clear().env("MY_BOT", TOKEN).current_dir(elsewhere.path());
    let ran = Ran::from(bare.output().unwrap());
    assert_eq!(ran.expect(0).json()[0]["chat"], -1_001_234_567_890_i64);
    // The daemon still hears what was said before, and is not disturbed afterwards.
    site.serve();
    api.wait_for_words("nothing is live");
    let ran = site.refit(&["telegram", "chats"]).expect(75);
    assert!(ran.stderr.contains("a daemon of this configuration listens"), "{ran:?}");
    heard(&api);
    assert!(!site.daemon_log().contains("another program"));
}

// ---- threat 3

#[test]
fn foreign_words_are_inert_in_every_answer() {
    let api = BotApi::start();
    let mut site = site(&api);
    site.push("good");
    site.deploy(0);
    site.version("two");
    let subject =
        "👩‍👩‍👧 <b>bold</b> </code></pre>&lt; @everyone \u{202e}desrever \u{1b}[31m [l](tg://user?id=1) *x* _y_ `z`";
    site.push(subject);
    site.deploy(0);
    site.serve();
    for command in
        ["/status", "/history", "/show 2", "/rollback 1 <i>because</i> @all & \u{202e}more", "/deploy", "/rerun 2"]
    {
        let before = api.accepted().len();
        api.says(OPERATOR, command);
        api.wait_until(command, |api| api.accepted().len() > before);
        let answer = api.accepted().pop().unwrap();
        assert!(answer.html, "its markup was read: {answer:?}");
        expect_all(&answer, &["<b>bold</b> </code></pre>&lt; @everyone", "👩‍👩‍👧"]);
        assert!(!answer.text.contains(['\u{202e}', '\u{1b}']), "{answer:?}");
        assert!(answer.raw.contains("&lt;b&gt;bold&lt;/b&gt;") && !answer.raw.contains("<b>bold"), "{}", answer.raw);
        assert_eq!(answer.chat, CHAT);
    }
    heard(&api);
}
