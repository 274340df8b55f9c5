//! Labels in the Dockerfile itself, for the classic builder.
//!
//! That builder makes a step of its own, with a container and an image, of each label given with the request: eight labels
//! cost more than the rest of a small build. One `LABEL` instruction at the end of the stage that is built is one step. The
//! changed Dockerfile is sent beside the commit's own, under [`NAME`], and `.dockerignore` names it, so that the engine takes it out of
//! the context before `COPY . .` could see it (as the `docker` program does for a Dockerfile on its standard input).
//!
//! Where the text is not understood for sure there is no such Dockerfile, and the labels go with the request.

use std::collections::{BTreeMap, HashMap};

/// The changed Dockerfile in the archive.
pub(super) const NAME: &str = ".refit.Dockerfile";

/// `text` with the labels at the end of the stage `target` (the last one without a target).
pub(super) fn with_labels(text: &str, target: Option<&str>, labels: &HashMap<String, String>) -> Option<String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._:/+-~@%=,".contains(c);
    if labels.iter().any(|(name, value)| !name.chars().chain(value.chars()).all(safe)) {
        return None;
    }
    let sorted: BTreeMap<_, _> = labels.iter().collect();
    let mut label = "LABEL".to_owned();
    for (name, value) in sorted {
        label.push_str(&format!(" {name}=\"{value}\""));
    }
    let lines: Vec<&str> = text.lines().collect();
    let place = match target {
        None => stages(&lines).map(|_| lines.len()),
        Some(target) => end_of(&stages(&lines)?, target, lines.len()),
    }?;
    let (before, after) = lines.split_at(place);
    let mut changed = Vec::from(before);
    changed.push(&label);
    changed.extend(after);
    Some(changed.join("\n") + "\n")
}

/// What `.dockerignore` becomes so that the changed Dockerfile, and a `.dockerignore` that was not there, stay out of the image.
pub(super) fn dockerignore(text: Option<&str>) -> String {
    format!("{}\n{NAME}\n", text.unwrap_or(".dockerignore"))
}

struct Stage {
    name: Option<String>,
    /// The index of its `FROM` line.
    line: usize,
}

/// `None` where the text ends in the middle of an instruction.
fn stages(lines: &[&str]) -> Option<Vec<Stage>> {
    let escape = escape_character(lines);
    let mut stages = Vec::new();
    let mut instruction = String::new();
    let mut begin = 0;
    for (index, line) in lines.iter().enumerate() {
        let line = line.trim();
        // Comments and empty lines may stand between the lines of one instruction.
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if instruction.is_empty() {
            begin = index;
        }
        instruction.push_str(line.strip_suffix(escape).unwrap_or(line));
        instruction.push(' ');
        if !line.ends_with(escape) {
            stages.extend(stage(&instruction, begin));
            instruction.clear();
        }
    }
    instruction.is_empty().then_some(stages)
}

fn stage(instruction: &str, line: usize) -> Option<Stage> {
    let mut words = instruction.split_whitespace();
    words.next().filter(|word| word.eq_ignore_ascii_case("FROM"))?;
    let mut words = words.filter(|word| !word.starts_with("--")).skip(1);
    let named = words.next().is_some_and(|word| word.eq_ignore_ascii_case("AS"));
    Some(Stage { name: words.next().filter(|_| named).map(str::to_lowercase), line })
}

/// The index of the line before which the stage ends. Stages are known by name, whatever its case, or by number.
fn end_of(stages: &[Stage], target: &str, lines: usize) -> Option<usize> {
    let target = target.to_lowercase();
    let named = stages.iter().position(|stage| stage.name.as_ref() == Some(&target));
    let index = named.or_else(|| target.parse().ok()).filter(|index| *index < stages.len())?;
    Some(stages.get(index + 1).map_or(lines, |next| next.line))
}

/// The `escape` directive, which may stand only in the comments at the very top.
fn escape_character(lines: &[&str]) -> char {
    for line in lines {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|comment| comment.split_once('=')) else {
            break;
        };
        if name.trim().eq_ignore_ascii_case("escape") && value.trim() == "`" {
            return '`';
        }
    }
    '\\'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(text: &str, target: Option<&str>) -> Option<Vec<String>> {
        let labels = HashMap::from([("b".to_owned(), "2:x".to_owned()), ("a".to_owned(), "1".to_owned())]);
        with_labels(text, target, &labels).map(|text| text.lines().map(str::to_owned).collect())
    }

    const LABEL: &str = "LABEL a=\"1\" b=\"2:x\"";

    #[test]
    fn the_label_ends_the_stage_that_is_built() {
        let text =
            "FROM --platform=x a AS One\nRUN echo \\\n  # comment\n\n FROM nothing AS two\nfrom b \\\n as two\nCMD x";
        let at = |target| labelled(text, target).and_then(|lines| lines.iter().position(|line| line == LABEL));
        assert_eq!(at(None), Some(8));
        assert_eq!((at(Some("one")), at(Some("ONE")), at(Some("0"))), (Some(5), Some(5), Some(5)));
        assert_eq!((at(Some("two")), at(Some("1"))), (Some(8), Some(8)));
        assert_eq!((at(Some("three")), at(Some("2"))), (None, None));
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        assert_eq!(labelled("FROM a\nRUN echo \\", None), None);
        assert_eq!(labelled("# escape=`\nFROM a\nRUN dir C:\\\n", None).map(|lines| lines.len()), Some(4));
        assert_eq!(labelled("# escape=`\nFROM a\nRUN echo `\n", None), None);
        for bad in ["$HOME", "a\"b", "a\nb", "a\\"] {
            assert_eq!(
                with_labels("FROM a", None, &HashMap::from([("a".to_owned(), bad.to_owned())])),
                None,
                "{bad:?}"
            );
        }
    }
}
