//! What a member process does; the parent in `processes.rs` names the role.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lcl_torch::{
    Kind, Learner, LearnerError, LearnerOptions, MicroBatch, Tensor,
    collectives::{AbortHandle, Group, MemoryStore},
    set_threads,
    shim::{process::start_anew, runtime::set_deterministic},
};
use serde_json::{Value, json};

use crate::{
    TIMEOUT,
    compare::{Differences, FORWARD, GRADIENT, LOSS},
    form, options,
    reference::{Reference, device, state_tensors},
    steps::{SPLITS, batches, member},
    support::{ROWS, batch, config, distance, learner_of_kind},
    wire::Link,
};

/// A member's place, from its environment.
pub(crate) struct Place {
    pub(crate) role: String,
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
}

pub(crate) fn play(place: &Place) -> Result<()> {
    // Members share a machine.
    set_threads(Some(1))?;
    let link = Link::open();
    let outcome = match place.role.as_str() {
        "ddp2" => reproduce_two_ranks(&link, place),
        "train" => train_as_one(&link, place),
        "survive" => survive(&link, place),
        "aligned" => Ok(json!(products_by_place()?)),
        "anew" => return anew(&link),
        "leak" => Ok(json!(leak()?)),
        other => Err(anyhow::anyhow!("unknown role {other}")),
    };
    link.report(&match outcome {
        Ok(value) => value,
        Err(error) => json!({"failed": format!("{error:#}")}),
    });
    Ok(())
}

fn join(link: &Arc<Link>, generation: u64, rank: usize, world_size: usize) -> Result<Group> {
    Ok(Group::form(options(Arc::new(link.session()), generation, rank, world_size), &AbortHandle::new())?)
}

/// The recording of two ranks: this rank's half of the pairs, exchanged with the other's.
fn reproduce_two_ranks(link: &Arc<Link>, place: &Place) -> Result<Value> {
    let reference = Reference::open()?;
    let inputs = reference.read("paired/io.safetensors")?;
    let read = |name: &str| inputs.get(name).with_context(|| format!("`{name}` is not recorded"))?.tensor();
    let (tokens, images) = (read("text")?, read("image")?);
    let half = tokens.size2()?.0 / 2;
    let start = half * place.rank as i64;
    let slots = (start..start + half).map(i64::unsigned_abs).collect();
    // One image per row: images are cut as rows are.
    let own = MicroBatch {
        tokens: tokens.narrow(0, start, half),
        images: images.narrow(0, start, half),
        slots,
        image_rows: None,
        sources: Vec::new(),
    };
    let mut group = join(link, 1, place.rank, place.world_size)?;
    let mut differences = Differences::default();
    let mut compared = 0;
    for (coefficient, recorded) in reference.scenario("ddp2")["losses"].as_object().context("`losses` of ddp2")? {
        let config = reference.config(coefficient.parse()?, None);
        let mut learner = Learner::with_options(&config, device(), LearnerOptions::default())?;
        learner.load_parameters(state_tensors(&reference.read("weights.safetensors")?))?;
        compare_features(&learner, &reference, &own, place.rank, &mut group, &mut differences)?;
        let (losses, _) = learner.compute_gradients_with(0, std::slice::from_ref(&own), member(&mut group))?;
        let number = |name: &str| recorded[name].as_f64().with_context(|| format!("`{name}` of ddp2"));
        differences.number(&format!("c{coefficient}: total"), losses.total, number("mean_total_over_ranks")?, LOSS);
        let gradients = learner.gradients();
        let (_, found) = gradients.iter().find(|(name, _)| *name == "logit_scale").context("no gradient of logit_scale")?;
        let what = format!("c{coefficient}: logit_scale_grad");
        differences.number(&what, f64::try_from(found)?, number("logit_scale_grad_averaged")?, GRADIENT);
        let file = format!("ddp2/grads_averaged_c{coefficient}.safetensors");
        if reference.has(&file) {
            differences.gradients(&format!("c{coefficient}: gradients"), &gradients, &reference.read(&file)?, coefficient.parse()?)?;
            compared += 1;
        }
    }
    group.leave(TIMEOUT)?;
    ensure!(compared > 0, "no recorded gradients of two ranks");
    differences.finish()?;
    Ok(json!({"agrees": compared}))
}

