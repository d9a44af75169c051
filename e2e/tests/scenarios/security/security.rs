//! What the accounts of agent and controller may do on a real API server, and what an agent's own token, taken from its pod,
//! cannot do. Each refusal by the admission policy is seen beside the same request being granted to the administrator.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{pod, sandbox_health};
use e2e::names::RELEASE_NAMESPACE;
use serde_json::{Value, json};

use super::Cluster;
use e2e::kube::{create, delete, unwatched_row_goes};

const AGENT: &str = "sandbox-health-agent";
const CONTROLLER: &str = "sandbox-health-controller";
/// A node that there is not.
const ELSEWHERE: &str = "elsewhere";

const VERBS: [&str; 10] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "impersonate",
    "bind",
];

/// Rows, and what a thief would rather have.
const RESOURCES: [&str; 25] = [
    "pods",
    "pods/ephemeralcontainers",
    "pods/eviction",
    "pods/exec",
    "pods/log",
    "pods/status",
    "secrets",
    "configmaps",
    "nodes",
    "nodes/proxy",
    "nodes/status",
    "events",
    "events.events.k8s.io",
    "namespaces",
    "serviceaccounts",
    "serviceaccounts/token",
    "daemonsets.apps",
    "leases.coordination.k8s.io",
    "sandboxhealths.sandboxhealth.dev",
    "sandboxhealths.sandboxhealth.dev/status",
    "customresourcedefinitions.apiextensions.k8s.io",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
];

/// Somebody who asks the API server for something.
struct Client<'a> {
    node: &'a Node,
    /// Options of kubectl that say who it is.
    identity: Vec<String>,
    kubeconfig: Option<&'static str>,
}

impl<'a> Client<'a> {
    fn administrator(node: &'a Node) -> Self {
        Self { node, identity: vec![], kubeconfig: None }
    }

    fn account(node: &'a Node, account: &str) -> Self {
        let user = format!("--as=system:serviceaccount:{RELEASE_NAMESPACE}:{account}");
        Self { node, identity: vec![user], kubeconfig: None }
    }

    fn is(&self, account: &str) -> bool {
        self.identity.iter().any(|option| option.ends_with(&format!(":{account}")))
    }

    /// Nobody but who the token says: the administrator's certificate is not at hand.
    fn bearer(node: &'a Node, token: &str) -> Self {
        let server = "--server=https://127.0.0.1:6443".to_owned();
        let identity = vec![server, "--insecure-skip-tls-verify".to_owned(), format!("--token={token}")];
        Self { node, identity, kubeconfig: Some("/dev/null") }
    }

    /// What kubectl says; it is handed the manifest.
    fn kubectl(&self, arguments: &[&str], manifest: &Value) -> Result<String> {
        let mut command = self.node.command("kubectl");
        command.args(&self.identity).args(arguments);
        if let Some(kubeconfig) = self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let mut kubectl =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let text = manifest.to_string();
        // One that reads no manifest may have ended.
        let _ = kubectl.stdin.take().context("no stdin")?.write_all(text.as_bytes());
        let ran = kubectl.wait_with_output()?;
        let (said, complained) = (String::from_utf8(ran.stdout)?, String::from_utf8_lossy(&ran.stderr));
        ensure!(ran.status.success(), "kubectl {arguments:?}: {complained}\n{text}");
        Ok(said)
    }

    fn create(&self, row: &Value) -> Result<String> {
        self.kubectl(&["create", "--validate=false", "-f", "-"], row)
    }

    /// As far as the API server can be asked without its doing it; admission is asked, too.
    fn could_create(&self, row: &Value) -> Result<String> {
        self.kubectl(&["create", "--validate=false", "--dry-run=server", "-f", "-"], row)
    }

    fn move_elsewhere(&self, row: &str) -> Result<String> {
        let moved = json!({"spec": {"nodeName": ELSEWHERE}}).to_string();
        self.kubectl(&["patch", "sandboxhealth", row, "--type=merge", "-p", &moved], &Value::Null)
    }

    /// What an agent does with a row: it applies its status.
    fn report(&self, part: &Value) -> Result<String> {
        let ours = ["--server-side", "--force-conflicts", "--field-manager=sandbox-agent"];
        let status = ["apply", "--subresource=status", "--validate=false", "-f", "-"];
        self.kubectl(&[&status[..], &ours[..]].concat(), part)
    }
}

