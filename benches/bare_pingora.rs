//! pingora with nothing around it, as the floor for `benches/gate.sh`: one thread, one upstream, no routes, no counts, no switches.
//!
//!     bare-pingora LISTEN UPSTREAM
#![expect(clippy::unwrap_used, reason = "a bench that is called wrongly may panic")]

use async_trait::async_trait;
use pingora_core::{Result, server::Server, server::configuration::ServerConf, upstreams::peer::HttpPeer};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Bare(String);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0.as_str(), false, String::new())))
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (listen, upstream) = (args.next().unwrap(), args.next().unwrap());
    // It has to end when the bench does.
    let at_once = Some(0);
    let conf = ServerConf {
        threads: 1,
        grace_period_seconds: at_once,
        graceful_shutdown_timeout_seconds: at_once,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = http_proxy_service(&server.configuration, Bare(upstream));
    proxy.add_tcp(&listen);
    server.add_service(proxy);
    server.run_forever();
}
