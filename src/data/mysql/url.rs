//! `mysql://user:password@host:port/database?parameter=value`, as options of the client programs.
//!
//! The parameters are those that the Rust driver knows too, so that one URL serves a migration and a backup. Whether the connection is
//! encrypted is said by `ssl-mode`, in MySQL's words; where it says nothing, the programs do what they do by themselves (mostly: they encrypt
//! where the server can; MariaDB's from 11.4 on verify the server as well).
//!
//! MariaDB's programs can demand encryption only together with a verified server. For `REQUIRED`, the connection is asked whether it is
//! encrypted before anything else is done: see [`Url::must_ask`].

use crate::{data::url::DatabaseUrl, secret::Secret};

/// MySQL's `ssl-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    Disabled,
    Preferred,
    Required,
    VerifyCa,
    VerifyIdentity,
}

const MODES: [(&str, Tls); 5] = [
    ("DISABLED", Tls::Disabled),
    ("PREFERRED", Tls::Preferred),
    ("REQUIRED", Tls::Required),
    ("VERIFY_CA", Tls::VerifyCa),
    ("VERIFY_IDENTITY", Tls::VerifyIdentity),
];

#[derive(Debug)]
pub(super) struct Url {
    url: DatabaseUrl,
    tls: Option<Tls>,
    /// Certificates and keys: `--ssl-ca=/etc/ssl/ca.pem`.
    files: Vec<String>,
    socket: Option<String>,
}

impl Url {
    /// The error is for people, and says nothing of what the URL holds.
    pub fn parse(secret: &Secret) -> Result<Self, String> {
        const FORM: &str = "mysql://user:password@host:port/database";
        let url = DatabaseUrl::parse(secret, &["mysql", "mariadb"], "MySQL", FORM)?;
        let (mut tls, mut files, mut socket) = (None, Vec::new(), None);
        let url = url.finish(|_, name, value| {
            match name {
                "ssl-mode" | "sslmode" => {
                    tls = MODES.iter().find(|(mode, _)| value.eq_ignore_ascii_case(mode)).map(|(_, tls)| *tls);
                    return tls.is_some();
                }
                "ssl-ca" | "sslca" => files.push(format!("--ssl-ca={value}")),
                "ssl-cert" | "sslcert" => files.push(format!("--ssl-cert={value}")),
                "ssl-key" | "sslkey" => files.push(format!("--ssl-key={value}")),
                "socket" => socket = Some(value),
                // How an app's text is sent: a dump is always sent as `utf8mb4`.
                "charset" | "collation" => {}
                _ => return false,
            }
            true
        })?;
        Ok(Self { url, tls, files, socket })
    }

    pub fn database(&self) -> &str {
        &self.url.database
    }

    pub fn user(&self) -> &str {
        &self.url.user
    }

    pub fn password(&self) -> Option<&Secret> {
        self.url.password.as_ref()
    }

    /// For people: `db.example:3306`.
    pub fn server(&self) -> String {
        self.url.server()
    }

    /// Whether no option demands the encryption that the URL does. For `knows_mode` see [`Self::options`].
    pub fn must_ask(&self, knows_mode: bool) -> bool {
        self.tls == Some(Tls::Required) && !knows_mode
    }

    /// Where the server is and how it is spoken to; neither user nor password. `knows_mode`: the programs have MySQL's `--ssl-mode`, MariaDB's
    /// do not.
    pub fn options(&self, knows_mode: bool) -> Vec<String> {
        let mut options = match &self.socket {
            Some(socket) => vec!["--protocol=socket".to_owned(), format!("--socket={socket}")],
            // `localhost` would be a socket.
            None => vec!["--protocol=tcp".to_owned(), format!("--host={}", self.url.host)],
        };
        options.extend(self.url.port.map(|port| format!("--port={port}")));
        options.extend(self.files.iter().cloned());
        if let Some(tls) = self.tls {
            if knows_mode {
                options
                    .extend(MODES.iter().find(|(_, mode)| *mode == tls).map(|(mode, _)| format!("--ssl-mode={mode}")));
            } else {
                options.extend(of_mariadb(tls).iter().map(|option| (*option).to_owned()));
            }
        }
        options
    }
}

/// They verify the server's name wherever they verify its certificate.
fn of_mariadb(tls: Tls) -> &'static [&'static str] {
    match tls {
        Tls::Disabled => &["--skip-ssl"],
        Tls::Preferred | Tls::Required => &["--ssl", "--skip-ssl-verify-server-cert"],
        Tls::VerifyCa | Tls::VerifyIdentity => &["--ssl", "--ssl-verify-server-cert"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Url, String> {
        Url::parse(&Secret::new(url))
    }

    #[test]
    fn a_url_becomes_options_without_its_password() {
        let url = parse("mysql://o%27brien:p%40ss%25@[::1]:3307/odd%20name?ssl-mode=required&ssl-ca=/ca.pem&charset=x")
            .unwrap();
        assert_eq!((url.user(), url.database(), url.server().as_str()), ("o'brien", "odd name", "::1:3307"));
        assert_eq!(url.password().unwrap().expose(), "p@ss%");
        let common = ["--protocol=tcp", "--host=::1", "--port=3307", "--ssl-ca=/ca.pem"];
        assert_eq!(url.options(true), [&common[..], &["--ssl-mode=REQUIRED"]].concat());
        assert_eq!(url.options(false), [&common[..], &["--ssl", "--skip-ssl-verify-server-cert"]].concat());
        assert!(url.must_ask(false) && !url.must_ask(true));
        let verified = parse("mysql://u@h/d?sslmode=VERIFY_IDENTITY").unwrap();
        assert!(verified.options(false).contains(&"--ssl-verify-server-cert".to_owned()) && !verified.must_ask(false));
        let socket = parse("mariadb://u@localhost/d?socket=/run/mysqld/mysqld.sock").unwrap();
        assert_eq!(socket.options(false), ["--protocol=socket", "--socket=/run/mysqld/mysqld.sock"]);
        assert!(socket.password().is_none());
    }

    #[test]
    fn what_is_not_understood_is_refused_without_a_word_of_it() {
        for bad in [
            "hunter22",
            "",
            "postgres://u:hunter22@h/d",
            "mysql://u:hunter22@h/",
            "mysql://h/d",
            "mysql://u:hunter22@h/d?ssl-mode=hunter22",
            "mysql://u:hunter22@h/d?init-command=hunter22",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.starts_with("the database's `url` ") && !error.contains("hunter22"), "{error}");
        }
    }
}
