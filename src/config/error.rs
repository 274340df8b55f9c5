//! What is wrong with a configuration, all of it at once, with the place and a way out.
//!
//! [`ConfigErrors`] has two forms: its `Display` is one line a problem (`file:line:column: key: message`) for logs and
//! editors, and [`ConfigErrors::render`] shows the lines of the file, for people at a terminal. Neither shows what looks like a secret: the
//! text is concealed before it is kept.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report, ThemeCharacters,
    ThemeStyles,
};

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// `None` where the file as a whole is meant: it is missing, or cannot be read.
    pub place: Option<Place>,
    /// The dotted path of the key, as it stands in the file; empty where no key is meant.
    pub key: String,
    /// What was found, and what was expected.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Bytes.
    pub span: Range<usize>,
}

impl Place {
    pub(super) fn of(text: &str, span: Range<usize>) -> Self {
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end).max(start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            span: start..end,
        }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Every problem that was found, in the order of the files. Never empty.
#[derive(Debug, Clone)]
pub struct ConfigErrors {
    pub problems: Vec<Problem>,
    /// The files' texts, concealed.
    texts: BTreeMap<PathBuf, String>,
}

impl ConfigErrors {
    /// What a command exits with because of this (`EX_CONFIG` of sysexits).
    pub const EXIT_CODE: u8 = 78;

    pub(super) fn new(problems: Vec<Problem>, texts: BTreeMap<PathBuf, String>) -> Self {
        Self { problems, texts }
    }

    /// For a load that failed without a problem, which is a defect of the loader; better a vague report than none.
    pub(super) fn unexplained(file: &Path) -> Self {
        let message = "could not be understood".to_owned();
        let problem = Problem { file: file.to_owned(), place: None, key: String::new(), message, help: None };
        Self::new(vec![problem], BTreeMap::new())
    }

    /// Each problem with the lines it is about, for a terminal.
    pub fn render(&self, color: bool) -> String {
        let styles = if color { ThemeStyles::ansi() } else { ThemeStyles::none() };
        let theme = GraphicalTheme { characters: ThemeCharacters::unicode(), styles };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(110).with_links(false);
        let mut out = String::new();
        for problem in &self.problems {
            if !out.is_empty() {
                out.push('\n');
            }
            let mut one = String::new();
            match handler.render_report(&mut one, self.report(problem).as_ref()) {
                Ok(()) => out.push_str(&one),
                Err(_) => out.push_str(&format!("  × {problem}\n")),
            }
        }
        out
    }

    fn report(&self, problem: &Problem) -> Report {
        let mut diagnostic = MietteDiagnostic::new(match problem.key.as_str() {
            "" => problem.message.clone(),
            key => format!("`{key}`: {}", problem.message),
        });
        diagnostic.help = problem.help.clone();
        let file = problem.file.display().to_string();
        match (&problem.place, self.texts.get(&problem.file)) {
            (Some(place), Some(text)) => {
                diagnostic.labels = Some(vec![LabeledSpan::new_with_span(Some("here".to_owned()), place.span.clone())]);
                Report::new(diagnostic).with_source_code(NamedSource::new(file, text.clone()))
            }
            _ => {
                diagnostic.message = format!("{file}: {}", diagnostic.message);
                Report::new(diagnostic)
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(place) = &self.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": `{}`", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Words in a key's name that make its value worth hiding.
const SENSITIVE: [&str; 6] = ["secret", "token", "passw", "pasw", "pwd", "key"];

/// `text` with `spans`, values of keys that sound like secrets, and the user part of URLs overwritten by `*`, byte for byte, so that
/// every place stays where it is. It works on the text alone, because it has to serve files that do not parse.
pub(super) fn conceal(text: &str, spans: &[Range<usize>]) -> String {
    let mut hidden: Vec<Range<usize>> = spans.to_vec();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        hidden.extend(sensitive_values(line).into_iter().map(|span| span.start + start..span.end + start));
        hidden.extend(url_users(line).into_iter().map(|span| span.start + start..span.end + start));
        start += line.len();
    }
    let keep = |at: usize, c: char| c == '\n' || c == '\r' || !hidden.iter().any(|span| span.contains(&at));
    text.char_indices().flat_map(|(at, c)| if keep(at, c) { vec![c] } else { vec!['*'; c.len_utf8()] }).collect()
}

/// The strings after `… = "` in a line whose key sounds like a secret.
fn sensitive_values(line: &str) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    for (equals, _) in line.match_indices('=') {
        let key = line[..equals].trim_end();
        let key = key.rsplit([' ', '\t', '{', ',', '.']).next().unwrap_or_default().to_ascii_lowercase();
        let value = line[equals + 1..].trim_start_matches([' ', '\t', '[']);
        let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else { continue };
        if SENSITIVE.iter().any(|word| key.contains(word)) {
            let start = line.len() - value.len() + 1;
            let end = line[start..].rfind(quote).map_or(line.len(), |end| start + end);
            spans.push(start..end);
        }
    }
    spans
}

/// The `user:password` of each `scheme://user:password@host` in a line.
fn url_users(line: &str) -> Vec<Range<usize>> {
    line.match_indices("://")
        .filter_map(|(at, _)| {
            let start = at + 3;
            let rest = &line[start..];
            let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'')).unwrap_or(rest.len());
            let user = rest[..end].rfind('@').filter(|user| rest[..*user].contains(':'))?;
            Some(start..start + user)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concealing_hides_secrets_and_moves_nothing() {
        let text = "token = \"1:äbc\"\nsecret = ['x1', { env = \"KEEP_KEY\" }]\nurl = \"https://u:p@h/x\"\nname = \"n\"\npassword = \"open";
        let concealed = conceal(text, &[]);
        assert_eq!(concealed.len(), text.len());
        assert_eq!(
            concealed,
            "token = \"******\"\nsecret = ['**', { env = \"KEEP_KEY\" }]\nurl = \"https://***@h/x\"\nname = \"n\"\npassword = \"****"
        );
    }

    #[test]
    fn places_count_lines_and_characters() {
        let text = "ä = 1\nbüch = 2";
        let at = text.find('2').unwrap();
        assert_eq!(Place::of(text, at..at + 1), Place { line: 2, column: 8, span: at..at + 1 });
        assert_eq!(Place::of(text, 900..901).line, 2);
    }
}