/// The token in the agent's pod. It is the kubelet's, for this pod on this node.
fn token_of_the_agent(node: &Node) -> Result<String> {
    let selector = "app.kubernetes.io/component=agent";
    let path = "jsonpath={.items[*].metadata.uid}";
    let uid = node.kubectl(["-n", RELEASE_NAMESPACE, "get", "pods", "-l", selector, "-o", path])?;
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // A process may end while we look at it.
        let read = |file| fs::read_to_string(process.join(file)).unwrap_or_default();
        if read("comm").trim() == "sandbox-health" && read("cgroup").contains(&uid) {
            let token = "root/var/run/secrets/kubernetes.io/serviceaccount/token";
            return fs::read_to_string(process.join(token)).context("reading the agent's token");
        }
    }
    bail!("no process of the pod {uid} runs")
}

fn node_name(node: &Node) -> Result<String> {
    node.kubectl(["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])
}

fn row(pod: &str, uid: &str, node_name: &str) -> Value {
    json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1",
        "kind": "SandboxHealth",
        "metadata": {
            "name": pod,
            "namespace": "default",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}],
        },
        "spec": {"podName": pod, "podUID": uid, "nodeName": node_name},
    })
}

/// One without a pod, which nobody collects.
fn row_of_no_pod(name: &str, node_name: &str) -> Value {
    let mut row = row(name, "none", node_name);
    row["metadata"]["ownerReferences"] = json!([]);
    row
}

/// The row of this name, with nothing but such a status.
fn status(name: &str, status: &Value) -> Value {
    json!({
        "apiVersion": "sandboxhealth.dev/v1alpha1",
        "kind": "SandboxHealth",
        "metadata": {"name": name, "namespace": "default"},
        "status": status,
    })
}

fn restarts(node: &Node, name: &str) -> Result<Value> {
    Ok(sandbox_health(node, name)?["status"]["restarts"].clone())
}

fn refused(outcome: Result<String>, why: &str) -> Result<()> {
    match outcome {
        Ok(said) => bail!("it was not refused for {why:?}, but: {said}"),
        Err(error) => {
            let error = format!("{error:#}");
            ensure!(error.contains(why), "it was refused, and not for {why:?}: {error}");
            Ok(())
        }
    }
}

pub(super) fn each_account_has_its_rights(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let rows = "sandboxhealths.sandboxhealth.dev";
    let status = "sandboxhealths.sandboxhealth.dev/status";
    let agent: &[(&str, &[&str])] =
        &[("pods", &["list", "watch"]), (rows, &["get", "list", "create"]), (status, &["patch"])];
    // And its one Lease, which a question without a name does not find.
    let controller: &[(&str, &[&str])] = &[
        ("pods", &["get", "list", "watch"]),
        ("nodes", &["list", "watch"]),
        (rows, &["list", "watch", "create", "delete"]),
        (status, &["patch"]),
        ("events.events.k8s.io", &["list", "create"]),
    ];
    let thief = Client::bearer(node, &token_of_the_agent(node)?);
    for (client, expected) in [
        (thief, agent),
        (Client::account(node, AGENT), agent),
        (Client::account(node, CONTROLLER), controller),
    ] {
        let expected: BTreeSet<_> = expected
            .iter()
            .flat_map(|(resource, verbs)| verbs.iter().map(move |verb| format!("{verb} {resource}")))
            .collect();
        // In all namespaces at once, and in those where a Role could add to it. Events of nodes are in `default`.
        for namespace in ["", "default", "kube-system", RELEASE_NAMESPACE] {
            let found = rights(&client, namespace)?;
            ensure!(found == expected, "in the namespace {namespace:?}: {found:#?}");
        }
        for namespace in ["default", "kube-system", RELEASE_NAMESPACE] {
            // Beside what Kubernetes lets every account do.
            let everybody = rules(&Client::account(node, "nobody"), namespace)?;
            let mut expected: BTreeSet<_> = expected.union(&everybody).cloned().collect();
            if client.is(CONTROLLER) && namespace == RELEASE_NAMESPACE {
                let lease = |verb| format!("{verb} leases.coordination.k8s.io named {CONTROLLER}");
                expected.extend(["get", "update"].map(lease));
            }
            let found = rules(&client, namespace)?;
            ensure!(found == expected, "by the rules in the namespace {namespace}: {found:#?}");
        }
    }
    let administrator = rights(&Client::administrator(node), "")?;
    ensure!(administrator.len() == VERBS.len() * RESOURCES.len(), "what was asked makes no sense");
    Ok(())
}

