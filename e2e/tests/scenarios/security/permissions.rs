//! Permissions of the accounts of agent and controller on a real API server, and the limits of an agent's token that was stolen from its
//! pod. For each request that the admission policy denies, the same request of an administrator is allowed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::cluster::Node;
use e2e::host::retry::{self, TIMEOUT};
use e2e::kube::{
    apply_status, as_account, create, delete, pod, sandbox_health, wait_for_health,
    wait_until_object_deleted, with_values,
};
use e2e::names::{CONTROLLER, RELEASE_NAMESPACE};
use serde_json::{Value, json};

use super::{Cluster, Scenario};

pub(super) const SCENARIOS: [Scenario; 8] = [
    ("accounts_have_documented_permissions_only", accounts_have_documented_permissions_only),
    ("pause_installer_has_documented_permissions_only", pause_installer_has_documented_permissions_only),
    ("namespace_viewer_reads_objects_of_namespace", namespace_viewer_reads_objects_of_namespace),
    ("stolen_token_has_no_other_permission", stolen_token_has_no_other_permission),
    ("stolen_token_writes_objects_of_its_node_only", stolen_token_writes_objects_of_its_node_only),
    ("policy_limits_token_with_all_permissions", policy_limits_token_with_all_permissions),
    ("token_is_invalid_after_its_pod", token_is_invalid_after_its_pod),
    ("status_of_another_pod_uid_is_rejected", status_of_another_pod_uid_is_rejected),
];

const AGENT: &str = "sandbox-health-agent";
const INSTALLER: &str = "sandbox-health-pause-installer";
/// The name of no node.
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

/// SandboxHealth objects, and what an attacker would prefer.
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

/// A client of the API server.
struct Client<'a> {
    node: &'a Node,
    /// Options of kubectl that identify it.
    identity: Vec<String>,
    kubeconfig: Option<&'static str>,
}

impl<'a> Client<'a> {
    fn administrator(node: &'a Node) -> Self {
        Self { node, identity: vec![], kubeconfig: None }
    }

    fn account(node: &'a Node, account: &str) -> Self {
        Self { node, identity: vec![as_account(account)], kubeconfig: None }
    }

    fn is(&self, account: &str) -> bool {
        self.identity.iter().any(|option| option.ends_with(&format!(":{account}")))
    }

    /// Identified by the token only: without the administrator's certificate.
    fn bearer(node: &'a Node, token: &str) -> Self {
        let server = "--server=https://127.0.0.1:6443".to_owned();
        let identity = vec![server, "--insecure-skip-tls-verify".to_owned(), format!("--token={token}")];
        Self { node, identity, kubeconfig: Some("/dev/null") }
    }

    /// The output of kubectl, which reads the manifest from stdin.
    fn kubectl(&self, arguments: &[&str], manifest: &Value) -> Result<String> {
        let mut command = self.node.command("kubectl");
        command.args(&self.identity).args(arguments);
        if let Some(kubeconfig) = self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let mut kubectl =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let text = manifest.to_string();
        // A command that reads no manifest may have ended.
        let _ = kubectl.stdin.take().context("no stdin")?.write_all(text.as_bytes());
        let ran = kubectl.wait_with_output()?;
        let (output, errors) = (String::from_utf8(ran.stdout)?, String::from_utf8_lossy(&ran.stderr));
        ensure!(ran.status.success(), "kubectl {arguments:?}: {errors}\n{text}");
        Ok(output)
    }

    fn create(&self, object: &Value) -> Result<String> {
        self.kubectl(&["create", "--validate=false", "-f", "-"], object)
    }

    /// A dry run on the API server, including admission.
    fn could_create(&self, object: &Value) -> Result<String> {
        self.kubectl(&["create", "--validate=false", "--dry-run=server", "-f", "-"], object)
    }

    /// By an apply: `kubectl patch` reads the object first.
    fn move_elsewhere(&self, name: &str) -> Result<String> {
        let moved = json!({
            "apiVersion": "sandboxhealth.dev/v1alpha1", "kind": "SandboxHealth", "metadata": {"name": name},
            "spec": {"nodeName": ELSEWHERE},
        });
        let apply = ["apply", "--server-side", "--force-conflicts", "--validate=false", "-f", "-"];
        self.kubectl(&apply, &moved)
    }

    /// Applies the status of an object, as an agent does.
    fn report(&self, part: &Value) -> Result<String> {
        let apply = ["--server-side", "--force-conflicts", "--field-manager=sandbox-agent"];
        let status = ["apply", "--subresource=status", "--validate=false", "-f", "-"];
        self.kubectl(&[&status[..], &apply[..]].concat(), part)
    }
}

