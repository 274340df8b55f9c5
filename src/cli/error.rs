//! The one boundary where errors become a message, a hint and an exit code (design, section 8).

use std::{fmt::Display, io};

use crate::{
    config::{ConfigErrors, SelectError},
    control::ControlError,
    registry::RegistryError,
};

/// Exit codes that belong to no deployment. They follow `sysexits.h` where it has one.
pub mod exit {
    pub const OK: u8 = 0;
    pub const USAGE: u8 = 64;
    pub const UNAVAILABLE: u8 = 69;
    pub const BUSY: u8 = 75;
    /// A bug in refit.
    pub const SOFTWARE: u8 = 70;
    /// 128 and SIGINT.
    pub const CANCELLED: u8 = 130;
}

/// Why a command ends without having done what it was asked to.
#[derive(Debug)]
pub enum CliError {
    /// Told as `error: message`, then `try: hint`.
    Failed { message: String, hint: Option<String>, code: u8 },
    /// Told with the lines of the file.
    Config(Box<ConfigErrors>),
    /// The reader of our output went away (`refit history | head`): nobody is left to tell.
    OutputClosed,
    /// Everything was said already.
    Told(u8),
}

pub type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: Some(hint.into()), code: exit::USAGE }
    }

    pub fn unavailable(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: Some(hint.into()), code: exit::UNAVAILABLE }
    }

    /// `operation` and what the system said about it.
    pub fn io(operation: impl Display, source: impl Display) -> Self {
        Self::Failed { message: format!("{operation}: {source}"), hint: None, code: exit::UNAVAILABLE }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { code, .. } | Self::Told(code) => *code,
            Self::Config(_) => ConfigErrors::EXIT_CODE,
            Self::OutputClosed => exit::OK,
        }
    }

    /// What standard error shows; empty where there is nothing to tell.
    pub fn render(&self, color: bool) -> String {
        let paint = super::style::Paint::new(color);
        match self {
            Self::Failed { message, hint, .. } => {
                let mut out = format!("{} {message}\n", paint.bad("error:"));
                if let Some(hint) = hint {
                    out.push_str(&format!("  {} {hint}\n", paint.bold("try:")));
                }
                out
            }
            Self::Config(errors) => {
                let count = match errors.problems.len() {
                    1 => "a problem".to_owned(),
                    n => format!("{n} problems"),
                };
                format!("{} the configuration has {count}\n{}", paint.bad("error:"), errors.render(color))
            }
            Self::OutputClosed | Self::Told(_) => String::new(),
        }
    }
}

impl From<ControlError> for CliError {
    fn from(error: ControlError) -> Self {
        let hint = error.hint().map(str::to_owned);
        Self::Failed { message: error.to_string(), hint, code: error.exit_code() }
    }
}

impl From<RegistryError> for CliError {
    fn from(error: RegistryError) -> Self {
        Self::Failed { message: error.to_string(), hint: Some(error.hint().to_owned()), code: exit::UNAVAILABLE }
    }
}

impl From<ConfigErrors> for CliError {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(Box::new(errors))
    }
}

impl From<SelectError> for CliError {
    fn from(error: SelectError) -> Self {
        Self::usage(error.to_string(), "--app NAME and --env NAME; `refit check` lists them")
    }
}

/// A write to standard output that failed.
pub fn output(error: &io::Error) -> CliError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        CliError::OutputClosed
    } else {
        CliError::io("writing to standard output", error)
    }
}
