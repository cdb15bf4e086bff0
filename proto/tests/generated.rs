//! The committed code is what the `.proto` files say.

#[path = "../examples/generate_proto.rs"]
#[allow(dead_code, reason = "the example's main is not called here")]
mod generate;

use std::fs;

#[test]
fn the_committed_code_is_up_to_date() {
    let committed = fs::read_to_string(generate::path()).unwrap();
    assert!(
        committed == generate::render().unwrap(),
        "proto/src/generated differs from proto/lcl: run `cargo run -p lcl-proto --example generate_proto`"
    );
}
