//! A commit's tree → an image.
//!
//! An image is known by its *build key*: a hash over what goes in (the context's digest, the Dockerfile's path, the target,
//! the configured arguments). It is a label of the image, so the question "was this built already" is one call, and holds
//! across commits, deployments and environments of an app. `BUILD_DATE` and `VCS_REF` are not part of it: they differ for equal
//! trees, and an image that was built from the same tree is the same image.
//!
//! Both builders get the same archive. BuildKit needs a session beside the request, which bollard holds. Cancelling drops the
//! request; the engine notices the closed connection, ends the running step and removes its container.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::{
    Docker,
    query_parameters::{BuildImageOptions, BuildImageOptionsBuilder, BuilderVersion, ListImagesOptionsBuilder},
};
use futures_util::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{
    Engine,
    dockerfile::{self, Dockerfile},
    errors::{answer, failure},
    images, leftovers,
    progress::Progress,
    trail::{Builds, Trail},
};
use crate::{
    config::Builder,
    git::{Chunk, context::BuildContext},
    runtime::{Artefact, BuildRequest, Job, Result, RuntimeError, label},
};

/// BuildKit is the default of `docker build` since Engine 23.0.
const FIRST_WITH_BUILDKIT: u32 = 23;

/// The head of the answer comes when the whole context was sent, so it may take as long as the build, and a little.
const HEAD_SLACK: Duration = Duration::from_secs(60);

/// How often a build is begun again that met the removal of another's image.
const MOST_BEGUN_AGAIN: u32 = 5;

/// The images that keep a build's steps in the cache are named within this time, or not, if it was cut off.
const KEEP_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn build(engine: &Engine, builds: &Builds, request: &BuildRequest<'_>, job: &Job) -> Result<Artefact> {
    let trail = Arc::default();
    let built = tokio::select! {
        biased;
        () = job.cancel.cancelled() => Err(RuntimeError::Cancelled),
        built = build_or_find(engine, builds, request, &trail, job) => built,
    };
    if built.is_err() {
        // What it did get done need not be done again.
        let images = trail.cut_off();
        let kept = leftovers::keep_cache(&engine.docker, &request.environment.key, request.target, &images, false);
        let _ = tokio::time::timeout(KEEP_LIMIT, kept).await;
    }
    built
}

async fn build_or_find(
    engine: &Engine,
    builds: &Builds,
    request: &BuildRequest<'_>,
    trail: &Arc<Trail>,
    job: &Job,
) -> Result<Artefact> {
    let docker = &engine.docker;
    let environment = request.environment;
    let build = &environment.build;
    let name = Name::of(request);
    let context = BuildContext::read(request.mirror, request.commit, &build.context, &build.dockerfile);
    let (context, buildkit) = tokio::join!(context, wants_buildkit(docker, build.builder));
    let (context, buildkit) = (context.map_err(|e| RuntimeError::failed(e.operation, e.why))?, buildkit?);
    let target = request.target.or(build.target.as_deref());
    let file = Dockerfile::parse(context.dockerfile_text(), target, &build.args).filter(|_| !buildkit);
    let parts = match &file {
        Some(file) => Some(file.parts()),
        // BuildKit builds side by side what is not the same, and the same once.
        None => buildkit.then(Vec::new),
    };
    let waits = || job.log.line("waiting for the stages that another build of this commit makes as well");
    let ground = build_key(&context, None, &build.args);
    let turn = builds.turn(&environment.key.app, ground, parts, Arc::clone(trail), waits).await;
    let key = build_key(&context, target, &build.args);
    if !build.no_cache
        && let Some(id) = find(docker, request, &key).await?
    {
        images::tag(docker, &id, &name.repository, &name.tag).await?;
        job.log.line(format!("{name}: built before from the same tree and arguments, nothing to build"));
        return Ok(Artefact { id, name: name.to_string(), reused: true });
    }
    let labels = labels(request, &turn.date, &key);
    let changed = file.and_then(|file| file.render(environment.key.app.as_str(), &labels));
    let options = options(request, &context, target, &name, &turn.date);
    let options = if buildkit { with_session(options)? } else { options };
    let (options, extra) = match changed {
        Some(text) => {
            let ignore = dockerfile::dockerignore(context.dockerignore());
            let extra = vec![(dockerfile::NAME, text), (".dockerignore", ignore)];
            (options.dockerfile(dockerfile::NAME).build(), Some(extra))
        }
        None => (options.labels(&labels).build(), None),
    };
    // A BuildKit session outlives its build unless its connection is broken.
    let scope = CancellationToken::new();
    let _end = scope.clone().drop_guard();
    let docker_of_build = engine.within(&scope)?;
    let mut begun_again = 0;
    let id = loop {
        let archive = match extra.clone() {
            Some(extra) => context.stream_with(job.log.clone(), extra),
            None => context.stream(job.log.clone()),
        };
        let progress = Progress::new(job.log.clone(), Arc::clone(trail));
        match send(&docker_of_build, archive, options.clone(), progress, &name, build.timeout, job).await {
            Err(error) if lost_in_cache(&error) && begun_again < MOST_BEGUN_AGAIN => {
                begun_again += 1;
                trail.begin_again();
                job.log.line("an image went away while the engine looked through its cache: the build is begun again");
            }
            ended => break ended?,
        }
    };
    if extra.is_some()
        && let Err(error) =
            leftovers::keep_cache(docker, &environment.key, request.target, &trail.finished(), true).await
    {
        job.log.line(format!("warning: the next build may find less in the cache: {error}"));
    }
    Ok(Artefact { id, name: name.to_string(), reused: false })
}