/// The token in the agent's pod, issued by the kubelet for this pod on this node.
fn token_of_the_agent(node: &Node) -> Result<String> {
    let selector = "app.kubernetes.io/component=agent";
    let path = "jsonpath={.items[*].metadata.uid}";
    let uid = node.kubectl(["-n", RELEASE_NAMESPACE, "get", "pods", "-l", selector, "-o", path])?;
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // A process may end meanwhile.
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

fn object(pod: &str, uid: &str, node_name: &str) -> Value {
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

/// An object without a pod, which is not garbage-collected.
fn object_without_pod(name: &str, node_name: &str) -> Value {
    let mut object = object(name, "none", node_name);
    object["metadata"]["ownerReferences"] = json!([]);
    object
}

/// The object of this name with this status only.
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
        Ok(output) => bail!("it was not refused for {why:?}, but: {output}"),
        Err(error) => {
            let error = format!("{error:#}");
            ensure!(error.contains(why), "it was refused, and not for {why:?}: {error}");
            Ok(())
        }
    }
}

fn accounts_have_documented_permissions_only(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let objects = "sandboxhealths.sandboxhealth.dev";
    let status = "sandboxhealths.sandboxhealth.dev/status";
    let agent: &[(&str, &[&str])] =
        &[("pods", &["list", "watch"]), (objects, &["list", "watch", "create"]), (status, &["patch"])];
    // Its Lease and the agents' DaemonSet are missing: a review without a name does not find them.
    let controller: &[(&str, &[&str])] = &[
        ("pods", &["get", "list", "watch"]),
        ("nodes", &["list", "watch"]),
        (objects, &["list", "watch", "create", "delete"]),
        (status, &["patch"]),
        ("events.events.k8s.io", &["create", "list"]),
    ];
    let attacker = Client::bearer(node, &token_of_the_agent(node)?);
    for (client, expected) in [
        (attacker, agent),
        (Client::account(node, AGENT), agent),
        (Client::account(node, CONTROLLER), controller),
    ] {
        let expected: BTreeSet<_> = expected
            .iter()
            .flat_map(|(resource, verbs)| verbs.iter().map(move |verb| format!("{verb} {resource}")))
            .collect();
        // In all namespaces at once, and in those where a Role could add to it.
        for namespace in ["", "default", "kube-system", RELEASE_NAMESPACE] {
            let mut expected = expected.clone();
            if client.is(CONTROLLER) && namespace == RELEASE_NAMESPACE {
                expected.insert("create leases.coordination.k8s.io".to_owned());
            }
            let found = permissions(&client, namespace)?;
            ensure!(found == expected, "in the namespace {namespace:?}: {found:#?}");
        }
        for namespace in ["default", "kube-system", RELEASE_NAMESPACE] {
            let default = default_rules(node, namespace)?;
            let mut expected: BTreeSet<_> = expected.union(&default).cloned().collect();
            if client.is(CONTROLLER) && namespace == RELEASE_NAMESPACE {
                let lease = |verb| format!("{verb} leases.coordination.k8s.io named {CONTROLLER}");
                expected.extend(["get", "update"].map(lease));
                expected.insert("create leases.coordination.k8s.io".to_owned());
                let daemon_set = |verb| format!("{verb} daemonsets.apps named {AGENT}");
                expected.extend(["list", "watch"].map(daemon_set));
            }
            let found = rules(&client, namespace)?;
            ensure!(found == expected, "by the rules in the namespace {namespace}: {found:#?}");
        }
    }
    let administrator = permissions(&Client::administrator(node), "")?;
    ensure!(administrator.len() == VERBS.len() * RESOURCES.len(), "the reviews are wrong");
    Ok(())
}

