//! Lazy start from end to end: the installed binaries against a real registry behind a link that can be slow or cut.
//!
//! One module a topic; `start` also writes the measured table to `reports/lazy-start.txt` in the images' work directory.
//! Every test has a store of its own, so each is a first start on an empty machine.

#[cfg(test)]
mod ahead;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod caller;
#[cfg(test)]
mod content;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod failure;
#[cfg(test)]
mod fair;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod hand_off;
#[cfg(test)]
mod hosts;
#[cfg(test)]
mod large;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod metadata;
#[cfg(test)]
mod mount;
#[cfg(test)]
mod observe;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod patch;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod power;
#[cfg(test)]
mod profile;
#[cfg(test)]
mod quota;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod shared;
#[cfg(test)]
mod signals;
#[cfg(test)]
mod spans;
#[cfg(test)]
mod start;
#[cfg(test)]
mod store;
#[cfg(test)]
mod tree;
#[cfg(test)]
mod truth;
#[cfg(test)]
mod unconverted;
