//! How the demo speaks: headings, its own sentences, and, behind a bar, what programs said.

use crate::cli::{
    context::Context,
    error::Result,
    style::{Tone, clip},
};

/// Columns for running text.
pub const WIDTH: usize = 92;

/// Columns for the name of a fact.
const NAME_WIDTH: usize = 10;

/// Columns for a program's output where something stands beside it.
const OUTPUT_WIDTH: usize = 62;

#[derive(Debug, Clone, Copy)]
pub struct Voice<'a> {
    context: &'a Context,
}

impl<'a> Voice<'a> {
    pub fn new(context: &'a Context) -> Self {
        Self { context }
    }

    fn put(self, text: &str) -> Result<()> {
        self.context.print(&format!("{text}\n"))
    }

    pub fn blank(self) -> Result<()> {
        self.put("")
    }

    pub fn heading(self, n: usize, title: &str) -> Result<()> {
        self.put(&format!("\n{}", self.context.paint.bold(&format!("{n}. {title}"))))
    }

    pub fn title(self, title: &str) -> Result<()> {
        self.put(&format!("\n{}", self.context.paint.bold(title)))
    }

    pub fn line(self, text: &str) -> Result<()> {
        self.put(&format!("   {text}"))
    }

    pub fn toned(self, tone: Tone, text: &str) -> Result<()> {
        self.line(&self.context.paint.tone(tone, text))
    }

    /// Running text, wrapped.
    pub fn paragraph(self, text: &str) -> Result<()> {
        wrapped(text, WIDTH).iter().try_for_each(|line| self.line(line))
    }

    pub fn fact(self, name: &str, text: &str) -> Result<()> {
        let mut name = name;
        for line in wrapped(text, WIDTH - NAME_WIDTH) {
            self.line(&format!("  {} {line}", self.context.paint.dim(&format!("{name:<NAME_WIDTH$}"))))?;
            name = "";
        }
        Ok(())
    }

    /// A fact that is to be copied: an address, a path, a command. Never wrapped.
    pub fn pointer(self, name: &str, text: &str) -> Result<()> {
        self.line(&format!("  {} {text}", self.context.paint.dim(&format!("{name:<NAME_WIDTH$}"))))
    }

    /// A command that is run.
    pub fn command(self, command: &str) -> Result<()> {
        self.line(&format!("{} {}", self.context.paint.dim("$"), self.context.paint.bold(command)))
    }

    /// A line of a program's output.
    pub fn output(self, line: &str) -> Result<()> {
        let line = format!(" {}", clip(line, 200));
        self.line(&format!("{}{}", self.context.paint.dim("│"), line.trim_end()))
    }

    /// A line of a program's output, and beside it what is so at this moment.
    pub fn output_beside(self, line: &str, note: &str) -> Result<()> {
        let line = clip(line, 200);
        let line = format!("{:<OUTPUT_WIDTH$}", line.trim_end());
        self.line(&format!("{} {line}  {}", self.context.paint.dim("│"), self.context.paint.dim(&format!("· {note}"))))
    }
}

pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_whole() {
        assert_eq!(wrapped("one two  three\nfour", 9), ["one two", "three", "four"]);
        assert_eq!(wrapped("extraordinarily long", 5), ["extraordinarily", "long"]);
    }
}
