//! The permissions of the accounts of agent and controller.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::helm::{FULLNAME, Helm, NAMESPACE, RELEASE, chart};
use crate::rendered::{args, list, pod};

/// The token of the installer: its Lease, and the objects that decide whether it switches or restores its node.
pub(super) fn pause_installer_has_exactly_these_rights(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&["pauseInstaller.enabled=true"])?;
    let installer = format!("{FULLNAME}-pause-installer");
    // Those of a higher concurrency before, too.
    let leases: Vec<_> = (0..20).map(|number| format!("{installer}-{number}")).collect();
    let lease = |verbs: Value| json!({ "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs });
    let mut own_leases = lease(json!(["update"]));
    own_leases["resourceNames"] = json!(leases);
    let daemon_set = |verbs: Value| json!({ "apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": [installer], "verbs": verbs });
    let nodes = json!([{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get"] }]);
    let pods = |verbs: Value| json!({ "apiGroups": [""], "resources": ["pods"], "verbs": verbs });
    for (kind, name, rules) in [
        (
            "Role",
            "pause-installer",
            json!([lease(json!(["create", "get"])), own_leases.clone(), daemon_set(json!(["get"]))]),
        ),
        ("ClusterRole", "pause-installer", nodes),
        ("Role", "pause-uninstall", json!([daemon_set(json!(["get", "delete"])), pods(json!(["list"]))])),
    ] {
        let role = rendered.get(kind, &format!("{FULLNAME}-{name}"))?;
        ensure!(role["rules"] == rules, "{kind} {name}: {:#}", role["rules"]);
    }
    // Additional rules of the controller.
    let gained = [lease(json!(["list", "watch"])), own_leases, pods(json!(["delete"]))];
    let controller = rendered.get("Role", &format!("{FULLNAME}-controller"))?;
    let without = helm.render(&[])?;
    let before = without.get("Role", &format!("{FULLNAME}-controller"))?;
    let expected: Vec<_> = list(&before["rules"]).iter().chain(&gained).cloned().collect();
    ensure!(controller["rules"] == json!(expected), "{:#}", controller["rules"]);
    Ok(())
}

pub(super) fn rbac_grants_exactly_these_verbs(helm: &Helm) -> Result<()> {
    let read = json!(["get", "list", "watch"]);
    let pods = |verbs: Value| json!({ "apiGroups": [""], "resources": ["pods"], "verbs": verbs });
    let objects = |verbs: Value| json!({ "apiGroups": ["sandboxhealth.dev"], "resources": ["sandboxhealths"], "verbs": verbs });
    let status = json!({ "apiGroups": ["sandboxhealth.dev"], "resources": ["sandboxhealths/status"], "verbs": ["patch"] });
    let events =
        json!({ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "list"] });
    let create_lease =
        json!({ "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"] });
    let lease = json!({
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": [format!("{FULLNAME}-controller")],
        "verbs": ["get", "update"],
    });
    let daemon_set = |verbs: Value| {
        json!({
            "apiGroups": ["apps"],
            "resources": ["daemonsets"],
            "resourceNames": [format!("{FULLNAME}-agent")],
            "verbs": verbs,
        })
    };
    let mut own_object = objects(json!(["get"]));
    own_object["resourceNames"] = json!([format!("{FULLNAME}-test")]);
    let nodes = json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"] });
    let all_objects = objects(json!(["list", "watch", "create", "delete"]));
    let expected = [
        (
            "ClusterRole",
            "agent",
            json!([pods(json!(["list", "watch"])), objects(json!(["list", "watch", "create"])), status]),
        ),
        ("ClusterRole", "controller", json!([pods(read.clone()), nodes, all_objects, status, events])),
        ("ClusterRole", "view", json!([objects(read.clone())])),
        ("Role", "controller", json!([create_lease, lease, daemon_set(json!(["list", "watch"]))])),
        ("Role", "test", json!([daemon_set(json!(["get"])), own_object])),
    ];
    let rendered = helm.render(&[])?;
    for (kind, name, rules) in &expected {
        let role = rendered.get(kind, &format!("{FULLNAME}-{name}"))?;
        ensure!(&role["rules"] == rules, "{kind} {name}: {:#}", role["rules"]);
        let aggregated = &role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"];
        ensure!((aggregated == "true") == (*name == "view"), "{kind} {name}: aggregated {aggregated}");
    }
    let roles = rendered.of_kind("ClusterRole").count() + rendered.of_kind("Role").count();
    ensure!(roles == expected.len(), "{roles} roles");
    let without = helm.render(&["rbac.aggregateToView=false"])?;
    ensure!(without.get("ClusterRole", &format!("{FULLNAME}-view")).is_err(), "the view role is rendered");
    Ok(())
}

/// The rows about permissions in the tables of the docs: a resource, and the verbs of the agent and of the controller. The text after a
/// colon in a cell is about the admission policy.
pub(super) fn docs_have_rights_of_rbac(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let mut rights = BTreeMap::<String, [String; 2]>::new();
    for kind in ["ClusterRole", "Role"] {
        for (column, component) in ["agent", "controller"].into_iter().enumerate() {
            let role = rendered.get(kind, &format!("{FULLNAME}-{component}"));
            for rule in role.map_or(&[][..], |role| list(&role["rules"])) {
                let words = |key| list(&rule[key]).iter().filter_map(Value::as_str).collect::<Vec<_>>();
                for resource in words("resources") {
                    let resource = match resource {
                        "leases" if rule["resourceNames"].is_array() => {
                            "one Lease, by name, in its namespace".to_owned()
                        }
                        "leases" => "Leases in its namespace".to_owned(),
                        "daemonsets" => "the agents' DaemonSet, by name".to_owned(),
                        "events" => format!("`events.{}`", words("apiGroups").concat()),
                        _ => format!("`{resource}`"),
                    };
                    rights.entry(resource).or_default()[column] = words("verbs").join(", ");
                }
            }
        }
    }
    ensure!(rights.len() == 8, "{rights:#?}");
    for page in ["README.md", "../../docs/reference/security.md"] {
        let text = fs::read_to_string(chart().join(page)).with_context(|| page.to_owned())?;
        let table = text.lines().skip_while(|line| !line.starts_with("| | agent"));
        let lines = table.map_while(|line| line.strip_prefix("| ")?.strip_suffix('|'));
        let cell =
            |text: &str| text.split(':').next().unwrap_or_default().replace("nothing", "").trim().to_owned();
        let documented: BTreeMap<_, _> = lines
            .filter(|line| line.starts_with('`') || line.contains("Lease") || line.contains("DaemonSet"))
            .filter_map(|line| <[_; 3]>::try_from(line.split('|').map(cell).collect::<Vec<_>>()).ok())
            .map(|[resource, agent, controller]| (resource, [agent, controller]))
            .collect();
        ensure!(documented == rights, "{page} has {documented:#?}, and RBAC grants {rights:#?}");
    }
    Ok(())
}

pub(super) fn each_role_is_bound_to_its_account(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    for (workload, component) in [(rendered.agent()?, "agent"), (rendered.controller()?, "controller")] {
        let name = format!("{FULLNAME}-{component}");
        ensure!(pod(workload)["serviceAccountName"] == *name, "{}", pod(workload)["serviceAccountName"]);
        let account = rendered.get("ServiceAccount", &name)?;
        ensure!(
            account["automountServiceAccountToken"] == false,
            "every pod with the account {name} gets its token"
        );
    }
    for (kind, role) in [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")] {
        for binding in rendered.of_kind(kind) {
            let name = &binding["metadata"]["name"];
            let subject = json!([{ "kind": "ServiceAccount", "name": name, "namespace": NAMESPACE }]);
            ensure!(binding["subjects"] == subject, "{kind} {name}: {}", binding["subjects"]);
            let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name });
            ensure!(binding["roleRef"] == role, "{kind} {name}: {}", binding["roleRef"]);
        }
    }
    Ok(())
}

