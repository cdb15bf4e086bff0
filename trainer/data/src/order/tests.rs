//! What an order is for: each sample once a pass, whatever the numbers; mixed well; read in long stretches, and by few nodes.

mod nodes;

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::mixture::Mixture;
use nodes::{Job, Shares};

/// The order of shards of these sizes.
fn order(sizes: &[u64], pace: Pace, lanes: u64, window: u64) -> Order {
    let ends = sizes.iter().scan(0, |end, size| {
        *end += size;
        Some(*end)
    });
    Order::new(7, 0, ends.collect(), pace, lanes, window)
}

/// All samples of a pass in the order in which they come.
fn pass_of(order: &Order, pass: u64) -> Vec<u64> {
    (0..order.samples_per_pass()).map(|position| order.at(pass, position).expect("below the count")).collect()
}

proptest! {
    #[test]
    fn each_sample_comes_once_in_every_pass(
        sizes in prop::collection::vec(0_u64..60, 1..30),
        (numerator, denominator) in (1_u64..100, 1_u64..5),
        lanes in 1_u64..40,
        window in 1_u64..50,
        first_pass in 0_u64..1000,
    ) {
        let order = order(&sizes, Pace::new(numerator, denominator), lanes, window);
        for pass in first_pass..first_pass + 3 {
            let mut samples = pass_of(&order, pass);
            samples.sort_unstable();
            prop_assert!(samples.into_iter().eq(0..sizes.iter().sum()));
        }
        prop_assert_eq!(order.at(first_pass, order.samples_per_pass()), None);
        prop_assert_eq!(order.window(first_pass, order.samples_per_pass()), None);
    }

    #[test]
    fn a_sample_lies_in_the_window_of_its_position(
        sizes in prop::collection::vec(0_u64..60, 1..30), numerator in 1_u64..100, lanes in 1_u64..40, window in 1_u64..50, pass in 0_u64..1000,
    ) {
        let order = order(&sizes, Pace::new(numerator, 3), lanes, window);
        for position in 0..order.samples_per_pass() {
            let sample = order.at(pass, position).expect("below the count");
            let found = order.window(pass, position).expect("below the count");
            prop_assert!(found.stretches.iter().any(|stretch| stretch.contains(&sample)), "{sample} is not in {found:?}");
            let samples: u64 = found.stretches.iter().map(|stretch| stretch.end - stretch.start).sum();
            prop_assert!((1..=window).contains(&samples));
        }
    }
}

proptest! {
    #[test]
    fn a_walk_finds_what_each_position_has_wherever_it_begins_and_leaps(
        sizes in prop::collection::vec(0_u64..60, 1..30),
        lanes in 1_u64..40,
        window in 1_u64..50,
        weights in prop::collection::vec(1_u64..9, 1..4),
        starts in prop::collection::vec(0_u64..3000, 1..5),
    ) {
        let mixture = Mixture::by_samples(&weights);
        // Of at least one sample, so that every position has one.
        let sizes = [&sizes[..], &[1]].concat();
        let sources = (0..weights.len()).map(|source| (source as u64 * 10_000, order(&sizes, mixture.pace(source, 24), lanes, window)));
        let orders = Orders::new(mixture.clone(), Vec::new(), sources.collect());
        for start in &starts {
            let each: Vec<Location> = (*start..start + 200).map(|index| orders.locate(index)).collect();
            prop_assert_eq!(orders.locate_all(*start..start + 200).collect::<Vec<_>>(), each);
        }
        // One walk over all of them, back and forth.
        let one = order(&sizes, Pace::new(24, 5), lanes, window);
        let mut walk = one.walk();
        for position in starts.iter().flat_map(|start| *start..start + 40) {
            let (pass, position) = (position / one.samples_per_pass(), position % one.samples_per_pass());
            prop_assert_eq!(walk.at(pass, position), one.at(pass, position));
        }
    }
}

#[test]
fn a_source_no_larger_than_a_window_is_permuted_as_a_whole() {
    let order = order(&[40, 0, 60], Pace::whole(8), 4, 100);
    for pass in 0..3 {
        let whole = Permutation::new(7, pass, 100);
        assert!(pass_of(&order, pass).into_iter().eq((0..100).map(|position| whole.at(position).expect("below the count"))));
    }
}

#[test]
fn sources_passes_and_seeds_have_orders_of_their_own() {
    let ends: Arc<[u64]> = (1..=20).map(|shard| shard * 100).collect();
    let of = |seed, source, pass| pass_of(&Order::new(seed, source, Arc::clone(&ends), Pace::whole(16), 4, 128), pass);
    let orders = [of(1, 0, 0), of(1, 0, 1), of(1, 1, 0), of(2, 0, 0)];
    for (index, first) in orders.iter().enumerate() {
        for second in &orders[index + 1..] {
            // Two independent orders agree at one position on average.
            let equal = first.iter().zip(second).filter(|(a, b)| a == b).count();
            assert!(equal < 10, "{equal} of 2000 positions agree");
        }
    }
}

