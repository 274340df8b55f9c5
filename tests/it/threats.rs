//! Threats that cross the whole program: the real daemon, its real doors. Those that one part withstands are tested beside that part;
//! `docs/security.md` says which test proves which.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use crate::support::{Site, WEBHOOK_SECRET, free_port, http, poll, sign};

const EVIL_REFS: [&str; 6] =
    ["--upload-pack=touch owned", "-oProxyCommand=touch", "-", "--", "main;touch${IFS}owned", "$(touch owned)"];

#[track_caller]
fn expect_untouched(site: &Site) {
    for dir in [site.path().to_owned(), site.work(), site.origin(), site.path().join(".refit")] {
        assert!(!dir.join("owned").exists(), "something was run in {}", dir.display());
    }
}

/// 1, 2: names that are options or commands, through every door that takes a name.
#[test]
fn a_reference_that_is_an_option_or_a_command_is_refused_at_every_door() {
    let mut site = Site::process();
    let commit = site.push("first");
    for evil in EVIL_REFS {
        for door in ["--ref", "--commit"] {
            let ran = site.refit(&["deploy", &format!("{door}={evil}")]).expect(64);
            assert!(!ran.stderr.is_empty(), "it says why: {ran:?}");
        }
    }
    let file = fs::read_to_string(site.config_file()).unwrap();
    for evil in EVIL_REFS {
        fs::write(site.config_file(), file.replace("branch = \"main\"", &format!("branch = '{evil}'"))).unwrap();
        let ran = site.refit(&["check"]).expect(78);
        assert!(ran.stderr.contains("environments.production.branch"), "{ran:?}");
    }
    fs::write(site.config_file(), &file).unwrap();
    site.refit(&["hook", "install"]).expect(0);
    site.serve();
    for (n, evil) in EVIL_REFS.iter().enumerate() {
        let body = site.push_body(evil, &commit);
        let answer = site.webhook(&format!("evil-{n}"), &body);
        assert!(answer.status == 200 && answer.body.contains("reason"), "{evil}: {answer:?}");
        // What Git itself lets into a repository comes through the hook too.
        let pushed = site.try_git(&["push", "origin", &format!("HEAD:refs/heads/{evil}")]);
        assert!(pushed.code != 0 || pushed.stderr.contains("remote:"), "{pushed:?}");
    }
    assert_eq!(site.history().len(), 0);
    expect_untouched(&site);
}

/// 4: what is no commit's id, in payloads and by hand.
#[test]
fn a_commit_id_that_is_none_is_refused() {
    let mut site = Site::process();
    let commit = site.push("first");
    site.serve();
    let short = &commit[..10];
    let minus = format!("-{}", &commit[1..]);
    let letter = format!("g{}", &commit[1..]);
    let long = format!("{commit}0");
    for (n, bad) in [short, &minus, &letter, &long, "", "HEAD", "refs/heads/main"].iter().enumerate() {
        let body = site.push_body("main", bad);
        assert_eq!(site.webhook(&format!("bad-{n}"), &body).status, 400, "{bad}");
    }
    for bad in [&minus as &str, "", "HEAD~1", "a..b", "@{u}", "zz\u{7}"] {
        site.refit(&["deploy", &format!("--commit={bad}")]).expect(64);
    }
    site.refit(&["rerun", "-1"]).expect(64);
    assert_eq!(site.history().len(), 0);
}

/// 5: every address in the payload leads elsewhere.
#[test]
fn a_payloads_addresses_are_not_used() {
    let mut site = Site::process();
    let evil = Site::process();
    evil.version("evil");
    let other = evil.push("evil");
    let commit = site.push("first");
    site.serve();
    let url = format!("file://{}", evil.origin().display());
    let mut body: serde_json::Value = serde_json::from_str(&site.push_body("main", &other)).unwrap();
    for key in ["clone_url", "git_url", "ssh_url", "svn_url", "url", "html_url", "mirror_url"] {
        body["repository"][key] = url.clone().into();
    }
    assert_eq!(site.webhook("d-1", &body.to_string()).status, 202);
    let deployment = site.settled();
    assert_eq!((&deployment["status"], &deployment["commit"]), (&"succeeded".into(), &commit.into()), "{deployment:#}");
    site.expect_page("one");
}

