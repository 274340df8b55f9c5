//! The grammar of `refit gate`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use crate::{
    cli::args::FormatArgs,
    gate::{Network, wire::Protocol},
};

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true, args_conflicts_with_subcommands = false)]
pub struct GateArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(subcommand)]
    pub command: Option<GateCommand>,
}

/// Which gate is meant.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The gate's own directory; by default `gate` in the state directory of the configuration
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Its control socket; by default `gate.sock` in that directory
    #[arg(long, global = true, value_name = "FILE")]
    pub socket: Option<PathBuf>,
}

/// How the gate runs.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Replace the gate that runs there: it hands over its sockets and finishes what it has begun
    #[arg(long)]
    pub take_over: bool,
    /// Set by the daemon for the gate that it starts, and replaces when refit was updated
    #[arg(long, hide = true)]
    pub by_daemon: bool,
    /// Believe the X-Forwarded headers of this address or network (such as 10.0.0.0/8) too; this machine's are always believed
    #[arg(long, value_name = "NETWORK")]
    pub trust: Vec<Network>,
    /// Client connections at once
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u64).range(16..=1_000_000))]
    pub max_connections: u64,
    /// How long a gate that was replaced may finish its connections
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub linger: Duration,
    /// How long requests may go on after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub grace: Duration,
    /// Worker threads; by default one for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub enum GateCommand {
    /// Show the routes, what is live in each, and what was counted
    ///
    /// Needs a running gate; changes nothing.
    #[command(
        after_help = "Example:\n  refit gate status\n  refit gate status --format json | jq '.routes[].live.counters'"
    )]
    Status {
        /// Only this route
        name: Option<String>,
        #[command(flatten)]
        format: FormatArgs,
    },

    /// Make a route, or change it
    ///
    /// A route is a public address, with a host name or a path prefix where several apps share it. Changing a route does not touch what is live in it,
    /// unless --to names another side.
    #[command(
        after_help = "Example:\n  refit gate route shop/production --listen 0.0.0.0:8000 --to 42=127.0.0.1:49152\n  refit gate route \
                      shop/api --listen 0.0.0.0:8000 --host api.shop.example --prefix /v1"
    )]
    Route {
        /// <app>/<environment>
        name: String,
        /// The public address
        #[arg(long, value_name = "ADDRESS")]
        listen: SocketAddr,
        /// Only requests for this host name
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        /// Only paths below this one
        #[arg(long, value_name = "PATH", default_value = "/")]
        prefix: String,
        /// What the app speaks
        #[arg(long, value_enum, default_value_t = Speaks::Http1)]
        speaks: Speaks,
        /// The side that is live, as ID=ADDRESS
        #[arg(long, value_name = "ID=ADDRESS", value_parser = side)]
        to: Option<crate::gate::wire::Side>,
        /// The largest request body in bytes
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        max_body: u64,
        /// How long a request is held back while the app does not accept connections
        #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
        connect_within: Duration,
        /// The app's silence after which a request fails; 0s: none
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
        app_silence: Duration,
        /// The client's silence after which a request fails; 0s: none
        #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
        client_silence: Duration,
    },

    /// Send new requests to another side
    ///
    /// Returns when every new request goes there. Requests that are under way end where they began; `refit gate drain` waits for them.
    #[command(
        after_help = "Example:\n  refit gate switch shop/production 43=127.0.0.1:49160\n  refit gate switch shop/production \
                      43=127.0.0.1:49160 --expect 42 && refit gate drain shop/production 42"
    )]
    Switch {
        /// The route
        name: String,
        /// The side, as ID=ADDRESS
        #[arg(value_name = "ID=ADDRESS", value_parser = side)]
        to: crate::gate::wire::Side,
        /// Only if this side is live now
        #[arg(long, value_name = "ID")]
        expect: Option<String>,
    },

    /// Let new requests wait, while the app is restarted
    ///
    /// They wait in order and go on with `resume`. Beyond a bound the oldest are answered with 503 and Retry-After.
    #[command(
        after_help = "Example:\n  refit gate pause shop/production --at-most 1m\n  refit gate resume shop/production"
    )]
    Pause {
        /// The route
        name: String,
        /// Requests that may wait
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        max_requests: u32,
        /// Bytes that they may keep in memory
        #[arg(long, value_name = "BYTES", default_value_t = 33_554_432)]
        max_bytes: u64,
        /// How long one may wait
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
        max_wait: Duration,
        /// After this the gate resumes by itself
        #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
        at_most: Duration,
    },

    /// Let the requests that wait go on
    #[command(after_help = "Example:\n  refit gate resume shop/production")]
    Resume {
        /// The route
        name: String,
    },

    /// Wait until a side has nothing in flight
    ///
    /// Exits with 75 if something is left when the time is over.
    #[command(
        after_help = "Example:\n  refit gate drain shop/production 42\n  refit gate drain shop/production 42 --within 2m --websockets 10m"
    )]
    Drain {
        /// The route
        name: String,
        /// The side's id
        side: String,
        /// For requests; by default 30 seconds from the switch
        #[arg(long, value_name = "TIME", value_parser = duration)]
        within: Option<Duration>,
        /// For WebSockets; by default a minute from the switch
        #[arg(long, value_name = "TIME", value_parser = duration)]
        websockets: Option<Duration>,
    },

    /// Answer everything with a maintenance page, or stop doing that
    #[command(
        after_help = "Example:\n  refit gate maintenance shop/production on --message \"back at 14:00\"\n  refit gate maintenance \
                      shop/production off"
    )]
    Maintenance {
        /// The route
        name: String,
        /// Begin or end
        #[arg(value_enum)]
        state: OnOff,
        /// A sentence for the page
        #[arg(long, value_name = "TEXT")]
        message: Option<String>,
        /// When clients may ask again
        #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
        retry_after: Duration,
    },

    /// Forget a route; its public address is closed if no other route uses it
    #[command(after_help = "Example:\n  refit gate remove shop/staging")]
    Remove {
        /// The route
        name: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Speaks {
    /// HTTP/1.1 and WebSockets
    Http1,
    /// HTTP/2 without TLS, such as gRPC
    H2c,
}

impl From<Speaks> for Protocol {
    fn from(speaks: Speaks) -> Self {
        match speaks {
            Speaks::Http1 => Self::Http1,
            Speaks::H2c => Self::H2c,
        }
    }
}

fn side(text: &str) -> Result<crate::gate::wire::Side, String> {
    let wrong = || "write ID=ADDRESS, such as 43=127.0.0.1:49160".to_owned();
    let (id, upstream) = text.split_once('=').ok_or_else(wrong)?;
    Ok(crate::gate::wire::Side { id: id.to_owned(), upstream: upstream.parse().map_err(|_| wrong())? })
}

/// `500ms`, `30s`, `2m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a time such as 500ms, 30s, 2m or 1h".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(ms).filter(|ms| *ms <= 7 * 24 * 3_600_000).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sides_read_as_written() {
        for (text, ms) in [("0s", 0), ("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        for wrong in ["", "5", "s", "-1s", "1d", "99999999999999999999s", "999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(side("43=127.0.0.1:9").unwrap().id, "43");
        assert!(side("43").is_err() && side("43=shop:80").is_err());
    }
}
