//! What the classic builder is sent in place of the commit's own Dockerfile.
//!
//! That builder does three things badly, and each is mended in the text:
//!
//! - It builds every stage up to the one that is asked for, needed or not. Stages that the target does not need are left out, as
//!   BuildKit does: the app's image does not wait for its `test` stage, and leaves no image of it behind.
//! - It makes a step of its own, with a container and an image, of each label given with the request: eight labels
//!   cost more than the rest of a small build. One `LABEL` instruction at the end of the target is one step.
//! - The images of its steps say nothing of whose they are. A `LABEL` begins each stage: whatever is built upon it inherits it, so
//!   that what a build leaves, even one that failed half way, can be found (see `leftovers`).
//!
//! A step is in the cache only below the very image that it was built on. Two stages whose first step is the same label, built at the same
//! time, would make two images of it, and the next build would find the steps below one of them only. So the label tells
//! stages apart by what they begin with: it changes only where their first step changes, and with it all below.
//!
//! The changed Dockerfile is sent beside the commit's own, under [`NAME`], and `.dockerignore` names it, so that the engine takes it out of
//! the context before `COPY . .` could see it (as the `docker` program does for a Dockerfile on its standard input).
//!
//! Where the text is not understood for sure it is sent as it is, and the labels go with the request.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use crate::runtime::label;

/// The changed Dockerfile in the archive.
pub(super) const NAME: &str = ".refit.Dockerfile";

/// What `.dockerignore` becomes so that the changed Dockerfile, and a `.dockerignore` that was not there, stay out of the image.
pub(super) fn dockerignore(text: Option<&str>) -> String {
    format!("{}\n{NAME}\n", text.unwrap_or(".dockerignore"))
}

/// A Dockerfile whose stages are known.
#[derive(Debug)]
pub(super) struct Dockerfile<'t> {
    lines: Vec<&'t str>,
    stages: Vec<Stage>,
    target: usize,
    /// The stages that the target is made of, itself included, in the order of the file.
    needed: Vec<usize>,
}

#[derive(Debug)]
struct Stage {
    name: Option<String>,
    /// The index of its `FROM` line, and of the line after that instruction.
    from: usize,
    body: usize,
    /// The stage it begins with; `None` where that is an image.
    base: Option<usize>,
    /// Stages it begins with or copies from.
    uses: Vec<usize>,
    /// What it begins with: its image and its first instruction.
    first: Vec<String>,
}

impl Stage {
    /// The same for stages that begin alike.
    fn beginning(&self) -> String {
        let mut hash = hex::encode(Sha256::digest(self.first.join("\n")));
        hash.truncate(12);
        hash
    }
}

impl<'t> Dockerfile<'t> {
    /// `None` where the text ends in the middle of an instruction, or has no stage `target` (without one, the last is meant).
    /// `args` are the configured build arguments.
    pub(super) fn parse(text: &'t str, target: Option<&str>, args: &BTreeMap<String, String>) -> Option<Self> {
        let lines: Vec<&str> = text.lines().collect();
        let (stages, by_number) = stages(&lines, args)?;
        let target = match target {
            None => stages.len().checked_sub(1)?,
            Some(target) => stage_called(&stages, target)?,
        };
        // Leaving stages out would change the numbers of those that follow.
        let needed = if by_number { (0..=target).collect() } else { needed(&stages, target) };
        Some(Self { lines, stages, target, needed })
    }

    /// What another build of the same context may share with this one: a word for each needed stage, in their order.
    pub(super) fn parts(&self) -> Vec<String> {
        let needed = self.needed.iter().filter_map(|index| Some((index, self.stages.get(*index)?)));
        needed.map(|(index, stage)| if stage.base.is_some() { index.to_string() } else { stage.beginning() }).collect()
    }

    /// The needed stages, each labelled as `app`'s, the last with `labels` at its end. `None` where a label would need quoting.
    pub(super) fn render(&self, app: &str, labels: &HashMap<String, String>) -> Option<String> {
        let labels = instruction(labels.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        let first = self.stages.first().map_or(0, |stage| stage.from);
        let mut text = String::new();
        let mut add = |lines: &[&str]| lines.iter().for_each(|line| text.extend([line, "\n"]));
        add(self.lines.get(..first)?);
        for &index in &self.needed {
            let stage = self.stages.get(index)?;
            let end = self.stages.get(index + 1).map_or(self.lines.len(), |next| next.from);
            add(self.lines.get(stage.from..stage.body)?);
            if stage.base.is_none() {
                add(&[&instruction([(label::APP, app), (label::STAGE, &stage.beginning())])?]);
            }
            add(self.lines.get(stage.body..end)?);
            if index == self.target {
                add(&[&labels]);
            }
        }
        Some(text)
    }
}

/// One `LABEL`, sorted.
fn instruction<'l>(labels: impl IntoIterator<Item = (&'l str, &'l str)>) -> Option<String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._:/+-~@%=,".contains(c);
    let sorted: BTreeMap<_, _> = labels.into_iter().collect();
    let mut line = "LABEL".to_owned();
    for (name, value) in sorted {
        if !name.chars().chain(value.chars()).all(safe) {
            return None;
        }
        line.push_str(&format!(" {name}=\"{value}\""));
    }
    Some(line)
}

