use proptest::prelude::*;

use super::*;

fn class(text: &str) -> Result<Class, String> {
    judge(text.as_bytes())
}

#[test]
fn what_the_dump_programs_write_is_known() {
    for text in [
        "DROP TABLE IF EXISTS `a``b`",
        "DROP SEQUENCE IF EXISTS `s`",
        "CREATE SEQUENCE `s` start with 100 minvalue 1 cycle ENGINE=InnoDB",
        "DO SETVAL(`s`, 1100, 0)",
        "SELECT SETVAL(`s`, -3, 0)",
        "LOCK TABLES `a` WRITE",
        "UNLOCK TABLES",
        "/*!40000 ALTER TABLE `a` DISABLE KEYS */",
        "commit",
    ] {
        assert_eq!(class(text), Ok(Class::Data), "{text}");
    }
    assert_eq!(class("CREATE TABLE `we``ird\n\\! id` (\n  `x` int)"), Ok(Class::Table("we`ird\n\\! id".to_owned())));
    assert_eq!(class("CREATE TABLE IF NOT EXISTS Plain (x int)"), Ok(Class::Table("Plain".to_owned())));
    for text in [
        "/*!50001 DROP VIEW IF EXISTS `v1`*/",
        "/*!50001 CREATE VIEW `v1` AS SELECT\n 1 AS `id` */",
        "/*!50001 CREATE TABLE `v1` (\n  `id` tinyint NOT NULL\n) ENGINE=MyISAM */",
        "/*!50001 DROP TABLE IF EXISTS `v1`*/",
        "/*!50001 CREATE ALGORITHM=UNDEFINED */\n/*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */\n/*!50001 VIEW `v1` AS select 1 */",
        "/*!50003 CREATE*/ /*!50017 DEFINER=`a b`@`%`*/ /*!50003 trigger tr before insert on a for each row begin end \n*/",
        "/*!50003 DROP PROCEDURE IF EXISTS `p` */",
        "CREATE DEFINER=`root`@`localhost` PROCEDURE `p`()\nbegin select 1; end\n",
        "CREATE DEFINER=\"root\"@\"localhost\" PACKAGE BODY \"pk\" as x",
        "/*!50003 DROP PACKAGE BODY IF EXISTS `pk` */",
        "CREATE DEFINER=root@localhost FUNCTION f() RETURNS int return 1",
    ] {
        assert_eq!(class(text), Ok(Class::Code), "{text}");
    }
    for text in [
        "/*!50106 DROP EVENT IF EXISTS `e` */",
        "/*!50106 CREATE*/ /*!50117 DEFINER=`root`@`localhost`*/ /*!50106 EVENT `e` ON SCHEDULE */",
    ] {
        assert_eq!(class(text), Ok(Class::Event), "{text}");
    }
    let text = "ALTER DATABASE `live`.`` CHARACTER SET latin1";
    assert!(class(text).is_err(), "{text}");
    let text = "ALTER DATABASE `li ve` CHARACTER SET latin1 COLLATE latin1_swedish_ci ";
    let expected = "ALTER DATABASE character set latin1 collate latin1_swedish_ci".to_owned();
    assert_eq!(class(text), Ok(Class::DatabaseDefault(expected)));
    assert_eq!(inserts_into(b"INSERT INTO `a``b` VALUES"), Ok("a`b".to_owned()));
    assert_eq!(inserts_into(b"INSERT  INTO `a` (`x`, `y`) VALUES"), Ok("a".to_owned()));
}

#[test]
fn session_settings_tell_whether_backslashes_escape() {
    for (text, plain_backslash) in [
        ("/*!40101 SET NAMES utf8mb4 */", None),
        ("/*!40014 SET @OLD_FOREIGN_KEY_CHECKS=@@FOREIGN_KEY_CHECKS, FOREIGN_KEY_CHECKS=0 */", None),
        ("/*!40101 SET @OLD_SQL_MODE=@@SQL_MODE, SQL_MODE='NO_AUTO_VALUE_ON_ZERO' */", Some(false)),
        ("/*!50003 SET sql_mode              = 'ANSI,NO_BACKSLASH_ESCAPES' */ ", Some(true)),
        ("/*!50003 SET sql_mode              = @saved_sql_mode */ ", Some(false)),
        ("/*M!100616 SET @OLD_NOTE_VERBOSITY=@@NOTE_VERBOSITY, NOTE_VERBOSITY=0 */", None),
        ("/*!80000 SET SESSION information_schema_stats_expiry=0 */", None),
        ("SET @@SESSION.SQL_LOG_BIN= 0", None),
        ("/*!40103 SET TIME_ZONE='+00:00' */", None),
    ] {
        assert_eq!(class(text), Ok(Class::Session { plain_backslash }), "{text}");
    }
}

#[test]
fn what_no_dump_of_one_database_has_is_refused() {
    for text in [
        "USE `live`",
        "CREATE DATABASE `x`",
        "CREATE /*!80000 TABLE `x` ( */ USER `me`",
        "CREATE /* x */ USER me",
        "DROP DATABASE `live`",
        "DROP TABLE IF EXISTS `live`.`a`",
        "DROP TABLE `a`, `b`",
        "CREATE TABLE live.a (x int)",
        "CREATE TABLE `live` . `a` (x int)",
        "CREATE TRIGGER `live`.t BEFORE INSERT ON a FOR EACH ROW SET @x = 1",
        "GRANT ALL ON *.* TO me",
        "SET GLOBAL event_scheduler = 1",
        "SET @@GLOBAL.general_log_file = '/etc/x'",
        "SET @@PERSIST.x = 1",
        "SET PASSWORD = 'x'",
        "SET STATEMENT max_statement_time=1 FOR DROP DATABASE live",
        "SET @x = (SELECT 1)",
        "SET @x = sys_exec('id')",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "SELECT SETVAL(`s`, sleep(9), 0)",
        "SELECT SETVAL(`live`.`s`, 1, 0)",
        "LOAD DATA INFILE 'x' INTO TABLE a",
        "CALL p()",
        "UPDATE a SET x = 1",
        "ALTER TABLE `a` ADD x int",
        "ALTER TABLE `a` DISABLE KEYS, DROP x",
        "ALTER USER me",
        "system id",
        "source /tmp/x",
        "\\! id",
        "\\. /tmp/x",
        "tee /tmp/x",
        "",
        "/* nothing */",
    ] {
        assert!(class(text).is_err(), "{text}: {:?}", class(text));
    }
    for head in ["INSERT INTO `live`.`a` VALUES", "INSERT IGNORE INTO `a` VALUES", "INSERT INTO VALUES"] {
        assert!(inserts_into(head.as_bytes()).is_err() || head == "INSERT INTO VALUES", "{head}");
    }
    assert_eq!(class("USE `live`"), Err("`USE `live`` is nothing that a dump of one database has in it".to_owned()));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..80), verb in 0_usize..5) {
        let verb = ["", "CREATE ", "SET ", "DROP TABLE ", "ALTER DATABASE "][verb];
        let mut whole = verb.as_bytes().to_vec();
        whole.extend(text);
        let _ = judge(&whole);
        let _ = inserts_into(&whole);
    }
}
