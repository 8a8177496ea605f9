//! The help is a contract: a change of the command line shows up here.

use super::cmd::{finish, kring};

async fn help(args: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    let mut command = kring(home.path());
    command.args(args);
    finish(command).await.ended(0).stdout
}

/// The verbs that a help lists under `Commands:`.
fn verbs(text: &str) -> Vec<String> {
    text.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_string))
        .collect()
}

#[tokio::test]
async fn the_root_help_is_as_agreed() {
    insta::assert_snapshot!("root", help(&["--help"]).await);
}

#[tokio::test]
async fn every_verbs_help_is_as_agreed() {
    for noun in verbs(&help(&["--help"]).await) {
        let text = help(&[&noun, "-h"]).await;
        let mut all = format!("$ kring {noun} -h\n{text}");
        for verb in verbs(&text) {
            let text = help(&[&noun, &verb, "-h"]).await;
            all.push_str(&format!("\n$ kring {noun} {verb} -h\n{text}"));
        }
        insta::assert_snapshot!(noun.as_str(), all);
    }
}

#[tokio::test]
async fn completions_are_written_for_each_shell() {
    for (shell, word) in [("bash", "complete -F _kring"), ("zsh", "#compdef kring"), ("fish", "complete -c kring")] {
        let text = help(&["completion", shell]).await;
        assert!(text.contains(word), "{shell}");
        assert!(text.contains("attach-volume"), "{shell}");
    }
}

#[tokio::test]
async fn a_wrong_word_is_a_usage_error_with_a_proposal() {
    let home = tempfile::tempdir().unwrap();
    let mut command = kring(home.path());
    command.args(["vm", "strat", "web"]);
    let run = finish(command).await.ended(2);
    assert!(run.stderr.contains("'start'"), "{}", run.stderr);
}