#[test]
fn the_recorded_order_never_changes() {
    let small = order(&[10, 7, 13, 9, 11], Pace::whole(6), 3, 8);
    assert_eq!(pass_of(&small, 1)[..16], RECORDED);
    let large = order(&vec![10_000; 41_000], Pace::new(32_768 * 2, 3), 512, 8192);
    assert_eq!([0, 1, 300_000_000, 409_999_999].map(|position| large.at(9, position).expect("below the count")), RECORDED_LARGE);
}

/// Recorded when the order was written: a change of these numbers changes the samples of every step of every running job.
const RECORDED: [u64; 16] = [16, 0, 24, 30, 40, 44, 15, 2, 23, 27, 39, 45, 3, 1, 26, 29];
const RECORDED_LARGE: [u64; 4] = [253_548_568, 274_731_133, 148_064_220, 343_322_440];

/// A data set as large beside its window as LAION-400M is: 400 shards of 1,000 samples, batches of 512 in 16 lanes, windows of 819.
fn model_of_laion() -> Order {
    order(&[1000; 400], Pace::whole(512), 16, 819)
}

#[test]
fn a_batch_comes_from_as_many_shards_as_there_are_lanes_and_from_all_of_a_window() {
    let order = model_of_laion();
    let samples = pass_of(&order, 0);
    let batches: Vec<HashSet<u64>> = samples.chunks_exact(512).map(|batch| batch.iter().map(|sample| sample / 1000).collect()).collect();
    let least = batches.iter().map(HashSet::len).min().expect("there are batches");
    assert!(least >= 16, "a batch of {least} shards");
    // Samples that lie next to each other in a shard: how many steps apart they are trained.
    let mut steps = vec![0_i64; samples.len()];
    for (position, sample) in samples.iter().enumerate() {
        steps[*sample as usize] = position as i64 / 512;
    }
    let apart: Vec<i64> = steps.windows(2).map(|pair| (pair[0] - pair[1]).abs()).collect();
    let mean = apart.iter().sum::<i64>() as f64 / apart.len() as f64;
    // A window lasts for 819 / 32 = 25.6 steps; two independent places in it are a third of that apart.
    assert!((8.0..10.0).contains(&mean), "{mean} steps");
    let together = apart.iter().filter(|steps| **steps == 0).count() as f64 / apart.len() as f64;
    // 32 of a window's 819 samples are in the same step: 1 of 26.
    assert!((0.03..0.05).contains(&together), "{together} of all neighbours are in the same batch");
    // And the next pass has others beside each other.
    let next = pass_of(&order, 1);
    let beside = |samples: &[u64]| -> HashSet<(u64, u64)> { samples.windows(2).map(|pair| (pair[0], pair[1])).collect() };
    let again = beside(&samples).intersection(&beside(&next)).count();
    assert!(again < 4000, "{again} of 400,000 pairs again");
}

#[test]
fn a_window_is_read_in_one_or_two_stretches() {
    let order = model_of_laion();
    let mut windows = HashSet::new();
    let mut stretches = 0;
    for position in 0..order.samples_per_pass() {
        let window = order.window(0, position).expect("below the count");
        if windows.insert(window.places.start) {
            stretches += window.stretches.len();
        }
    }
    let reads = stretches as f64 / order.samples_per_pass() as f64;
    // One for each window and one for each end of a shard within one: 496 + 400 for 400,000 samples.
    assert!(reads < 0.0025, "{reads} reads a sample");
}

/// 64 nodes as the reference deployment has them: 512 members, batches of 32,768 in 16 lanes a node. A window lasts for 32 steps and a pass
/// for ten windows; with LAION-400M it lasts for fifty, which makes every change of the members as much cheaper.
const NODES: u32 = 64;
const BATCH: u64 = 32_768;

fn order_of_64_nodes() -> Order {
    order(&vec![1250; 8192], Pace::whole(BATCH), BATCH / 32, 1024)
}

/// What the nodes of a job fetch in a pass, as a multiple of its samples: every node fetches a window once when it needs a sample of it.
/// Shares of the batch are those of the last entry whose part of the pass has begun.
fn fetched(order: &Order, shares: &[(f64, Shares)]) -> f64 {
    let samples = order.samples_per_pass();
    let mut fetched = HashSet::new();
    let mut total = 0;
    // A window lasts for dozens of steps: every fourth sees each.
    for first in (0..samples / BATCH * BATCH).step_by(4 * BATCH as usize) {
        let part = first as f64 / samples as f64;
        let (_, shares) = shares.iter().rfind(|(begin, _)| *begin <= part).expect("somebody trains from the beginning");
        for (node, ranges) in shares {
            for range in ranges {
                // The first slot of each lane within the range: a lane's slots of a step have one window or two neighbouring ones.
                let mut lane = None;
                for slot in range.clone() {
                    let of_slot = order.lanes.lane(u128::from(first + slot));
                    if lane.replace(of_slot) != Some(of_slot) {
                        let (window, _) = order.place(0, first + slot);
                        if fetched.insert((node, window.start)) {
                            total += window.end - window.start;
                        }
                    }
                }
            }
        }
    }
    total as f64 / samples as f64
}

