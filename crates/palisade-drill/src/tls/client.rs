//! The client side of TLS, by rustls.

use crate::attacks::Protocol;
use std::{error::Error, fmt, io, net::SocketAddr, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector, client,
    rustls::{
        self, AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct,
        SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::ring,
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

/// The names of the protocols in ALPN (RFC 9113 section 3.1, RFC 7301 section 6).
const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// The TLS of a target: the host that each handshake asks for, and the settings of the clients.
#[derive(Clone)]
pub(crate) struct Tls {
    name: ServerName<'static>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

/// A connection in TLS.
pub(crate) type TlsStream = Box<client::TlsStream<TcpStream>>;

/// Returns whether TLS can ask for the host `name`.
pub(crate) fn is_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

/// Returns the socket of `stream`.
pub(crate) fn socket(stream: &TlsStream) -> &TcpStream {
    stream.get_ref().0
}

/// Returns what to do about a server that ends a connection, if TLS tells why.
pub(crate) fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::AlertReceived(alert)) = error.downcast_ref() {
            return Some(match alert {
                AlertDescription::UnrecognisedName => {
                    "set the name of a host that it serves with `tls`"
                }
                AlertDescription::CertificateRequired | AlertDescription::BadCertificate => {
                    "let it serve clients without a certificate"
                }
                AlertDescription::NoApplicationProtocol => {
                    "let it serve HTTP/1.1 by ALPN, which the honest requests are"
                }
                AlertDescription::ProtocolVersion => "let it speak TLS 1.2 or 1.3",
                _ => "its log tells why",
            });
        }
        // An I/O error's source is that of the error within.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

// === Tls ===

impl Tls {
    /// Creates the TLS of a target that is asked for the host `name`: a DNS name, or an address,
    /// which is not sent (RFC 6066 section 3).
    ///
    /// # Errors
    ///
    /// If `name` is neither.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let config = |protocol: &[u8]| {
            let provider = Arc::new(ring::default_provider());
            let schemes = provider.signature_verification_algorithms;
            let verifier = Unverified(schemes.supported_schemes());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_no_client_auth();
            config.resumption = Resumption::disabled();
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok::<_, io::Error>(Arc::new(config))
        };
        Ok(Self {
            name,
            http1: config(ALPN_HTTP1)?,
            http2: config(ALPN_HTTP2)?,
        })
    }

    /// Returns the value of `Host` in the requests to `addr`. A server may compare it with the name
    /// in the handshake (RFC 9110 section 15.5.20).
    pub(crate) fn host(&self, addr: SocketAddr) -> String {
        match &self.name {
            ServerName::DnsName(name) => format!("{}:{}", name.as_ref(), addr.port()),
            _ => addr.to_string(),
        }
    }

    /// Makes a handshake on `socket` that offers `protocol`.
    ///
    /// # Errors
    ///
    /// If it fails. A server that does not choose HTTP/2 does not speak it; one that chooses
    /// nothing speaks HTTP/1.
    pub(crate) async fn connect(
        &self,
        socket: TcpStream,
        protocol: Protocol,
    ) -> io::Result<TlsStream> {
        let config = match protocol {
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
        };
        let connector = TlsConnector::from(config.clone());
        let stream = connector.connect(self.name.clone(), socket).await?;
        let chosen = stream.get_ref().1.alpn_protocol();
        if protocol == Protocol::Http2 && chosen != Some(ALPN_HTTP2) {
            let error = "the server does not choose HTTP/2";
            return Err(io::Error::new(io::ErrorKind::Unsupported, error));
        }
        Ok(Box::new(stream))
    }

    /// Returns one side of a connection that offers HTTP/1.1, for a client that sends its flights
    /// itself.
    ///
    /// # Errors
    ///
    /// If rustls has no handshake for these settings.
    pub(crate) fn session(&self) -> Result<ClientConnection, rustls::Error> {
        ClientConnection::new(self.http1.clone(), self.name.clone())
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, .. } = self;
        f.debug_struct("Tls")
            .field("name", name)
            .finish_non_exhaustive()
    }
}

// === Unverified ===

/// Takes every certificate and every signature, of these schemes.
#[derive(Debug)]
struct Unverified(Vec<SignatureScheme>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
