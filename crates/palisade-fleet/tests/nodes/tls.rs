//! A Redis that is reached by TLS.

use crate::{node::Node, status};
use palisade_core::Gauge;
use palisade_fleet::{Fleet, FleetBuilder, OnFailure};
use palisade_rate_limit::Quota;
use palisade_testkit::{
    clients::wait_until,
    redis::{RedisServer, free_port},
};
use std::sync::Arc;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};

fn node(builder: FleetBuilder) -> Node {
    Node::start(builder, 1, Quota::per_minute(10), OnFailure::Deny)
}

fn trusting(certificates: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    let config = ClientConfig::builder().with_root_certificates(roots);
    Arc::new(config.with_no_client_auth())
}

#[tokio::test]
async fn a_node_counts_over_tls_and_refuses_a_certificate_that_it_does_not_know() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = std::env::temp_dir().join(format!("palisade-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let port = free_port();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let options = [
        "--bind",
        "127.0.0.1",
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &cert,
        "--tls-auth-clients",
        "no",
    ];
    let Some(redis) = RedisServer::start_with(&options).await else {
        return;
    };
    let url = format!("rediss://localhost:{port}");
    let known = trusting(&[made.cert.der().clone()]);
    let first = node(Fleet::redis_over_tls(&url, known.clone()).unwrap());
    let has_answered = || first.gauge(Gauge::FleetRoundTrip) > 0;
    wait_until("it has answered", has_answered).await;
    assert_eq!(status(&first.layer, 1).await, 200);
    first.fleet.shutdown().await;
    assert!(redis.command(&["KEYS", "*"]).await.starts_with("*1\r\n"));
    // Of another authority, or for another host.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ip = format!("rediss://127.0.0.1:{port}");
    for (url, config) in [(&url, trusting(&[other.cert.der().clone()])), (&ip, known)] {
        let node = node(Fleet::redis_over_tls(url, config).unwrap());
        // Each that is admitted is another call, and each call fails.
        let mut client = 0;
        while !node.is_alone() {
            let _ = status(&node.layer, client).await;
            client = client.wrapping_add(1);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(node.texts().contains("certificate"), "{}", node.texts());
        assert_eq!(status(&node.layer, 1).await, 503);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn an_address_without_tls_is_none_with_tls_and_the_reverse() {
    let config = trusting(&[]);
    for url in ["redis://localhost", "localhost", "rediss+unix:///path"] {
        let error = Fleet::redis_over_tls(url, Arc::clone(&config)).unwrap_err();
        assert_eq!(error.faults()[0].field, "redis_over_tls", "{url}");
    }
    let error = Fleet::redis("rediss://user:password@localhost").unwrap_err();
    assert!(error.to_string().contains("redis_over_tls"), "{error}");
    assert!(!error.to_string().contains("password@localhost"), "{error}");
}
