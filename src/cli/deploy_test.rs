use super::*;
use crate::cli::sample;

#[test]
fn every_end_has_its_summary() {
    let all: Vec<String> = sample::all()
        .iter()
        .filter(|story| story.deployment.status.is_end())
        .map(|story| summary(story, Some("/srv/app/logs/7.log"), Paint::new(false)))
        .collect();
    insta::assert_snapshot!(all.join("────────\n"));
}

#[test]
fn nothing_from_outside_paints_the_terminal() {
    for story in sample::all() {
        assert!(!summary(&story, None, Paint::new(false)).contains(['\u{1b}', '\u{202e}']));
    }
}
