//! What a runtime shows of an environment: all that carries its labels, whoever recorded it.

use super::Instance;
use crate::model::DeploymentId;

/// Everything of one environment in one runtime, in no order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    pub instances: Vec<SeenInstance>,
    pub helpers: Vec<SeenHelper>,
    pub artefacts: Vec<SeenArtefact>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenInstance {
    pub instance: Instance,
    /// The commit that its label names, where it has one.
    pub commit: Option<String>,
    /// It runs, or the engine keeps starting it again.
    pub runs: bool,
}

/// What a test, a migration or a build works in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenHelper {
    pub name: String,
    pub deployment: DeploymentId,
}

/// A finished artefact: an image that Refit built, with a name that Refit gives or none; or a release directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenArtefact {
    pub id: String,
    /// For people: a name by which it is found, or the id.
    pub name: String,
    /// The deployment that made it.
    pub deployment: DeploymentId,
    pub commit: Option<String>,
}
