//! Findings → the text of `pipeline.toml`, and what to do next.

use std::path::PathBuf;

use toml::Value;

use super::{
    SECRET_FILE,
    look::{Found, Service},
};

/// The public port where nothing says otherwise, and for apps on a port that only root may open.
const USUAL_PORT: u16 = 8000;

pub fn configuration(found: &Found) -> String {
    let docker = found.dockerfile.as_ref();
    let inner = docker.and_then(|d| d.port);
    let port = inner.filter(|port| *port >= 1024).unwrap_or(USUAL_PORT);
    let mut out = format!(
        "# What Refit does when you push. `refit check` explains it; docs/configuration.md has every key.\n\n\
         [app]\nname = {}\nrepository = {}\n\n\
         [environments.production]\nbranch = {}\nport = {port}                            # the port the public uses\n\n\
         [webhooks.github]\nsecret = {{ file = {} }}\n\n",
        quoted(&found.name),
        quoted(&found.repository),
        quoted(&found.branch),
        quoted(SECRET_FILE),
    );
    backup(found, &mut out);
    if docker.is_some_and(|d| d.has_test) {
        out.push_str(
            "# The Dockerfile has a stage called `test`: say what runs in it.\n# [[test]]\n# name = \"unit\"\n# target = \"test\"\n# run = \"pytest -q\"\n\n",
        );
    }
    if docker.is_none() {
        out.push_str("# There is no Dockerfile, so the app runs as a process on this machine.\n[build]\n");
        match &found.build {
            Some(run) => out.push_str(&format!("run = {}\n\n", quoted(run))),
            None => out.push_str("# run = \"make\"\n\n"),
        }
    }
    out.push_str("# [migrate]\n# run = \"alembic upgrade head\"\n\n[start]\n");
    if docker.is_none() {
        let command = found.command.as_deref().unwrap_or("./start");
        let guess =
            if found.command.is_some() { "" } else { "            # change this: what starts your app on $PORT" };
        out.push_str(&format!("runtime = \"process\"\ncommand = {}{guess}\n", quoted(command)));
    } else if inner.is_some_and(|inner| inner != port) {
        out.push_str(&format!("container_port = {}\n", inner.unwrap_or(port)));
    }
    out.push_str("# env = { LOG_LEVEL = \"info\" }\n# secrets = { DATABASE_URL = { env = \"DATABASE_URL\" } }\n\n");
    health(found, &mut out);
    telegram(&mut out);
    out
}

fn health(found: &Found, out: &mut String) {
    out.push_str(
        "# When a new version counts as healthy. Without a path: when its port takes connections.\n[start.health]\n",
    );
    match found.dockerfile.as_ref().and_then(|d| d.health_path.as_deref()) {
        Some(path) => {
            out.push_str(&format!("path = {0}\n\n[[smoke.check]]\nhttp = {0}\n\n", quoted(path)));
        }
        None => out.push_str(
            "# path = \"/health\"\n\n# Asked through the public port, before the deployment counts.\n# [[smoke.check]]\n# http = \"/\"\n# status = 200\n\n",
        ),
    }
}

fn backup(found: &Found, out: &mut String) {
    for service in &found.services {
        let Service { name, container, user, database, .. } = service;
        let container = container.clone().unwrap_or_else(|| format!("{}-{name}-1", found.name));
        let user = user.clone().unwrap_or_else(|| "postgres".to_owned());
        let database = database.clone().unwrap_or_else(|| user.clone());
        out.push_str(&format!(
            "# The compose file has a PostgreSQL service `{}`. Take these lines in for a dump before each deployment.\n\
             # [[backup]]\n# kind = \"postgres\"\n# container = {}\n# database = {}\n# user = {}\n\n",
            name.escape_default(),
            quoted(&container),
            quoted(&database),
            quoted(&user),
        ));
    }
}

fn telegram(out: &mut String) {
    out.push_str("# [telegram]\n# token = { env = \"TELEGRAM_API_TOKEN\" }\n# chat = { env = \"TELEGRAM_CHAT_ID\" }\n");
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// What was written, and what to do now.
pub fn next_steps(found: &Found, written: &[(PathBuf, String)]) -> String {
    let mut out = String::from("wrote\n");
    for (file, what) in written {
        out.push_str(&format!("  {}  {what}\n", file.display()));
    }
    if found.dockerfile.is_none() {
        out.push_str(
            "\nThere is no Dockerfile here: the app will run as a process. See that `command` in [start] starts it.\n",
        );
    }
    out.push_str("\nnow\n  refit check     what a push would do\n  refit doctor    what is missing on this machine\n  refit deploy    the first deployment\n");
    if found.local_repository {
        out.push_str(
            "  refit hook install    deploy each push to this repository (a bare one: `refit hook install DIR`)\n  refit serve     and from then on, each push\n",
        );
        return out;
    }
    out.push_str("  refit serve     and from then on, each push\n");
    let secret = written.get(1).map(|(file, _)| file.display().to_string()).unwrap_or_default();
    out.push_str(&format!(
        "\non GitHub: Settings → Webhooks → Add webhook\n  \
           Payload URL    https://YOUR-SERVER/hooks/github   (your proxy passes it on to [server] listen, 127.0.0.1:8787)\n  \
           Content type   application/json\n  \
           Secret         the content of {secret}\n  \
           Events         just the push event\n"
    ));
    out
}
