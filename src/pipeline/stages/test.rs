//! test: every suite, one after the other, in containers of the commit. A failing suite ends the deployment with nothing changed.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step, build, coverage, within};
use crate::{
    config::{Coverage, TestPlace, TestSuite},
    model::CommitId,
    runtime::{BuildRequest, Job, OneOff, OneOffResult},
};

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub commit: CommitId,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    pub suites: Vec<Suite>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Suite {
    pub name: String,
    pub duration_ms: u64,
    /// Lines covered, in percent, where a report is configured.
    pub coverage: Option<f64>,
}

pub fn input(progress: &Progress) -> Result<Input, StageFailure> {
    Ok(Input { commit: progress.commit()? })
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let mut suites = Vec::new();
    for suite in &step.environment.tests {
        let began = Instant::now();
        let what = format!("test suite `{}`", suite.name);
        let result = within(suite.timeout, &what, &step.job.cancel, async |cancel| {
            let job = Job { log: step.job.log.clone(), cancel };
            run_suite(step, suite, &input.commit, &job).await
        })
        .await?;
        let coverage = match &suite.coverage {
            Some(wanted) => Some(judge_coverage(suite, wanted, &result, &step.job)?),
            None => None,
        };
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        suites.push(Suite { name: suite.name.to_string(), duration_ms, coverage });
    }
    Done::new(&Output { suites })
}

async fn run_suite(step: &Step, suite: &TestSuite, commit: &CommitId, job: &Job) -> Result<OneOffResult, StageFailure> {
    let environment = &step.environment;
    let runtime = step.world.runtime(environment);
    let mirror = step.world.mirror_of(environment);
    let mut tree = Some((&mirror, commit));
    let artefact = match &suite.place {
        TestPlace::Target(target) => {
            tree = None;
            let request = BuildRequest {
                environment,
                deployment: step.deployment,
                commit,
                mirror: &mirror,
                target: Some(target),
            };
            runtime.build(&request, job).await?.id
        }
        TestPlace::Image(image) => image.clone(),
        TestPlace::Tree => String::new(),
    };
    let role = format!("test-{}", suite.name);
    let one_off = OneOff {
        environment,
        deployment: step.deployment,
        role: &role,
        artefact: &artefact,
        run: &suite.run,
        env: &suite.env,
        secrets: &suite.secrets,
        networks: &suite.networks,
        with_volumes: false,
        tree,
        collect: suite.coverage.as_ref().map(|c| c.report.as_str()),
    };
    job.log.line(format!("suite {}: {}", suite.name, suite.run));
    let result = runtime.run_once(&one_off, job).await?;
    if result.code != 0 {
        return Err(StageFailure::failed(format!("test suite `{}` failed with exit code {}", suite.name, result.code)));
    }
    Ok(result)
}

fn judge_coverage(suite: &TestSuite, wanted: &Coverage, result: &OneOffResult, job: &Job) -> Result<f64, StageFailure> {
    let Some(report) = &result.collected else {
        return Err(StageFailure::failed(format!(
            "test suite `{}` left no coverage report at `{}`: check `coverage.report`",
            suite.name, wanted.report
        )));
    };
    let measured = coverage::percent(report).map_err(|e| {
        StageFailure::failed(format!("the coverage report `{}` of `{}` cannot be read: {e}", wanted.report, suite.name))
    })?;
    job.log.line(format!("coverage {:.1} % of lines ({} of {})", measured.percent, measured.covered, measured.total));
    if measured.percent < wanted.min {
        return Err(StageFailure::failed(format!(
            "test suite `{}` covers {:.1} % of lines, and `coverage.min` asks for {} %",
            suite.name, measured.percent, wanted.min
        )));
    }
    Ok(measured.percent)
}

/// Removes the images that it ran in, and containers that a cut-off run left.
pub async fn undo(step: &Step) -> Result<Option<String>, StageFailure> {
    step.world.runtime(&step.environment).sweep(&step.environment.key, step.deployment).await?;
    build::clear_step(step).await;
    Ok(None)
}
