//! What `psql` prints, line by line: the tags of commands (`COPY 3000`, `COMMIT`), and the answer to the last question.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{io::AsyncWrite, sync::watch};

use super::LONGEST_LINE;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Rows of `COPY` and `INSERT`.
    pub rows: u64,
    /// The answer to the question at the end of the dump: it is loaded.
    pub tables: Option<u64>,
    /// The tag of a transaction that failed would be `ROLLBACK`.
    pub committed: bool,
}

#[derive(Debug)]
pub(super) struct Listener {
    mark: String,
    line: Vec<u8>,
    heard: watch::Sender<Heard>,
}

impl Listener {
    pub fn new(mark: &str) -> (Self, watch::Receiver<Heard>) {
        let (heard, receiver) = watch::channel(Heard::default());
        (Self { mark: format!("{mark}|"), line: Vec::new(), heard }, receiver)
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let room = LONGEST_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.hear(String::from_utf8_lossy(&line).trim_end());
            }
        }
    }

    fn hear(&self, line: &str) {
        let number = |text: &str| text.parse::<u64>().ok();
        if let Some(tables) = line.strip_prefix(&self.mark).and_then(number) {
            self.heard.send_modify(|heard| heard.tables = Some(tables));
        } else if let Some(rows) = line.strip_prefix("COPY ").or(line.strip_prefix("INSERT 0 ")).and_then(number) {
            self.heard.send_modify(|heard| heard.rows += rows);
        } else if line == "COMMIT" {
            self.heard.send_modify(|heard| heard.committed = heard.tables.is_some());
        }
    }
}

impl AsyncWrite for Listener {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.take(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_heard_however_they_are_cut() {
        let said =
            "BEGIN\nSET\nCOPY 12\nCOPY x\nINSERT 0 3\nCOMMIT\nmark|7\n".to_owned() + &"x".repeat(9999) + "\nCOMMIT\n";
        for cut in [1, 2, 7, 100_000] {
            let (mut listener, heard) = Listener::new("mark");
            for piece in said.as_bytes().chunks(cut) {
                listener.take(piece);
                assert!(listener.line.len() <= LONGEST_LINE);
            }
            assert_eq!(*heard.borrow(), Heard { rows: 15, tables: Some(7), committed: true });
        }
    }

    #[test]
    fn a_commit_before_the_end_of_the_dump_does_not_count() {
        let (mut listener, heard) = Listener::new("mark");
        listener.take(b"COMMIT\nmark|0\nROLLBACK\n");
        assert_eq!(*heard.borrow(), Heard { rows: 0, tables: Some(0), committed: false });
    }
}
