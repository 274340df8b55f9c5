//! `refit completions`: a script for a shell, made from the grammar.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{
    args::Cli,
    context::Context,
    error::{Result, exit},
};

pub fn run(context: &Context, shell: Shell) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "refit", &mut script);
    context.print(&String::from_utf8_lossy(&script))?;
    Ok(exit::OK)
}