/// Features of this rank, and its rows of the similarities with all ranks' features as they were gathered.
fn compare_features(
    learner: &Learner,
    reference: &Reference,
    own: &MicroBatch,
    rank: usize,
    group: &mut Group,
    differences: &mut Differences,
) -> Result<()> {
    let recorded = reference.read("ddp2/io.safetensors")?;
    let seen = learner.inspect(own)?;
    let name = |part: &str| format!("rank{rank}.{part}");
    for (part, tensor) in [("image_features", &seen.image_features), ("text_features", &seen.text_features)] {
        differences.tensor(&name(part), tensor, recorded.get(&name(part)), FORWARD)?;
    }
    let counts: Vec<u64> =
        group.exchange(&[seen.image_features.size2()?.0], TIMEOUT)?.iter().flatten().map(|count| count.unsigned_abs()).collect();
    let scale = learner.model().logit_scale().exp().double_value(&[]);
    for (part, features, others) in [
        ("contrastive_logits_per_image", &seen.image_features, &seen.text_features),
        ("contrastive_logits_per_text", &seen.text_features, &seen.image_features),
    ] {
        let all = group.all_gather_rows(others, &counts, TIMEOUT)?;
        let found = features.matmul(&all.transpose(0, 1)) * scale;
        // The recording has a rank's own columns first, and pads the shorter rank's with −∞.
        let first = counts[0] as i64;
        let (own_part, other_part) = if rank == 0 {
            (found.narrow(1, 0, first), found.narrow(1, first, counts[1] as i64))
        } else {
            (found.narrow(1, first, counts[1] as i64), found.narrow(1, 0, first))
        };
        let expected = recorded.get(&name(part)).with_context(|| format!("{} is not recorded", name(part)))?.tensor()?;
        let longest = expected.size2()?.1 / 2;
        for (place, part_found) in [(0, own_part), (longest, other_part)] {
            let apart = (part_found.shallow_clone() - expected.narrow(1, place, part_found.size2()?.1)).abs().max();
            differences.within(&name(part), f64::try_from(apart)?, FORWARD * scale);
        }
    }
    Ok(())
}

/// Three steps of uneven members in their own processes; the same steps by one member in this process.
fn train_as_one(link: &Arc<Link>, place: &Place) -> Result<Value> {
    let mut group = join(link, 1, place.rank, place.world_size)?;
    let (mut learner, mut alone) = (learner_of_kind(&config(), Kind::Float), learner_of_kind(&config(), Kind::Float));
    let split = SPLITS.iter().filter(|split| split.len() == place.world_size);
    let mut apart: f64 = 0.0;
    for (step, split) in split.enumerate() {
        let step = step as u64;
        let (losses, _) = learner.compute_gradients_with(step, &batches(split[place.rank]), member(&mut group))?;
        let expected = alone.compute_gradients(step, &[batch(&ROWS)])?;
        if step == 0 {
            // Later steps start from parameters that are a rounding apart.
            apart = apart.max(distance(&learner.gradients(), &alone.gradients()));
            apart = apart.max((losses.total - expected.total).abs() / expected.total);
        }
        learner.apply_gradients(step, losses)?;
        alone.apply_gradients(step, expected)?;
    }
    group.leave(TIMEOUT)?;
    let parameters = |learner: &Learner| -> Vec<(&'static str, Tensor)> {
        learner.model().parameters().iter().map(|parameter| ("", parameter.tensor.detach())).collect()
    };
    let drift = distance(&parameters(&learner), &parameters(&alone));
    Ok(json!({"apart": apart, "drift": drift, "hash": learner.state_hash()?, "steps": learner.completed_updates()}))
}

/// Steps until a member is lost, then in the next generation, as the parent says.
fn survive(link: &Arc<Link>, place: &Place) -> Result<Value> {
    let mut learner = learner_of_kind(&config(), Kind::Float);
    let mut alone = learner_of_kind(&config(), Kind::Float);
    let cut = |rank: usize, world_size: usize| batch(&ROWS[ROWS.len() * rank / world_size..ROWS.len() * (rank + 1) / world_size]);
    let mut group = join(link, 1, place.rank, place.world_size)?;
    for step in 0..2 {
        learner.train_step_with(step, &[cut(place.rank, place.world_size)], member(&mut group))?;
    }
    let before = learner.state_hash()?;
    link.report(&json!({"stepped": before}));
    if link.command() == "die" {
        // Takes no further part, and is killed.
        loop {
            thread::park();
        }
    }
    let started = Instant::now();
    let lost = learner.compute_gradients_with(2, &[cut(place.rank, place.world_size)], member(&mut group));
    let took = started.elapsed();
    let error = lost.err().context("the step went on without a member")?;
    ensure!(matches!(error, LearnerError::Collective(_)), "{error:?}");
    ensure!(!group.is_live() && learner.state_hash()? == before, "the lost step changed something");
    ensure!(learner.gradients().iter().all(|(_, gradient)| !gradient.defined()), "the lost step left gradients");
    link.report(&json!({"lost": took.as_millis() as u64}));
    let command = link.command();
    let number = |name: &str| command[name].as_u64().map(|number| number as usize).with_context(|| format!("`{name}`"));
    let (rank, world_size) = (number("rank")?, number("world_size")?);
    let mut next = join(link, 2, rank, world_size)?;
    for (name, tensor) in learner.state() {
        let (_, target) = alone.state().into_iter().find(|(other, _)| *other == name).with_context(|| name.clone())?;
        lcl_torch::no_grad(|| target.shallow_clone().f_copy_(&tensor))?;
    }
    let (losses, _) = learner.compute_gradients_with(2, &[cut(rank, world_size)], member(&mut next))?;
    next.leave(TIMEOUT)?;
    alone.compute_gradients(2, &[batch(&ROWS)])?;
    let apart = distance(&learner.gradients(), &alone.gradients());
    learner.apply_gradients(2, losses)?;
    Ok(json!({"apart": apart, "hash": learner.state_hash()?}))
}