pub(super) fn custom_account_gets_rights_and_policy(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[
        "agent.serviceAccount.create=false",
        "agent.serviceAccount.name=mine",
        "controller.serviceAccount.name=named",
        "controller.serviceAccount.annotations.cloud=role",
    ])?;
    ensure!(rendered.get("ServiceAccount", "mine").is_err(), "an existing account is rendered");
    let made = rendered.get("ServiceAccount", "named")?;
    ensure!(made["metadata"]["annotations"] == json!({ "cloud": "role" }), "{made}");
    for (workload, component, account) in
        [(rendered.agent()?, "agent", "mine"), (rendered.controller()?, "controller", "named")]
    {
        ensure!(pod(workload)["serviceAccountName"] == account, "{}", pod(workload)["serviceAccountName"]);
        let binding = rendered.get("ClusterRoleBinding", &format!("{FULLNAME}-{component}"))?;
        ensure!(binding["subjects"][0]["name"] == account, "{}", binding["subjects"]);
    }
    let named = "system:serviceaccount:watch:mine";
    let policy = rendered.get("ValidatingAdmissionPolicy", &format!("{FULLNAME}-agent"))?;
    let condition = policy["spec"]["matchConditions"][0]["expression"].as_str().unwrap_or_default();
    ensure!(condition.contains(&format!("'{named}'")), "the policy matches another account: {condition}");
    Ok(())
}

pub(super) fn disabled_rbac_renders_no_roles(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&["rbac.create=false", "pauseInstaller.enabled=true"])?;
    // Those of hooks exist only while a hook runs.
    let of_hooks = ["test", "pause-uninstall"].map(|hook| json!(format!("{FULLNAME}-{hook}")));
    for kind in ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"] {
        let left: Vec<_> =
            rendered.of_kind(kind).filter(|role| !of_hooks.contains(&role["metadata"]["name"])).collect();
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

pub(super) fn lease_is_created_by_controller(helm: &Helm) -> Result<()> {
    for (set, name) in
        [(vec![], format!("{FULLNAME}-controller")), (vec!["fullnameOverride=x"], "x-controller".into())]
    {
        let rendered = helm.render(&set)?;
        ensure!(rendered.of_kind("Lease").next().is_none(), "Argo CD refuses to apply a Lease");
        let role = rendered.get("Role", &name)?;
        ensure!(role["rules"][1]["resourceNames"] == json!([name]), "{}", role["rules"]);
        let args = args(rendered.controller()?)?;
        ensure!(args.contains(&format!("--lease-name={name}").as_str()), "{args:?}");
        ensure!(args.contains(&"--lease-namespace=$(POD_NAMESPACE)"), "{args:?}");
    }
    Ok(())
}

pub(super) fn controller_gets_name_of_agent_daemon_set(helm: &Helm) -> Result<()> {
    for (release, set) in [(RELEASE, "agent.zombieThreshold=5"), ("42", "nameOverride=other")] {
        let rendered = helm.render_as(release, &[set])?;
        let args = args(rendered.controller()?)?;
        let name = args.iter().find_map(|arg| arg.strip_prefix("--agent-daemonset="));
        ensure!(rendered.agent()?["metadata"]["name"] == *name.context("no name")?, "{name:?}");
        ensure!(
            rendered.agent()?["metadata"]["namespace"] == NAMESPACE,
            "the agents are in another namespace"
        );
    }
    Ok(())
}
