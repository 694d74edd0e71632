//! Locks at given log positions and times.

use super::*;

#[test]
fn the_index_is_what_the_rows_say() {
    let locks = Locks::new();
    assert_eq!(locks.index, locks.rebuilt());
}
