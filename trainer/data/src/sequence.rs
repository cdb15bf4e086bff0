//! Token layouts of a sample: caption and image as one sequence of ids.
