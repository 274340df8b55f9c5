//! Coverage reports → how many lines were run.
//!
//! Two formats cover nearly every language: Cobertura XML (coverage.py, PHPUnit, JaCoCo and .NET converters, istanbul) and LCOV
//! (gcov, istanbul, cargo-llvm-cov, Dart). Which one it is, is seen from the first character that is not white space. Lines are counted
//! here rather than taken from the summary, because a report merged from several runs lists a line more than once (in
//! Cobertura also below its method and its class): a line of a file counts once, and as covered if any
//! mention has hits. A report without single lines is taken by its totals.
//!
//! Reports come out of a test container and are not trusted. The parser never expands entities (a document type is skipped), never
//! recurses, and holds no more than the report's own names and line numbers; callers bound the report's size.

use std::collections::{HashMap, HashSet};

use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};

/// Lines that were run, of those that could have been.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coverage {
    pub covered: u64,
    /// 0 if the report gives only a rate.
    pub total: u64,
    /// 0 to 100.
    pub percent: f64,
}

impl Coverage {
    fn of(covered: u64, total: u64) -> Option<Self> {
        #[expect(clippy::cast_precision_loss, reason = "no code base has 2^53 lines")]
        let percent = || covered.min(total) as f64 * 100.0 / total as f64;
        (total > 0).then(|| Self { covered: covered.min(total), total, percent: percent() })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoverageError {
    #[error("the coverage report is empty")]
    Empty,
    #[error("the coverage report is neither Cobertura XML nor LCOV: it begins with `{start}`")]
    Unknown { start: String },
    /// `at` is in bytes from the beginning.
    #[error("the Cobertura report is not well-formed at byte {at}: {why}")]
    Cobertura { at: u64, why: String },
    /// `line` counts from 1.
    #[error("line {line} of the LCOV report: {why}")]
    Lcov { line: usize, why: String },
    #[error("the coverage report names no lines: were the tests run with coverage turned on")]
    NoLines,
}

/// Reads a report of either format.
///
/// # Errors
/// If it is of neither format, is cut off, or names no lines.
pub fn percent(report: &[u8]) -> Result<Coverage, CoverageError> {
    let text = String::from_utf8_lossy(report);
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let lcov = |line: &str| ["TN:", "SF:", "DA:", "VER:"].iter().any(|start| line.starts_with(start));
    match text.lines().find(|line| !line.starts_with('#')) {
        None => Err(CoverageError::Empty),
        Some(line) if line.starts_with('<') => cobertura(text),
        Some(line) if lcov(line) => lcov_lines(text),
        Some(line) => {
            Err(CoverageError::Unknown { start: line.chars().take(40).flat_map(char::escape_default).collect() })
        }
    }
}

/// Line numbers per file.
#[derive(Debug, Default)]
struct Tally {
    files: HashMap<String, usize>,
    seen: HashSet<(usize, u64)>,
    covered: HashSet<(usize, u64)>,
}

impl Tally {
    /// A number for a file, the same for the same name.
    fn file(&mut self, name: String) -> usize {
        let next = self.files.len();
        *self.files.entry(name).or_insert(next)
    }

    fn line(&mut self, file: usize, number: u64, hit: bool) {
        self.seen.insert((file, number));
        if hit {
            self.covered.insert((file, number));
        }
    }
}

fn cobertura(text: &str) -> Result<Coverage, CoverageError> {
    let mut reader = Reader::from_str(text);
    let mut state = Cobertura::default();
    let mut depth = 0_u64;
    loop {
        let at = reader.buffer_position();
        let bad = |why: String| CoverageError::Cobertura { at, why };
        match reader.read_event().map_err(|e| bad(e.to_string()))? {
            Event::Start(element) => {
                state.open(&element, depth).map_err(bad)?;
                depth += 1;
            }
            Event::Empty(element) => state.open(&element, depth).map_err(bad)?,
            // The reader itself checks that it closes what was opened.
            Event::End(_) => depth = depth.saturating_sub(1),
            Event::Eof if depth > 0 => return Err(bad("it ends in the middle".to_owned())),
            Event::Eof => return state.result(),
            _ => {}
        }
    }
}

#[derive(Debug, Default)]
struct Cobertura {
    tally: Tally,
    package: String,
    file: Option<usize>,
    /// The root's own totals.
    summary: Option<Coverage>,
}

impl Cobertura {
    fn open(&mut self, element: &BytesStart<'_>, depth: u64) -> Result<(), String> {
        let name = element.local_name();
        match name.as_ref() {
            "coverage" if depth == 0 => self.summary = summary(element)?,
            other if depth == 0 => return Err(format!("its root is <{}>, not <coverage>", other.escape_default())),
            "package" => self.package = attribute(element, "name")?.unwrap_or_default(),
            "class" => {
                let file = attribute(element, "filename")?.or(attribute(element, "name")?).unwrap_or_default();
                self.file = Some(self.tally.file(format!("{}\0{file}", self.package)));
            }
            "line" => {
                let file = self.file.ok_or("a <line> stands outside of any <class>")?;
                let number = |key| -> Result<u64, String> {
                    let value = attribute(element, key)?.ok_or(format!("a <line> has no `{key}`"))?;
                    value.trim().parse().map_err(|_| format!("`{key}=\"{}\"` is not a count", value.escape_default()))
                };
                let hit = number("hits")? > 0;
                self.tally.line(file, number("number")?, hit);
            }
            _ => {}
        }
        Ok(())
    }

    fn result(self) -> Result<Coverage, CoverageError> {
        let counted = Coverage::of(self.tally.covered.len() as u64, self.tally.seen.len() as u64);
        counted.or(self.summary).ok_or(CoverageError::NoLines)
    }
}

/// `lines-covered` and `lines-valid` of the root, or its `line-rate` (0 to 1).
fn summary(root: &BytesStart<'_>) -> Result<Option<Coverage>, String> {
    let count = |key| attribute(root, key).map(|value| value.and_then(|v| v.trim().parse::<u64>().ok()));
    if let (Some(covered), Some(total)) = (count("lines-covered")?, count("lines-valid")?) {
        return Ok(Coverage::of(covered, total));
    }
    let Some(rate) = attribute(root, "line-rate")? else { return Ok(None) };
    match rate.trim().parse::<f64>() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(Some(Coverage { covered: 0, total: 0, percent: rate * 100.0 })),
        _ => Err(format!("`line-rate=\"{}\"` is not between 0 and 1", rate.escape_default())),
    }
}

/// An attribute as it is written: names serve only to tell files apart, so nothing in them is expanded.
fn attribute(element: &BytesStart<'_>, key: &str) -> Result<Option<String>, String> {
    let found = element.try_get_attribute(key).map_err(|e| e.to_string())?;
    Ok(found.map(|attribute| attribute.value.into_owned()))
}

fn lcov_lines(text: &str) -> Result<Coverage, CoverageError> {
    let mut tally = Tally::default();
    let mut totals: HashMap<usize, (u64, u64)> = HashMap::new();
    let mut file = None;
    let mut last = 0;
    for (index, line) in text.lines().enumerate() {
        last = index + 1;
        let bad = |why: &str| CoverageError::Lcov { line: index + 1, why: why.to_owned() };
        let (key, value) = line.trim().split_once(':').unwrap_or((line.trim(), ""));
        match key {
            "SF" => file = Some(tally.file(value.to_owned())),
            "end_of_record" => file = None,
            "DA" => {
                let file = file.ok_or_else(|| bad("`DA` stands outside of a record, which begins with `SF`"))?;
                let mut fields = value.split(',').map(str::trim);
                let number =
                    fields.next().and_then(|n| n.parse().ok()).ok_or_else(|| bad("`DA` has no line number"))?;
                // gcov has been seen to overflow into negative counts; any number is a count, and only above zero a hit.
                let hits: f64 =
                    fields.next().and_then(|n| n.parse().ok()).ok_or_else(|| bad("`DA` has no count of hits"))?;
                tally.line(file, number, hits > 0.0);
            }
            "LF" | "LH" => {
                let file =
                    file.ok_or_else(|| bad("`LF` or `LH` stands outside of a record, which begins with `SF`"))?;
                let count: u64 = value.trim().parse().map_err(|_| bad("`LF` or `LH` is not a count"))?;
                let (found, hit) = totals.entry(file).or_default();
                let total = if key == "LF" { found } else { hit };
                *total = (*total).max(count);
            }
            _ => {}
        }
    }
    if file.is_some() {
        return Err(CoverageError::Lcov { line: last, why: "it ends in the middle of a record".to_owned() });
    }
    // Totals speak for the files that have no single lines.
    let detailed: HashSet<usize> = tally.seen.iter().map(|(file, _)| *file).collect();
    let (mut covered, mut total) = (tally.covered.len() as u64, tally.seen.len() as u64);
    for (found, hit) in totals.iter().filter(|(file, _)| !detailed.contains(file)).map(|(_, counts)| *counts) {
        total = total.saturating_add(found);
        covered = covered.saturating_add(hit.min(found));
    }
    Coverage::of(covered, total).ok_or(CoverageError::NoLines)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(report: &str) -> Result<(u64, u64), CoverageError> {
        percent(report.as_bytes()).map(|c| (c.covered, c.total))
    }

    const COBERTURA: &str = r#"<?xml version="1.0" ?>
<!DOCTYPE coverage SYSTEM "http://cobertura.sourceforge.net/xml/coverage-04.dtd">
<coverage version="7.4" lines-valid="999" lines-covered="1" line-rate="0.001">
  <packages><package name="app"><classes>
    <class name="a.py" filename="a.py"><methods><method name="f"><lines><line number="1" hits="0"/></lines></method></methods>
      <lines><line number="1" hits="3"/><line number="2" hits="0"/></lines></class>
    <class name="a.py$Inner" filename="a.py"><lines><line number="2" hits="0"/><line number="3" hits="1"/></lines></class>
    <class name="b.py" filename="b.py"><lines><line number="1" hits="0"></line></lines></class>
  </classes></package>
  <package name="other"><classes><class filename="a.py"><lines><line number="1" hits="1"/></lines></class></classes></package>
  </packages>
</coverage>"#;

    #[test]
    fn cobertura_lines_count_once_a_file() {
        let coverage = percent(COBERTURA.as_bytes()).unwrap();
        assert_eq!((coverage.covered, coverage.total), (3, 5));
        assert!((coverage.percent - 60.0).abs() < 1e-9);
    }

    #[test]
    fn cobertura_totals_serve_without_lines() {
        assert_eq!(counts(r#"<coverage lines-valid="8" lines-covered="6" line-rate="0.1"/>"#), Ok((6, 8)));
        let rate = percent(br#"<coverage line-rate="0.875"></coverage>"#).unwrap();
        assert_eq!((rate.total, rate.percent), (0, 87.5));
        assert_eq!(counts(r#"<coverage lines-valid="0" lines-covered="0"/>"#), Err(CoverageError::NoLines));
        assert!(counts(r#"<coverage line-rate="NaN"/>"#).is_err());
        assert!(counts(r#"<coverage line-rate="7"/>"#).is_err());
    }

    #[test]
    fn lcov_lines_count_once_a_file() {
        let report = "TN:unit\nSF:/src/a.js\nFN:1,f\nDA:1,5\nDA:2,0,checksum\nDA:3,-1\nLF:99\nLH:1\nend_of_record\n\
                      SF:/src/b.js\r\nDA:1,0\r\nend_of_record\nSF:/src/a.js\nDA:2,1\nend_of_record\n\
                      SF:/src/c.js\nLF:10\nLH:4\nend_of_record\n";
        assert_eq!(counts(report), Ok((6, 14)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(counts(" \n"), Err(CoverageError::Empty));
        assert!(matches!(counts("{\"total\": 1}"), Err(CoverageError::Unknown { start }) if start.starts_with('{')));
        assert_eq!(counts("TN:\n"), Err(CoverageError::NoLines));
        for cut in [COBERTURA.len() / 2, COBERTURA.len() - 4] {
            let error = counts(&COBERTURA[..cut]).unwrap_err();
            assert!(matches!(error, CoverageError::Cobertura { .. }), "{error}");
        }
        assert!(counts("<html></html>").unwrap_err().to_string().contains("<html>"));
        assert!(counts(r#"<coverage><class><line number="1" hits="x"/></class></coverage>"#).is_err());
        assert!(counts(r#"<coverage><line number="1" hits="1"/></coverage>"#).is_err());
        for bad in
            ["SF:a\nDA:x,1\nend_of_record", "SF:a\nDA:1\nend_of_record", "DA:1,1\n", "SF:a\nLF:-1\n", "SF:a\nDA:1,1"]
        {
            assert!(matches!(counts(bad), Err(CoverageError::Lcov { .. })), "{bad:?}");
        }
    }

    #[test]
    fn entities_are_not_expanded() {
        let mut bomb = String::from("<?xml version=\"1.0\"?><!DOCTYPE coverage [<!ENTITY a0 \"aaaaaaaaaa\">");
        for i in 1..60 {
            bomb += &format!("<!ENTITY a{i} \"&a{p};&a{p};&a{p};&a{p};\">", p = i - 1);
        }
        bomb += "]><coverage>&a59;<class filename=\"&a59;\"><line number=\"1\" hits=\"1\"/></class></coverage>";
        assert_eq!(counts(&bomb), Ok((1, 1)));
    }

    #[test]
    fn depth_is_no_matter() {
        let deep = "<coverage>".to_owned() + &"<a>".repeat(200_000) + &"</a>".repeat(200_000) + "</coverage>";
        assert_eq!(counts(&deep), Err(CoverageError::NoLines));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = percent(&bytes);
        }

        #[test]
        fn no_report_like_text_makes_it_panic(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                "<coverage line-rate=\"", "1", "\">", "<class filename=\"a\">", "<line number=\"1\" hits=\"", "\"/>", "</class>",
                "</coverage>", "<!DOCTYPE ", "[<!ENTITY a \"&a;\">]>", "&a;", "<![CDATA[", "SF:a\n", "DA:1,1\n", "DA:", "18446744073709551616,",
                "LF:18446744073709551615\n", "LH:3\n", "end_of_record\n", "\u{feff}", "#", "é",
            ]), 0..30)
        ) {
            if let Ok(coverage) = percent(parts.concat().as_bytes()) {
                prop_assert!((0.0..=100.0).contains(&coverage.percent));
                prop_assert!(coverage.covered <= coverage.total);
            }
        }

        #[test]
        fn both_formats_agree(lines in proptest::collection::vec((0_u8..4, 1_u8..20, 0_u8..3), 1..60)) {
            let mut xml = String::from("<coverage>");
            let mut lcov = String::new();
            for (file, line, hits) in lines {
                xml += &format!("<class filename=\"{file}\"><line number=\"{line}\" hits=\"{hits}\"/></class>");
                lcov += &format!("SF:{file}\nDA:{line},{hits}\nend_of_record\n");
            }
            prop_assert_eq!(counts(&(xml + "</coverage>")), counts(&lcov));
        }
    }
}
