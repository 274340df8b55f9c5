//! A report as text: aligned for terminals, and as a Telegram message in its HTML.
//!
//! Both are laid out from the same rows. In the message, whatever came from outside stands in `<code>` or `<pre>`, where Telegram
//! looks for no mentions, commands or links: a commit's subject cannot ring anybody's phone. A message is put together from whole
//! pieces whose visible length is counted as they are added, so it can neither be too long nor end in the middle of a tag or entity.

use super::{
    report::Report,
    words::{cut, units},
};
use crate::model::Status;

/// The longest text that Telegram takes, after its markup was read (Bot API, `sendMessage`).
pub const LIMIT: usize = 4096;

/// A quoted log is not worth its heading with less room than this.
const LEAST_LINE: usize = 20;

/// A message in both forms that may be needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// For `parse_mode = HTML`.
    pub html: String,
    /// The same text without markup, for when Telegram cannot read it.
    pub plain: String,
}

/// A part of a row.
pub(super) enum Piece {
    /// Our own words.
    Words(String),
    /// What came from outside, or is to be copied.
    Code(String),
    Link {
        text: String,
        url: String,
    },
}

struct Row {
    label: &'static str,
    pieces: Vec<Piece>,
}

impl Report {
    /// One line for a log.
    pub fn line(&self) -> String {
        let commit = self.commit.as_ref().map(|(short, _)| format!(" ({short})")).unwrap_or_default();
        let error = self.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        format!("deployment {} of {}{commit}: {}{error}", self.id, self.place, self.summary)
    }

    /// Several lines for a terminal or a file, without colours.
    pub fn text(&self) -> String {
        let mut out = format!("{} {}: {}\n", self.mark(), self.place, self.summary);
        let write = |out: &mut String, row: &Row| {
            let value: String = row.pieces.iter().map(Piece::text).collect();
            out.push_str(format!("  {:<8} {value}", row.label).trim_end());
            out.push('\n');
        };
        self.rows().iter().for_each(|row| write(&mut out, row));
        if !self.tail.is_empty() {
            out.push_str(&format!("  {}\n", self.tail_heading()));
            self.tail.iter().for_each(|line| out.push_str(&format!("  | {line}\n")));
        }
        self.next_rows().iter().for_each(|row| write(&mut out, row));
        out
    }

    /// A message that Telegram takes, whatever the deployment said. The quoted log is the first to be shortened.
    pub fn message(&self) -> Message {
        let mut canvas = Canvas::default();
        canvas.words(&format!("{} ", self.mark()));
        canvas.bold(&self.place);
        canvas.words(&format!(": {}\n", self.summary));
        let mut foot = Canvas::default();
        self.next_rows().iter().for_each(|row| foot.row(row));
        for row in self.rows() {
            let mut part = Canvas::default();
            part.row(&row);
            if canvas.units + part.units + foot.units <= LIMIT {
                canvas.append(part);
            }
        }
        let heading = format!("{}\n", self.tail_heading());
        let room = LIMIT.saturating_sub(canvas.units + foot.units + units(&heading) + 1);
        if let Some(quoted) = newest_that_fit(&self.tail, room) {
            canvas.words(&heading);
            canvas.pre(&quoted);
            canvas.words("\n");
        }
        canvas.append(foot);
        canvas.message()
    }

