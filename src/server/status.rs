//! `GET /_deploy/health` and `GET /_deploy/status`: what a monitor or a person may see without credentials.
//!
//! They show names, versions, states and error texts, never a configured value; the texts are masked once more here, because
//! they leave the machine. Each asks the store and Docker anew, so that an answer is never older than its request; only a few do
//! so at a time, and the others wait in line, so that a crowd at this door is no load on Docker.

use serde::Serialize;
use tokio::sync::Semaphore;
use warp::http::StatusCode;

use super::{
    reply::{self, Response},
    verbs::SharedVerbs,
};
use crate::{
    control::{EnvironmentStatus, Health},
    redact::Redactor,
};

const AT_ONCE: usize = 4;

#[derive(Serialize)]
struct Overview {
    environments: Vec<EnvironmentStatus>,
}

pub(super) struct Reads {
    verbs: SharedVerbs,
    redactor: Redactor,
    turns: Semaphore,
}

impl Reads {
    pub(super) fn new(verbs: SharedVerbs, redactor: Redactor) -> Self {
        Self { verbs, redactor, turns: Semaphore::new(AT_ONCE) }
    }

    pub(super) async fn health(&self) -> Response {
        let _turn = self.turns.acquire().await;
        let mut health = self.verbs.health().await;
        let Health { store, docker, .. } = &mut health;
        self.mask([store, docker]);
        reply::json(health_status(&health), &health)
    }

    pub(super) async fn status(&self) -> Response {
        let _turn = self.turns.acquire().await;
        match self.verbs.status().await {
            Ok(mut environments) => {
                for environment in &mut environments {
                    let EnvironmentStatus { live, service, gate, last, migrations, .. } = environment;
                    let subject = live.as_mut().and_then(|live| live.subject.as_mut());
                    let error = last.as_mut().and_then(|last| last.error.as_mut());
                    let gate = gate.as_mut().and_then(|gate| gate.detail.as_mut());
                    let texts = [subject, service.detail.as_mut(), gate, error, migrations.as_mut()];
                    self.mask(texts.into_iter().flatten());
                }
                reply::json(StatusCode::OK, &Overview { environments })
            }
            Err(error) => {
                tracing::error!("the status could not be read: {error}");
                reply::error(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the status could not be read",
                    Some("see the daemon's log"),
                )
            }
        }
    }

    fn mask<'t>(&self, texts: impl IntoIterator<Item = &'t mut String>) {
        for text in texts {
            *text = self.redactor.mask(text);
        }
    }
}

/// 200 or 503.
pub(super) fn health_status(health: &Health) -> StatusCode {
    if health.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
