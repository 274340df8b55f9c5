use proptest::prelude::*;

use super::*;

/// Writes down what it hears.
#[derive(Debug, Default, PartialEq, Eq)]
struct Notes {
    said: Vec<String>,
    rows: u64,
}

impl Listen for Notes {
    fn statement(&mut self, text: &[u8], double: bool) -> Result<Option<bool>, String> {
        let text = String::from_utf8_lossy(text).into_owned();
        let plain = text.starts_with("SET sql_mode").then(|| text.contains("NO_BACKSLASH"));
        self.said.push(if double { format!("{text} ;;") } else { text });
        Ok(plain)
    }

    fn insert(&mut self, head: &[u8]) -> Result<(), String> {
        self.said.push(String::from_utf8_lossy(head).into_owned());
        Ok(())
    }

    fn rows(&mut self, text: &[u8], begun: u64) -> Result<(), String> {
        self.rows += begun;
        let last = self.said.last_mut().ok_or("rows of nothing")?;
        last.push_str(&String::from_utf8_lossy(text));
        Ok(())
    }

    fn inserted(&mut self) -> Result<(), String> {
        self.said.push("inserted".to_owned());
        Ok(())
    }

    fn comment(&mut self, text: &[u8]) -> Result<(), String> {
        self.said.push(format!("-- {}", String::from_utf8_lossy(text).trim()));
        Ok(())
    }
}

fn split(dump: &[u8], cut: usize) -> Result<Notes, Refused> {
    let mut notes = Notes::default();
    let mut splitter = Splitter::default();
    for chunk in dump.chunks(cut.max(1)) {
        splitter.feed(chunk, &mut notes)?;
    }
    splitter.finish(&mut notes)?;
    Ok(notes)
}

const DUMP: &str = r"/*M!999999\- enable the sandbox mode */ 
-- A dump; it's `one`
--
/* it's ; */
/*!40101 SET NAMES utf8mb4 */;
DROP TABLE IF EXISTS `a;``b`;
CREATE TABLE `a;``b` (
  `x` text DEFAULT ';' COMMENT 'it''s \' ; -- no comment', -- one; here
  `y` int /* and ; ' here */ #it's
);
INSERT INTO `a;``b` VALUES
(1,'(;\\'),(-2.5e3,'it\'s),('),
(NULL,_binary 0x00FF);
SET sql_mode='NO_BACKSLASH_ESCAPES';
SELECT '\';
SET sql_mode='';
DELIMITER ;;
CREATE TRIGGER t BEGIN SELECT 1; SELECT ';;'; END ;;
DELIMITER ;
COMMIT;

-- Dump completed
";

#[test]
fn statements_are_whole_however_the_text_is_cut() {
    let whole = split(DUMP.as_bytes(), usize::MAX).unwrap();
    let said: Vec<&str> = whole.said.iter().map(String::as_str).collect();
    assert_eq!(
        said,
        [
            "-- A dump; it's `one`",
            "-- ",
            "/*!40101 SET NAMES utf8mb4 */",
            "DROP TABLE IF EXISTS `a;``b`",
            "CREATE TABLE `a;``b` (\n  `x` text DEFAULT ';' COMMENT 'it''s \\' ; -- no comment', -- one; here\n  `y` int /* and ; ' here */ #it's\n)",
            "INSERT INTO `a;``b` VALUES\n(1,'(;\\\\'),(-2.5e3,'it\\'s),('),\n(NULL,_binary 0x00FF)",
            "inserted",
            "SET sql_mode='NO_BACKSLASH_ESCAPES'",
            "SELECT '\\'",
            "SET sql_mode=''",
            "CREATE TRIGGER t BEGIN SELECT 1; SELECT ';;'; END  ;;",
            "COMMIT",
            "-- Dump completed",
        ]
    );
    assert_eq!(whole.rows, 3);
    for cut in 1..40 {
        assert_eq!(split(DUMP.as_bytes(), cut).unwrap(), whole, "in pieces of {cut}");
    }
}

#[test]
fn a_dump_that_ends_too_soon_is_noticed() {
    for cut in
        ["SELECT 1", "SELECT 'x;", "INSERT INTO `a` VALUES (1,'x')", "INSERT INTO `a` VALUES (1", "/* x", "x /* ; */"]
    {
        let why = split(cut.as_bytes(), 3).unwrap_err();
        assert_eq!(why.why, "the dump ends in the middle of a statement", "{cut}");
    }
    assert!(split(b"SELECT 1;\n-- Dump completed", 3).is_ok(), "a comment needs no end of line");
}

#[test]
fn a_row_holds_plain_values_and_nothing_else() {
    for row in [
        "(sys_exec('id'))",
        "((SELECT 1))",
        "(1) ON DUPLICATE KEY UPDATE x = 1",
        "(1 /* x */)",
        "(1--\n)",
        "(@x)",
        "(1)\\! id",
        "(`a`)",
    ] {
        let dump = format!("COMMIT;\nINSERT INTO `a` VALUES {row};");
        let why = split(dump.as_bytes(), 5).unwrap_err();
        assert!(why.line >= 2 && !why.why.is_empty(), "{row}: {why}");
    }
    for delimiter in ["//", "$$", ";;;", "a b", ""] {
        assert!(split(format!("DELIMITER {delimiter}\nx").as_bytes(), 100).is_err(), "{delimiter}");
    }
}

#[test]
fn only_rows_may_be_long() {
    let long = "x".repeat(LONGEST);
    assert!(split(format!("SELECT '{long}';").as_bytes(), 65536).unwrap_err().why.contains("longer than"));
    assert_eq!(split(format!("INSERT INTO `a` VALUES ('{long}'),(1);").as_bytes(), 65536).unwrap().rows, 2);
}

proptest! {
    #[test]
    fn nothing_panics_and_cuts_do_not_matter(
        pieces in proptest::collection::vec(
            proptest::sample::select(vec![
                "'", "\"", "`", "\\", ";", ";;", "--", "-- ", "\n", "#", "/*", "*/", "/*!", "(", ")", "INSERT INTO `a` VALUES ",
                "DELIMITER ;;\n", "DELIMITER ;\n", "x", " ", "1", ",",
            ]), 0..40),
        cut in 1_usize..30,
    ) {
        let dump = pieces.concat();
        let same = |result: Result<Notes, Refused>| result.map_err(|_| ());
        prop_assert_eq!(same(split(dump.as_bytes(), cut)), same(split(dump.as_bytes(), usize::MAX)));
    }
}