/// 6: addresses by which Git or ssh would run a program.
#[test]
fn a_remote_that_runs_programs_is_refused_before_git_sees_it() {
    let site = Site::process();
    site.push("first");
    for evil in [
        "ext::sh -c touch% owned",
        "fd::17",
        "-oProxyCommand=touch owned",
        "--upload-pack=touch owned",
        "ssh://-oProxyCommand=touch/x",
        "ssh://-oProxyCommand%3Dtouch/x",
        "-oProxyCommand=touch:x/y",
        "git@-oProxyCommand=touch:x/y",
        "https://example.org/x.git\\u0000",
        "transport::https://example.org/x.git",
    ] {
        let file = fs::read_to_string(site.config_file()).unwrap();
        site.edit_config("\"origin.git\"", &format!("\"{evil}\""));
        for command in [&["check"][..], &["deploy"]] {
            let ran = site.refit(command).expect(78);
            assert!(ran.stderr.contains("app.repository") || ran.stderr.contains("pipeline.toml"), "{evil}: {ran:?}");
        }
        fs::write(site.config_file(), file).unwrap();
    }
    expect_untouched(&site);
    assert!(!site.path().join(".refit/git").exists(), "nothing was fetched");
}

/// 10: names that would leave their place, or say something to a shell.
#[test]
fn names_that_could_leave_their_place_are_refused() {
    let mut site = Site::docker();
    site.push("first");
    let file = fs::read_to_string(site.config_file()).unwrap();
    let suite = "[[test]]\nrun = \"true\"\n";
    let database = "[[backup]]\nkind = \"postgres\"\nuser = \"u\"\n";
    for evil in ["../up", "a/../../b", "a b", "$(touch owned)", "`id`", "a;b", "-x", "a\\nb", ".."] {
        let app = format!("name = \"{}\"", site.app);
        for (from, to) in [
            (app.as_str(), format!("name = \"{evil}\"")),
            ("[environments.production]", format!("[environments.\"{evil}\"]")),
            ("[start]\n", format!("{suite}target = \"t\"\nname = \"{evil}\"\n[start]\n")),
            ("[start]\n", format!("{suite}target = \"{evil}\"\n[start]\n")),
            ("[start]\n", format!("{suite}image = \"{evil}\"\n[start]\n")),
            ("[start]\n", format!("{database}database = \"d\"\ncontainer = \"c\"\nname = \"{evil}\"\n[start]\n")),
            ("[start]\n", format!("{database}database = \"d\"\ncontainer = \"{evil}\"\n[start]\n")),
            ("[start]\n", format!("[start]\nnetworks = [\"{evil}\"]\n")),
            ("[start]\n", format!("[start]\nvolumes = [\"{evil}:/data\"]\n")),
        ] {
            // A volume may be a directory of this host: whose file this is decides which.
            if to.contains("volumes") && evil.contains("..") {
                continue;
            }
            assert!(file.contains(from));
            fs::write(site.config_file(), file.replacen(from, &to, 1)).unwrap();
            let ran = site.refit(&["check"]);
            assert_eq!(ran.code, 78, "{to}: {ran:?}");
        }
    }
    fs::write(site.config_file(), &file).unwrap();
    site.serve();
    for evil in ["../up", "$(touch owned)", "a b", "-x", ".."] {
        for flag in ["--app", "--env"] {
            site.refit(&["deploy", &format!("{flag}={evil}")]).expect(64);
        }
    }
    assert_eq!(site.history().len(), 0);
    expect_untouched(&site);
}

/// 14: an empty secret would let everybody in.
#[test]
fn the_daemon_does_not_start_with_an_empty_secret() {
    for empty in ["", "  ", "\n"] {
        let site = Site::process().env("GITHUB_WEBHOOK_SECRET", empty);
        let ran = site.refit(&["serve"]).expect(78);
        assert!(ran.stderr.contains("GITHUB_WEBHOOK_SECRET") && ran.stderr.contains("empty"), "{ran:?}");
        assert!(TcpStream::connect(("127.0.0.1", site.http)).is_err(), "nobody listens");
    }
}