/// All that the API server would let a client do in a namespace, whatever the verb and the resource.
fn rules(client: &Client<'_>, namespace: &str) -> Result<BTreeSet<String>> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    });
    let said = client.kubectl(&["create", "--validate=false", "-f", "-", "-o", "json"], &review)?;
    let status = serde_json::from_str::<Value>(&said)?["status"].take();
    ensure!(status["incomplete"] == false, "it does not know all: {status}");
    let words = |rule: &Value, field: &str| -> Vec<String> {
        let words = rule[field].as_array().into_iter().flatten();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let mut rules = BTreeSet::new();
    for rule in status["resourceRules"].as_array().context("no rules")? {
        let names = words(rule, "resourceNames").join(" ");
        let named = if names.is_empty() { names } else { format!(" named {names}") };
        for resource in words(rule, "resources") {
            let (resource, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
            for group in words(rule, "apiGroups") {
                let dot = if group.is_empty() { "" } else { "." };
                let slash = if subresource.is_empty() { "" } else { "/" };
                let what = format!("{resource}{dot}{group}{slash}{subresource}{named}");
                rules.extend(words(rule, "verbs").iter().map(|verb| format!("{verb} {what}")));
            }
        }
    }
    for rule in status["nonResourceRules"].as_array().context("no rules")? {
        for url in words(rule, "nonResourceURLs") {
            rules.extend(words(rule, "verbs").iter().map(|verb| format!("{verb} {url}")));
        }
    }
    Ok(rules)
}

/// What the API server would let a client do: each verb on each resource is asked for.
fn rights(client: &Client<'_>, namespace: &str) -> Result<BTreeSet<String>> {
    let mut reviews = Vec::new();
    for name in RESOURCES {
        let (of_group, subresource) = name.split_once('/').unwrap_or((name, ""));
        let (resource, group) = of_group.split_once('.').unwrap_or((of_group, ""));
        for verb in VERBS {
            let attributes = json!({
                "namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
            });
            reviews.push(json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }));
        }
    }
    let asked = reviews.len();
    let reviews = json!({"apiVersion": "v1", "kind": "List", "items": reviews});
    let line = "go-template={{with .spec.resourceAttributes}}{{.verb}} {{.resource}}{{with .group}}.{{.}}{{end}}\
                {{with .subresource}}/{{.}}{{end}}{{end}}={{.status.allowed}}{{\"\\n\"}}";
    let said = client.kubectl(&["create", "--validate=false", "-f", "-", "-o", line], &reviews)?;
    ensure!(said.lines().count() == asked, "{asked} questions, {} answers", said.lines().count());
    Ok(said.lines().filter_map(|line| line.strip_suffix("=true")).map(str::to_owned).collect())
}

/// Who may look at a namespace may look at its rows, and nothing else comes of it.
pub(super) fn who_has_view_in_a_namespace_reads_its_rows(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.kubectl(["create", "namespace", "shop"])?;
    let bind = ["create", "rolebinding", "looks", "--clusterrole=view", "--user=ann", "-n", "shop"];
    node.kubectl(bind)?;
    let ann = Client { node, identity: vec!["--as=ann".to_owned()], kubeconfig: None };
    let rows_of = |namespace| -> Result<BTreeSet<String>> {
        Ok(rights(&ann, namespace)?.into_iter().filter(|right| right.contains("sandboxhealth")).collect())
    };
    let expected = ["get", "list", "watch"].map(|verb| format!("{verb} sandboxhealths.sandboxhealth.dev"));
    // The control plane adds our role to `view` in its own time.
    retry::until("ann reads rows", TIMEOUT, || {
        let found = rows_of("shop")?;
        ensure!(found == expected.clone().into(), "{found:?}");
        Ok(())
    })?;
    ann.kubectl(&["get", "sandboxhealths", "-n", "shop"], &Value::Null)?;
    for elsewhere in ["", "default", RELEASE_NAMESPACE] {
        let found = rows_of(elsewhere)?;
        ensure!(found.is_empty(), "in the namespace {elsewhere:?}: {found:?}");
    }
    node.kubectl(["delete", "namespace", "shop"]).map(drop)
}

