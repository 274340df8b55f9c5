//! What a build by the classic builder has made so far, read from what it prints, and builds that wait for each other.
//!
//! The builder does not tell two builds of the same steps apart: side by side, each runs all of them. A test's target and the app's image
//! usually begin with the same stages, so the second build waits until the first has gone past the last stage that both need, and
//! then finds those in the cache; stages that only one needs are still built side by side. A build waits only for those that
//! came before it, so none waits for ever. (BuildKit does all this by itself.)
//!
//! The same place keeps `leftovers` from clearing away the images of a build that is under way.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};

use crate::model::Name;

/// The images that a build has made.
#[derive(Debug, Default)]
pub(super) struct Trail {
    made: Mutex<Made>,
    /// How many stages have begun.
    begun: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Made {
    /// The last image of each stage that is done, but for those that another was built on.
    stages: Vec<String>,
    /// The images of the last two steps of the stage that is built.
    last: Option<String>,
    before: Option<String>,
    /// The stage has begun, and the next image is the one it is built on.
    begins: bool,
    /// That image: another stage's, or not of this build.
    base: Option<String>,
}

impl Trail {
    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn step(&self, instruction: &str) {
        if instruction.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("FROM")) {
            let mut made = self.made();
            let done = made.last.take();
            made.stages.extend(done);
            (made.before, made.base) = (None, None);
            made.begins = true;
            drop(made);
            self.begun.send_modify(|n| *n += 1);
        }
    }

    pub(super) fn image(&self, id: &str) {
        let mut made = self.made();
        if mem::take(&mut made.begins) {
            made.base = Some(id.to_owned());
            return;
        }
        // What another was built on needs nothing else to stay.
        if let Some(base) = made.base.take() {
            made.stages.retain(|stage| *stage != base);
        }
        made.before = made.last.replace(id.to_owned());
    }

    /// Forgets what a build has made that is begun again; it finds that in the cache.
    pub(super) fn begin_again(&self) {
        *self.made() = Made::default();
        self.begun.send_replace(0);
    }

    /// The images with which every step of a finished build is kept in the cache, but for its last, which labels the image.
    pub(super) fn finished(&self) -> Vec<String> {
        let made = self.made();
        made.stages.iter().chain(&made.before).cloned().collect()
    }

    /// The same for a build that ended before it was done.
    pub(super) fn cut_off(&self) -> Vec<String> {
        let made = self.made();
        made.stages.iter().chain(&made.last).cloned().collect()
    }
}

/// The builds under way, of every app.
#[derive(Debug, Default)]
pub(super) struct Builds {
    apps: Mutex<HashMap<Name, Arc<App>>>,
}

#[derive(Debug, Default)]
struct App {
    /// Read by builds, written by clearing away.
    images: Arc<RwLock<()>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    under_way: Vec<UnderWay>,
    /// The last context that was built, and its `BUILD_DATE`: a step that uses it is the same step in the test's image and in the app's.
    date: Option<(String, String)>,
}

#[derive(Debug)]
struct UnderWay {
    context: String,
    /// A word for each stage; `None` where they are not known.
    parts: Option<Vec<String>>,
    trail: Arc<Trail>,
    ended: watch::Receiver<()>,
}

/// A build's place among those of its app. Others that wait for it go on when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) trail: Arc<Trail>,
    /// `BUILD_DATE`.
    pub(super) date: String,
    app: Arc<App>,
    _images: OwnedRwLockReadGuard<()>,
    _end: watch::Sender<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.app.state().under_way.retain(|build| !Arc::ptr_eq(&build.trail, &self.trail));
    }
}

impl App {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Builds {
    fn app(&self, app: &Name) -> Arc<App> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(apps.entry(app.clone()).or_default())
    }