/// A figure of `/proc/PID/status`, in KiB.
fn memory(site: &Site, figure: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", site.daemon_pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(figure)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sockets that the daemon has open; what else it opens and when (the store's files) is its own affair.
fn open_sockets(site: &Site) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", site.daemon_pid())).unwrap().flatten();
    let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

fn connect(site: &Site) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", site.http)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Whether the peer has closed the connection; waits for that.
fn closes(stream: &mut TcpStream) -> bool {
    let mut waste = [0; 4096];
    loop {
        match stream.read(&mut waste) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn healthy(site: &Site) -> bool {
    http(site.http, "GET", "/_deploy/health", &[], b"").is_ok_and(|answer| answer.status == 200)
}

/// 18: with a tenth of the connections that the line names, and a limit below them.
#[test]
fn idle_and_slow_connections_are_bounded_closed_and_harm_nobody() {
    const MOST: usize = 100;
    let mut site = Site::process();
    site.edit_config("reconcile = \"0s\"", &format!("reconcile = \"0s\"\nmax_connections = {MOST}"));
    site.serve();
    let (sockets, before) = (open_sockets(&site), memory(&site, "VmRSS"));
    let mut streams: Vec<TcpStream> = (0..400).map(|_| connect(&site)).collect();
    // Headers that never end: one byte now, one a second from then on.
    let mut drips: Vec<TcpStream> = streams.iter().take(20).map(|s| s.try_clone().unwrap()).collect();
    let most = (0..50).map(|_| open_sockets(&site)).max().unwrap();
    assert!(most <= sockets + MOST + 5, "{most} sockets are open, {sockets} were before");
    let dripping = thread::spawn(move || {
        let _ = drips.iter_mut().map(|s| s.write_all(b"POST /hooks/github HTTP/1.1\r\nX-A: ")).count();
        let alive = poll(|| {
            thread::sleep(Duration::from_secs(1));
            let alive = drips.iter_mut().filter_map(|s| s.write_all(b"a").ok()).count();
            (alive == 0).then_some(())
        });
        alive.is_some()
    });
    assert!(streams.iter_mut().all(closes), "each is closed, those beyond the limit at once");
    assert!(dripping.join().unwrap(), "a header that never ends is cut off");
    poll(|| healthy(&site).then_some(())).expect("others are served");
    assert!(memory(&site, "VmHWM") < before + 64 * 1024, "{} KiB, {before} before", memory(&site, "VmHWM"));
    poll(|| (open_sockets(&site) <= sockets).then_some(())).expect("every connection was given back");
}

/// 18: more than GitHub ever sends, said and unsaid, and many just below the limit at once.
#[test]
fn bodies_are_bounded_each_and_together() {
    let mut site = Site::process();
    let commit = site.push("first");
    site.serve();
    let before = memory(&site, "VmRSS");
    let head = "POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let mut declared = connect(&site);
    declared.write_all(format!("{head}Content-Length: 27000000\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = declared.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");

    let mut endless = connect(&site);
    endless.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    let chunk = [b"10000\r\n", vec![b'x'; 0x10000].as_slice(), b"\r\n"].concat();
    let ended = poll(|| endless.write_all(&chunk).err());
    assert!(ended.is_some(), "a body without end is cut off");

    // 30 times 25 MB, each of them allowed by itself.
    let floods: Vec<_> = (0..30)
        .map(|_| {
            let mut stream = connect(&site);
            thread::spawn(move || {
                let head = format!("{head}Content-Length: 25000000\r\n\r\n");
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(&vec![b'['; 24_999_999]);
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer);
                answer.split(' ').nth(1).and_then(|s| s.parse::<u16>().ok())
            })
        })
        .collect();
    assert_eq!(site.webhook("d-1", &site.push_body("main", &commit)).status, 202, "an honest push is taken meanwhile");
    for flood in floods {
        let status = flood.join().unwrap();
        assert!(status.is_none_or(|s| [408, 413, 429, 503].contains(&s)), "{status:?}");
    }
    let peak = memory(&site, "VmHWM");
    assert!(peak < before + 300 * 1024, "750 MB were sent, and the daemon held {peak} KiB ({before} before)");
    assert_eq!(site.settled()["status"], "succeeded");
}

/// 22: the modes keep others out, and where somebody opens them the kernel's word does.
#[test]
fn the_daemons_socket_is_closed_to_other_users() {
    const NOBODY: u32 = 65534;
    let mut site = Site::process();
    site.serve();
    let state = site.path().join(".refit");
    let socket = state.join("refit.sock");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&socket)), (0o700, 0o600));
    assert_eq!(ask_as(0, &socket), "answer [HTTP/1.1 200]");
    assert_eq!(ask_as(NOBODY, &socket), "denied");
    for (path, open) in [(site.path(), 0o755), (&state, 0o755), (&socket, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(open)).unwrap();
    }
    assert_eq!(ask_as(NOBODY, &socket), "answer []");
    assert!(site.daemon_log().contains("user 65534"), "{}", site.daemon_log());
    assert_eq!(ask_as(0, &socket), "answer [HTTP/1.1 200]");
}

/// What a process of that user gets from a socket.
fn ask_as(user: u32, socket: &Path) -> String {
    const PROGRAM: &str = r#"
        use Socket;
        $SIG{PIPE} = 'IGNORE';
        socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die;
        if (!connect($s, pack_sockaddr_un($ARGV[0]))) { print $!{EACCES} ? "denied" : "other: $!"; exit }
        syswrite($s, "GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        sysread($s, my $answer, 12);
        print "answer [$answer]";
    "#;
    let id = user.to_string();
    let output = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "/usr/bin/perl", "-e", PROGRAM])
        .arg(socket)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A server that answers each connection with `answer`, or never.
