//! The addresses of all controllers, as every agent keeps them: with the answer to a join, and with
//! each ping and command in the header [`HEADER_CONTROLLERS`], an agent learns where else to turn
//! when one controller is gone.

/// Addresses of all controllers, separated by commas.
pub const HEADER_CONTROLLERS: &str = "kring-controllers";
/// Most addresses in a list; more are left out.
pub const MAX_CONTROLLERS: usize = 32;
/// Longest address, in bytes: a DNS name has at most 253.
const MAX_LEN: usize = 300;

/// The addresses among `urls` that can be used, each once, sorted, so that equal lists read the same.
#[must_use]
pub fn clean<'a>(urls: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut list: Vec<String> =
        urls.into_iter().map(|url| url.trim().trim_end_matches('/')).filter(is_address).map(str::to_string).collect();
    list.sort_unstable();
    list.dedup();
    list.truncate(MAX_CONTROLLERS);
    list
}

/// A list as the header has it.
#[must_use]
pub fn write(urls: &[String]) -> String {
    urls.join(",")
}

/// The list in a header. What is not an address is left out.
#[must_use]
pub fn read(header: &str) -> Vec<String> {
    clean(header.split(',').take(4 * MAX_CONTROLLERS))
}

/// Whether it is `https://` and an authority, and nothing more.
fn is_address(url: &&str) -> bool {
    let authority = url.strip_prefix("https://").unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    !authority.is_empty() && url.len() <= MAX_LEN && authority.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_round_trips_sorted_and_without_what_is_no_address() {
        let list = clean(["https://b:8443/", " https://[::1]:1 ", "https://a.example", "https://b:8443"]);
        assert_eq!(list, ["https://[::1]:1", "https://a.example", "https://b:8443"]);
        assert_eq!(read(&write(&list)), list);
        let bad = ["", "https://", "http://a", "https://a/b", "https://u@a", "https://a?x", "ftp://a", "https://a b"];
        assert!(clean(bad).is_empty());
        assert!(clean([format!("https://{}", "a".repeat(300)).as_str()]).is_empty());
    }

    #[test]
    fn a_list_is_bounded() {
        let many: Vec<String> = (0..1000).map(|n| format!("https://c{n}")).collect();
        assert_eq!(read(&many.join(",")).len(), MAX_CONTROLLERS);
    }
}
