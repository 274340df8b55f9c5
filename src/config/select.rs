//! Which environment is meant, when names may be left out.

use std::sync::Arc;

use super::{
    schema::nearest,
    types::{App, Config, Environment},
    values::quoted,
};
use crate::model::EnvironmentKey;

/// No environment, or more than one, is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    #[error("there is no app `{name}`; there is {}{}", quoted(.known), hint(.name, .known))]
    NoApp { name: String, known: Vec<String> },
    #[error("there are several apps, name one of {}", quoted(.known))]
    SeveralApps { known: Vec<String> },
    #[error("`{app}` has no environment `{name}`; it has {}{}", quoted(.known), hint(.name, .known))]
    NoEnvironment { app: String, name: String, known: Vec<String> },
    #[error("`{app}` has several environments, name one of {}", quoted(.known))]
    SeveralEnvironments { app: String, known: Vec<String> },
}

fn hint(name: &str, known: &[String]) -> String {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    nearest(name, &known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

impl Config {
    pub fn app(&self, name: &str) -> Option<&Arc<App>> {
        self.apps.iter().find(|app| app.name.as_str() == name)
    }

    pub fn by_key(&self, key: &EnvironmentKey) -> Option<&Arc<Environment>> {
        self.environments().find(|environment| environment.key == *key)
    }

    /// Every environment of every app.
    pub fn environments(&self) -> impl Iterator<Item = &Arc<Environment>> {
        self.apps.iter().flat_map(|app| &app.environments)
    }

    /// The environment that is meant. A name may be left out where there is one; of several environments, `production` is
    /// the one that is meant.
    ///
    /// # Errors
    /// Names that do not exist, or are needed; each lists what there is.
    pub fn environment(&self, app: Option<&str>, environment: Option<&str>) -> Result<&Arc<Environment>, SelectError> {
        let known = || self.apps.iter().map(|app| app.name.to_string()).collect();
        let app = match (app, &self.apps[..]) {
            (Some(name), _) => {
                self.app(name).ok_or_else(|| SelectError::NoApp { name: name.to_owned(), known: known() })?
            }
            (None, [only]) => only,
            (None, _) => return Err(SelectError::SeveralApps { known: known() }),
        };
        app.environment(environment)
    }
}

impl App {
    /// As [`Config::environment`], within one app.
    ///
    /// # Errors
    /// Names that do not exist, or are needed; each lists what there is.
    pub fn environment(&self, name: Option<&str>) -> Result<&Arc<Environment>, SelectError> {
        let app = || self.name.to_string();
        let known = || self.environments.iter().map(|found| found.key.environment.to_string()).collect();
        let find = |name: &str| self.environments.iter().find(|found| found.key.environment.as_str() == name);
        match (name, &self.environments[..]) {
            (Some(name), _) => find(name).ok_or_else(|| SelectError::NoEnvironment {
                app: app(),
                name: name.to_owned(),
                known: known(),
            }),
            (None, [only]) => Ok(only),
            (None, _) => {
                find("production").ok_or_else(|| SelectError::SeveralEnvironments { app: app(), known: known() })
            }
        }
    }
}
