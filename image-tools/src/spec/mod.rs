//! From an image's configuration and a user's flags to the OCI bundle (runtime-spec, "Configuration").
//!
//! | module | decides |
//! |---|---|
//! | [`process`] | what runs: arguments, environment, directory, user as text, stop signal |
//! | [`settings`] | what a user can choose about its surroundings, checked |
//! | [`user`] | user and group ids of that text, from the image's own files where it takes them |
//! | [`env`](self::env), [`volume`] | environment variables and bind mounts as users write them |
//! | [`capabilities`], [`seccomp`] | privileges |
//! | [`etc`] | the files in `/etc` that differ from container to container |
//! | [`rootdir`] | reading and making things beneath a root that nobody trusts |
//! | [`copy`] | files between such a root and this machine |
//! | [`bundle`] | `config.json` |

pub mod bundle;
pub mod capabilities;
pub mod copy;
pub mod env;
pub mod etc;
pub mod process;
pub mod rootdir;
pub mod seccomp;
pub mod settings;
pub mod user;
pub mod volume;
