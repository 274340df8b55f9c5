//! `refit demo`: the whole story on this machine, with nothing simulated and nothing left behind.
//!
//! In a directory of its own it makes a small web app and the repository that it is pushed to (`scene`), finds out whether there is
//! Docker (`ground`), starts a real daemon (`daemon`), and pushes four versions through the real doors (`acts`), while
//! somebody keeps asking for the page (`visitors`). Each push has to end as the story says, and no request may fail: the demo checks that
//! itself, stops at the first difference, and only then exits with something else than 0. At the end, after a failure, and after Ctrl-C everything
//! is cleared away (`clean`), unless `--keep` was given and nobody interrupted. With `--chat` the daemon reports to a Bot API of the demo's own (`chat`),
//! and what a chat would show is printed after each push.

use std::{env, path::PathBuf, time::Instant};

use tokio_util::sync::CancellationToken;

use super::{
    args::{DemoArgs, Format, FormatArgs, HistoryArgs, StatusArgs, TargetArgs},
    context::Context,
    error::{CliError, Result, exit},
    hands::Interrupts,
    style::{cell, status_tone, table_text, took, words},
};
use crate::exec::ExecError;

mod acts;
pub mod app;
mod chat;
mod clean;
mod daemon;
mod ground;
mod scene;
mod visitors;
mod voice;

use acts::{ACTS, Played, Stagehands};
use chat::Chat;
use ground::Ground;
use scene::Scene;
use visitors::{Seen, Visitors};
use voice::Voice;

/// A push did not end as the story says, or a visitor got no good answer.
const DIFFERENT: u8 = 1;

pub async fn run(context: &Context, args: &DemoArgs) -> Result<u8> {
    let voice = Voice::new(context);
    let options = context.options()?;
    if let Some(dir) = &args.clean {
        let scene = Scene::find(dir, options.program, options.docker_host)?;
        voice.line(&format!("Removed: {}", clean::all(&scene).await?))?;
        return Ok(exit::OK);
    }
    let mut interrupts = Interrupts::listen()?;
    let cancel = CancellationToken::new();
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => default_dir()?,
    };
    let ground = Ground::find(options.docker_host.as_deref(), &cancel).await;
    let mut scene = Scene::make(dir, &ground, options.program, options.docker_host)?;
    let ended = {
        let story = Box::pin(tell(context, &mut scene, &ground, args, &cancel));
        until_ended(context, story, &mut interrupts, &cancel).await
    };
    if args.keep && !cancel.is_cancelled() {
        around(voice, &scene)?;
        return ended;
    }
    // If nobody reads any more, what was made goes all the same.
    let told = voice.title("Clearing up");
    let removed = clean::all(&scene).await;
    match (ended.and_then(|code| told.map(|()| code)), removed) {
        // The story was not seen to its end.
        (Err(CliError::OutputClosed), Ok(_)) => Ok(DIFFERENT),
        (ended, Ok(removed)) => {
            voice.line(&format!("removed: {removed}"))?;
            ended
        }
        (Ok(_), Err(error)) => Err(error),
        (Err(ended), Err(error)) => {
            context.say(&error.render(context.paint_errors.is_on()));
            Err(ended)
        }
    }
}

/// Runs the story. The first interrupt has it stop where it is; it then returns soon.
async fn until_ended(
    context: &Context,
    mut story: impl Future<Output = Result<u8>> + Unpin,
    interrupts: &mut Interrupts,
    cancel: &CancellationToken,
) -> Result<u8> {
    loop {
        tokio::select! {
            ended = &mut story => return ended,
            () = interrupts.next() => {
                if !cancel.is_cancelled() {
                    context.say("\nstopping, and clearing up");
                }
                cancel.cancel();
            }
        }
    }
}

