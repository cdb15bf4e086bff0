//! Between protobuf and the protocol's types. Pure; what comes from outside is checked here and nowhere else.

mod from_proto;
mod to_proto;

use lcl_proto::v1alpha1 as wire;

pub(crate) use from_proto::{to_coordinator as read_to_coordinator, to_member as read_to_member, world as read_world};
pub(crate) use to_proto::{
    end_reason as write_end_reason, status as write_status, to_coordinator as write_to_coordinator, to_member as write_to_member,
    world as write_world,
};

pub use from_proto::status as status_from_proto;

/// A message that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not, or is of a kind that this version does not know.
    #[error("field `{field}` is missing or of an unknown kind: use images of one release for all parts of a job")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// A command that is none.
    #[error("the command is missing or of an unknown kind: use images of one release for all parts of a job")]
    Command,
    /// Bounds on the number of members that contradict each other.
    #[error("the bounds on the number of members are refused")]
    World(#[from] lcl_protocol::InvalidWorld),
    /// Seats that divide no batch.
    #[error("the division of the batch is refused")]
    Division(#[from] lcl_protocol::InvalidDivision),
}

/// A field that must be there.
fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Field { field })
}

#[cfg(test)]
mod tests;