pub(super) fn a_stolen_token_does_nothing_else(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let thief = Client::bearer(node, &token_of_the_agent(node)?);
    let listed = thief.kubectl(&["get", "pods", "-A", "-o", "name"], &Value::Null)?;
    ensure!(listed.contains(AGENT), "it cannot even do what it may: {listed}");
    let name = create(node, &pod("guarded", &[]))?;
    retry::until("it has a row", TIMEOUT, || sandbox_health(node, &name))?;
    let exec = format!("/api/v1/namespaces/default/pods/{name}/exec?container=shell&command=id&stdout=true");
    for (arguments, right) in [
        (vec!["get", "pod", &name], r#"cannot get resource "pods""#),
        (vec!["create", "--raw", &exec, "-f", "-"], r#"cannot create resource "pods/exec""#),
        (vec!["get", "secrets", "-A"], r#"cannot list resource "secrets""#),
        (
            vec!["create", "token", CONTROLLER, "-n", RELEASE_NAMESPACE],
            r#"cannot create resource "serviceaccounts/token""#,
        ),
        (vec!["delete", "sandboxhealth", &name], r#"cannot delete resource "sandboxhealths""#),
        (
            vec!["delete", "--raw", "/apis/sandboxhealth.dev/v1alpha1/namespaces/default/sandboxhealths"],
            r#"cannot deletecollection resource "sandboxhealths""#,
        ),
    ] {
        refused(thief.kubectl(&arguments, &Value::Null), right)?;
    }
    refused(thief.move_elsewhere(&name), r#"cannot patch resource "sandboxhealths""#)?;
    delete(node, &name)
}

pub(super) fn a_stolen_token_writes_rows_of_its_node_alone(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let administrator = Client::administrator(node);
    let thief = Client::bearer(node, &token_of_the_agent(node)?);
    administrator.create(&row_of_no_pod("another", ELSEWHERE))?;
    let outcome = another_node_s_row(node, &thief).and_then(|()| own_rows(node, &thief));
    node.kubectl(["delete", "sandboxhealth", "another"])?;
    outcome
}

fn another_node_s_row(node: &Node, thief: &Client<'_>) -> Result<()> {
    let report = status("another", &json!({"restarts": 3}));
    retry::until("the policy is in force", TIMEOUT, || {
        refused(
            thief.report(&report),
            "denied request: the SandboxHealth is of elsewhere, and the token is of",
        )
    })?;
    let policy = node.get(&["validatingadmissionpolicy", AGENT])?;
    ensure!(policy["status"]["typeChecking"]["expressionWarnings"].is_null(), "{}", policy["status"]);
    Client::administrator(node).report(&report)?;
    ensure!(restarts(node, "another")? == 3, "nobody can write it, so the refusal proved nothing");
    // To claim it for the own node is no way to it: what is not status is no part of such a request.
    let mut claimed = status("another", &json!({"restarts": 4}));
    claimed["spec"] = json!({"nodeName": node_name(node)?});
    refused(thief.report(&claimed), "denied request: the SandboxHealth is of elsewhere")?;
    ensure!(restarts(node, "another")? == 3, "it was written");
    Ok(())
}

fn own_rows(node: &Node, thief: &Client<'_>) -> Result<()> {
    // Without a shared PID namespace the controller makes it no row, so that an agent may.
    let mut unshared = pod("unshared", &[]);
    unshared["spec"]["shareProcessNamespace"] = json!(false);
    let name = create(node, &unshared)?;
    let uid = node.kubectl(["get", "pod", &name, "-o", "jsonpath={.metadata.uid}"])?;
    let proper = row(&name, &uid, &node_name(node)?);
    for (flaw, complaint) in flaws() {
        let mut row = proper.clone();
        flaw(&mut row);
        refused(thief.create(&row), &format!("denied request: {complaint}"))?;
        Client::administrator(node).could_create(&row).context("the refusal proved nothing")?;
    }
    let unbound = node.kubectl(["create", "token", AGENT, "-n", RELEASE_NAMESPACE])?;
    let unbound = Client::bearer(node, unbound.trim());
    refused(unbound.create(&proper), "denied request: the token names no node")?;
    // Nobody watches the pod, so that the controller may delete its row meanwhile.
    retry::until("an agent makes a row of its own node and writes it", TIMEOUT, || {
        node.kubectl(["delete", "sandboxhealth", &name, "--ignore-not-found"])?;
        thief.create(&proper).context("a row of its own node")?;
        its_own_row(node, thief, &unbound, &name)
    })?;
    unwatched_row_goes(node, &name)?;
    delete(node, &name)
}

fn its_own_row(node: &Node, thief: &Client<'_>, unbound: &Client<'_>, name: &str) -> Result<()> {
    let report = status(name, &json!({"restarts": 3}));
    refused(unbound.report(&report), "denied request: the token names no node")?;
    thief.report(&report).context("the status of its own node's row")?;
    ensure!(restarts(node, name)? == 3, "nobody can write it");
    let condition = json!({
        "type": "Healthy", "status": "True", "reason": "Forged", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    for judgement in [json!({"conditions": [condition]}), json!({"announcedRestarts": 3})] {
        let forged = status(name, &judgement);
        let complaint = "denied request: status.conditions and status.announcedRestarts are the controller's";
        refused(thief.report(&forged), complaint)?;
        Client::administrator(node).report(&forged).context("the refusal proved nothing")?;
    }
    Ok(())
}

type Flaw = (fn(&mut Value), &'static str);

/// What makes a row one that an agent does not create, and what is said of it.
fn flaws() -> [Flaw; 9] {
    let owner = "metadata.ownerReferences is not the pod of spec, and that alone";
    let metadata = "an agent sets no finalizers, labels or annotations";
    [
        (|row| row["spec"]["nodeName"] = ELSEWHERE.into(), "spec.nodeName is elsewhere, and the token is of"),
        (|row| row["metadata"]["name"] = "renamed".into(), "metadata.name is not spec.podName"),
        (|row| row["metadata"]["ownerReferences"] = json!([]), owner),
        (|row| row["metadata"]["ownerReferences"][0]["kind"] = "ConfigMap".into(), owner),
        (|row| row["metadata"]["ownerReferences"][0]["uid"] = "another".into(), owner),
        (
            |row| {
                let second = json!({"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"});
                row["metadata"]["ownerReferences"].as_array_mut().into_iter().for_each(|owners| {
                    owners.push(second.clone());
                });
            },
            owner,
        ),
        (|row| row["metadata"]["finalizers"] = json!(["example.dev/stay"]), metadata),
        (|row| row["metadata"]["labels"] = json!({"app": "web"}), metadata),
        (|row| row["metadata"]["annotations"] = json!({"note": "web"}), metadata),
    ]
}

pub(super) fn with_every_right_to_rows_a_token_still_reaches_its_node_alone(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let thief = Client::bearer(node, &token_of_the_agent(node)?);
    let (role, account) = ("every-right-to-rows", format!("{RELEASE_NAMESPACE}:{AGENT}"));
    let resources = "--resource=sandboxhealths.sandboxhealth.dev,sandboxhealths.sandboxhealth.dev/status";
    node.kubectl(["create", "clusterrole", role, "--verb=*", resources])?;
    node.kubectl([
        "create",
        "clusterrolebinding",
        role,
        "--clusterrole",
        role,
        "--serviceaccount",
        &account,
    ])?;
    let outcome = with_every_right(node, &thief);
    node.kubectl(["delete", "clusterrole,clusterrolebinding", role])?;
    node.kubectl(["delete", "sandboxhealths", "another", "own", "--ignore-not-found"])?;
    outcome
}

fn with_every_right(node: &Node, thief: &Client<'_>) -> Result<()> {
    let administrator = Client::administrator(node);
    administrator.create(&row_of_no_pod("another", ELSEWHERE))?;
    administrator.create(&row_of_no_pod("own", &node_name(node)?))?;
    let delete = |name| ["delete", "sandboxhealth", name];
    retry::until("it has every right", TIMEOUT, || {
        refused(
            thief.kubectl(&delete("another"), &Value::Null),
            "denied request: the SandboxHealth is of elsewhere",
        )
    })?;
    let label = ["label", "sandboxhealth", "another", "app=web"];
    refused(thief.kubectl(&label, &Value::Null), "denied request: the SandboxHealth is of elsewhere")?;
    // Whoever says so: the policy, or the resource, whose spec may be for good.
    refused(thief.move_elsewhere("own"), "is invalid")?;
    let own = sandbox_health(node, "own")?;
    ensure!(own["spec"]["nodeName"] == *node_name(node)?, "it was moved: {own}");
    thief
        .kubectl(&delete("own"), &Value::Null)
        .context("it has not every right, so the refusals proved nothing")?;
    administrator.kubectl(&delete("another"), &Value::Null).map(drop)
}

pub(super) fn a_token_ends_with_its_pod(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let thief = Client::bearer(node, &token_of_the_agent(node)?);
    let list = ["get", "sandboxhealths", "-A", "-o", "name"];
    thief.kubectl(&list, &Value::Null)?;
    let selector = "app.kubernetes.io/component=agent";
    node.kubectl(["-n", RELEASE_NAMESPACE, "delete", "pods", "-l", selector, "--wait"])?;
    // The API server remembers for some seconds that a token was good.
    retry::until("the token is refused", TIMEOUT, || {
        refused(thief.kubectl(&list, &Value::Null), "Unauthorized")
    })?;
    let daemonset = format!("daemonset/{AGENT}");
    node.kubectl(["-n", RELEASE_NAMESPACE, "rollout", "status", &daemonset, "--timeout=120s"]).map(drop)
}