/// `target` and what it is made of, directly or not.
fn needed(stages: &[Stage], target: usize) -> Vec<usize> {
    let mut wanted = vec![false; stages.len()];
    // A stage uses only earlier ones, so one pass from the last to the first meets each after all of its users.
    for index in (0..=target).rev() {
        if index == target || wanted[index] {
            wanted[index] = true;
            for &used in &stages[index].uses {
                wanted[used] = true;
            }
        }
    }
    (0..=target).filter(|index| wanted[*index]).collect()
}

/// Every stage, and whether one is meant by its number somewhere.
fn stages(lines: &[&str], args: &BTreeMap<String, String>) -> Option<(Vec<Stage>, bool)> {
    let mut stages: Vec<Stage> = Vec::new();
    let mut by_number = false;
    let mut known: HashMap<String, String> = HashMap::new();
    for (instruction, lines) in instructions(lines)? {
        let mut words = instruction.split_whitespace();
        let keyword = words.next().unwrap_or_default();
        if keyword.eq_ignore_ascii_case("FROM") {
            let stage = stage(&instruction, lines, &stages, &known);
            stages.push(stage);
        } else if let Some(index) = stages.len().checked_sub(1) {
            if stages[index].first.len() == 1 {
                stages[index].first.push(instruction.clone());
            }
            for from in words.filter_map(|word| word.strip_prefix("--from=")) {
                by_number |= from.parse::<usize>().is_ok();
                let used = used(&stages[..index], from);
                stages[index].uses.extend(used);
            }
        } else if keyword.eq_ignore_ascii_case("ARG") {
            for word in words {
                let (name, default) = word.split_once('=').unwrap_or((word, ""));
                let value = args.get(name).map_or(default.trim_matches(['"', '\'']), String::as_str);
                known.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    Some((stages, by_number))
}

/// Each instruction in one piece, with the indices of its first line and the line after it.
fn instructions(lines: &[&str]) -> Option<Vec<(String, (usize, usize))>> {
    let escape = escape_character(lines);
    let mut whole = Vec::new();
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
            whole.push((std::mem::take(&mut instruction), (begin, index + 1)));
        }
    }
    instruction.is_empty().then_some(whole)
}

fn stage(instruction: &str, (from, body): (usize, usize), earlier: &[Stage], args: &HashMap<String, String>) -> Stage {
    let (flags, words): (Vec<&str>, Vec<&str>) =
        instruction.split_whitespace().skip(1).partition(|word| word.starts_with("--"));
    let mut words = words.into_iter();
    let image = expand(words.next().unwrap_or_default(), args);
    let named = words.next().is_some_and(|word| word.eq_ignore_ascii_case("AS"));
    let name = words.next().filter(|_| named).map(str::to_lowercase);
    let base = named_stage(earlier, &image);
    Stage { name, from, body, base, uses: used(earlier, &image), first: vec![format!("{} {image}", flags.join(" "))] }
}

/// The stages that `name` may mean: one, none, or all where that cannot be known.
fn used(earlier: &[Stage], name: &str) -> Vec<usize> {
    if name.contains('$') {
        return (0..earlier.len()).collect();
    }
    named_stage(earlier, name).or_else(|| name.parse().ok().filter(|n| *n < earlier.len())).into_iter().collect()
}

/// Stages are known by name, whatever its case; of two with one name, the later is meant.
fn named_stage(stages: &[Stage], name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    stages.iter().rposition(|stage| stage.name.as_ref() == Some(&name))
}

/// A target: a name, or a number. Of two with one name the first is meant, other than by `FROM`.
fn stage_called(stages: &[Stage], target: &str) -> Option<usize> {
    let name = target.to_lowercase();
    let named = stages.iter().position(|stage| stage.name.as_ref() == Some(&name));
    named.or_else(|| target.parse().ok()).filter(|index| *index < stages.len())
}

/// Puts the values of `$NAME` and `${NAME}` in. What is not known, and every other form, stays, `$` and all.
fn expand(word: &str, args: &HashMap<String, String>) -> String {
    let mut text = String::new();
    let mut pieces = word.split('$');
    text.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (name, rest) = match piece.strip_prefix('{').map(|inner| inner.split_once('}')) {
            Some(Some((name, rest))) => (name, rest),
            Some(None) => ("", piece),
            None => piece.split_at(piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(piece.len())),
        };
        match args.get(name) {
            Some(value) => text.extend([value, rest]),
            None => text.extend(["$", piece]),
        }
    }
    text
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

    fn args() -> BTreeMap<String, String> {
        BTreeMap::from([("KIND".to_owned(), "slim".to_owned())])
    }

    fn rendered(text: &str, target: Option<&str>) -> Option<Vec<String>> {
        let labels = HashMap::from([("b".to_owned(), "2:x".to_owned()), ("a".to_owned(), "1".to_owned())]);
        let text = Dockerfile::parse(text, target, &args())?.render("me", &labels)?;
        Some(text.lines().map(str::to_owned).collect())
    }

    fn needed(text: &str, target: Option<&str>) -> Option<Vec<usize>> {
        Dockerfile::parse(text, target, &args()).map(|file| file.needed)
    }

    /// The label at the beginning of a stage.
    fn mark(image: &str, first: &str) -> String {
        let first = [image, first].map(str::to_owned).into_iter().filter(|part| !part.is_empty()).collect();
        let stage = Stage { name: None, from: 0, body: 0, base: None, uses: Vec::new(), first };
        format!("LABEL refit.app=\"me\" refit.stage=\"{}\"", stage.beginning())
    }

    const LABEL: &str = "LABEL a=\"1\" b=\"2:x\"";

    #[test]
    fn the_label_ends_the_stage_that_is_built() {
        let text =
            "FROM --platform=x a AS One\nRUN echo \\\n  # comment\n\n FROM nothing AS two\nfrom one \\\n as two\nCMD x";
        let mark = mark("--platform=x a", "RUN echo  FROM nothing AS two ");
        let one = ["FROM --platform=x a AS One", &mark, "RUN echo \\", "  # comment", "", " FROM nothing AS two"];
        let mut wanted = Vec::from(one.map(str::to_owned));
        wanted.push(LABEL.to_owned());
        assert_eq!(rendered(text, Some("one")), Some(wanted.clone()));
        assert_eq!(rendered(text, Some("ONE")), Some(wanted.clone()));
        assert_eq!(rendered(text, Some("0")), Some(wanted.clone()));
        wanted.pop();
        // Built on a stage, it has the mark already.
        wanted.extend(["from one \\", " as two", "CMD x", LABEL].map(str::to_owned));
        for target in [None, Some("two"), Some("1")] {
            assert_eq!(rendered(text, target).as_ref(), Some(&wanted));
        }
        assert_eq!((rendered(text, Some("three")), rendered(text, Some("2"))), (None, None));
    }

    #[test]
    fn only_what_the_target_is_made_of_is_built() {
        let text = "ARG KIND=full\nARG BASE=\"image:1\"\nFROM ${BASE} AS deps\nRUN a\nFROM deps AS test\nRUN b\n\
                    FROM $BASE AS compile\nCOPY --from=deps /x /x\nFROM other AS app-slim\n\
                    FROM app-$KIND\nCOPY --chown=1 --from=Compile /y /y\nCOPY --from=busybox:1 /bin /bin";
        assert_eq!(needed(text, None), Some(vec![0, 2, 3, 4]));
        assert_eq!(needed(text, Some("test")), Some(vec![0, 1]));
        assert_eq!(needed(text, Some("app-slim")), Some(vec![3]));
        let app = rendered(text, None).unwrap_or_default();
        assert!(!app.iter().any(|line| line.contains("test") || line == "RUN b"), "{app:?}");
        assert_eq!(app.iter().filter(|line| line.starts_with("LABEL refit.app")).count(), 3, "{app:?}");
        assert_eq!(app.last().map(String::as_str), Some(LABEL));
    }

    #[test]
    fn stages_that_begin_alike_are_a_part_that_builds_share() {
        let text = "FROM a AS test\nRUN x\nRUN y\nFROM a AS app\nRUN x\nCOPY z\nFROM a AS other\nRUN y\nFROM other";
        let parts = |target| Dockerfile::parse(text, target, &args()).expect("stages").parts();
        assert_eq!(parts(Some("test")), parts(Some("app")));
        assert_ne!(parts(Some("test")), parts(Some("other")));
        assert_eq!(parts(None), [parts(Some("other")).concat(), "3".to_owned()]);
    }

    #[test]
    fn what_may_be_needed_is_kept() {
        // A number means what it says only while all are there.
        assert_eq!(needed("FROM a\nFROM b AS test\nFROM c\nCOPY --from=0 / /", None), Some(vec![0, 1, 2]));
        assert_eq!(needed("FROM a\nFROM b AS test\nFROM c\nONBUILD COPY --from=0 / /", None), Some(vec![0, 1, 2]));
        // What is not known may be any stage before it.
        assert_eq!(needed("FROM a AS a\nFROM b AS b\nFROM $X\nFROM d", Some("2")), Some(vec![0, 1, 2]));
        assert_eq!(needed("FROM a AS a\nFROM b AS b\nFROM ${KIND:-a}", None), Some(vec![0, 1, 2]));
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        assert_eq!(rendered("FROM a\nRUN echo \\", None), None);
        assert_eq!(rendered("RUN echo", None), None);
        assert_eq!(rendered("# escape=`\nFROM a\nRUN dir C:\\\n", None).map(|lines| lines.len()), Some(5));
        assert_eq!(rendered("# escape=`\nFROM a\nRUN echo `\n", None), None);
        let file = Dockerfile::parse("FROM a", None, &args()).expect("a stage");
        for bad in ["$HOME", "a\"b", "a\nb", "a\\"] {
            let labels = HashMap::from([("a".to_owned(), bad.to_owned())]);
            assert_eq!(file.render("me", &labels), None, "{bad:?}");
        }
    }
}