    /// Waits for what this build shares with others of the same context (everything that goes in but the target), calling
    /// `waits` first if it has to.
    pub(super) async fn turn(
        &self,
        app: &Name,
        context: String,
        parts: Option<Vec<String>>,
        trail: Arc<Trail>,
        waits: impl FnOnce(),
    ) -> Turn {
        let app = self.app(app);
        let images = Arc::clone(&app.images).read_owned().await;
        let (end, ended) = watch::channel(());
        let mut waits = Some(waits);
        let (turn, earlier) = {
            let mut state = app.state();
            let earlier: Vec<_> = state
                .under_way
                .iter()
                .filter(|build| build.context == context)
                .filter_map(|build| {
                    Some((build.shared(parts.as_deref())?, Arc::clone(&build.trail), build.ended.clone()))
                })
                .collect();
            let date = state.date.take().filter(|(of, _)| *of == context);
            let date = date.map_or_else(|| format!("{:.0}", jiff::Timestamp::now()), |(_, date)| date);
            state.date = Some((context.clone(), date.clone()));
            state.under_way.push(UnderWay { context, parts, trail: Arc::clone(&trail), ended });
            drop(state);
            (Turn { trail, date, app: Arc::clone(&app), _images: images, _end: end }, earlier)
        };
        for (begun, trail, mut ended) in earlier {
            let mut count = trail.begun.subscribe();
            if *count.borrow() < begun
                && let Some(waits) = waits.take()
            {
                waits();
            }
            tokio::select! {
                // The sender lives as long as `trail`.
                _ = count.wait_for(|n| *n >= begun) => {}
                // It is dropped with the build's turn; nothing is ever sent.
                _ = ended.changed() => {}
            }
        }
        turn
    }

    /// Keeps builds of `app` waiting while its images are cleared away; `None` while one is under way.
    pub(super) fn clearing(&self, app: &Name) -> Option<OwnedRwLockWriteGuard<()>> {
        Arc::clone(&self.app(app).images).try_write_owned().ok()
    }
}

impl UnderWay {
    /// How many stages of this build must have begun so that all are done which a build of `parts` has as well; `None` if it has none.
    fn shared(&self, parts: Option<&[String]>) -> Option<usize> {
        let (Some(own), Some(parts)) = (&self.parts, parts) else { return Some(usize::MAX) };
        let last = own.iter().rposition(|part| parts.contains(part))?;
        // The last stage is done with the build: then its image may be the very one that is wanted.
        Some(if last + 1 == own.len() { usize::MAX } else { last + 2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        "app".parse().expect("a name")
    }

    /// A build that has its turn at once, with its waiting told by the flag.
    fn ready(builds: &Builds, context: &str, needed: &[usize]) -> (Option<Turn>, bool) {
        let mut waited = false;
        let app = name();
        let parts = needed.iter().map(usize::to_string).collect();
        let turn = builds.turn(&app, context.to_owned(), Some(parts), Arc::default(), || waited = true);
        let turn = futures_util::FutureExt::now_or_never(turn);
        (turn, waited)
    }

    #[test]
    fn a_build_waits_for_the_stages_it_shares_and_no_others() {
        let builds = Builds::default();
        let (app, _) = ready(&builds, "c", &[0, 2, 3]);
        let app = app.expect("the first never waits");
        assert!(builds.clearing(&name()).is_none(), "a build is under way");
        assert!(ready(&builds, "other", &[0, 2, 3]).0.is_some(), "another context");
        assert!(ready(&builds, "c", &[1]).0.is_some(), "nothing in common");
        let (none, waited) = ready(&builds, "c", &[0, 1]);
        assert!(none.is_none() && waited);
        app.trail.step("FROM a AS a");
        assert!(ready(&builds, "c", &[0, 1]).0.is_none(), "the shared stage has only begun");
        app.trail.step("from b");
        let (some, waited) = ready(&builds, "c", &[0, 1]);
        assert!(some.is_some_and(|turn| turn.date == app.date) && !waited);
        assert!(ready(&builds, "c", &[2]).0.is_none());
        assert!(ready(&builds, "c", &[0, 2, 3]).0.is_none(), "the very same image");
        drop(app);
        assert!(ready(&builds, "c", &[0, 2, 3]).0.is_some());
        assert!(builds.clearing(&name()).is_some());
    }

    #[test]
    fn a_trail_tells_the_ends_of_its_stages() {
        let trail = Trail::default();
        for (step, image) in [
            ("FROM base AS a", "base"),
            ("LABEL m", "a1"),
            ("RUN x", "a2"),
            ("FROM base AS empty", "base"),
            ("FROM base AS b", "base"),
            ("LABEL m", "a1"),
            ("RUN z", "b2"),
            ("FROM a", "a2"),
        ] {
            trail.step(step);
            trail.image(image);
        }
        assert_eq!(trail.cut_off(), ["a2", "b2"], "nothing is built on `a` yet");
        for (step, image) in [("COPY y", "c1"), ("LABEL all", "c2")] {
            trail.step(step);
            trail.image(image);
        }
        assert_eq!(trail.finished(), ["b2", "c1"]);
        assert_eq!(trail.cut_off(), ["b2", "c2"]);
    }
}
