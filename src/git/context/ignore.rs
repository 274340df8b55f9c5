//! `.dockerignore`, with the meaning that Moby's `patternmatcher` gives it.
//!
//! Patterns are relative to the context's root whether or not they begin with `/`. The last pattern that matches a path or one of its
//! parent directories decides; `!` takes paths back. `*` and `?` stay within one name, `**` is any number of directories.
//! It is not `.gitignore`: `foo` matches only at the root.
//!
//! A pattern is matched by keeping the set of all positions that it can have reached, so that no pattern, however
//! hostile, takes more time than its length times the path's.

/// The rules of one `.dockerignore`.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    /// It began with `!`.
    keeps: bool,
    tokens: Vec<Token>,
}

#[derive(Debug)]
enum Token {
    Literal(char),
    /// `?`: one character of a name.
    One,
    /// `*`: any part of a name.
    Some,
    /// `**` at the end: anything.
    Rest,
    /// `**/`: any number of directories, also none.
    Directories,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Which patterns match a path or one of its parents, one flag a pattern. A directory's verdict is handed to what is in it.
#[derive(Debug, Clone)]
pub(super) struct Verdict(Vec<bool>);

impl Ignore {
    /// Reads the file's text. The error is the pattern that cannot be understood, with the reason.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut patterns = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let line = line.trim();
            let (keeps, glob) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if glob.is_empty() {
                if keeps {
                    return Err("the pattern `!` has nothing after its `!`".to_owned());
                }
                continue;
            }
            let glob = clean(glob);
            let tokens = tokens(&glob).map_err(|why| format!("the pattern `{line}` {why}"))?;
            patterns.push(Pattern { keeps, tokens });
        }
        Ok(Self { patterns })
    }

    /// The verdict on the context's root.
    pub(super) fn root(&self) -> Verdict {
        Verdict(vec![false; self.patterns.len()])
    }

    /// The verdict on `path`, which is relative to the root and lies in the directory that `parent` is about.
    pub(super) fn judge(&self, path: &str, parent: &Verdict) -> Verdict {
        let path: Vec<char> = path.chars().collect();
        Verdict(self.patterns.iter().zip(&parent.0).map(|(p, above)| *above || p.matches(&path)).collect())
    }

    pub(super) fn excludes(&self, verdict: &Verdict) -> bool {
        self.patterns.iter().zip(&verdict.0).filter(|(_, hit)| **hit).fold(false, |_, (pattern, _)| !pattern.keeps)
    }

    /// Whether something below an excluded directory may be taken back.
    pub(super) fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|p| p.keeps)
    }
}

impl Pattern {
    fn matches(&self, path: &[char]) -> bool {
        // reached[i]: the tokens so far can have consumed exactly i characters.
        let mut reached = vec![false; path.len() + 1];
        reached[0] = true;
        for token in &self.tokens {
            reached = token.step(&reached, path);
            if !reached.contains(&true) {
                return false;
            }
        }
        reached[path.len()]
    }
}

impl Token {
    fn step(&self, reached: &[bool], path: &[char]) -> Vec<bool> {
        let mut next = vec![false; reached.len()];
        let mut seen = false;
        for at in 0..reached.len() {
            // The character that leads to this position.
            let before = at.checked_sub(1).map(|i| path[i]);
            let from_previous = at > 0 && reached[at - 1];
            next[at] = match self {
                Self::Literal(c) => from_previous && before == Some(*c),
                Self::One => from_previous && before != Some('/'),
                Self::Class { negated, ranges } => {
                    let within = before.is_some_and(|b| ranges.iter().any(|(low, high)| (*low..=*high).contains(&b)));
                    from_previous && within != *negated
                }
                Self::Some => reached[at] || (at > 0 && next[at - 1] && before != Some('/')),
                Self::Rest => reached[at] || (at > 0 && next[at - 1]),
                Self::Directories => reached[at] || (seen && before == Some('/')),
            };
            seen |= reached[at];
        }
        next
    }
}

fn tokens(glob: &str) -> Result<Vec<Token>, &'static str> {
    let mut out = Vec::new();
    let mut rest = glob.chars().peekable();
    while let Some(c) = rest.next() {
        out.push(match c {
            '*' if rest.next_if_eq(&'*').is_some() => {
                rest.next_if_eq(&'/');
                if rest.peek().is_none() { Token::Rest } else { Token::Directories }
            }
            '*' => Token::Some,
            '?' => Token::One,
            '\\' => Token::Literal(rest.next().ok_or("ends with `\\`")?),
            '[' => class(&mut rest)?,
            other => Token::Literal(other),
        });
    }
    Ok(out)
}

fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, &'static str> {
    const OPEN: &str = "has a `[` without its `]`";
    let negated = rest.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let mut one = || match rest.next().ok_or(OPEN)? {
            '\\' => rest.next().ok_or(OPEN),
            c => Ok(c),
        };
        let low = one()?;
        if low == ']' && !ranges.is_empty() {
            return Ok(Token::Class { negated, ranges });
        }
        if low == ']' {
            return Err("has an empty `[]`");
        }
        let high = if rest.next_if_eq(&'-').is_some() { rest.next().ok_or(OPEN)? } else { low };
        ranges.push((low, high));
    }
}

/// The path without `.`, empty and resolvable `..` parts, and without its leading `/`.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges a path the way the walk does: from the root down.
    fn excluded(rules: &str, path: &str) -> bool {
        let ignore = Ignore::parse(rules).expect(rules);
        let mut verdict = ignore.root();
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            verdict = ignore.judge(&path[..end], &verdict);
        }
        ignore.excludes(&verdict)
    }

    #[test]
    fn patterns_mean_what_they_mean_to_docker() {
        let cases = [
            // (rules, excluded, kept)
            ("foo", "foo foo/bar foo/bar/baz", "a/foo foobar"),
            ("/foo/", "foo foo/bar", "a/foo"),
            ("./foo/../bar", "bar", "foo"),
            ("*.md", "README.md", "docs/README.md"),
            ("*/*.md", "docs/README.md", "README.md a/b/c.md"),
            ("**/*.md", "README.md docs/README.md a/b/c.md", "README.mdx"),
            ("**", "a a/b .x", ""),
            ("a/**", "a/b a/b/c", "a b"),
            ("a/**/z", "a/z a/b/z a/b/c/z a/b/z/deeper", "z a/zz"),
            ("**/node_modules", "node_modules a/node_modules/x", "node_modules2"),
            ("te?t", "test text", "teest te/t"),
            ("[a-c]x", "ax cx", "dx x"),
            ("[^a-c]x", "dx", "ax"),
            ("a\\*b", "a*b", "axb"),
            ("# no comment\n #odd", "#odd", "# no comment"),
            ("a.c", "a.c", "abc"),
            ("  spaced  ", "spaced", ""),
            ("*", "a a/b .git", ""),
        ];
        for (rules, out, kept) in cases {
            for path in out.split(' ').filter(|p| !p.is_empty()) {
                assert!(excluded(rules, path), "{rules:?} should exclude {path:?}");
            }
            for path in if kept == "# no comment" { vec![kept] } else { kept.split(' ').collect() } {
                assert!(path.is_empty() || !excluded(rules, path), "{rules:?} should keep {path:?}");
            }
        }
    }

    #[test]
    fn the_last_match_decides_and_exceptions_take_back() {
        let rules = "*\n!src\n!docs/*.md\nsrc/secret\n!src/secret/but-this";
        for kept in ["src", "src/main.c", "docs/a.md", "src/secret/but-this"] {
            assert!(!excluded(rules, kept), "{kept}");
        }
        for out in ["Makefile", "docs", "docs/a.txt", "docs/x/a.md", "src/secret", "src/secret/key"] {
            assert!(excluded(rules, out), "{out}");
        }
        assert!(!excluded("*.md\n!README.md", "README.md"));
        assert!(excluded("!README.md\n*.md", "README.md"), "order counts");
    }

    #[test]
    fn a_broken_pattern_is_named() {
        for bad in ["[a", "x\n[]", "a\\", "!"] {
            let error = Ignore::parse(bad).expect_err(bad);
            assert!(error.contains(bad.lines().last().unwrap_or(bad)), "{error}");
        }
        assert!(!Ignore::parse("\u{feff}a\r\n\r\n").expect("bom").has_exceptions());
    }

    #[test]
    fn a_hostile_pattern_is_answered() {
        assert!(!excluded(&format!("{}b", "**/*a*/".repeat(200)), &"a/".repeat(200)));
    }
}
