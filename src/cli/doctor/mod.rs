//! `refit doctor`: what is missing on this machine, with a fix beside each finding.
//!
//! Every check looks and changes nothing. A configuration that cannot be read is itself a finding; the checks that need it are left
//! out then. Checks that may hang (Docker, remotes) have their own limits, and run at the same time.

use serde::Serialize;

use super::{
    args::{Format, FormatArgs},
    context::Context,
    error::{CliError, Result, exit},
    status::stray_fix,
    style::{Clock, Paint, Tone},
};
use crate::{
    config::{Config, MissingSecrets},
    control::{ControlError, Observer, Options},
    model::EnvironmentKey,
    pipeline::orphans::Look,
    registry::Registry,
};

mod backups;
mod engine;
mod gate;
mod host;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Ok,
    /// It works, but not as well as it could.
    Warn,
    /// A deployment will fail.
    Fail,
}

/// One check's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: String,
    status: Mark,
    detail: String,
    /// What to do; none where nothing is wrong.
    fix: Option<String>,
}

impl Finding {
    fn ok(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), status: Mark::Ok, detail: detail.into(), fix: None }
    }

    fn warn(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check: check.into(), status: Mark::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn fail(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check: check.into(), status: Mark::Fail, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// Exits with 0 if nothing fails, else 69.
pub async fn run(context: &Context, args: &FormatArgs) -> Result<u8> {
    let mut findings = Vec::new();
    if let Some(config) = configuration(context, &mut findings)? {
        let options = context.options()?;
        let (host, engine) = tokio::join!(
            Box::pin(host::check(&config)),
            Box::pin(engine::check(&config, options.docker_host.as_deref()))
        );
        findings.extend(host.into_iter().chain(engine));
        findings.extend(store(config, &options, &context.clock).await);
    } else {
        findings.push(host::git_program().await);
    }
    match args.format {
        Format::Json => context.print_json(&findings)?,
        Format::Table => context.print(&page(&findings, context.paint))?,
    }
    let failed = findings.iter().any(|f| f.status == Mark::Fail);
    Ok(if failed { exit::UNAVAILABLE } else { exit::OK })
}

/// The store, where there is one; what it knows of that the configuration does not, and what runs that it does not explain.
async fn store(config: std::sync::Arc<Config>, options: &Options, clock: &Clock) -> Vec<Finding> {
    let path = config.server.registry();
    let check = "registry";
    let mut findings = Vec::new();
    let looked: std::result::Result<(), ControlError> = async {
        let registry = Registry::open_existing(&path).await?;
        if let Some(registry) = &registry {
            registry.ping().await?;
            findings.push(Finding::ok(check, path.display().to_string()));
            findings.extend(stuck(&config, registry).await?);
        }
        let observer = Observer::new(config.clone(), registry, options)?;
        let all = Box::pin(observer.status()).await?;
        findings.extend(backups::check(&config, &all, clock));
        findings.extend(gate::check(&config, &options.program, &all).await);
        findings.extend(observer.strays().await?.iter().map(|release| {
            let detail = "is live, and not in the configuration any more";
            Finding::warn(format!("left over {}", release.key), detail, stray_fix(release))
        }));
        findings.extend(leftovers(&observer.leftovers().await?));
        Ok(())
    }
    .await;
    if let Err(ControlError::Registry(error)) = looked {
        findings.push(Finding::fail(check, error.to_string(), error.hint()));
    }
    // Any other error is Docker's address, which has a finding of its own.
    findings
}

/// What would be put in order at the daemon's next start, and what waits for a person.
fn leftovers(looks: &[(EnvironmentKey, Look)]) -> Vec<Finding> {
    let of = |(key, look): &(EnvironmentKey, Look)| {
        let check = format!("leftovers {key}");
        let acts = look.plan.actions.iter().map(|action| {
            let fix = format!("restart the daemon: it is {} then", action.done());
            Finding::warn(check.clone(), action.to_string(), fix)
        });
        let told = look.plan.findings.iter().map(|found| Finding::warn(check.clone(), found.to_string(), found.fix()));
        let away = look.away.iter().map(|why| {
            Finding::warn(check.clone(), format!("cannot be looked for: {why}"), "run doctor again when it answers")
        });
        acts.chain(told).chain(away).collect::<Vec<_>>()
    };
    let found: Vec<Finding> = looks.iter().flat_map(of).collect();
    if found.is_empty() { vec![Finding::ok("leftovers", "none")] } else { found }
}

/// Environments to which nothing is deployed by itself, because nobody has looked at a stuck deployment.
async fn stuck(config: &Config, registry: &Registry) -> std::result::Result<Vec<Finding>, ControlError> {
    let mut findings = Vec::new();
    for environment in config.environments() {
        if let Some(id) = registry.unresolved(&environment.key).await? {
            findings.push(Finding::fail(
                format!("stuck {}", environment.key),
                format!("deployment {id} could not be undone; pushes are not deployed"),
                format!("`refit report {id}` says what to do; then `refit resolve {id} --reason \"…\"`"),
            ));
        }
    }
    Ok(findings)
}

/// The configuration, as far as it can be read; what is wrong with it becomes findings.
fn configuration(context: &Context, findings: &mut Vec<Finding>) -> Result<Option<std::sync::Arc<Config>>> {
    let told = |error: &CliError| match error {
        CliError::Config(errors) => errors.problems.first().map(ToString::to_string).unwrap_or_default(),
        CliError::Failed { message, .. } => message.clone(),
        CliError::OutputClosed | CliError::Told(_) => String::new(),
    };
    match context.config(MissingSecrets::Error) {
        Ok(config) => {
            findings.push(Finding::ok("configuration", config.file.display().to_string()));
            Ok(Some(config))
        }
        Err(strict) => match context.config_to_read() {
            Ok(config) => {
                let fix = "set it for the daemon (the unit's EnvironmentFile), and here for commands without a daemon";
                findings.push(Finding::warn("configuration", told(&strict), fix));
                Ok(Some(config))
            }
            Err(error @ CliError::Failed { .. }) => {
                findings.push(Finding::fail("configuration", told(&error), "`refit init` in your repository"));
                Ok(None)
            }
            Err(error) => {
                findings.push(Finding::fail(
                    "configuration",
                    told(&error),
                    "`refit check` shows every problem with its line",
                ));
                Ok(None)
            }
        },
    }
}

/// For `refit setup`: Git's version, or why there is none.
pub async fn git_is_there() -> std::result::Result<String, String> {
    let finding = host::git_program().await;
    if finding.status == Mark::Ok { Ok(finding.detail) } else { Err(finding.detail) }
}

fn page(findings: &[Finding], paint: Paint) -> String {
    let width = findings.iter().map(|f| f.check.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for finding in findings {
        let (tone, mark) = match finding.status {
            Mark::Ok => (Tone::Good, "ok  "),
            Mark::Warn => (Tone::Warn, "warn"),
            Mark::Fail => (Tone::Bad, "FAIL"),
        };
        let check = format!("{:<width$}", finding.check);
        out.push_str(&format!("{} {}  {}\n", paint.tone(tone, mark), paint.bold(&check), finding.detail));
        if let Some(fix) = &finding.fix {
            out.push_str(&format!("     {:<width$}  {} {fix}\n", "", paint.bold("try:")));
        }
    }
    let count = |mark| findings.iter().filter(|f| f.status == mark).count();
    let (warnings, failures) = (count(Mark::Warn), count(Mark::Fail));
    out.push_str(&match (warnings, failures) {
        (0, 0) => format!("\n{}\n", paint.good("everything is there")),
        (_, 0) => format!("\nnothing fails, {warnings} to look at\n"),
        _ => format!("\n{failures} to fix, {warnings} to look at\n"),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_stand_with_their_fixes() {
        let findings = [
            Finding::ok("git", "git version 2.47.3"),
            Finding::warn("daemon", "no daemon answers", "`refit serve`"),
            Finding::fail("docker", "Docker cannot be reached: no such file", "start it: `systemctl start docker`"),
        ];
        insta::assert_snapshot!(page(&findings, Paint::new(false)));
        let json = serde_json::to_value(&findings[2]).unwrap();
        assert_eq!(json["status"], "fail");
    }
}
