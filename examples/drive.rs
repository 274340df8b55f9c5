use std::sync::Arc;
use futures_util::StreamExt;
use refit::{config, control::*, model::*};
#[tokio::main]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().init();
    let file = std::path::absolute(std::env::args().nth(1).unwrap()).unwrap();
    let config = match config::load(&file, &|n| std::env::var(n).ok()) { Ok(c)=>c, Err(e)=>{ println!("{}", e.render(true)); return } };
    let control = Control::start_in_place(Arc::new(config), Options{docker_host: None, program: std::env::current_exe().unwrap()}).await.unwrap();
    let id = control.deploy(DeployRequest{app:None, environment:None, reference: std::env::args().nth(2), trigger: Trigger{kind:TriggerKind::Cli, by:None, delivery:None, forced:false}, no_wait:false}).await.unwrap();
    let mut s = control.follow(id, 0);
    while let Some(u) = s.next().await { match u.unwrap() { Update::Event(r) => println!("{} {}", r.at, serde_json::to_string(&r.event).unwrap()), Update::End{deployment} => println!("{}", serde_json::to_string_pretty(&deployment).unwrap()) } }
    control.shutdown(std::time::Duration::from_secs(5)).await;
}
