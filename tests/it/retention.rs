//! What goes when a release is no longer kept, and what is said of it.

use serde_json::{Value, json};

use crate::support::{Site, docker};

/// Bytes of each version's own file.
const OWN: usize = 1_000_000;

/// The next version, with a file that no other version has.
fn push(site: &Site, version: &str) {
    site.version(version);
    site.write("own", &version.repeat(OWN / version.len()));
    site.push(version);
}

fn process() -> Site {
    Site::process().with("[rollback]\nkeep = 1")
}

/// The directories of the process runtime's releases and instances, and the kept settings.
fn on_disk(site: &Site) -> [usize; 3] {
    let count = |dir: String| std::fs::read_dir(site.path().join(".refit").join(dir)).map_or(0, Iterator::count);
    [
        count(format!("process/{}/production/releases", site.app)),
        count("process/.instances".to_owned()),
        count(format!("releases/{}/production", site.app)),
    ]
}

fn freed(deployment: &Value) -> u64 {
    deployment["freed"].as_u64().unwrap_or_else(|| panic!("nothing was freed: {deployment:#}"))
}

#[test]
fn what_went_and_the_space_it_gave_are_part_of_the_end() {
    let site = process();
    for (n, version) in ["one", "two", "three"].into_iter().enumerate() {
        push(&site, version);
        let said = site.refit(&["deploy"]).expect(0).stdout;
        let ended = site.newest();
        if n < 2 {
            assert!(ended.get("freed").is_none() && ended.get("retired").is_none(), "{ended:#}");
            assert!(!said.contains("freed"), "{said}");
            continue;
        }
        assert_eq!(ended["retired"], json!([1]));
        // The tree, what the file system rounds it up to, and a little of the instance's own.
        assert!((OWN as u64..OWN as u64 * 5 / 4).contains(&freed(&ended)), "{ended:#}");
        let sentence = "MB: the release of deployment 1 is removed";
        assert!(said.contains(sentence), "{said}");
        for command in ["report", "show"] {
            let told = site.refit(&[command, "3"]).expect(0).stdout;
            assert!(told.contains(sentence), "{told}");
        }
        assert!(site.log_of(&ended).contains("removed the release of deployment 1, 1.0 MB given back"));
    }
    assert_eq!(on_disk(&site), [2, 2, 2], "the live one and the one before it");
}

#[test]
fn a_retention_that_was_cut_off_is_finished_and_still_reported() {
    let site = process().env("REFIT_FAULT", "");
    for version in ["one", "two", "three"] {
        push(&site, version);
        if version == "three" {
            let site = &site;
            assert_eq!(
                site.refit_command(&["deploy"]).env("REFIT_FAULT", "end:retired=kill").status().unwrap().code(),
                None
            );
            assert_eq!(site.newest()["status"], "running");
        } else {
            site.deploy(0);
        }
    }
    // Every step was done: recovery finishes it, with what had gone before the end was written.
    let mut site = site;
    site.serve();
    let ended = site.settled();
    assert_eq!((&ended["status"], &ended["retired"]), (&json!("succeeded"), &json!([1])), "{ended:#}");
    assert!(freed(&ended) >= OWN as u64, "{ended:#}");
    site.expect_page("three");
    assert_eq!(on_disk(&site), [2, 2, 2]);
}

#[test]
fn a_release_that_cannot_go_fails_nothing_and_goes_later() {
    let site = Site::docker().with("[rollback]\nkeep = 1");
    let by_hand = format!("{}-by-hand", site.app);
    for version in ["one", "two", "three"] {
        push(&site, version);
        if version == "three" {
            let image = site.history()[1]["image"].as_str().unwrap().to_owned();
            docker(&["create", "--name", &by_hand, &image]);
        }
        let ended = site.deploy(0);
        assert!(ended.get("retired").is_none(), "{ended:#}");
        if version == "three" {
            let log = site.log_of(&ended);
            let why = format!("container {by_hand} was made from it");
            assert!(
                log.contains("warning: the release of deployment 1 could not be removed") && log.contains(&why),
                "{log}"
            );
        }
    }
    docker(&["rm", &by_hand]);
    push(&site, "four");
    let ended = site.deploy(0);
    assert_eq!(ended["retired"], json!([1, 2]), "{}", site.log_of(&ended));
    // Two layers of a megabyte each; what they share with the others stays.
    assert!((2 * OWN as u64..3 * OWN as u64).contains(&freed(&ended)), "{ended:#}");
    site.expect_page("four");
    assert_eq!(site.containers(false).len(), 2);
}