/// The controller gets the permissions of the roll-out in addition, in the release's namespace.
fn pause_installer_has_documented_permissions_only(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    with_values(node, "pauseInstaller.enabled=true", || {
        let leases = "leases.coordination.k8s.io";
        let names: Vec<_> = (0..20).map(|number| format!("{INSTALLER}-{number}")).collect();
        let of_installer = format!("{leases} named {}", names.join(" "));
        let client = Client::account(node, INSTALLER);
        for namespace in ["", "default", "kube-system", RELEASE_NAMESPACE] {
            let mut expected = BTreeSet::from(["get nodes".to_owned()]);
            if namespace == RELEASE_NAMESPACE {
                expected.extend(["create", "get"].map(|verb| format!("{verb} {leases}")));
            }
            let found = permissions(&client, namespace)?;
            ensure!(found == expected, "in the namespace {namespace:?}: {found:#?}");
        }
        let default = default_rules(node, RELEASE_NAMESPACE)?;
        let own: BTreeSet<_> = rules(&client, RELEASE_NAMESPACE)?.difference(&default).cloned().collect();
        let expected = BTreeSet::from([
            "get nodes".to_owned(),
            format!("create {leases}"),
            format!("get {leases}"),
            format!("update {of_installer}"),
            format!("get daemonsets.apps named {INSTALLER}"),
        ]);
        ensure!(own == expected, "{own:#?}");
        let controller = rules(&Client::account(node, CONTROLLER), RELEASE_NAMESPACE)?;
        for gained in [
            "delete pods",
            &format!("list {leases}"),
            &format!("watch {leases}"),
            &format!("update {of_installer}"),
        ] {
            ensure!(controller.contains(gained), "the controller lacks {gained}: {controller:#?}");
        }
        let elsewhere = rules(&Client::account(node, CONTROLLER), "default")?;
        ensure!(!elsewhere.contains("delete pods"), "{elsewhere:#?}");
        Ok(())
    })
}

/// What Kubernetes allows every account, also one that does not exist.
fn default_rules(node: &Node, namespace: &str) -> Result<BTreeSet<String>> {
    rules(&Client::account(node, "absent"), namespace)
}