/// The classic builder lists the images that were built on the same one and then looks at each for the step. Where one is removed in
/// between (another app on the same base image clears away) it fails, and everything is well the next time. Its words are
/// those of `getLocalCachedImage` in <https://github.com/moby/moby/blob/v20.10.0/image/cache/cache.go>.
fn lost_in_cache(error: &RuntimeError) -> bool {
    let RuntimeError::Failed { why, .. } = error else { return false };
    why.lines().next().is_some_and(|line| line.contains(": unable to find image \"sha256:"))
}

/// `guestbook:0123456789`, or `guestbook-test:unit-0123456789` for a test's target, which outside of production ends with the
/// environment: each clears its own away.
#[derive(Debug)]
struct Name {
    repository: String,
    tag: String,
}

impl Name {
    fn of(request: &BuildRequest<'_>) -> Self {
        let (app, short) = (&request.environment.key.app, request.commit.short());
        match request.target {
            None => Self { repository: app.to_string(), tag: short.to_owned() },
            Some(target) => {
                let tag = match request.environment.key.environment.as_str() {
                    "production" => format!("{target}-{short}"),
                    other => format!("{target}-{short}-{other}"),
                };
                Self { repository: format!("{app}-test"), tag }
            }
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

async fn wants_buildkit(docker: &Docker, builder: Builder) -> Result<bool> {
    match builder {
        Builder::Classic => Ok(false),
        Builder::BuildKit => Ok(true),
        Builder::Auto => {
            let version = answer(docker.version()).await.map_err(|e| failure("ask Docker for its version", e))?;
            let major = version.version.as_deref().and_then(|v| v.split('.').next()?.parse::<u32>().ok());
            Ok(major.is_some_and(|major| major >= FIRST_WITH_BUILDKIT))
        }
    }
}

fn build_key(context: &BuildContext, target: Option<&str>, args: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    let pairs = args.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
    // Each part with its length: no two lists of parts give the same bytes.
    for part in [context.digest(), context.dockerfile(), target.unwrap_or_default()].into_iter().chain(pairs) {
        hash.update(format!("{} {part}", part.len()));
    }
    hex::encode(hash.finalize())
}

/// The newest image of this app with this build key; a test's only if this environment made it, because it also removes it.
async fn find(docker: &Docker, request: &BuildRequest<'_>, key: &str) -> Result<Option<String>> {
    let environment = &request.environment.key;
    let mut labels = vec![format!("{}={}", label::APP, environment.app), format!("{}={key}", label::BUILD_KEY)];
    if request.target.is_some() {
        labels.push(format!("{}={}", label::ENVIRONMENT, environment.environment));
    }
    let options = ListImagesOptionsBuilder::new().filters(&HashMap::from([("label", labels)])).build();
    let images = answer(docker.list_images(Some(options))).await.map_err(|e| failure("list images", e))?;
    Ok(images.into_iter().max_by_key(|image| image.created).map(|image| image.id))
}

/// What to ask for, but for the labels.
fn options(
    request: &BuildRequest<'_>,
    context: &BuildContext,
    target: Option<&str>,
    name: &Name,
    date: &str,
) -> BuildImageOptionsBuilder {
    let build = &request.environment.build;
    let mut args: HashMap<String, String> = HashMap::new();
    // The classic builder warns of arguments that the Dockerfile does not declare.
    for (arg, value) in [("BUILD_DATE", date), ("VCS_REF", request.commit.as_str())] {
        if context.dockerfile_text().contains(arg) {
            args.insert(arg.to_owned(), value.to_owned());
        }
    }
    args.extend(build.args.clone());
    BuildImageOptionsBuilder::new()
        .dockerfile(context.dockerfile())
        .t(&name.to_string())
        .target(target.unwrap_or_default())
        .buildargs(&args)
        .nocache(build.no_cache)
        .rm(true)
        .forcerm(true)
}

fn with_session(options: BuildImageOptionsBuilder) -> Result<BuildImageOptionsBuilder> {
    let mut session = [0; 16];
    getrandom::fill(&mut session).map_err(|e| RuntimeError::failed("make a session id", e))?;
    Ok(options.version(BuilderVersion::BuilderBuildKit).session(&hex::encode(session)))
}

fn labels(request: &BuildRequest<'_>, now: &str, key: &str) -> HashMap<String, String> {
    let environment = &request.environment.key;
    let mut labels = HashMap::from(
        [
            ("org.opencontainers.image.revision", request.commit.to_string()),
            ("org.opencontainers.image.version", request.commit.short().to_owned()),
            ("org.opencontainers.image.created", now.to_owned()),
            (label::APP, environment.app.to_string()),
            (label::ENVIRONMENT, environment.environment.to_string()),
            (label::DEPLOYMENT, request.deployment.to_string()),
            (label::BUILD_KEY, key.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    if let Some(source) = public_url(&request.environment.repository) {
        labels.insert("org.opencontainers.image.source".to_owned(), source.to_owned());
    }
    labels
}

/// The repository's URL, where it is one and has no user or password in it: labels are public.
fn public_url(repository: &str) -> Option<&str> {
    let rest = repository.strip_prefix("https://").or_else(|| repository.strip_prefix("http://"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let plain = !authority.contains('@') && !repository.contains(['?', '#']);
    plain.then_some(repository)
}

/// Sends the context and follows the build to its image's id.
async fn send(
    docker: &Docker,
    archive: ReceiverStream<Chunk>,
    options: BuildImageOptions,
    mut progress: Progress,
    name: &Name,
    limit: Duration,
    job: &Job,
) -> Result<String> {
    // What goes wrong while the context is read would arrive here only as a broken request.
    let trouble: Arc<Mutex<Option<String>>> = Arc::default();
    let note = Arc::clone(&trouble);
    let archive = archive.inspect_err(move |error| {
        *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    });
    let docker = docker.clone().with_timeout(limit.saturating_add(HEAD_SLACK));
    let mut messages = docker.build_image(options, None, Some(bollard::body_try_stream(archive)));
    let operation = format!("build {name}");
    while let Some(message) = messages.next().await {
        match message {
            Ok(message) => progress.message(message),
            Err(error) => {
                let trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
                return Err(match (trouble, failure(&operation, error)) {
                    (Some(why), _) => RuntimeError::failed(operation, why),
                    (None, RuntimeError::Failed { why, .. }) => {
                        RuntimeError::failed(operation, job.log.redactor().mask(&progress.explain(&why)))
                    }
                    (None, other) => other,
                });
            }
        }
    }
    match progress.finish() {
        Some(id) => Ok(id),
        // An engine that does not tell the id has at least given the image its name.
        None => images::id(&docker, &name.to_string())
            .await?
            .ok_or_else(|| RuntimeError::failed(operation, "the engine ended the build without an image")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_urls_become_labels() {
        assert_eq!(public_url("https://git.example/a/b.git"), Some("https://git.example/a/b.git"));
        for other in ["https://u:p@git.example/a", "https://tok@git.example/a", "git@git.example:a/b", "/srv/a.git"] {
            assert_eq!(public_url(other), None, "{other}");
        }
    }
}
