//! Engines of several nodes in one process, over disks that fail, fill up and lose power on demand. The lines between them
//! are carried by the test, and so are the controller's decisions.

mod bench;
mod disk;
mod failures;
mod replication;
