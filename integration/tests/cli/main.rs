//! The command line as users know others: networks, logs, and what is done to running containers.

#[cfg(test)]
mod attach;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod commit;
#[cfg(test)]
mod files;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod network;
#[cfg(test)]
mod rig;
