use proptest::prelude::*;

use super::*;
use crate::{Incarnation, slots::tests::with_empty};

/// Members `index` of the workers on these nodes, in the order in which a coordinator seats them.
fn members(nodes: &[(&str, &[u32])]) -> Vec<Identity> {
    let mut members: Vec<Identity> = Vec::new();
    for (node, indices) in nodes {
        members.extend(indices.iter().map(|index| Identity {
            name: MemberName { worker: format!("worker-of-{node}"), index: *index },
            incarnation: Incarnation { run: 1, start: 1 },
            node: (*node).to_owned(),
            address: String::new(),
        }));
    }
    members.sort_by(|first, second| (&first.node, &first.name).cmp(&(&second.node, &second.name)));
    members
}

/// The division, and the seats of the members of each of these nodes.
fn seat(seating: &mut Seating, nodes: &[(&str, &[u32])]) -> (Division, Vec<Vec<u32>>) {
    seat_desired(seating, nodes, 1)
}

fn seat_desired(seating: &mut Seating, nodes: &[(&str, &[u32])], desired: u32) -> (Division, Vec<Vec<u32>>) {
    let members = members(nodes);
    let (division, seats) = seating.seat(&members.iter().collect::<Vec<_>>(), desired);
    let of_node = |node: &str| members.iter().zip(&seats).filter(|(member, _)| member.node == node).map(|(_, seat)| *seat).collect();
    (division, nodes.iter().map(|(node, _)| of_node(node)).collect())
}

/// Eight nodes with two members each.
fn seating() -> Seating {
    let mut seating = Seating::default();
    let (division, seats) = seat(&mut seating, &NODES.map(|node| (node, TWO)));
    assert_eq!((division, seats.concat()), (Division::full(16), (0..16).collect::<Vec<_>>()));
    seating
}

const NODES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const TWO: &[u32] = &[0, 1];

/// All of these nodes but one.
fn without(node: &str) -> Vec<(&'static str, &'static [u32])> {
    NODES.iter().filter(|other| **other != node).map(|other| (*other, TWO)).collect()
}

#[test]
fn a_spare_node_takes_the_seats_of_a_lost_one_and_all_others_keep_theirs() {
    let mut seating = seating();
    let mut nodes = without("c");
    nodes.push(("z", TWO));
    let (division, seats) = seat(&mut seating, &nodes);
    assert_eq!(division, Division::full(16));
    assert_eq!(seats, [[0, 1], [2, 3], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15], [4, 5]]);
}

