//! Numbers of things, for people.

/// `1 sample`, `20 samples`.
pub(crate) fn counted(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_is_no_plural() {
        let counted: Vec<String> = [0, 1, 2].map(|number| super::counted(number, "source")).to_vec();
        assert_eq!(counted, ["0 sources", "1 source", "2 sources"]);
    }
}