/// Each node with each lane that it reads.
fn readers(order: &Order, shares: &Shares) -> HashSet<(u64, u64)> {
    let slots = shares.iter().flat_map(|(node, ranges)| ranges.iter().cloned().flatten().map(move |slot| (*node, slot)));
    slots.map(|(node, slot)| (node, order.lanes.lane(slot.into()))).collect()
}

/// Lanes that a node reads and did not read before; one that two nodes begin to read counts twice.
fn moved(order: &Order, before: &Shares, after: &Shares) -> usize {
    readers(order, after).difference(&readers(order, before)).count()
}

#[test]
fn a_lost_node_moves_its_own_lanes_and_its_successor_takes_them_over() {
    let order = order_of_64_nodes();
    let mut job = Job::new(NODES, BATCH);
    let (whole, by_rank) = (job.shares(), job.shares_by_rank());
    assert_eq!(whole, by_rank);
    job.lose(20);
    let (without, without_by_rank) = (job.shares(), job.shares_by_rank());
    // Each of the 63 that are left has a piece of the 16 lanes.
    assert_eq!((moved(&order, &whole, &without), moved(&order, &by_rank, &without_by_rank)), (63, 327));
    job.start("node-020");
    assert_eq!((moved(&order, &without, &job.shares()), moved(&order, &without_by_rank, &job.shares_by_rank())), (16, 266));

    // A node that sorts behind all others waits, and takes the place of one that is lost.
    let mut job = Job::new(NODES, BATCH);
    job.start("spare");
    assert_eq!(job.shares()[&64], [], "there is no room");
    job.lose(20);
    assert_eq!((moved(&order, &whole, &job.shares()), moved(&order, &by_rank, &job.shares_by_rank())), (16, 704));
}

#[test]
fn many_losses_move_fewer_lanes_than_a_division_by_rank_and_leave_no_more_readers() {
    let order = order_of_64_nodes();
    let mut job = Job::new(NODES, BATCH);
    let (mut all, mut all_by_rank) = (0, 0);
    // Up to a quarter.
    for number in 0..16 {
        let (before, before_by_rank) = (job.shares(), job.shares_by_rank());
        job.lose(number * 27 % 64);
        let (after, after_by_rank) = (job.shares(), job.shares_by_rank());
        let (lanes, lanes_by_rank) = (moved(&order, &before, &after), moved(&order, &before_by_rank, &after_by_rank));
        assert!(lanes < lanes_by_rank, "loss {number} moves {lanes} lanes, by rank {lanes_by_rank}");
        (all, all_by_rank) = (all + lanes, all_by_rank + lanes_by_rank);
        let (read, read_by_rank) = (readers(&order, &after).len(), readers(&order, &after_by_rank).len());
        assert!(read <= read_by_rank, "after loss {number} lanes have {read} readers, by rank {read_by_rank}");
    }
    assert!(2 * all < all_by_rank, "{all} lanes, by rank {all_by_rank}");
}

#[test]
fn all_nodes_together_fetch_little_more_than_a_pass() {
    let order = order_of_64_nodes();
    let mut job = Job::new(NODES, BATCH);
    let whole = || (0.0, Job::new(NODES, BATCH).shares());
    let settled = fetched(&order, &[whole()]);
    assert!((0.99..1.001).contains(&settled), "{settled} passes");
    // 63 nodes share the 16 lanes of a lost one, so that four of them read each of these.
    job.lose(20);
    let (without, without_by_rank) = (job.shares(), job.shares_by_rank());
    let odd = fetched(&order, &[(0.0, without.clone())]);
    assert!((1.04..1.05).contains(&odd), "{odd} passes");
    // It comes back: lanes that move are fetched once more.
    job.start("node-020");
    let disturbed = fetched(&order, &[whole(), (0.42, without), (0.48, job.shares())]);
    let by_rank = fetched(&order, &[whole(), (0.42, without_by_rank), (0.48, job.shares_by_rank())]);
    assert!((1.0..1.01).contains(&disturbed), "{disturbed} passes");
    assert!((1.03..1.04).contains(&by_rank), "by rank {by_rank} passes");
    // A spare takes its place.
    let mut job = Job::new(NODES, BATCH);
    job.start("spare");
    job.lose(20);
    let replaced = fetched(&order, &[whole(), (0.42, job.shares())]);
    let by_rank = fetched(&order, &[whole(), (0.42, job.shares_by_rank())]);
    assert!((1.0..1.002).contains(&replaced), "{replaced} passes");
    assert!((1.06..1.07).contains(&by_rank), "by rank {by_rank} passes");
}
