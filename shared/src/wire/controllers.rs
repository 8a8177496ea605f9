//! The addresses of all controllers, as every agent keeps them: with the answer to a join, and with
//! each ping and command in the header [`HEADER_CONTROLLERS`], an agent learns where else to turn
//! when one controller is gone.

/// Addresses of all controllers, separated by commas.
pub const HEADER_CONTROLLERS: &str = "kring-controllers";
/// Most addresses in a list; more are left out.
pub const MAX_CONTROLLERS: usize = 32;
/// Longest address, in bytes: a DNS name has at most 253.
const MAX_LEN: usize = 300;

/// The addresses among `urls` that can be used, each once, in their order.
#[must_use]
pub fn clean<'a>(urls: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for url in urls.into_iter().map(|url| url.trim().trim_end_matches('/')).filter(is_address) {
        if list.len() < MAX_CONTROLLERS && !list.iter().any(|known| known == url) {
            list.push(url.to_string());
        }
    }
    list
}

/// One list of where several controllers are reached, each of them in several ways: the first address of
/// each, then the second ones, so that every controller is in the list before any has a second place.
#[must_use]
pub fn merge(each: &[&[String]]) -> Vec<String> {
    let most = each.iter().map(|urls| urls.len()).max().unwrap_or_default();
    clean((0..most).flat_map(|n| each.iter().filter_map(move |urls| urls.get(n)).map(String::as_str)))
}

/// Whether two lists have the same addresses, in whatever order: each controller names itself first.
#[must_use]
pub fn same(one: &[String], other: &[String]) -> bool {
    one == other || (one.len() == other.len() && one.iter().all(|url| other.contains(url)))
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

    fn urls(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("https://{name}")).collect()
    }

    #[test]
    fn a_list_round_trips_in_its_order_and_without_what_is_no_address() {
        let list = clean(["https://b:8443/", " https://[::1]:1 ", "https://a.example", "https://b:8443"]);
        assert_eq!(list, ["https://b:8443", "https://[::1]:1", "https://a.example"]);
        assert_eq!(read(&write(&list)), list);
        let bad = ["", "https://", "http://a", "https://a/b", "https://u@a", "https://a?x", "ftp://a", "https://a b"];
        assert!(clean(bad).is_empty());
        assert!(clean([format!("https://{}", "a".repeat(300)).as_str()]).is_empty());
    }

    #[test]
    fn every_controller_is_named_before_any_is_named_twice() {
        let each = [urls(&["b", "b2"]), urls(&["a"]), Vec::new(), urls(&["c", "c2", "a"])];
        let each: Vec<&[String]> = each.iter().map(Vec::as_slice).collect();
        assert_eq!(merge(&each), urls(&["b", "a", "c", "b2", "c2"]));
        assert!(merge(&[]).is_empty());
        assert!(same(&urls(&["a", "b"]), &urls(&["b", "a"])) && same(&[], &[]));
        assert!(!same(&urls(&["a", "b"]), &urls(&["a", "c"])) && !same(&urls(&["a"]), &urls(&["a", "b"])));
    }

    #[test]
    fn a_list_is_bounded() {
        let many: Vec<String> = (0..1000).map(|n| format!("https://c{n}")).collect();
        assert_eq!(read(&many.join(",")).len(), MAX_CONTROLLERS);
    }
}
