use super::*;
use crate::attacks::Protocol;
use std::{error::Error, io, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, AlertDescription, ServerConfig, ServerConnection, crypto::ring,
        pki_types::PrivateKeyDer,
    },
    server,
};

/// Returns a server of `names` in TLS, with a certificate of its own that chooses from `protocols`.
pub(crate) fn config(names: &[&str], protocols: &[&str]) -> Arc<ServerConfig> {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let certificate = made.cert.der().clone();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().into())
        .collect();
    Arc::new(config)
}

/// Accepts connections of a server of `localhost` that chooses from `protocols`, and does `each`
/// with every one.
pub(crate) async fn serve<Fut>(
    listener: TcpListener,
    protocols: &[&str],
    each: impl Fn(server::TlsStream<TcpStream>) -> Fut + Clone + Send + 'static,
) where
    Fut: Future<Output = ()> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(config(&["localhost"], protocols));
    while let Ok((socket, _)) = listener.accept().await {
        let (acceptor, each) = (acceptor.clone(), each.clone());
        tokio::spawn(async move {
            if let Ok(stream) = acceptor.accept(socket).await {
                each(stream).await;
            }
        });
    }
}

/// Returns the server's side of a connection.
pub(crate) fn session() -> ServerConnection {
    ServerConnection::new(config(&["localhost"], &["h2", "http/1.1"])).unwrap()
}

/// Makes a handshake with a server that chooses from `protocols`. Returns the client's end, and the
/// name that the server was asked for.
async fn handshake(
    name: &str,
    protocol: Protocol,
    protocols: &[&str],
) -> (io::Result<TlsStream>, Option<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    // The certificate is of another host.
    let acceptor = TlsAcceptor::from(config(&["another.test"], protocols));
    let server = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(socket).await.ok()?;
        let asked = stream.get_ref().1.server_name().map(str::to_owned);
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.ok()?;
        stream.write_all(&bytes).await.ok()?;
        asked
    });
    let tls = Tls::new(name).unwrap();
    let stream = match tls.connect(socket, protocol).await {
        Ok(mut stream) => {
            stream.write_all(b"hello").await.unwrap();
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"hello");
            Ok(stream)
        }
        failed => failed,
    };
    (stream, server.await.unwrap())
}

#[tokio::test]
async fn a_certificate_of_another_host_is_taken_and_the_name_is_asked_for() {
    let (stream, asked) = handshake("here.test", Protocol::Http1, &["http/1.1"]).await;
    assert_eq!(
        stream.unwrap().get_ref().1.alpn_protocol(),
        Some(&b"http/1.1"[..])
    );
    assert_eq!(asked.as_deref(), Some("here.test"));
    let (stream, asked) = handshake("127.0.0.1", Protocol::Http1, &[]).await;
    assert!(stream.is_ok() && asked.is_none());
}

#[tokio::test]
async fn http2_is_spoken_only_if_the_server_chooses_it() {
    let (stream, _) = handshake("localhost", Protocol::Http2, &["http/1.1", "h2"]).await;
    assert_eq!(
        stream.unwrap().get_ref().1.alpn_protocol(),
        Some(&b"h2"[..])
    );
    // A server without ALPN.
    let (stream, _) = handshake("localhost", Protocol::Http2, &[]).await;
    assert!(
        stream
            .unwrap_err()
            .to_string()
            .contains("does not choose HTTP/2")
    );
    let (stream, _) = handshake("localhost", Protocol::Http1, &["h2"]).await;
    assert!(
        hint(&stream.unwrap_err())
            .unwrap()
            .contains("HTTP/1.1 by ALPN")
    );
}

#[test]
fn the_host_of_requests_is_that_of_the_handshake() {
    let host = |name| Tls::new(name).unwrap().host(([127, 0, 0, 1], 8443).into());
    assert_eq!(host("here.test"), "here.test:8443");
    assert_eq!(host("192.0.2.1"), "127.0.0.1:8443");
    assert!(!is_name("no name") && is_name("here.test") && is_name("::1"));
    assert!(Tls::new("no name").is_err());
}

#[test]
fn an_alert_is_found_within_other_errors() {
    let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
    let error = io::Error::other(io::Error::other(alert));
    let found = hint(&error as &(dyn Error + 'static));
    assert_eq!(found, Some("let it serve clients without a certificate"));
    assert_eq!(hint(&io::Error::other("another")), None);
}
