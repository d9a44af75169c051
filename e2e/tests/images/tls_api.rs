//! An API server over TLS with one pod and its SandboxHealth object, which serves only what an agent requests. It has its own CA, so a
//! client that connects trusts its kubeconfig and no CA of the machine.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

pub(crate) const NODE: &str = "node";
pub(crate) const POD_UID: &str = "0f3e1c52-5b0e-4c64-a0d1-8a3f6f0c9b11";
const TOKEN: &str = "token-of-the-agent";

/// It serves until the process of the tests exits.
pub(crate) struct TlsApi {
    address: SocketAddr,
    ca: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<String>>,
    status: Mutex<Value>,
}

/// A CA, and a certificate for 127.0.0.1 that it has signed.
struct Identity {
    ca: String,
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Identity {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate()?;
        let ca = params.self_signed(&ca_key)?.pem();
        let key = KeyPair::generate()?;
        let names = vec!["127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &Issuer::new(params, ca_key))?;
        Ok(Self { ca, certificate, key })
    }
}

impl TlsApi {
    pub(crate) fn start() -> Result<Self> {
        let identity = Identity::new()?;
        let key = PrivateKeyDer::try_from(identity.key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate.der().clone()], key)?;
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let served = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, state) = (config.clone(), served.clone());
                // A client that does not trust the certificate ends its connection.
                thread::spawn(move || drop(serve(stream, config, &state)));
            }
        });
        Ok(Self { address, ca: identity.ca, state })
    }

    /// Writes a kubeconfig for this server.
    pub(crate) fn write_kubeconfig(&self, directory: &Path) -> Result<PathBuf> {
        self.write_kubeconfig_with_ca(directory, &self.ca)
    }

    /// The same with a CA that has not signed the server's certificate.
    pub(crate) fn write_kubeconfig_with_other_ca(&self, directory: &Path) -> Result<PathBuf> {
        self.write_kubeconfig_with_ca(directory, &Identity::new()?.ca)
    }

    fn write_kubeconfig_with_ca(&self, directory: &Path, ca: &str) -> Result<PathBuf> {
        let (file, ca_file) = (directory.join("kubeconfig"), directory.join("ca.crt"));
        fs::write(&ca_file, ca)?;
        let server = format!("https://{}", self.address);
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": ca_file}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&file, kubeconfig.to_string())?;
        Ok(file)
    }

    /// Methods and paths of all requests with the token.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last status that the agent wrote.
    pub(crate) fn status(&self) -> Value {
        self.state.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

type Tls = BufReader<StreamOwned<ServerConnection, TcpStream>>;

/// The requests of one connection.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, state: &State) -> Result<()> {
    let mut tls = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    loop {
        let mut head = vec![];
        loop {
            let mut line = String::new();
            if tls.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let header = |name: &str| {
            let fields = head.iter().filter_map(|line| line.split_once(": "));
            fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
        };
        let mut body = vec![0; header("content-length").map_or(Ok(0), str::parse)?];
        tls.read_exact(&mut body)?;
        if header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            respond(&mut tls, "401 Unauthorized", &json!({}))?;
            continue;
        }
        let line = head.first().context("no request line")?;
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let call = format!("{method} {path}");
        state.requests.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        if path.contains("watch=true") {
            // The watch stays open without events.
            write!(tls.get_mut(), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            tls.read_to_end(&mut vec![])?;
            return Ok(());
        }
        if method == "PATCH" {
            let body: Value = serde_json::from_slice(&body)?;
            *state.status.lock().unwrap_or_else(PoisonError::into_inner) = body["status"].clone();
            respond(&mut tls, "200 OK", &object(&body["status"]))?;
        } else if path.starts_with("/api/v1/pods?") {
            respond(&mut tls, "200 OK", &list("v1", "PodList", &pod()))?;
        } else if path.starts_with("/apis/sandboxhealth.dev/v1alpha1/sandboxhealths?") {
            let object = object(&state.status.lock().unwrap_or_else(PoisonError::into_inner));
            respond(&mut tls, "200 OK", &list("sandboxhealth.dev/v1alpha1", "SandboxHealthList", &object))?;
        } else {
            respond(&mut tls, "404 Not Found", &json!({}))?;
        }
    }
}

fn respond(tls: &mut Tls, status: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    write!(tls.get_mut(), "{head}\r\n\r\n{body}")?;
    Ok(tls.get_mut().flush()?)
}

fn list(version: &str, kind: &str, item: &Value) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": [item]})
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": POD_UID, "resourceVersion": "1"},
        "spec": {"shareProcessNamespace": true, "nodeName": NODE, "containers": [{"name": "web"}]},
        "status": {"phase": "Running"},
    })
}

fn object(status: &Value) -> Value {
    json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth",
        "metadata": {"name": "web", "namespace": "shop", "uid": "o-1", "resourceVersion": "1"},
        "spec": {"podName": "web", "podUID": POD_UID, "nodeName": NODE},
        "status": status,
    })
}
