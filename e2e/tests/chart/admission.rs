//! The admission policy that limits agents to their node: the accounts that it matches, and that it is enforced. Only an API server can
//! evaluate it; the scenarios of `security` do.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::helm::{FULLNAME, Helm, NAMESPACE};
use crate::rendered::{Rendered, list, pod};

fn policy(rendered: &Rendered) -> Result<&Value> {
    let mut policies = rendered.of_kind("ValidatingAdmissionPolicy");
    policies.find(|policy| policy["spec"]["matchConditions"].is_array()).context("no policy")
}

/// With the fields that the API server adds.
fn constraints(rules: Value) -> Value {
    json!({ "matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}, "resourceRules": rules })
}

pub(super) fn only_operator_accounts_write_status(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&["agent.serviceAccount.create=false", "agent.serviceAccount.name=mine"])?;
    let policy = rendered.get("ValidatingAdmissionPolicy", &format!("{FULLNAME}-status"))?;
    let rules = json!([{
        "apiGroups": ["sandboxhealth.dev"],
        "apiVersions": ["v1alpha1"],
        "operations": ["UPDATE"],
        "resources": ["sandboxhealths/status"],
        "scope": "*",
    }]);
    ensure!(policy["spec"]["matchConstraints"] == constraints(rules), "{policy}");
    ensure!(policy["spec"]["matchConditions"].is_null(), "the policy does not match all accounts: {policy}");
    let account = |name: &str| format!("'system:serviceaccount:{NAMESPACE}:{name}'");
    let expected = format!(
        "request.userInfo.username in [{}, {}]",
        account("mine"),
        account(&format!("{FULLNAME}-controller"))
    );
    ensure!(policy["spec"]["validations"][0]["expression"] == expected, "{policy}");
    rendered.get("ValidatingAdmissionPolicyBinding", &format!("{FULLNAME}-status"))?;
    Ok(())
}

pub(super) fn admission_policy_matches_agent_account(helm: &Helm) -> Result<()> {
    for (set, account) in
        [(vec![], format!("{FULLNAME}-agent")), (vec!["fullnameOverride=x"], "x-agent".into())]
    {
        let rendered = helm.render(&set)?;
        ensure!(pod(rendered.agent()?)["serviceAccountName"] == *account, "the agents have another account");
        let expected = format!("request.userInfo.username == 'system:serviceaccount:{NAMESPACE}:{account}'");
        let conditions = &policy(&rendered)?["spec"]["matchConditions"];
        ensure!(list(conditions).len() == 1 && conditions[0]["expression"] == expected, "{conditions}");
    }
    Ok(())
}

pub(super) fn policy_denies_and_fails_closed(helm: &Helm) -> Result<()> {
    let rendered = helm.render(&[])?;
    let spec = &policy(&rendered)?["spec"];
    ensure!(spec["failurePolicy"] == "Fail", "{}", spec["failurePolicy"]);
    let rules = json!([{
        "apiGroups": ["sandboxhealth.dev"],
        "apiVersions": ["v1alpha1"],
        "operations": ["CREATE", "UPDATE", "DELETE"],
        "resources": ["sandboxhealths", "sandboxhealths/status"],
        "scope": "*",
    }]);
    ensure!(spec["matchConstraints"] == constraints(rules), "{}", spec["matchConstraints"]);
    for validation in list(&spec["validations"]) {
        let has_message = ["message", "messageExpression"].iter().any(|key| validation[key].is_string());
        ensure!(has_message, "the validation has no message: {validation}");
    }
    let binding = rendered.get("ValidatingAdmissionPolicyBinding", &format!("{FULLNAME}-agent"))?;
    let bound =
        json!({ "policyName": policy(&rendered)?["metadata"]["name"], "validationActions": ["Deny"] });
    ensure!(binding["spec"] == bound, "{}", binding["spec"]);
    Ok(())
}

pub(super) fn policy_is_rendered_only_if_enabled(helm: &Helm) -> Result<()> {
    let (with, without) = (helm.render(&[])?, helm.render(&["validatingAdmissionPolicy.enabled=false"])?);
    ensure!(
        policy(&with).is_ok() && policy(&without).is_err(),
        "validatingAdmissionPolicy.enabled has no effect"
    );
    ensure!(
        without.0.len() + 4 == with.0.len(),
        "validatingAdmissionPolicy.enabled changes more than policies and bindings"
    );
    Ok(())
}