/// How many products of small matrices have other bits when their left operand lies elsewhere in memory.
fn products_by_place() -> Result<usize> {
    set_deterministic(true)?;
    let mut other = 0;
    for (rows, inner, columns) in [(1, 8, 7), (1, 32, 32), (2, 24, 16), (3, 33, 7), (5, 64, 48), (7, 100, 96), (16, 128, 100)] {
        let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, device()));
        let (left, right) = (random([rows, inner]), random([columns, inner]).transpose(0, 1));
        let product = left.matmul(&right);
        for offset in [1, 2, 3, 5] {
            let place = Tensor::empty([rows * inner + offset], (Kind::Float, device()));
            let mut moved = place.narrow(0, offset, rows * inner).view([rows, inner]);
            moved.copy_(&left);
            other += usize::from(!moved.matmul(&right).equal(&product));
        }
    }
    Ok(other)
}

/// Forms a group, tells what it holds, and starts itself anew from another thread when it is told to.
fn anew(link: &Arc<Link>) -> Result<()> {
    let group = form(&MemoryStore::default(), 1, 0, 1)?;
    let (descriptors, _) = settled((0, 0))?;
    link.report(&json!({"process": std::process::id(), "descriptors": descriptors}));
    if link.command() == "again" {
        let failed = thread::spawn(start_anew).join().map_err(|_| anyhow::anyhow!("a panic"))?;
        return Err(failed.into());
    }
    Ok(group.leave(TIMEOUT)?)
}

/// Groups built, used and dropped 200 times, every other time by the loss of a member; counts what is left open.
fn leak() -> Result<Value> {
    let store = MemoryStore::default();
    let both = Barrier::new(2);
    let round = |generation: u64| -> Result<()> {
        let one = |rank: usize| -> Result<()> {
            let mut group = form(&store, generation, rank, 2)?;
            let mut learner = learner_of_kind(&config(), Kind::Float);
            let own = batch(if rank == 0 { &ROWS[..3] } else { &ROWS[3..] });
            learner.compute_gradients_with(0, std::slice::from_ref(&own), member(&mut group))?;
            if generation.is_multiple_of(2) {
                // Both have their gradients before one goes.
                both.wait();
                if rank == 0 {
                    group.close();
                }
                ensure!(learner.compute_gradients_with(1, &[own], member(&mut group)).is_err(), "a step without the other");
            } else {
                group.leave(TIMEOUT)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| one(1));
            let outcome = one(0);
            other.join().map_err(|_| anyhow::anyhow!("the other rank panicked"))?.and(outcome)
        })
    };
    // The first ones start what stays: thread pools, libtorch's own.
    for generation in 0..4 {
        round(generation)?;
    }
    let before = settled((0, 0))?;
    let started = Instant::now();
    let mut memory = Vec::new();
    for generation in 4..204 {
        round(generation)?;
        if (generation + 1).is_multiple_of(50) {
            memory.push(resident_kib()?);
        }
    }
    let took = started.elapsed();
    Ok(json!({"before": before, "after": settled(before)?, "each": (took / 200).as_micros() as u64, "memory": memory}))
}

/// Memory of this process in use.
fn resident_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Open descriptors and threads, once they are no more than `expected` or have not fallen for a second.
fn settled(expected: (usize, usize)) -> Result<(usize, usize)> {
    let count = || -> Result<(usize, usize)> {
        let descriptors: BTreeSet<_> = fs::read_dir("/proc/self/fd")?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        Ok((descriptors.len(), fs::read_dir("/proc/self/task")?.count()))
    };
    let mut found = count()?;
    let end = Instant::now() + Duration::from_secs(1);
    while (found.0 > expected.0 || found.1 > expected.1) && Instant::now() < end {
        thread::yield_now();
        let now = count()?;
        found = (found.0.min(now.0), found.1.min(now.1));
    }
    Ok(found)
}
