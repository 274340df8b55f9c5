//! Colours, and words and times for people. Pure: what is written here is decided by its arguments alone.

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use jiff::{Timestamp, tz::TimeZone};

use crate::{
    log::printable,
    model::{StageStatus, Status},
};

/// Paints text, or not.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    on: bool,
}

/// How a word feels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warn,
    Bad,
    Busy,
    Plain,
}

impl Paint {
    pub fn new(on: bool) -> Self {
        Self { on }
    }

    pub fn is_on(self) -> bool {
        self.on
    }

    fn with(self, style: Style, text: &str) -> String {
        if self.on { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    pub fn good(self, text: &str) -> String {
        self.with(AnsiColor::Green.on_default().bold(), text)
    }

    pub fn warn(self, text: &str) -> String {
        self.with(AnsiColor::Yellow.on_default().bold(), text)
    }

    pub fn bad(self, text: &str) -> String {
        self.with(AnsiColor::Red.on_default().bold(), text)
    }

    pub fn bold(self, text: &str) -> String {
        self.with(Style::new().bold(), text)
    }

    pub fn dim(self, text: &str) -> String {
        self.with(Style::new().dimmed(), text)
    }

    pub fn tone(self, tone: Tone, text: &str) -> String {
        match tone {
            Tone::Good => self.good(text),
            Tone::Warn => self.warn(text),
            Tone::Bad => self.bad(text),
            Tone::Busy => self.with(AnsiColor::Cyan.on_default(), text),
            Tone::Plain => text.to_owned(),
        }
    }

    /// A table without lines; as wide as `width` allows, or as its content.
    pub fn table(self, header: &[&str], width: Option<u16>) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if self.on {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        match width {
            Some(width) => table.set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        if !header.is_empty() {
            table.set_header(header.iter().map(|h| Cell::new(h).add_attribute(comfy_table::Attribute::Bold)));
        }
        if let Some(first) = table.column_mut(0) {
            first.set_padding((0, 1));
        }
        table
    }
}

/// A table's text, with no blanks at the ends of lines.
pub fn table_text(table: &Table) -> String {
    table.lines().fold(String::new(), |out, line| out + line.trim_end() + "\n")
}

pub fn cell(tone: Tone, text: impl Into<String>) -> Cell {
    let cell = Cell::new(text.into());
    match tone {
        Tone::Good => cell.fg(Color::Green),
        Tone::Warn => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Busy => cell.fg(Color::Cyan),
        Tone::Plain => cell,
    }
}

pub fn status_tone(status: Status) -> Tone {
    match status {
        Status::Succeeded => Tone::Good,
        Status::Failed | Status::Stuck => Tone::Bad,
        Status::RolledBack | Status::Cancelled | Status::AwaitingApproval => Tone::Warn,
        Status::Running => Tone::Busy,
        Status::Queued | Status::Superseded | Status::Skipped => Tone::Plain,
    }
}

pub fn stage_tone(status: StageStatus) -> Tone {
    match status {
        StageStatus::Succeeded => Tone::Good,
        StageStatus::Warned | StageStatus::Undone => Tone::Warn,
        StageStatus::Failed | StageStatus::UndoFailed => Tone::Bad,
        StageStatus::Running => Tone::Busy,
        StageStatus::Pending | StageStatus::Skipped => Tone::Plain,
    }
}

/// `rolled_back` → `rolled back`.
pub fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// `1 part`, `3 parts`.
pub fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Text from outside on one line, harmless to a terminal, at most `width` characters.
pub fn clip(text: &str, width: usize) -> String {
    let text = printable(text.lines().next().unwrap_or_default());
    if text.chars().count() <= width {
        return text;
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// `320ms`, `1.2s`, `2m 05s`, `1h 02m`.
pub fn took(ms: i64) -> String {
    let ms = ms.max(0);
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Now, and where the reader is.
#[derive(Debug, Clone)]
pub struct Clock {
    pub now: Timestamp,
    pub zone: TimeZone,
}

impl Clock {
    pub fn system() -> Self {
        Self { now: Timestamp::now(), zone: TimeZone::system() }
    }

    /// `3 minutes ago`; a date for what is more than a month old.
    pub fn ago(&self, at: Timestamp) -> String {
        let seconds = self.now.as_second() - at.as_second();
        let (count, unit) = match seconds {
            ..5 => return "just now".to_owned(),
            5..60 => (seconds, "second"),
            60..3600 => (seconds / 60, "minute"),
            3600..86_400 => (seconds / 3600, "hour"),
            86_400..2_678_400 => (seconds / 86_400, "day"),
            _ => return at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d").to_string(),
        };
        format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
    }

    /// `2026-11-21 10:15:30 +01:00`.
    pub fn local(&self, at: Timestamp) -> String {
        at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let all = [0, 320, 1_250, 59_999, 60_000, 125_000, 3_720_000, -5].map(took);
        assert_eq!(all, ["0ms", "320ms", "1.2s", "59.9s", "1m 00s", "2m 05s", "1h 02m", "0ms"]);
    }

    #[test]
    fn ages_read_well() {
        let clock = Clock { now: Timestamp::from_second(1_795_000_000).unwrap(), zone: TimeZone::UTC };
        let ago = |s: i64| clock.ago(Timestamp::from_second(1_795_000_000 - s).unwrap());
        let all = [-60, 3, 59, 60, 7_300, 90_000, 3_000_000].map(ago);
        assert_eq!(
            all,
            ["just now", "just now", "59 seconds ago", "1 minute ago", "2 hours ago", "1 day ago", "2026-10-14"]
        );
    }

    #[test]
    fn clipped_text_cannot_paint_the_terminal() {
        assert_eq!(clip("\u{1b}[31mred\u{1b}[0m\nsecond line", 20), "red");
        assert_eq!(clip("a message that is too long", 12), "a message t…");
    }
}
