//! The systemd unit for `refit serve`.
//!
//! `KillMode=process`: apps of the process runtime are children of the unit's control group and must survive the daemon's restart.
//! They also live in its sandbox: everything but the directories named in `ReadWritePaths` is read-only to them. `Type=notify`:
//! systemd counts the daemon as started when it listens.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::Step;
use crate::{
    cli::{
        args::SetupArgs,
        context::{Context, user},
        error::{CliError, Result},
    },
    config::{BackupSource, Config, DatabaseTools, RuntimeKind},
    files,
};

/// What the unit's text depends on.
#[derive(Debug)]
struct Unit {
    apps: String,
    program: PathBuf,
    config: PathBuf,
    user: String,
    writable: BTreeSet<PathBuf>,
    docker: bool,
    low_ports: bool,
}

pub fn write(context: &Context, config: &Config, args: &SetupArgs) -> Result<Vec<Step>> {
    let name = args.user.clone().or_else(user).unwrap_or_else(|| "root".to_owned());
    let text = Unit::of(config, context.options()?.program, name)?.text()?;
    let file = args.unit_dir.join("refit.service");
    let shown = file.display();
    let enable = Step::Left {
        what: "systemd does not run the unit yet".to_owned(),
        fix: "`systemctl daemon-reload && systemctl enable --now refit`".to_owned(),
    };
    if fs::read(&file).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(vec![Step::There(format!("the unit {shown}"))]);
    }
    if args.dry_run {
        return Ok(vec![Step::Would(format!("write {shown}:\n\n{text}"))]);
    }
    let question = format!("{shown} is there and differs: replace it?");
    if file.exists() && !args.yes && !context.confirm(&question) {
        let fix = "`refit setup --systemd --dry-run` shows the new one, --yes replaces it".to_owned();
        return Ok(vec![Step::Left { what: format!("{shown} differs from what setup would write"), fix }]);
    }
    Ok(match files::write_atomically(&file, text.as_bytes(), 0o644) {
        Ok(()) => vec![Step::Done(format!("wrote {shown}")), enable],
        Err(error) => vec![Step::Left {
            what: format!("{shown} cannot be written: {error}"),
            fix: "run it as root (`sudo refit setup --systemd`), or --unit-dir DIR".to_owned(),
        }],
    })
}

fn needs_docker(source: &BackupSource) -> bool {
    match source {
        BackupSource::Postgres { .. } | BackupSource::Mysql { .. } | BackupSource::Volume { .. } => true,
        BackupSource::Command(command) => command.container.is_some(),
        BackupSource::PostgresUrl { tools, .. } | BackupSource::MysqlUrl { tools, .. } => {
            matches!(tools, DatabaseTools::Image(_))
        }
        _ => false,
    }
}

