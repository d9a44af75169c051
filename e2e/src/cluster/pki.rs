//! The cluster's certificates, created for each node: a CA, a certificate for each component, and their kubeconfigs. They are X.509 v3,
//! because rustls refuses older versions. Keys stay in the state directory and are removed with it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::network::{ADDRESS, API_SERVICE_ADDRESS, VM_NODES};
use super::plan::Layout;

/// A client or server, and the user in its certificate.
struct Identity<'a> {
    file: &'a str,
    common_name: &'a str,
    organization: Option<&'a str>,
    /// Names and addresses it serves under.
    serves: &'a [&'a str],
}

/// Writes everything into the state directory's `pki`.
pub(super) fn write(layout: &Layout) -> Result<()> {
    fs::create_dir_all(layout.state.join("pki"))?;
    let ca = authority(layout)?;
    let node_user = format!("system:node:{}", layout.name);
    let api_names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "127.0.0.1",
        API_SERVICE_ADDRESS,
        ADDRESS,
    ];
    let client = |file, common_name| Identity { file, common_name, organization: None, serves: &[] };
    let masters =
        |file, common_name| Identity { organization: Some("system:masters"), ..client(file, common_name) };
    let clients = [
        masters("admin", "admin"),
        client("controller-manager", "system:kube-controller-manager"),
        client("scheduler", "system:kube-scheduler"),
        client("proxy", "system:kube-proxy"),
        Identity {
            organization: Some("system:nodes"),
            // The kubelet serves exec and logs under the same certificate.
            serves: &[&layout.name, ADDRESS, "127.0.0.1"],
            ..client("kubelet", &node_user)
        },
    ];
    for identity in &clients {
        issue(layout, &ca, identity)?;
        write_kubeconfig(layout, identity.file)?;
    }
    for vm in VM_NODES {
        let (file, user) = (format!("kubelet-{}", vm.name), format!("system:node:{}", vm.name));
        let serves = [vm.name, vm.address];
        let organization = Some("system:nodes");
        issue(layout, &ca, &Identity { file: &file, common_name: &user, organization, serves: &serves })?;
    }
    issue(layout, &ca, &masters("apiserver-kubelet-client", "kube-apiserver-kubelet-client"))?;
    issue(layout, &ca, &Identity { serves: &api_names, ..client("apiserver", "kube-apiserver") })?;

    let service_accounts = KeyPair::generate()?;
    put(&layout.pki("service-accounts.key"), &service_accounts.serialize_pem())?;
    put(&layout.pki("service-accounts.pub"), &service_accounts.public_key_pem())
}

fn authority(layout: &Layout) -> Result<Issuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "e2e-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    put(&layout.pki("ca.crt"), &params.self_signed(&key)?.pem())?;
    Ok(Issuer::new(params, key))
}

fn issue(layout: &Layout, ca: &Issuer<'static, KeyPair>, identity: &Identity<'_>) -> Result<()> {
    let names: Vec<_> = identity.serves.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    // Replaces rcgen's default common name.
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, identity.common_name);
    if let Some(organization) = identity.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, ca)?;
    put(&layout.pki(&format!("{}.crt", identity.file)), &certificate.pem())?;
    put(&layout.pki(&format!("{}.key", identity.file)), &key.serialize_pem())
}

fn write_kubeconfig(layout: &Layout, user: &str) -> Result<()> {
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {
            "server": "https://127.0.0.1:6443",
            "certificate-authority": layout.pki("ca.crt"),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": layout.pki(&format!("{user}.crt")),
            "client-key": layout.pki(&format!("{user}.key")),
        }}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": user}}],
        "current-context": "e2e",
    });
    put(&layout.kubeconfig(user), &serde_json::to_string_pretty(&config)?)
}

/// Only root can enter the state directory, so its files need no restrictive mode.
fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
