//! The set of small integers of CPython 3.11, from whose order of elements that of mergekit's tasks follows.

/// Slots that a new table has.
const SMALLEST: usize = 8;
/// Slots after the first that are looked at before the next jump, where the table is long enough.
const NEIGHBOURS: usize = 9;
/// Bits of the hash that a jump uses up.
const PERTURBATION_SHIFT: u32 = 5;
/// From this many elements on, a table grows to twice their number, not to four times.
const MANY: usize = 50_000;

/// A slot of the table.
#[derive(Clone, Copy)]
enum Slot {
    Empty,
    /// Its integer was taken out; searches go on behind it.
    Removed,
    Taken(usize),
}

/// An open-addressing table in which an integer is its own hash. Integers come out in the order in which Python's
/// `set.pop` gives them, after the same insertions and removals. Source: the behaviour of CPython 3.11, recorded by
/// `scripts/record_mergekit_order.py`.
pub(super) struct IntegerSet {
    /// As many as a power of two.
    slots: Vec<Slot>,
    /// Slots that are not empty.
    used_slots: usize,
    integers: usize,
    /// Where the next search for an integer to take out begins.
    finger: usize,
}

impl IntegerSet {
    pub(super) fn new() -> Self {
        Self { slots: vec![Slot::Empty; SMALLEST], used_slots: 0, integers: 0, finger: 0 }
    }

    pub(super) fn insert(&mut self, integer: usize) {
        let mut removed = None;
        for place in probes(integer, self.mask()) {
            match self.slots[place] {
                Slot::Taken(other) if other == integer => return,
                Slot::Taken(_) => {}
                // The last one on the way is used again.
                Slot::Removed => removed = Some(place),
                Slot::Empty => {
                    self.slots[removed.unwrap_or(place)] = Slot::Taken(integer);
                    self.integers += 1;
                    if removed.is_none() {
                        self.used_slots += 1;
                        self.grow_if_full();
                    }
                    return;
                }
            }
        }
    }

    /// Takes out the next integer in the order of the slots; the search goes on behind the one that came out last.
    pub(super) fn pop(&mut self) -> Option<usize> {
        let mut places = (0..self.slots.len()).map(|step| (self.finger + step) & self.mask());
        let found = |place: usize| match self.slots[place] {
            Slot::Taken(integer) => Some((place, integer)),
            Slot::Empty | Slot::Removed => None,
        };
        let (place, integer) = places.find_map(found)?;
        self.slots[place] = Slot::Removed;
        self.integers -= 1;
        self.finger = place + 1;
        Some(integer)
    }

    fn mask(&self) -> usize {
        self.slots.len() - 1
    }

    /// Where three fifths of the slots are used, moves the integers, in the order of their slots, into a larger table
    /// without removed ones.
    fn grow_if_full(&mut self) {
        if self.used_slots * 5 < self.mask() * 3 {
            return;
        }
        let least = if self.integers > MANY { self.integers * 2 } else { self.integers * 4 };
        let slots = vec![Slot::Empty; SMALLEST.max((least + 1).next_power_of_two())];
        let old = std::mem::replace(&mut self.slots, slots);
        self.used_slots = self.integers;
        for slot in old {
            let Slot::Taken(integer) = slot else { continue };
            let free = |place: &usize| matches!(self.slots[*place], Slot::Empty);
            if let Some(place) = probes(integer, self.mask()).find(free) {
                self.slots[place] = Slot::Taken(integer);
            }
        }
    }
}

/// The slots in which an integer may be, in the order in which they are looked at: runs of neighbours, at places that
/// follow from all bits of the integer. Without end; all slots are among them.
fn probes(integer: usize, mask: usize) -> impl Iterator<Item = usize> {
    let (mut next, mut perturbation) = (integer & mask, integer);
    let run = move || {
        let first = next;
        perturbation >>= PERTURBATION_SHIFT;
        next = (first * 5 + 1).wrapping_add(perturbation) & mask;
        let last = if first + NEIGHBOURS <= mask { first + NEIGHBOURS } else { first };
        first..=last
    };
    std::iter::repeat_with(run).flatten()
}
