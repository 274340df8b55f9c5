//! A small file system of its own, to be filled.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// Mounted on a directory until this is dropped.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// A tmpfs with these options, such as `size=48m,mode=0755`. Where mounting is not allowed there is no such test, which must not look like one that
    /// passed: it fails and says so.
    pub fn mount(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        let mount = mount.expect("mount runs");
        assert!(
            mount.status.success(),
            "a full disk cannot be tried here: this test mounts a small tmpfs and has to run as root: {}",
            String::from_utf8_lossy(&mount.stderr)
        );
        Self(at.to_owned())
    }

    /// Takes all the room there is.
    pub fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).expect("a file");
        let block = [0_u8; 4096];
        while filler.write_all(&block).is_ok() {}
    }

    /// Gives it back.
    pub fn give_way(&self) {
        fs::remove_file(self.filler()).expect("the filler goes");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the daemon may still have files open there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}
