//! Compares the table of docs/reference/api-requests.md with the audit logs of all scenarios: every request of agent and controller is in
//! the table, and every row marked `yes` was observed. `cargo e2e` runs this after all scenarios have passed and names their audit logs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use e2e::build::project_file;
use e2e::kube::audit_log::{AUDIT_LOGS, Call, calls};
use e2e::trial::trial;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let tests = vec![trial("api_requests_match_the_documented_table", missing, requests_match_the_table)];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn missing() -> Option<String> {
    let is_set = std::env::var_os(AUDIT_LOGS).is_some();
    (!is_set).then(|| {
        format!("{AUDIT_LOGS} is not set: only a complete and successful `cargo e2e` has all audit logs")
    })
}

/// A row of the table of docs/reference/api-requests.md.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    component: String,
    verb: String,
    resource: String,
    is_seen_in_tests: bool,
}

/// The rows of the one table that has these columns.
fn table(page: &str) -> Result<Vec<Row>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let mut lines = page.lines().skip_while(|line| !line.starts_with("| part | verb | resource |"));
    let head = cells(lines.next().context("no table of requests")?);
    let in_tests = head.iter().position(|title| title == "in the tests").context("no last column")?;
    let rows = lines.skip(1).take_while(|line| line.starts_with('|')).map(|line| {
        let cells = cells(line);
        let in_tests = cells.get(in_tests).with_context(|| line.to_owned())?;
        ensure!(["yes", "may be"].contains(&in_tests.as_str()), "{line}");
        Ok(Row {
            component: cells[0].clone(),
            verb: cells[1].clone(),
            resource: cells[2].clone(),
            is_seen_in_tests: in_tests == "yes",
        })
    });
    rows.collect()
}

fn requests_match_the_table() -> Result<()> {
    let rows = table(&fs::read_to_string(project_file("docs/reference/api-requests.md")?)?)?;
    ensure!(!rows.is_empty(), "the table is empty");
    let mut counts = BTreeMap::new();
    for path in std::env::var(AUDIT_LOGS)?.split(':') {
        let log = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        let calls = calls(&log).with_context(|| path.to_owned())?;
        ensure!(!calls.is_empty(), "{path} has no request of agent or controller");
        for call in calls {
            ensure!(
                call.component != "agent" || call.is_limited_to_one_node(),
                "an agent requested objects of all nodes: {}",
                call.uri
            );
            ensure!(call.scans_no_store(), "a list with a selector scans etcd: {}", call.uri);
            let Call { component, verb, resource, .. } = call;
            *counts.entry((component, verb, resource)).or_insert(0) += 1;
        }
    }
    let unknown: Vec<_> = counts
        .keys()
        .filter(|(component, verb, resource)| {
            !rows.iter().any(|row| (&row.component, &row.verb, &row.resource) == (component, verb, resource))
        })
        .collect();
    ensure!(unknown.is_empty(), "docs/reference/api-requests.md lacks {unknown:?}");
    let missed: BTreeSet<_> = rows
        .iter()
        .filter(|row| row.is_seen_in_tests)
        .filter(|row| !counts.contains_key(&(row.component.clone(), row.verb.clone(), row.resource.clone())))
        .map(|row| format!("{} {} {}", row.component, row.verb, row.resource))
        .collect();
    ensure!(
        missed.is_empty(),
        "docs/reference/api-requests.md has requests that were not observed: {missed:?}; there were {counts:?}"
    );
    Ok(())
}
