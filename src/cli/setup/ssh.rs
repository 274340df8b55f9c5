//! SSH for Git: a key to show, and the remote's host key to expect.
//!
//! A daemon cannot answer ssh's question about an unknown host, so the host is learnt here, where a person can compare the
//! fingerprint with the one that the Git host publishes.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::Step;
use crate::{
    cli::{
        args::SetupArgs,
        context::{Context, home},
    },
    config::Config,
    exec::Program,
    files,
};

const LIMIT: Duration = Duration::from_secs(20);

/// A host that is reached by SSH, and its port where it is not 22.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    name: String,
    port: Option<u16>,
}

impl Host {
    /// As `known_hosts` names it.
    fn entry(&self) -> String {
        match self.port {
            Some(port) => format!("[{}]:{port}", self.name),
            None => self.name.clone(),
        }
    }
}

pub fn hosts(config: &Config) -> BTreeSet<Host> {
    config.apps.iter().filter_map(|app| host_of(&app.repository)).collect()
}

/// The host of `ssh://user@host:port/path` or `user@host:path`.
fn host_of(repository: &str) -> Option<Host> {
    let without_user = |authority: &str| authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned();
    if let Some(rest) = repository.strip_prefix("ssh://") {
        let authority = without_user(rest.split('/').next()?);
        let (name, port) = match authority.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
            Some((name, rest)) => (name.to_owned(), rest.strip_prefix(':').and_then(|port| port.parse().ok())),
            None => match authority.rsplit_once(':') {
                Some((name, port)) => (name.to_owned(), port.parse().ok()),
                None => (authority, None),
            },
        };
        return Some(Host { name, port: port.filter(|port| *port != 22) });
    }
    if repository.contains("://") {
        return None;
    }
    let (authority, _) = repository.split_once(':')?;
    (!authority.contains('/')).then(|| Host { name: without_user(authority), port: None })
}

/// A key that ssh would offer.
pub async fn key(args: &SetupArgs) -> Step {
    let Some(dir) = home().map(|home| home.join(".ssh")) else {
        return Step::Left {
            what: "HOME is not set, so there is no place for SSH keys".to_owned(),
            fix: "HOME=/home/USER refit setup".to_owned(),
        };
    };
    let names = ["id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk"];
    if let Some(found) = names.iter().map(|name| dir.join(name)).find(|file| file.is_file()) {
        return Step::There(format!("the SSH key {}", found.display()));
    }
    let file = dir.join("id_ed25519");
    if !args.ssh_key {
        return Step::Left {
            what: format!("there is no SSH key in {}", dir.display()),
            fix: "`refit setup --ssh-key` makes one without a passphrase, to be added to the repository as a read-only deploy key".to_owned(),
        };
    }
    if args.dry_run {
        return Step::Would(format!("make the SSH key {}", file.display()));
    }
    match make_key(&dir, &file).await {
        Ok(public) => Step::Done(format!(
            "the SSH key {}; add this line to the repository as a read-only deploy key:\n         {public}",
            file.display()
        )),
        Err(why) => Step::Left {
            what: format!("an SSH key could not be made: {why}"),
            fix: "`ssh-keygen -t ed25519`".to_owned(),
        },
    }
}

async fn make_key(dir: &Path, file: &Path) -> Result<String, String> {
    files::make_private_dir(dir).map_err(|e| e.to_string())?;
    let program = Program::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "refit", "-f"]).arg(file);
    let done = program.output(LIMIT, &CancellationToken::new()).await.map_err(|e| e.to_string())?;
    if !done.success() {
        return Err(done.stderr.join(" "));
    }
    fs::read_to_string(file.with_extension("pub")).map(|text| text.trim().to_owned()).map_err(|e| e.to_string())
}