/// All permissions of a client in a namespace, by SelfSubjectRulesReview.
fn rules(client: &Client<'_>, namespace: &str) -> Result<BTreeSet<String>> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    });
    let output = client.kubectl(&["create", "--validate=false", "-f", "-", "-o", "json"], &review)?;
    let status = serde_json::from_str::<Value>(&output)?["status"].take();
    ensure!(status["incomplete"] == false, "it is incomplete: {status}");
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

/// Permissions of a client, by a SelfSubjectAccessReview for each verb on each resource.
fn permissions(client: &Client<'_>, namespace: &str) -> Result<BTreeSet<String>> {
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
    let count = reviews.len();
    let reviews = json!({"apiVersion": "v1", "kind": "List", "items": reviews});
    let line = "go-template={{with .spec.resourceAttributes}}{{.verb}} {{.resource}}{{with .group}}.{{.}}{{end}}\
                {{with .subresource}}/{{.}}{{end}}{{end}}={{.status.allowed}}{{\"\\n\"}}";
    let output = client.kubectl(&["create", "--validate=false", "-f", "-", "-o", line], &reviews)?;
    ensure!(output.lines().count() == count, "{count} reviews, {} answers", output.lines().count());
    Ok(output.lines().filter_map(|line| line.strip_suffix("=true")).map(str::to_owned).collect())
}

/// A user with the ClusterRole `view` in a namespace can read the objects there, and nowhere else.
fn namespace_viewer_reads_objects_of_namespace(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    node.kubectl(["create", "namespace", "shop"])?;
    let bind = ["create", "rolebinding", "looks", "--clusterrole=view", "--user=ann", "-n", "shop"];
    node.kubectl(bind)?;
    let ann = Client { node, identity: vec!["--as=ann".to_owned()], kubeconfig: None };
    let objects_in = |namespace| -> Result<BTreeSet<String>> {
        Ok(permissions(&ann, namespace)?
            .into_iter()
            .filter(|right| right.contains("sandboxhealth"))
            .collect())
    };
    let expected = ["get", "list", "watch"].map(|verb| format!("{verb} sandboxhealths.sandboxhealth.dev"));
    // The control plane aggregates our role into `view` after some time.
    retry::until("ann can read objects", TIMEOUT, || {
        let found = objects_in("shop")?;
        ensure!(found == expected.clone().into(), "{found:?}");
        Ok(())
    })?;
    ann.kubectl(&["get", "sandboxhealths", "-n", "shop"], &Value::Null)?;
    for elsewhere in ["", "default", RELEASE_NAMESPACE] {
        let found = objects_in(elsewhere)?;
        ensure!(found.is_empty(), "in the namespace {elsewhere:?}: {found:?}");
    }
    node.kubectl(["delete", "namespace", "shop"]).map(drop)
}

fn stolen_token_has_no_other_permission(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let attacker = Client::bearer(node, &token_of_the_agent(node)?);
    let listed = attacker.kubectl(&["get", "pods", "-A", "-o", "name"], &Value::Null)?;
    ensure!(listed.contains(AGENT), "it lacks its own permissions: {listed}");
    let name = create(node, &pod("guarded", &[]))?;
    retry::until("it has an object", TIMEOUT, || sandbox_health(node, &name))?;
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
        refused(attacker.kubectl(&arguments, &Value::Null), right)?;
    }
    refused(attacker.move_elsewhere(&name), r#"cannot patch resource "sandboxhealths""#)?;
    delete(node, &name)
}

fn stolen_token_writes_objects_of_its_node_only(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let administrator = Client::administrator(node);
    let attacker = Client::bearer(node, &token_of_the_agent(node)?);
    administrator.create(&object_without_pod("another", ELSEWHERE))?;
    let outcome =
        objects_of_another_node(node, &attacker).and_then(|()| objects_of_own_node(node, &attacker));
    // The controller deletes an object without a pod, in half a minute or more.
    node.kubectl(["delete", "sandboxhealth", "another", "--ignore-not-found"])?;
    outcome
}

fn objects_of_another_node(node: &Node, attacker: &Client<'_>) -> Result<()> {
    let report = status("another", &json!({"restarts": 3}));
    retry::until("the policy is in force", TIMEOUT, || {
        refused(
            attacker.report(&report),
            "denied request: the SandboxHealth belongs to node elsewhere, and the token to node",
        )
    })?;
    let policy = node.get(&["validatingadmissionpolicy", AGENT])?;
    ensure!(policy["status"]["typeChecking"]["expressionWarnings"].is_null(), "{}", policy["status"]);
    // An administrator must not write it either, but the controller may.
    refused(Client::administrator(node).report(&report), "only the agents and the controller")?;
    Client::account(node, CONTROLLER).report(&report)?;
    ensure!(
        restarts(node, "another")? == 3,
        "the controller cannot write it either, so the refusal proved nothing"
    );
    // Claiming it for the own node does not help: spec is ignored in a request for the status.
    let mut claimed = status("another", &json!({"restarts": 4}));
    claimed["spec"] = json!({"nodeName": node_name(node)?});
    refused(attacker.report(&claimed), "denied request: the SandboxHealth belongs to node elsewhere")?;
    ensure!(restarts(node, "another")? == 3, "it was written");
    Ok(())
}

fn objects_of_own_node(node: &Node, attacker: &Client<'_>) -> Result<()> {
    // Without a shared PID namespace the controller creates no object, so that an agent may.
    let mut unshared = pod("unshared", &[]);
    unshared["spec"]["shareProcessNamespace"] = json!(false);
    let name = create(node, &unshared)?;
    let uid = node.kubectl(["get", "pod", &name, "-o", "jsonpath={.metadata.uid}"])?;
    let proper = object(&name, &uid, &node_name(node)?);
    for (flaw, complaint) in flaws() {
        let mut flawed = proper.clone();
        flaw(&mut flawed);
        refused(attacker.create(&flawed), &format!("denied request: {complaint}"))?;
        Client::administrator(node).could_create(&flawed).context("the refusal proved nothing")?;
    }
    let unbound = node.kubectl(["create", "token", AGENT, "-n", RELEASE_NAMESPACE])?;
    let unbound = Client::bearer(node, unbound.trim());
    refused(unbound.create(&proper), "denied request: the token has no node")?;
    // The pod is not watched, so the controller may delete its object meanwhile.
    retry::until("an agent creates an object of its own node and writes it", TIMEOUT, || {
        node.kubectl(["delete", "sandboxhealth", &name, "--ignore-not-found"])?;
        attacker.create(&proper).context("an object of its own node")?;
        report_for_own_node(node, attacker, &unbound, &name)
    })?;
    wait_until_object_deleted(node, &name)?;
    delete(node, &name)
}

fn report_for_own_node(node: &Node, attacker: &Client<'_>, unbound: &Client<'_>, name: &str) -> Result<()> {
    let report = status(name, &json!({"restarts": 3}));
    refused(unbound.report(&report), "denied request: the token has no node")?;
    attacker.report(&report).context("the status of an object of its own node")?;
    ensure!(restarts(node, name)? == 3, "it was not written");
    let condition = json!({
        "type": "Healthy", "status": "True", "reason": "Forged", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let forged = status(name, &json!({"conditions": [condition]}));
    refused(attacker.report(&forged), "denied request: status.conditions belongs to the controller")?;
    Client::account(node, CONTROLLER).report(&forged).context("the refusal proved nothing")?;
    Ok(())
}

type Flaw = (fn(&mut Value), &'static str);

/// Flaws for which the policy denies an object, and its messages.
fn flaws() -> [Flaw; 9] {
    let owner = "metadata.ownerReferences is not the pod of spec only";
    let metadata = "an agent sets no finalizers, labels or annotations";
    [
        (
            |object| object["spec"]["nodeName"] = ELSEWHERE.into(),
            "spec.nodeName is elsewhere, and the token belongs to node",
        ),
        (|object| object["metadata"]["name"] = "renamed".into(), "metadata.name is not spec.podName"),
        (|object| object["metadata"]["ownerReferences"] = json!([]), owner),
        (|object| object["metadata"]["ownerReferences"][0]["kind"] = "ConfigMap".into(), owner),
        (|object| object["metadata"]["ownerReferences"][0]["uid"] = "another".into(), owner),
        (
            |object| {
                let second = json!({"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"});
                object["metadata"]["ownerReferences"].as_array_mut().into_iter().for_each(|owners| {
                    owners.push(second.clone());
                });
            },
            owner,
        ),
        (|object| object["metadata"]["finalizers"] = json!(["example.dev/stay"]), metadata),
        (|object| object["metadata"]["labels"] = json!({"app": "web"}), metadata),
        (|object| object["metadata"]["annotations"] = json!({"note": "web"}), metadata),
    ]
}

fn policy_limits_token_with_all_permissions(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let attacker = Client::bearer(node, &token_of_the_agent(node)?);
    let (role, account) = ("all-permissions", format!("{RELEASE_NAMESPACE}:{AGENT}"));
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
    let outcome = with_all_permissions(node, &attacker);
    node.kubectl(["delete", "clusterrole,clusterrolebinding", role])?;
    node.kubectl(["delete", "sandboxhealths", "another", "own", "--ignore-not-found"])?;
    outcome
}

fn with_all_permissions(node: &Node, attacker: &Client<'_>) -> Result<()> {
    let administrator = Client::administrator(node);
    administrator.create(&object_without_pod("another", ELSEWHERE))?;
    administrator.create(&object_without_pod("own", &node_name(node)?))?;
    let delete = |name| ["delete", "sandboxhealth", name];
    retry::until("it has all permissions", TIMEOUT, || {
        refused(
            attacker.kubectl(&delete("another"), &Value::Null),
            "denied request: the SandboxHealth belongs to node elsewhere",
        )
    })?;
    let label = ["label", "sandboxhealth", "another", "app=web"];
    refused(
        attacker.kubectl(&label, &Value::Null),
        "denied request: the SandboxHealth belongs to node elsewhere",
    )?;
    // By the policy or by the schema, if spec is immutable.
    refused(attacker.move_elsewhere("own"), "is invalid")?;
    let own = sandbox_health(node, "own")?;
    ensure!(own["spec"]["nodeName"] == *node_name(node)?, "it was moved: {own}");
    attacker
        .kubectl(&delete("own"), &Value::Null)
        .context("it lacks permissions, so the refusals proved nothing")?;
    administrator.kubectl(&delete("another"), &Value::Null).map(drop)
}

fn token_is_invalid_after_its_pod(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let attacker = Client::bearer(node, &token_of_the_agent(node)?);
    let list = ["get", "sandboxhealths", "-A", "-o", "name"];
    attacker.kubectl(&list, &Value::Null)?;
    let selector = "app.kubernetes.io/component=agent";
    node.kubectl(["-n", RELEASE_NAMESPACE, "delete", "pods", "-l", selector, "--wait"])?;
    // The API server caches for some seconds that a token is valid.
    retry::until("the token is refused", TIMEOUT, || {
        refused(attacker.kubectl(&list, &Value::Null), "Unauthorized")
    })?;
    let daemonset = format!("daemonset/{AGENT}");
    node.kubectl(["-n", RELEASE_NAMESPACE, "rollout", "status", &daemonset, "--timeout=120s"]).map(drop)
}

/// A report about an earlier pod of the name may arrive late. The API server ignores `metadata.uid` in a request for the status.
fn status_of_another_pod_uid_is_rejected(cluster: &Cluster) -> Result<()> {
    let node = &cluster.node;
    let pod = create(node, &pod("one-of-two", &[]))?;
    let before = wait_for_health(node, &pod, "True", "SandboxHealthy")?;
    let own = before["spec"]["podUID"].as_str().context("no podUID")?;
    ensure!(before["status"]["podUID"] == own, "{before}");
    let late = |pod_uid: &str, restarts: i64| {
        let late = status(&pod, &json!({"podUID": pod_uid, "restarts": restarts}));
        apply_status(node, "late", &late)
    };
    refused(late("11111111-2222-4333-8444-555555555555", 1), "status belongs to another pod")?;
    ensure!(sandbox_health(node, &pod)?["status"] == before["status"], "it was written all the same");
    late(own, 0)?;
    delete(node, &pod)
}
