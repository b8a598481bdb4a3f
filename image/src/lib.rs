//! Makes Keelson's artefacts: which parts, from where, and how they become an initramfs, a UKI and a disk image.
//!
//! The path of a build: [`wants`] says what is needed, [`lock`] which exact files, [`archive`] gets and verifies them,
//! [`drivers`] and [`firmware`] select, [`initramfs`] packs, [`uki`] joins, [`disk`] lays out, [`manifest`] accounts for it all.
//! Everything from [`initramfs`] on is a pure function of its input: the same parts give the same bytes.

pub mod archive;
pub mod artefacts;
pub mod cpio;
pub mod crates;
pub mod deb;
pub mod digest;
pub mod disk;
pub mod drivers;
pub mod fetch;
pub mod firmware;
pub mod fixed;
pub mod initramfs;
pub mod licences;
pub mod lock;
pub mod manifest;
pub mod microcode;
pub mod mirror;
pub mod modinfo;
pub mod packages;
pub mod parts;
pub mod sizes;
pub mod taken;
pub mod tools;
pub mod tree;
pub mod uki;
pub mod wants;
