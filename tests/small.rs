//! Small disks: a file system in memory in the place of a node's data directory, and somebody who takes all its room.
//!
//! Subtlety: a node sets a reserve aside when there is room for it, and is full in another way without one; so a node
//! that was moved has its reserve before the value is handed out.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{Cluster, poll};

/// A small file system in the place of a node's directory. It goes before the cluster's files do.
#[derive(Debug)]
pub struct Small(PathBuf);

impl Small {
    /// Stops a node that runs, moves its directory to a file system of this size, and starts it again.
    ///
    /// # Errors
    /// When no file system can be mounted here: the node then does not run, and has its directory as it was.
    ///
    /// # Panics
    /// When the node does not stop or start as it should.
    pub fn move_node(cluster: &mut Cluster, id: usize, mebibytes: u64) -> Result<Self, String> {
        let data = cluster.data_dir(id);
        assert_eq!(cluster.stop(id), Some(0));
        let script = "rm -f \"$0\"/journal/reserve \"$0\"/journal/*.next && cp -a \"$0\" \"$0.aside\" && \
             { mount -t tmpfs -o mode=700,size=\"$1\"m tmpfs \"$0\" || { rm -r \"$0.aside\"; false; }; } && \
             cp -a \"$0.aside\"/. \"$0\" && rm -r \"$0.aside\"";
        let moved = Command::new("sh").args(["-c", script]).arg(&data).arg(mebibytes.to_string()).status();
        if !moved.is_ok_and(|status| status.success()) {
            return Err("no file system can be mounted here (that needs root)".to_owned());
        }
        let small = Self(data);
        cluster.spawn(id);
        cluster.wait_ready(id);
        poll("a reserve is set aside", || small.0.join("journal/reserve").exists().then_some(()));
        Ok(small)
    }

    /// Somebody else takes all the room.
    ///
    /// # Panics
    /// When nothing can be written at all.
    pub fn fill(&self) {
        let mut ballast = fs::File::create(self.ballast()).expect("it can be made");
        while ballast.write_all(&[1; 64 << 10]).is_ok() {}
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// There is room again.
    ///
    /// # Panics
    /// When it was not filled.
    pub fn clear(&self) {
        fs::remove_file(self.ballast()).expect("it is ours");
    }

    /// Stops the node and brings its directory back to where it was; the node is not started.
    ///
    /// # Panics
    /// When the node does not stop as it should, or its files cannot be copied.
    pub fn move_back(self, cluster: &mut Cluster, id: usize) {
        assert_eq!(cluster.stop(id), Some(0));
        let script =
            "cp -a \"$0\" \"$0.aside\" && umount \"$0\" && cp -a \"$0.aside\"/. \"$0\" && rm -r \"$0.aside\"";
        let moved = Command::new("sh").args(["-c", script]).arg(&self.0).status();
        assert!(moved.is_ok_and(|status| status.success()), "the files of node {id} are copied");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Nothing is mounted there any more when it was moved back.
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.0).status();
    }
}