async fn tell(
    context: &Context,
    scene: &mut Scene,
    ground: &Ground,
    args: &DemoArgs,
    cancel: &CancellationToken,
) -> Result<u8> {
    let began = Instant::now();
    let voice = Voice::new(context);
    let http = http_client()?;
    let mut chat = if args.chat { Some(Chat::open().await?) } else { None };
    scene.bot_api = chat.as_ref().map(Chat::address);
    introduce(voice, scene, ground, args.keep)?;
    ground.prepare(scene).await?;
    if cancel.is_cancelled() {
        return Err(stopped());
    }
    scene.furnish(cancel).await?;
    let mut child = daemon::start(scene)?;
    daemon::until_up(scene, child.as_mut(), &http, cancel).await?;
    // Collects the daemon's exit, whoever ends it.
    tokio::spawn(async move { child.wait().await });
    let visitors = Visitors::start(http.clone(), scene.page_url());
    let hands = Stagehands { scene, voice, http: &http, cancel, visitors: &visitors };
    hands.refit(&["hook", "install"]).await?;
    let played = play(&hands, chat.as_mut()).await?;
    visitors.take().await;
    let count = visitors.count();
    let Some(all) = played else {
        voice.line(&format!("{count}."))?;
        return Ok(DIFFERENT);
    };
    drop(visitors);
    summarize(context, &all)?;
    show(context, scene).await?;
    let time = took(i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX));
    voice.title(&format!("All four pushes ended as they should, in {time}. What visitors had of it: {count}."))?;
    if count.failed > 0 {
        voice.line("None should have: `refit demo --keep` leaves everything in place, to look at.")?;
        return Ok(DIFFERENT);
    }
    voice.line("Your own app: `refit init` in its repository, then `refit deploy`.")?;
    Ok(exit::OK)
}

fn introduce(voice: Voice<'_>, scene: &Scene, ground: &Ground, keep: bool) -> Result<()> {
    voice.title("refit demo")?;
    voice.paragraph(
        "Four versions of a small web app are pushed: two good ones, two bad ones. After each you see what is live. \
         Nothing is simulated, and nothing leaves this machine.",
    )?;
    voice.paragraph(
        "Somebody asks for the app's page twenty times a second, all the time. From the first answer on every request counts, and none may \
         fail: the gate keeps the port, a new version comes up beside the old one (`strategy = \"blue-green\"`), and gets the visitors \
         only when it is good.",
    )?;
    voice.paragraph(if keep { "At the end it goes on running." } else { "At the end everything is removed." })?;
    voice.blank()?;
    match ground {
        Ground::Docker { version, busybox, .. } => {
            voice.fact("runs on", &format!("Docker {version}, with an image made of {}", busybox.path.display()))?
        }
        Ground::Processes { why } => {
            voice
                .fact("runs on", "plain processes: there will be no containers and no images in this demo, because")?;
            voice.fact("", why)?;
        }
    }
    voice.pointer("directory", &scene.dir.display().to_string())?;
    voice.pointer("the app", &scene.page_url())?;
    voice.pointer("the daemon", &format!("http://127.0.0.1:{}/", scene.listen))?;
    voice.blank()
}

/// `None`: a push ended in another way, which has been told.
async fn play(hands: &Stagehands<'_>, mut chat: Option<&mut Chat>) -> Result<Option<Vec<Played>>> {
    let (mut good, mut all) = (None, Vec::new());
    for (n, act) in ACTS.iter().enumerate() {
        let played = hands.play(n + 1, act, good).await?;
        if !played.differences.is_empty() {
            hands.voice.blank()?;
            hands.refit(&["report", &played.deployment.id.to_string()]).await?;
            hands.voice.title("The demo ends here: this push did not end as it should.")?;
            hands.voice.line("`refit demo --keep` leaves everything in place, to look at.")?;
            return Ok(None);
        }
        if let Some(chat) = chat.as_deref_mut() {
            chat.tell(hands.voice, hands.cancel).await?;
        }
        if played.deployment.live {
            good = Some(played.deployment.id);
        }
        all.push(played);
    }
    Ok(Some(all))
}

