//! Documents of OBELICS with a store of their images, against what was recorded (`fixtures/obelics/README.md`), and files in other forms than the
//! published ones, damaged ones included.

#[path = "obelics/files.rs"]
mod files;
#[path = "obelics/golden.rs"]
mod golden;
