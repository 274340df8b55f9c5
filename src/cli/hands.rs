//! Who acts: the daemon, if one answers on its socket, else this process, under the same lock.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture, stream::BoxStream};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    client::Daemon,
    context::Context,
    error::{CliError, Result, exit},
};
use crate::{
    config::{Config, MissingSecrets},
    control::{
        BackupRequest, BackupUpdate, Control, ControlError, DeployRequest, RerunRequest, RollbackRequest, Update,
    },
    model::DeploymentId,
    notify,
};

/// Between two looks at a lock that somebody else holds.
const LOCK_POLL: Duration = Duration::from_millis(500);

/// How long other deployments that this process took up may go on after ours has ended.
const GRACE: Duration = Duration::from_secs(3600);

/// How long a command waits for its report to be sent.
const FLUSH: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub enum Hands {
    Daemon(Daemon),
    Here(Control),
}

impl Hands {
    /// The daemon, or this process. Another process that works in place is waited for, or, with `no_wait`, is exit code 75.
    pub async fn find(context: &Context, no_wait: bool, interrupts: &mut Interrupts) -> Result<Self> {
        let socket = context.config_to_read()?.server.socket();
        let mut config: Option<Arc<Config>> = None;
        let mut told = false;
        loop {
            if let Some(daemon) = Daemon::connect(&socket).await {
                return Ok(Self::Daemon(daemon));
            }
            // Only now are the secrets needed: the daemon has its own.
            let settled = match &config {
                Some(config) => config.clone(),
                None => context.config(MissingSecrets::Error)?,
            };
            match Box::pin(Control::start_in_place(settled.clone(), context.options()?)).await {
                Ok(control) => return Ok(Self::Here(control)),
                Err(ControlError::Busy { message, .. }) if !no_wait => {
                    if !told {
                        context.say(&format!("waiting: {message}"));
                        told = true;
                    }
                }
                Err(error) => return Err(error.into()),
            }
            config = Some(settled);
            tokio::select! {
                () = tokio::time::sleep(LOCK_POLL) => {}
                () = interrupts.next() => return Err(CliError::Told(exit::CANCELLED)),
            }
        }
    }

    /// For `--detach`: this process cannot hand its work to anybody.
    pub async fn find_daemon(context: &Context) -> Result<Self> {
        match Daemon::connect(&context.config_to_read()?.server.socket()).await {
            Some(daemon) => Ok(Self::Daemon(daemon)),
            None => Err(CliError::unavailable(
                "--detach needs the daemon, and none answers",
                "`refit serve` (or `refit setup --systemd`), or leave --detach out",
            )),
        }
    }

    pub fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    pub async fn deploy(&self, request: DeployRequest) -> Result<DeploymentId> {
        Ok(match self {
            Self::Daemon(daemon) => daemon.deploy(&request).await?,
            Self::Here(control) => control.deploy(request).await?,
        })
    }

    pub async fn rerun(&self, request: RerunRequest) -> Result<DeploymentId> {
        Ok(match self {
            Self::Daemon(daemon) => daemon.rerun(&request).await?,
            Self::Here(control) => control.rerun(request).await?,
        })
    }

    /// The error is `control`'s own: it may carry what the safety checks said.
    pub async fn rollback(&self, request: RollbackRequest) -> crate::control::Result<DeploymentId> {
        match self {
            Self::Daemon(daemon) => daemon.rollback(&request).await,
            Self::Here(control) => control.rollback(request).await,
        }
    }

    pub fn backup(&self, request: BackupRequest) -> BoxStream<'static, crate::control::Result<BackupUpdate>> {
        match self {
            Self::Daemon(daemon) => daemon.backup(request),
            Self::Here(control) => control.backup(request),
        }
    }

    pub async fn cancel(&self, id: DeploymentId, by: &str) -> Result<()> {
        match self {
            Self::Daemon(daemon) => daemon.cancel(id, by).await?,
            Self::Here(control) => control.cancel(id, by).await?,
        }
        Ok(())
    }

    pub fn follow(&self, id: DeploymentId) -> BoxStream<'static, crate::control::Result<Update>> {
        match self {
            Self::Daemon(daemon) => daemon.follow(id, 0),
            Self::Here(control) => control.follow(id, 0),
        }
    }

    /// Sends what waits in the outbox, where no daemon does.
    pub fn send_reports(&self) -> Option<BoxFuture<'static, ()>> {
        let Self::Here(control) = self else { return None };
        let sent = notify::flush(post(control), FLUSH);
        // What could not be sent is told at the end.
        Some(sent.map(drop).boxed())
    }

    /// Lets go of the lock. Other deployments that waited in the queue and began meanwhile are finished first; an interrupt
    /// cancels and undoes them.
    pub async fn release(self, context: &Context, interrupts: &mut Interrupts) {
        let Self::Here(control) = self else { return };
        let done = control.shutdown(GRACE);
        tokio::pin!(done);
        loop {
            tokio::select! {
                () = &mut done => break,
                () = interrupts.next() => control.hurry(),
            }
        }
        // What cannot be sent now is sent by the next command or the daemon.
        let sent = notify::flush(post(&control), FLUSH);
        tokio::select! {
            sent = sent => if let Err(why) = sent {
                context.say(&why);
            },
            () = interrupts.next() => {}
        }
        control.close().await;
    }
}

/// What reports are sent with.
pub fn post(control: &Control) -> notify::Post {
    let post = notify::Post::new(control.registry().clone(), control.config().clone());
    notify::Post { faults: control.faults().clone(), ..post }
}

/// SIGINT, SIGTERM and SIGHUP, once this exists: they no longer end the process by themselves.
#[derive(Debug)]
pub struct Interrupts {
    signals: [Signal; 3],
}

impl Interrupts {
    pub fn listen() -> Result<Self> {
        let on = |kind| signal(kind).map_err(|e| CliError::io("listening for signals", e));
        Ok(Self { signals: [on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?] })
    }

    pub async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
