//! The demo: what the pause container does, shown on a running cluster in six steps. Each step prints its commands with their output, and
//! fails if the output is not as promised, so the demo is a test as well.

mod command;
mod picture;
mod steps;

use std::ffi::OsStr;
use std::io::Write;

use anyhow::Result;

use crate::cluster::Node;
use picture::Shown;

pub use command::{CommandLine, run};
pub use steps::STEPS;

/// The pod that the demo is about, in the namespace `default`.
pub const POD: &str = "web";

/// A part of the demo.
#[derive(Clone, Copy)]
pub struct Step {
    /// The name of its test: a sentence with underscores.
    pub name: &'static str,
    /// Text that explains the step to the user.
    pub explanation: &'static str,
    /// Runs it.
    pub run: fn(&mut Reporter<'_>) -> Result<()>,
}

/// Prints the demo's commands on a cluster, with their output.
pub struct Reporter<'a> {
    /// The node.
    pub node: &'a Node,
    out: &'a mut dyn Write,
    /// The commands that a picture of the demo shows, with their output.
    pictured: Vec<Shown>,
}

impl<'a> Reporter<'a> {
    /// Reports what happens on `node` to `out`.
    pub fn new(node: &'a Node, out: &'a mut dyn Write) -> Self {
        Self { node, out, pictured: vec![] }
    }

    fn print(&mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.out, "{text}")?)
    }

    /// Runs kubectl, and prints the command and its output.
    fn kubectl(&mut self, arguments: &[&str]) -> Result<String> {
        self.show(&kubectl_line(arguments), |node| node.kubectl(arguments.iter().map(OsStr::new)))
    }

    /// The same, for the picture, too.
    fn kubectl_in_picture(&mut self, arguments: &[&str]) -> Result<()> {
        self.show_in_picture(&kubectl_line(arguments), |node| node.kubectl(arguments.iter().map(OsStr::new)))
    }

    /// Runs a command in the shell of the demo's pod.
    fn kubectl_exec(&mut self, command: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", POD, "-c", "shell", "--"], command].concat())
    }

    fn show(&mut self, command: &str, run: impl FnOnce(&Node) -> Result<String>) -> Result<String> {
        self.print(&format!("\n$ {command}"))?;
        let output = run(self.node)?;
        write!(self.out, "{output}")?;
        Ok(output)
    }

    fn show_in_picture(&mut self, command: &str, run: impl FnOnce(&Node) -> Result<String>) -> Result<()> {
        let output = self.show(command, run)?;
        self.pictured.push(Shown { command: command.to_owned(), output });
        Ok(())
    }
}

/// Runs all steps.
///
/// # Errors
///
/// When the cluster does not do what a step promises.
pub fn show(reporter: &mut Reporter<'_>) -> Result<()> {
    for (number, step) in STEPS.iter().enumerate() {
        reporter.print(&format!("\n{number}. {}", step.explanation))?;
        (step.run)(reporter)?;
    }
    reporter.print(
        "\nThe result: a SandboxHealth object for each pod that shares its PID namespace, and the operator's Events.",
    )?;
    reporter.kubectl(&["get", "sandboxhealth", "-A"])?;
    reporter.kubectl(&["events", "--for", &format!("pod/{POD}")]).map(drop)
}

fn kubectl_line(arguments: &[&str]) -> String {
    let words: Vec<_> = arguments.iter().map(|word| quoted(word)).collect();
    format!("kubectl {}", words.join(" "))
}

/// Quotes a word for a shell, with as few quotes as possible.
fn quoted(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_=./:,@".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.contains('\'') && !word.contains(['"', '$', '`', '!']) && !word.contains("\\\\") {
        format!("\"{word}\"")
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_command_can_be_pasted() {
        assert_eq!(quoted("pod/web"), "pod/web");
        assert_eq!(quoted("ps | head"), "'ps | head'");
        assert_eq!(quoted("echo 'x'"), "\"echo 'x'\"");
        assert_eq!(quoted("echo '$x'"), "'echo '\\''$x'\\'''");
        assert_eq!(quoted(""), "''");
    }
}
