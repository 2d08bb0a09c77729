//! HTTPS with HTTP/1.1 and HTTP/2 by ALPN. The certificate and the key are read from two PEM files;
//! without files, a self-signed certificate is generated.
//!
//! ```text
//! cargo run --example tls -- [CERTIFICATE.pem KEY.pem]
//! curl --insecure https://127.0.0.1:3000/
//! ```

use axum::{Router, extract::ConnectInfo, routing::get};
use palisade::{
    conn::ConnGuard,
    serve::rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use std::{env, error::Error, net::SocketAddr, sync::Arc};

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<_> = env::args_os().skip(1).collect();
    let (chain, key) = match &files[..] {
        [certificate, key] => {
            let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
            (chain, PrivateKeyDer::from_pem_file(key)?)
        }
        [] => self_signed()?,
        _ => return Err("expected two files or none".into()),
    };
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;

    let hello = async |ConnectInfo(peer): ConnectInfo<SocketAddr>| format!("hello, {peer}\n");
    let app = Router::new().route("/", get(hello));
    let listener = ConnGuard::default().bind("127.0.0.1:3000").await?;
    Ok(palisade::serve(listener, app).tls(Arc::new(config)).await?)
}

/// Generates a certificate for `localhost` that no client trusts.
fn self_signed() -> Result<Identity, Box<dyn Error>> {
    let generated = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    Ok((
        vec![generated.cert.der().clone()],
        PrivateKeyDer::try_from(generated.signing_key.serialize_der())?,
    ))
}