impl Unit {
    fn of(config: &Config, program: PathBuf, user: String) -> Result<Self> {
        if user.is_empty()
            || user.starts_with('-')
            || !user.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        {
            return Err(CliError::usage(format!("`{}` is no user name", user.escape_default()), "--user NAME"));
        }
        let server = &config.server;
        let mut writable: BTreeSet<PathBuf> =
            [&server.state_dir, &server.backups_dir, &server.logs_dir].into_iter().cloned().collect();
        for environment in config.environments() {
            for backup in &environment.backups {
                // Reading a database in WAL mode writes beside it, and what is put back grows beside what it replaces.
                if let BackupSource::Sqlite { path } | BackupSource::Files { path, .. } = &backup.source
                    && let Some(dir) = path.parent()
                {
                    writable.insert(dir.to_owned());
                }
            }
        }
        let processes = || config.environments().filter(|e| e.start.runtime == RuntimeKind::Process);
        let listens_low = server.listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).is_some_and(is_low);
        Ok(Self {
            apps: config.apps.iter().map(|app| app.name.to_string()).collect::<Vec<_>>().join(", "),
            program,
            config: config.file.clone(),
            user,
            writable,
            docker: config.environments().any(|e| e.start.runtime == RuntimeKind::Docker || !e.requires.is_empty())
                || config.environments().any(|e| e.backups.iter().any(|b| needs_docker(&b.source))),
            low_ports: listens_low || processes().any(|e| e.port.is_some_and(is_low)),
        })
    }

    fn text(&self) -> Result<String> {
        let program = word("", &self.program)?.replace('$', "$$");
        let config = word("", &self.config)?.replace('$', "$$");
        let mut writable = String::new();
        for dir in &self.writable {
            // The minus: a directory that is not there is no reason not to start.
            writable.push_str(&format!("ReadWritePaths={}\n", word("-", dir)?));
        }
        let root = self.user == "root";
        let docker_after = if self.docker { " docker.service" } else { "" };
        let docker_group = if self.docker && !root { "SupplementaryGroups=docker\n" } else { "" };
        let capabilities = match (root, self.low_ports) {
            // Root keeps what it needs to read and write other users' files; the sandbox limits where.
            (true, _) => "",
            (false, true) => "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n",
            (false, false) => "CapabilityBoundingSet=\n",
        };
        Ok(format!(
            "# Written by `refit setup --systemd`; run it again after moving refit or its configuration.\n\
             [Unit]\n\
             Description=Refit, deploys {apps}\n\
             After=network-online.target{docker_after}\n\
             Wants=network-online.target\n\
             \n\
             [Service]\n\
             Type=notify\n\
             NotifyAccess=main\n\
             User={user}\n\
             {docker_group}\
             ExecStart={program} --config {config} serve\n\
             # Secrets that pipeline.toml takes from the environment: NAME=value, one a line, mode 0600.\n\
             EnvironmentFile=-/etc/refit/refit.env\n\
             Restart=on-failure\n\
             RestartSec=2\n\
             RestartPreventExitStatus=64 78\n\
             # Apps of the process runtime outlive the daemon.\n\
             KillMode=process\n\
             # Running deployments may end, or be undone.\n\
             TimeoutStopSec=10min\n\
             TimeoutStartSec=10min\n\
             WatchdogSec=60\n\
             LimitNOFILE=65536\n\
             UMask=0077\n\
             \n\
             # The sandbox holds for apps of the process runtime too: add ReadWritePaths for what they write.\n\
             ProtectSystem=strict\n\
             ProtectHome=read-only\n\
             {writable}\
             PrivateTmp=yes\n\
             PrivateDevices=yes\n\
             NoNewPrivileges=yes\n\
             ProtectClock=yes\n\
             ProtectControlGroups=yes\n\
             ProtectHostname=yes\n\
             ProtectKernelLogs=yes\n\
             ProtectKernelModules=yes\n\
             ProtectKernelTunables=yes\n\
             LockPersonality=yes\n\
             RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK\n\
             RestrictNamespaces=yes\n\
             RestrictRealtime=yes\n\
             RestrictSUIDSGID=yes\n\
             SystemCallArchitectures=native\n\
             {capabilities}\
             \n\
             [Install]\n\
             WantedBy=multi-user.target\n",
            apps = self.apps,
            user = self.user,
        ))
    }
}

fn is_low(port: u16) -> bool {
    port < 1024
}

/// A path as one word of a unit file: quoted, with systemd's specifiers taken literally. `$` means something in commands only.
fn word(prefix: &str, path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control)).ok_or_else(|| {
        CliError::usage(
            format!("{} cannot be written into a unit", path.display()),
            "a path without control characters",
        )
    })?;
    let escaped = text.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%");
    Ok(format!("\"{prefix}{escaped}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> Unit {
        Unit {
            apps: "guestbook".to_owned(),
            program: "/usr/local/bin/refit".into(),
            config: "/srv/my app/100%/pipeline.toml".into(),
            user: "deploy".to_owned(),
            writable: ["/srv/my app/.refit".into(), "/srv/my app/logs".into()].into(),
            docker: true,
            low_ports: false,
        }
    }

    #[test]
    fn the_unit_is_sandboxed() -> std::result::Result<(), CliError> {
        insta::assert_snapshot!(unit().text()?);
        Ok(())
    }

    #[test]
    fn paths_that_could_add_lines_are_refused() {
        let unit = Unit { config: "/srv/a\nExecStartPre=/bin/true".into(), ..unit() };
        assert!(unit.text().is_err());
        assert_eq!(word("-", Path::new("/a b%c\"d")).ok().as_deref(), Some(r#""-/a b%%c\"d""#));
    }
}
