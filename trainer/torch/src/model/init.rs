//! Initial weights, drawn on the host from (seed, parameter, element), so that they depend on neither device nor thread count.

use std::thread;

use tch::{Device, Kind, TchError, Tensor};

use super::parameters::{Initial, ParameterSpec};
use crate::random::{CHUNK, Draws, Stream};

/// Values filled by one thread at a time: large enough that starting a thread costs nothing beside it.
const VALUES_PER_THREAD: usize = 1 << 18;

/// The initial values of the parameter at `index` of the model's list.
pub(crate) fn initial_tensor(spec: &ParameterSpec, index: usize, seed: u64, kind: Kind, device: Device) -> Result<Tensor, TchError> {
    if let Initial::Constant(value) = spec.initial {
        return Tensor::f_full(spec.shape.as_slice(), value, (kind, device));
    }
    let mut values = vec![0f32; spec.elements() as usize];
    fill(spec.initial, Draws::at(seed, Stream::Initialization, index as u64, 0), &mut values);
    Tensor::f_from_slice(&values)?.f_view(spec.shape.as_slice())?.f_to_kind(kind)?.f_to_device(device)
}

fn fill(initial: Initial, draws: Draws, values: &mut [f32]) {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(values.len().div_ceil(VALUES_PER_THREAD)).max(1);
    let share = values.len().div_ceil(threads).next_multiple_of(CHUNK as usize).max(CHUNK as usize);
    thread::scope(|scope| {
        for (index, part) in values.chunks_mut(share).enumerate() {
            let offset = (index * share) as u64;
            scope.spawn(move || match initial {
                Initial::Constant(value) => part.fill(value as f32),
                Initial::Normal(deviation) => draws.fill_normal(offset, part, deviation),
                Initial::Uniform(bound) => draws.fill_uniform(offset, part, bound),
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_parameter_does_not_depend_on_how_it_is_split_over_threads() {
        let draws = Draws::at(1, Stream::Initialization, 2, 0);
        let (mut split, mut whole) = (vec![0f32; VALUES_PER_THREAD * 2 + 7], vec![0f32; VALUES_PER_THREAD * 2 + 7]);
        fill(Initial::Normal(1.0), draws, &mut split);
        draws.fill_normal(0, &mut whole, 1.0);
        assert_eq!(split, whole);
    }
}
