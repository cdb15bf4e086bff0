//! How long a large group takes to start, to restore and to heal, by a model: the machines of members and coordinator as they are, with
//! network, store and steps that only take time (decision 35).
//!
//! `cargo run -p lcl-protocol --example large_group [-- --members 1,512,4096 --FLAG NUMBER...]` prints Markdown; the flags with their defaults
//! come first. The same flags give the same table.

mod network;
mod rows;
mod settings;
mod simulation;

use settings::Settings;

fn main() {
    let (mut settings, mut sizes) = (Settings::default(), vec![1, 64, 512, 4096]);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let flag = flag.trim_start_matches('-').to_owned();
        let is_known = if flag == "members" {
            sizes = value.split(',').filter_map(|size| size.parse().ok()).filter(|size| *size > 0).collect();
            !sizes.is_empty()
        } else {
            let number = value.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
            let place = settings.named().into_iter().find(|(name, _)| *name == flag);
            place.zip(number).map(|((_, place), number)| *place = number).is_some()
        };
        if !is_known {
            eprintln!(
                "--{flag} {value}: no such flag, or no number; there are members and {}",
                settings.named().map(|(name, _)| name).join(", ")
            );
            std::process::exit(2);
        }
    }
    let flags: Vec<String> = settings.named().iter().map(|(name, value)| format!("`--{name} {value}`")).collect();
    println!("{}\n", flags.join(" "));
    println!("| members | what | group | level | next step done | receive the state | sent by one, at most | longest chain | messages |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let node = settings.members_per_node as usize;
    for members in sizes {
        let mut found = vec![rows::start(&settings, members, false), rows::start(&settings, members, true)];
        let losses = [(1, false), (node, false), (node, true)];
        for (lost, is_silent) in losses.into_iter().filter(|(lost, _)| *lost < members) {
            found.extend(rows::loss(&settings, members, lost, is_silent));
        }
        for rows::Row { what, formed, level, done, received, sent, chain, messages } in found {
            println!("| {members} | {what} | {formed:.2} | {level:.2} | {done:.2} | {received} | {sent} | {chain} | {messages} |");
        }
    }
}
