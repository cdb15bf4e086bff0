//! Members of two that read parts of a batch.

use std::{ops::Range, sync::Arc, thread};

use lcl_data::{Dataset, Loader, LoaderOptions};
use lcl_tests::{data::Fault, run::Workbench};
use lcl_torch::{
    Device,
    collectives::{AbortHandle, GroupOptions, MemoryStore},
};
use lcl_trainer_config::TrainerConfig;

use super::*;
use crate::training::describe::tolerated_images;

const TIMEOUT: Duration = Duration::from_secs(30);
const STEP: u64 = 2;

/// What a member of two finds that reads these slots of a batch of eight.
fn member(rank: usize, slots: Range<u64>, store: &MemoryStore, config: &TrainerConfig) -> Result<Shared, JoinError> {
    let slots = Slots::from(slots);
    let dataset = Arc::new(Dataset::open(&config.data).unwrap());
    let options = LoaderOptions {
        model: config.model.shape.clone(),
        objective: config.model.objective,
        seed: config.optimization.seed,
        global_batch_size: config.optimization.global_batch_size,
        slots: slots.clone(),
        first_step: STEP,
        last_step: STEP + 1,
    };
    let order = dataset.order(config.optimization.seed, config.optimization.global_batch_size);
    let batch = Loader::start(dataset, &config.data, options).unwrap().next().unwrap().unwrap();
    let options = GroupOptions {
        store: Arc::new(store.session()),
        prefix: "parts".to_owned(),
        rank,
        world_size: 2,
        host: [127, 0, 0, 1].into(),
        device: Device::Cpu,
        timeout: TIMEOUT,
    };
    let mut group = Group::form(options, &AbortHandle::new()).unwrap();
    // What a member says of itself is told apart by its rank.
    let counts = [Counts { predictions: 10 + rank as u64, contrast: 20 + rank as u64 }];
    let own =
        Own { slots: &slots, batch: &batch, waits: &[], counts: &counts, shards: None, wish: 1 << rank, state: Some([7 + rank as i64, 3]) };
    let wanted = Wanted { order: &order, batch: 8, all_slots: sum_of_slots(0..8), step: STEP };
    exchange(Some(&mut group), &own, &wanted, TIMEOUT)
}

fn join(slots: [Range<u64>; 2], faults: &[(usize, Fault)]) -> [Result<Shared, JoinError>; 2] {
    let workbench = Workbench::new(faults).unwrap();
    let mut config = workbench.begin("parts").unwrap().config;
    config.optimization.global_batch_size = 8;
    let (store, [first, second]) = (MemoryStore::default(), slots);
    thread::scope(|scope| {
        let other = scope.spawn(|| member(1, second, &store, &config));
        [member(0, first, &store, &config), other.join().unwrap()]
    })
}

fn wrong(slots: [Range<u64>; 2]) -> [PartsError; 2] {
    join(slots, &[]).map(|found| match found {
        Err(JoinError::Parts(error)) => error,
        other => panic!("{other:?}"),
    })
}

#[test]
fn the_wait_of_a_step_is_that_of_the_member_who_waited_longest_and_not_a_mixture_of_several() {
    let check = |members: &[&[i64]], expected: &[u64]| assert_eq!(longest_wait(members.iter().copied()), expected, "{members:?}");
    check(&[&[5, 2], &[1, 7], &[4, 4]], &[1, 7]);
    check(&[&[9, 0], &[0, 9]], &[9, 0]);
    check(&[&[], &[]], &[]);
}

#[test]
fn members_that_together_read_each_sample_once_go_on() {
    for found in join([0..5, 5..8], &[]) {
        let found = found.unwrap();
        let counts = [0, 1].map(|rank| Counts { predictions: 10 + rank, contrast: 20 + rank });
        assert_eq!((found.rows, found.counts.as_slice(), found.wishes), (8, &counts[..], 0b11));
        assert_eq!(found.states, [[7, 3], [8, 3]]);
    }
    let broken: Vec<_> = (0..20).map(|sample| (sample, Fault::TruncatedImage)).collect();
    for found in join([0..5, 5..8], &broken) {
        let found = found.unwrap();
        assert!(found.rows < 8 && found.rows + found.skipped.len() as u64 == 8, "{found:?}");
    }
    // Both know of the faults that cost no pixel in the other's part, too.
    let faulty: Vec<_> = (0..lcl_tests::run::SAMPLES).map(|sample| (sample, Fault::NoEndMark)).collect();
    for found in join([0..5, 5..8], &faulty) {
        assert_eq!(tolerated_images(found.unwrap().tolerated), [("png_end".to_owned(), 8)].into());
    }
}

#[test]
fn a_sample_that_two_members_read_and_one_that_nobody_reads_end_the_step_on_all() {
    // As many rows as there should be: slot 4 twice, slot 7 not at all.
    let twice = PartsError::Together { step: STEP, rows: 8, skipped: 0, batch: 8 };
    assert_eq!(wrong([0..5, 4..7]), [twice.clone(), twice]);
    let nobody = PartsError::Together { step: STEP, rows: 7, skipped: 0, batch: 8 };
    assert_eq!(wrong([0..4, 5..8]), [nobody.clone(), nobody]);
}

/// Alone, over a batch that was read for another step, or for other slots than the own.
#[test]
fn what_does_not_belong_into_the_own_slots_ends_the_step() {
    let workbench = Workbench::new(&[]).unwrap();
    let mut config = workbench.begin("parts").unwrap().config;
    config.optimization.global_batch_size = 8;
    let dataset = Arc::new(Dataset::open(&config.data).unwrap());
    let order = dataset.order(config.optimization.seed, 8);
    let check = |read: Range<u64>, owned: Range<u64>, step: u64, rows: Option<u64>| {
        let options = LoaderOptions {
            model: config.model.shape.clone(),
            objective: config.model.objective,
            seed: config.optimization.seed,
            global_batch_size: 8,
            slots: read.into(),
            first_step: STEP,
            last_step: STEP + 1,
        };
        let batch = Loader::start(Arc::clone(&dataset), &config.data, options).unwrap().next().unwrap().unwrap();
        let slots = Slots::from(owned);
        let own = Own { slots: &slots, batch: &batch, waits: &[], counts: &[Counts::default()], shards: None, wish: 0, state: None };
        let wrong = |rows| PartsError::Own { step, rows, skipped: 0, slots: slots.count() };
        match exchange(None, &own, &Wanted { order: &order, batch: 8, all_slots: sum_of_slots(0..8), step }, TIMEOUT) {
            Ok(found) => assert_eq!((found.rows, rows), (8, None)),
            Err(JoinError::Parts(error)) => assert_eq!(Some(error), rows.map(wrong)),
            Err(error) => panic!("{error:?}"),
        }
    };
    check(0..8, 0..8, STEP, None);
    check(0..8, 0..8, STEP + 1, Some(8));
    check(0..7, 0..8, STEP, Some(7));
    check(0..8, 1..8, STEP, Some(8));
}

#[test]
fn counts_of_virtual_shards_come_in_the_order_of_the_shards() {
    let sections = Sections { sources: 1, shards: 2 };
    let numbers: Vec<i64> = (0..).take(HEAD + FaultCounts::default().len() + 3 + 1 + 4).collect();
    let [head, faults, sources, waits, counts] = sections.cut(&numbers);
    assert_eq!([head, faults, sources, waits, counts].concat(), numbers);
    assert_eq!((head.len(), sources.len(), waits.len(), counts.len()), (HEAD, 3, 1, 4));
}