#[test]
fn a_node_that_is_lost_leaves_its_seats_empty_and_takes_them_again_even_if_a_spare_comes_with_it() {
    let mut seating = seating();
    let (division, seats) = seat(&mut seating, &without("c"));
    assert_eq!(division, with_empty(16, &[4, 5]).unwrap());
    assert_eq!(seats.concat(), [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    // "aa" sorts before "c".
    let mut nodes = without("e");
    nodes.push(("aa", TWO));
    let (division, seats) = seat(&mut seating, &nodes);
    assert_eq!(division, Division::full(16));
    assert_eq!(seats, [[0, 1], [2, 3], [4, 5], [6, 7], [10, 11], [12, 13], [14, 15], [8, 9]]);
}

#[test]
fn members_under_other_names_take_the_seats_of_their_node_and_those_of_other_nodes_seats_that_no_node_needs() {
    let mut seating = seating();
    let mut nodes = without("f");
    nodes[1] = ("b", &[0]);
    nodes.push(("z", TWO));
    // One of node b is lost, too: it has a seat when it comes back, and so has another on its node.
    let (division, seats) = seat(&mut seating, &nodes);
    assert_eq!((division, &seats[1], &seats[7]), (with_empty(16, &[3]).unwrap(), &vec![2], &vec![10, 11]));
    nodes[1] = ("b", &[0, 7]);
    let (division, seats) = seat(&mut seating, &nodes);
    assert_eq!((division, &seats[1]), (Division::full(16), &vec![2, 3]));
    // Both at once.
    let (division, seats) = seat(&mut self::seating(), &nodes);
    assert_eq!((division, &seats[1], &seats[7]), (Division::full(16), &vec![2, 3], &vec![10, 11]));
}

#[test]
fn all_are_seated_anew_in_the_order_of_their_seats_when_more_than_a_quarter_is_empty() {
    let mut seating = seating();
    let mut nodes = without("c");
    nodes.push(("0", TWO));
    seat(&mut seating, &nodes);
    nodes.retain(|(node, _)| !["a", "g"].contains(node));
    let (division, _) = seat(&mut seating, &nodes);
    assert_eq!(division, with_empty(16, &[0, 1, 12, 13]).unwrap(), "a quarter is empty");
    nodes.retain(|(node, _)| *node != "e");
    let (division, seats) = seat(&mut seating, &nodes);
    // The node named 0 sits where c sat, between b and d.
    assert_eq!((division, seats), (Division::full(10), [[0, 1], [4, 5], [6, 7], [8, 9], [2, 3]].map(Vec::from).to_vec()));
}

#[test]
fn all_are_seated_anew_when_there_are_more_members_than_seats_and_those_of_a_node_stay_together() {
    let mut seating = seating();
    let mut nodes = without("c");
    nodes[2] = ("d", &[0, 1, 2]);
    nodes.push(("bb", &[0, 1, 2]));
    let (division, seats) = seat(&mut seating, &nodes);
    assert_eq!(division, Division::full(18));
    let expected = [vec![0, 1], vec![2, 3], vec![7, 8, 9], vec![10, 11], vec![12, 13], vec![14, 15], vec![16, 17], vec![4, 5, 6]];
    assert_eq!(seats, expected, "bb has one seat too few where c was");
}

#[test]
fn seats_are_kept_for_those_who_are_desired_and_not_there_unless_they_are_too_many() {
    let mut seating = Seating::default();
    let (division, seats) = seat_desired(&mut seating, &without("c"), 16);
    assert_eq!((division, seats.concat()), (with_empty(16, &[14, 15]).unwrap(), (0..14).collect::<Vec<_>>()));
    let (division, seats) = seat_desired(&mut seating, &NODES.map(|node| (node, TWO)), 16);
    assert_eq!(
        (division, seats),
        (Division::full(16), [[0, 1], [2, 3], [14, 15], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13]].map(Vec::from).to_vec())
    );
    for (desired, seats) in [(14, 14), (18, 18), (19, 14)] {
        assert_eq!(seat_desired(&mut Seating::default(), &without("c"), desired).0.seats(), seats, "{desired} are desired");
    }
}

#[test]
fn a_plan_does_not_grow_with_the_places_at_which_seats_are_empty() {
    let names: Vec<String> = (0..400).map(|node| format!("{node:03}")).collect();
    let all: Vec<(&str, &[u32])> = names.iter().map(|name| (name.as_str(), TWO)).collect();
    let lose = |count: usize| {
        let mut seating = Seating::default();
        seat(&mut seating, &all);
        let left: Vec<_> = all.iter().enumerate().filter(|(node, _)| node % 5 != 0 || node / 5 >= count).map(|(_, node)| *node).collect();
        seat(&mut seating, &left).0
    };
    assert_eq!((lose(64).seats(), lose(64).empty().len()), (800, 64));
    assert_eq!(lose(65), Division::full(800 - 130));
}

#[test]
fn seats_that_no_coordinator_deals_out_are_not_taken_over() {
    let generation = crate::Generation { epoch: 1, n: 1 };
    let held = |world: u32, seats: u32| HeldGroup { generation, rank: 0, world, seat: 0, seats, list_digest: 0, finished: false };
    let seats = [(2, 2), (12, 16), (3, 2), (11, 16), (1, u32::MAX)].map(|(world, seats)| Seating::of_group(&held(world, seats)).seats());
    assert_eq!(seats, [2, 16, 0, 0, 0]);
}

proptest! {
    #[test]
    fn each_member_has_a_seat_of_its_own_and_keeps_it_as_long_as_the_division_lasts(
        generations in prop::collection::vec(prop::collection::vec((0_usize..30, 0_u32..3, prop::bool::weighted(0.9)), 40..90), 1..12),
    ) {
        let names: Vec<String> = (0..30).map(|node| format!("{node:02}")).collect();
        let mut seating = Seating::default();
        let mut before: BTreeMap<MemberName, u32> = BTreeMap::new();
        let mut present: BTreeSet<(usize, u32)> = (0..30).flat_map(|node| [(node, 0), (node, 1)]).collect();
        for changes in generations {
            // A few of them are lost, and a few others come.
            for (node, index, is_there) in changes {
                if is_there && index < 2 { present.insert((node, index)); } else { present.remove(&(node, index)); }
            }
            let nodes: Vec<(&str, Vec<u32>)> = names
                .iter()
                .enumerate()
                .map(|(node, name)| (name.as_str(), present.iter().filter(|(other, _)| *other == node).map(|(_, index)| *index).collect()))
                .collect();
            let nodes: Vec<(&str, &[u32])> = nodes.iter().map(|(name, indices)| (*name, indices.as_slice())).collect();
            let members = members(&nodes);
            let old_seats = seating.seats();
            let (division, seats) = seating.seat(&members.iter().collect::<Vec<_>>(), 50);
            let taken: BTreeSet<u32> = seats.iter().copied().collect();
            prop_assert!(taken.len() == members.len() && division.members() as usize == members.len());
            prop_assert!(taken.iter().all(|seat| !division.slots_of(*seat, 1000).is_empty()), "{division:?} {taken:?}");
            let fits = members.len() <= old_seats as usize && (old_seats as usize - members.len()) * 4 <= old_seats as usize;
            if fits {
                prop_assert_eq!(division.seats(), old_seats);
                for (member, seat) in members.iter().zip(&seats) {
                    prop_assert!(before.get(&member.name).is_none_or(|before| before == seat), "{}", member.name);
                }
            } else {
                prop_assert!(division.seats() == 50 || division == Division::full(members.len() as u32), "{division:?}");
                prop_assert!(taken.into_iter().eq(0..members.len() as u32));
            }
            before = members.into_iter().map(|member| member.name).zip(seats).collect();
        }
    }
}