    fn tail_heading(&self) -> String {
        match self.failed_stage {
            Some(stage) => format!("the last lines of {stage}:"),
            None => "the last lines:".to_owned(),
        }
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = vec![Row::words("number", self.id.to_string())];
        let mut add = |label: &'static str, pieces: Vec<Piece>| rows.push(Row { label, pieces });
        if let Some((short, url)) = &self.commit {
            let commit = match url {
                Some(url) => Piece::Link { text: short.clone(), url: url.clone() },
                None => Piece::Code(short.clone()),
            };
            let subject = self.subject.iter().flat_map(|s| [Piece::Words(" ".to_owned()), Piece::Code(s.clone())]);
            add("commit", std::iter::once(commit).chain(subject).collect());
        }
        if let Some(author) = &self.author {
            add("author", vec![Piece::Code(author.clone())]);
        }
        match &self.rollback {
            Some((way, why)) => {
                add(if self.restores { "restore" } else { "rollback" }, vec![Piece::Words(way.clone())]);
                add("because", vec![Piece::Code(why.clone())]);
            }
            None => add(self.reference.0, vec![Piece::Code(self.reference.1.clone())]),
        }
        let forced = if self.forced { " (forced)" } else { "" };
        let mut trigger = vec![Piece::Words(format!("{}{forced}", self.trigger.0))];
        if let Some(by) = &self.trigger.1 {
            trigger.extend([Piece::Words(", by ".to_owned()), Piece::Code(by.clone())]);
        }
        add("trigger", trigger);
        if let Some(took) = &self.took {
            add("took", vec![Piece::Words(took.clone())]);
        }
        if let Some(approval) = &self.approval {
            add("approval", vec![Piece::Words(approval.clone())]);
        }
        if !self.stages.is_empty() {
            add("stages", vec![Piece::Words(self.stages.join(" · "))]);
        }
        if self.interrupted {
            let note = "the daemon was stopped while it ran, and finished this at its next start";
            add("note", vec![Piece::Words(note.to_owned())]);
        }
        if let Some(error) = &self.error {
            let stage = self.failed_stage.map(|stage| Piece::Words(format!("{stage}: ")));
            add("reason", stage.into_iter().chain([Piece::Code(error.clone())]).collect());
        }
        for (stage, warning) in &self.warnings {
            add("warning", vec![Piece::Words(format!("{stage}: ")), Piece::Code(warning.clone())]);
        }
        for undone in &self.undone {
            add("undone", vec![Piece::Code(undone.clone())]);
        }
        if let Some(live) = &self.live {
            add("live", vec![Piece::Words(live.clone())]);
        }
        if let Some(backup) = &self.backup {
            add("backup", vec![Piece::Code(backup.clone())]);
        }
        if let Some(freed) = &self.freed {
            add("freed", vec![Piece::Words(freed.clone())]);
        }
        rows
    }

    fn next_rows(&self) -> Vec<Row> {
        // Where users may see an error the order matters.
        let labels = if self.status == Status::Stuck { ["1.", "2.", "3."] } else { ["next"; 3] };
        let row = |(label, (command, what)): (&'static str, &(String, &str))| {
            let pieces = vec![Piece::Code(command.clone()), Piece::Words(format!(" {what}"))];
            Row { label, pieces }
        };
        labels.into_iter().zip(&self.next).map(row).collect()
    }
}

impl Row {
    fn words(label: &'static str, text: String) -> Self {
        Self { label, pieces: vec![Piece::Words(text)] }
    }
}

impl Piece {
    fn text(&self) -> &str {
        match self {
            Self::Words(text) | Self::Code(text) | Self::Link { text, .. } => text,
        }
    }
}

/// The newest lines that fit in `room` units, oldest first; `None` where none does.
fn newest_that_fit(lines: &[String], room: usize) -> Option<String> {
    let mut kept: Vec<String> = Vec::new();
    let mut left = room;
    for line in lines.iter().rev() {
        let length = units(line) + 1;
        if length <= left {
            left -= length;
            kept.push(line.clone());
            continue;
        }
        if left > LEAST_LINE {
            kept.push(cut(line, left - 1));
        }
        break;
    }
    kept.reverse();
    let text = kept.join("\n");
    (!text.trim().is_empty()).then_some(text)
}

/// A message under construction: markup, plain text, and the length that Telegram will count.
#[derive(Default)]
pub(crate) struct Canvas {
    html: String,
    plain: String,
    pub units: usize,
}

impl Canvas {
    pub fn words(&mut self, text: &str) {
        self.put("", text, "");
    }

    pub fn bold(&mut self, text: &str) {
        self.put("<b>", text, "</b>");
    }

    pub fn pre(&mut self, text: &str) {
        self.put("<pre>", text, "</pre>");
    }

    pub fn code(&mut self, text: &str) {
        self.put("<code>", text, "</code>");
    }

    pub fn message(self) -> Message {
        let whole = |text: String| text.strip_suffix('\n').map_or(text.clone(), str::to_owned);
        Message { html: whole(self.html), plain: whole(self.plain) }
    }

    pub(super) fn piece(&mut self, piece: &Piece) {
        match piece {
            Piece::Words(text) => self.words(text),
            Piece::Code(text) => self.code(text),
            Piece::Link { text, url } => self.put(&format!("<a href=\"{}\">", escape(url)), text, "</a>"),
        }
    }

    fn row(&mut self, row: &Row) {
        self.bold(row.label);
        self.words(" ");
        row.pieces.iter().for_each(|piece| self.piece(piece));
        self.words("\n");
    }

    fn put(&mut self, before: &str, text: &str, after: &str) {
        if text.is_empty() {
            return;
        }
        self.html.push_str(before);
        self.html.push_str(&escape(text));
        self.html.push_str(after);
        self.plain.push_str(text);
        self.units += units(text);
    }

    pub fn append(&mut self, other: Self) {
        self.html.push_str(&other.html);
        self.plain.push_str(&other.plain);
        self.units += other.units;
    }
}

/// The four characters that mean something in Telegram's HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}
