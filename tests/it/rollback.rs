//! `refit rollback`: a release comes back, or a person is told.

use crate::support::Site;

#[test]
fn faults_really_kill_and_the_deployment_is_undone() {
    let site = Site::process();
    site.push("good");
    site.deploy(0);
    let site = site.env("REFIT_FAULT", "step:start:effect=kill");
    site.version("two");
    site.push("killed");
    assert_eq!(site.refit(&["deploy"]).code, -1);
    let site = site.env("REFIT_FAULT", "");
    site.version("three");
    site.push("next");
    site.deploy(0);
    site.expect_page("three");
    assert_eq!(site.history()[1]["status"], "rolled_back");
}