fn summarize(context: &Context, all: &[Played]) -> Result<()> {
    let voice = Voice::new(context);
    voice.title("What happened")?;
    let mut table = context.paint.table(&["#", "PUSHED", "ANNOUNCED BY", "ENDED", "EXIT", "TOOK", "LIVE AFTER"], None);
    for (n, (act, played)) in ACTS.iter().zip(all).enumerate() {
        let view = &played.deployment;
        let plain = |text: String| comfy_table::Cell::new(text);
        let place = view.failed_stage.map(|stage| format!(" ({stage})")).unwrap_or_default();
        let live = played.live.map_or_else(|| "nothing".to_owned(), |id| format!("deployment {id}"));
        table.add_row([
            plain((n + 1).to_string()),
            plain(act.subject.to_owned()),
            plain(act.door.words().to_owned()),
            cell(status_tone(view.status), words(view.status.as_str()) + &place),
            plain(acts::code(view.exit_code)),
            plain(took(view.duration_ms.unwrap_or_default())),
            plain(live),
        ]);
    }
    table_text(&table).lines().try_for_each(|line| voice.line(line))?;
    let seen = all.iter().map(|played| played.seen).fold(Seen::default(), Seen::and);
    voice.blank()?;
    voice.paragraph(&format!("Users, during the pushes: {}.", seen.words()))
}

/// What `refit status` and `refit history` say, as they say it on this terminal.
async fn show(context: &Context, scene: &Scene) -> Result<()> {
    let voice = Voice::new(context);
    let there = context.with_config(scene.config_file());
    let target = || TargetArgs { app: None, env: None };
    let format = || FormatArgs { format: Format::Table };
    voice.blank()?;
    voice.command("refit status")?;
    super::status::run(&there, &StatusArgs { target: target(), format: format() }).await?;
    voice.blank()?;
    voice.command("refit history")?;
    let all =
        HistoryArgs { target: target(), rollbacks: false, status: None, limit: 20, since: None, format: format() };
    super::history::run(&there, &all).await?;
    Ok(())
}

/// With `--keep`: what there is to look at, and how to end it.
fn around(voice: Voice<'_>, scene: &Scene) -> Result<()> {
    let dir = scene.dir.display();
    let refit = format!("{} -c {dir}/pipeline.toml", scene.program.display());
    voice.title("It goes on running. Look around:")?;
    voice.pointer("the page", &scene.page_url())?;
    voice.pointer("status", &format!("{refit} status"))?;
    voice.pointer("a story", &format!("{refit} report 4"))?;
    voice.pointer("change", &format!("{dir}/work/page.html"))?;
    voice.pointer("and push", &format!("cd {dir}/work && git commit -am 'My change' && git push origin main"))?;
    voice.pointer("backups", &format!("{dir}/backups"))?;
    voice.pointer("logs", &format!("{dir}/logs, {dir}/daemon.log"))?;
    voice.pointer("the end", &format!("{} demo --clean {dir}", scene.program.display()))
}

/// A new name in the system's directory for temporary files.
fn default_dir() -> Result<PathBuf> {
    Ok(env::temp_dir().join(format!("refit-demo-{}", hex::encode(scene::random::<6>()?))))
}

/// Each request on a connection of its own, and never through a proxy.
fn http_client() -> Result<reqwest::Client> {
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build();
    client.map_err(|e| CliError::io("preparing HTTP requests", e))
}

/// The demo was interrupted; that was told when it happened.
fn stopped() -> CliError {
    CliError::Told(exit::CANCELLED)
}

/// An error of a program that may be there because the demo was interrupted.
fn stopped_or(cancel: &CancellationToken, error: &ExecError) -> CliError {
    if cancel.is_cancelled() { stopped() } else { CliError::io("the demo", error) }
}
