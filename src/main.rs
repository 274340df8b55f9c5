use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next()) {
        (Some(verb), Some(dir)) if verb == "supervise" => {
            refit::runtime::process::supervisor::run(std::path::Path::new(&dir)).into()
        }
        _ => ExitCode::FAILURE,
    }
}