fn remote(answer: Option<&'static str>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if let Some(answer) = answer {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer.as_bytes());
            } else {
                held.push(stream);
            }
        }
    });
    port
}

const LOGIN: &str = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// 30: each fails in time, says why, and leaves the live version alone.
#[test]
fn a_remote_that_is_down_hangs_or_asks_for_a_password_fails_in_time_and_says_why() {
    let site = Site::process().with("[pull]\nretries = 0\ntimeout = \"2s\"");
    site.push("good");
    site.deploy(0);
    let file = fs::read_to_string(site.config_file()).unwrap();
    let (refused, silent, login) = (free_port(), remote(None), remote(Some(LOGIN)));
    for (address, why) in [
        (format!("http://127.0.0.1:{refused}/acme/site.git"), "could not connect|refused|failed to connect"),
        (format!("git://127.0.0.1:{refused}/acme/site.git"), "refused|unable to connect|could not connect"),
        (format!("http://127.0.0.1:{silent}/acme/site.git"), "did not answer within 2s"),
        (format!("git://127.0.0.1:{silent}/acme/site.git"), "did not answer within 2s"),
        (format!("http://127.0.0.1:{login}/acme/site.git"), "login|password|credential"),
        (site.path().join("gone.git").display().to_string(), "no repository|does not exist|not there"),
    ] {
        fs::write(site.config_file(), file.replace("\"origin.git\"", &format!("\"{address}\""))).unwrap();
        let failed = site.deploy(69);
        let error = failed["error"].as_str().unwrap().to_lowercase();
        assert_eq!((&failed["status"], &failed["failed_stage"]), (&"failed".into(), &"pull".into()), "{failed:#}");
        assert!(why.split('|').any(|why| error.contains(why)), "{address}: {error}");
        site.expect_page("one");
    }
}

/// 30: a remote that hangs can be cancelled, and does not hold up another environment of the app for longer than its own limit.
#[test]
fn a_pull_that_hangs_can_be_cancelled() {
    let dev = format!("[environments.dev]\nbranch = \"main\"\nport = {}\n", free_port());
    let mut site = Site::process().with(&format!("[pull]\nretries = 0\ntimeout = \"10m\"\n{dev}"));
    site.push("first");
    let address = format!("http://127.0.0.1:{}/acme/site.git", remote(None));
    site.edit_config("\"origin.git\"", &format!("\"{address}\""));
    site.serve();
    for environment in ["production", "dev"] {
        site.refit(&["deploy", "--detach", "--env", environment]).expect(0);
    }
    let ids: Vec<i64> = site.history().iter().map(|d| d["id"].as_i64().unwrap()).collect();
    poll(|| site.history().iter().all(|d| d["stages"][0]["status"] == "running").then_some(())).expect("both pull");
    // The one that waits for the other's turn too.
    for id in ids {
        site.refit(&["cancel", &id.to_string()]).expect(0);
        poll(|| (site.show(id)["status"] == "cancelled").then_some(())).expect("it is cancelled");
    }
}

/// 13, 17 over the wire of the real daemon: another app's secret, and no header at all.
#[test]
fn a_signature_is_needed_and_only_the_apps_own_counts() {
    let mut site = Site::process();
    let commit = site.push("first");
    let other = site.path().join("other.toml");
    fs::write(
        &other,
        "[app]\nname = \"other\"\nrepository = \"origin.git\"\nfull_name = \"acme/other\"\n[webhooks.github]\n\
         secret = [{ env = \"OTHER_SECRET\" }]\n[environments.production]\nbranch = \"main\"\n[start]\nruntime = \"process\"\ncommand = \"true\"\n",
    )
    .unwrap();
    site = site.env("OTHER_SECRET", "the other app's secret");
    let file = fs::read_to_string(site.config_file()).unwrap();
    fs::write(site.config_file(), format!("include = [\"other.toml\"]\n{file}")).unwrap();
    site.serve();
    let body = site.push_body("main", &commit);
    assert_eq!(site.post("d-1", "push", &sign("the other app's secret", &body), &body).status, 401);
    let others = body.replace(&format!("acme/{}", site.app), "acme/other");
    assert_eq!(site.post("d-2", "push", &sign(WEBHOOK_SECRET, &others), &others).status, 401);
    let headers = [("content-type", "application/json"), ("x-github-event", "push"), ("x-github-delivery", "d-3")];
    assert_eq!(http(site.http, "POST", "/hooks/github", &headers, body.as_bytes()).unwrap().status, 401);
    assert_eq!(site.history().len(), 0);
    assert_eq!(site.webhook("d-1", &body).status, 202, "no delivery id was used up");
}