/// Makes sure that ssh knows the host's key.
pub async fn known_host(context: &Context, args: &SetupArgs, host: &Host) -> Step {
    let entry = host.entry();
    let fix = format!("`ssh-keyscan {}` shows its keys; compare them and add them to ~/.ssh/known_hosts", host.name);
    if is_known(&entry).await {
        return Step::There(format!("the SSH host key of {entry}"));
    }
    let keys = match scan(host).await {
        Ok(keys) => keys,
        Err(why) => return Step::Left { what: format!("the SSH host key of {entry} cannot be read: {why}"), fix },
    };
    let prints = fingerprints(&keys).await;
    if args.dry_run {
        return Step::Would(format!("add the SSH host key of {entry} to ~/.ssh/known_hosts:\n{prints}"));
    }
    context.say(&format!("{entry} shows these keys; compare them with what the host publishes:\n{prints}"));
    if !args.yes && !context.confirm("add them to ~/.ssh/known_hosts?") {
        return Step::Left { what: format!("the SSH host key of {entry} is not known"), fix };
    }
    match add(&keys) {
        Ok(file) => Step::Done(format!("the SSH host key of {entry} is in {}", file.display())),
        Err(error) => Step::Left { what: format!("the SSH host key of {entry} could not be added: {error}"), fix },
    }
}

async fn is_known(entry: &str) -> bool {
    let program = Program::new("ssh-keygen").args(["-F", entry]);
    matches!(program.output(LIMIT, &CancellationToken::new()).await, Ok(done) if done.success())
}

/// The lines for `known_hosts`.
async fn scan(host: &Host) -> Result<String, String> {
    let port = host.port.unwrap_or(22).to_string();
    let program = Program::new("ssh-keyscan").args(["-T", "10", "-p", &port, "--"]).arg(&host.name);
    let done = program.output(LIMIT, &CancellationToken::new()).await.map_err(|e| e.to_string())?;
    let keys: String = String::from_utf8_lossy(&done.stdout)
        .lines()
        .filter(|l| !l.starts_with('#'))
        .map(|l| format!("{l}\n"))
        .collect();
    if keys.is_empty() {
        Err(done.stderr.last().cloned().unwrap_or_else(|| "it does not answer".to_owned()))
    } else {
        Ok(keys)
    }
}

async fn fingerprints(keys: &str) -> String {
    // `ssh-keygen -l` reads a file; the keys are public.
    let shown = async {
        let file = std::env::temp_dir().join(format!("refit-keys-{}", std::process::id()));
        files::write_atomically(&file, keys.as_bytes(), 0o600).ok()?;
        let program = Program::new("ssh-keygen").arg("-lf").arg(&file);
        let done = program.output(LIMIT, &CancellationToken::new()).await;
        // Left behind at worst: a few public keys.
        let _ = fs::remove_file(&file);
        done.ok().filter(crate::exec::Finished::success).map(|done| String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let text = shown.await.unwrap_or_else(|| keys.to_owned());
    text.lines().map(|line| format!("           {line}")).collect::<Vec<_>>().join("\n")
}

fn add(keys: &str) -> std::io::Result<PathBuf> {
    let dir = home().ok_or_else(|| std::io::Error::other("HOME is not set"))?.join(".ssh");
    files::make_private_dir(&dir)?;
    let file = dir.join("known_hosts");
    let before = fs::read(&file).unwrap_or_default();
    let mut out = OpenOptions::new().create(true).append(true).mode(0o600).open(&file)?;
    let gap = if before.is_empty() || before.ends_with(b"\n") { "" } else { "\n" };
    out.write_all(format!("{gap}{keys}").as_bytes())?;
    out.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_ssh_addresses() {
        let entry = |repository: &str| host_of(repository).map(|host| host.entry());
        assert_eq!(entry("git@git.example:acme/a.git").as_deref(), Some("git.example"));
        assert_eq!(entry("ssh://git@git.example:22/a.git").as_deref(), Some("git.example"));
        assert_eq!(entry("ssh://git@[2001:db8::1]:2222/a.git").as_deref(), Some("[2001:db8::1]:2222"));
        assert_eq!(entry("https://git.example/a.git"), None);
        assert_eq!(entry("/srv/git/a:b.git"), None);
    }
}
