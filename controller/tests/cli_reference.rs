//! docs/reference/cli.md has what `sandbox-health` and its subcommands print for `--help`. With `UPDATE_GOLDEN` it is written.

use std::error::Error;
use std::fs;
use std::process::Command;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/cli.md");

const HEAD: &str = "# Command line

What `sandbox-health` of the operator's image prints for `--help`; `cargo test` compares it with the program. The chart sets the flags of agent, controller and
installer ([values](../../charts/sandbox-health/README.md#values)). Programs exit with 0, or with 1 after a message on stderr; wrong arguments exit with 2.
[Pause](pause.md#what-it-promises) has options of its own.
";

#[test]
fn page_is_the_help_of_each_subcommand() {
    let overview = help(&[]).unwrap();
    let subcommands: Vec<_> = overview
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(subcommands.len() > 5, "{subcommands:?}");
    let mut page = format!("{HEAD}\n```text\n{overview}```\n");
    for name in subcommands {
        page += &format!("\n## {name}\n\n```text\n{}```\n", help(&[name]).unwrap());
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(PAGE, &page).unwrap();
    }
    assert_eq!(fs::read_to_string(PAGE).unwrap(), page, "UPDATE_GOLDEN=1 writes the page");
}

fn help(subcommand: &[&str]) -> Result<String, Box<dyn Error>> {
    let program = env!("CARGO_BIN_EXE_sandbox-health");
    let output = Command::new(program).args(subcommand).arg("--help").env_clear().output()?;
    let text = String::from_utf8(output.stdout)?;
    // Clap ends empty descriptions with spaces.
    Ok(text.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}
