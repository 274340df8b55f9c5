//! Arguments in, exit code out. Everything between the two is in `refit::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    refit::cli::main(std::env::args_os())
}
