//! What a trained model can do, and its weights on the way in and out.

pub mod evaluate;
pub mod forward;
pub mod generation;
pub mod retrieval;
pub mod trained;
pub mod weights;
