//! The network filter that keeps a guest from speaking with another's address, and from answering
//! DHCP in the place of its network's service.

use super::Element;

/// Name of the filter that every card of a VM refers to. A change of its rules needs another name:
/// domains of older agents, here and on hosts that they migrate to, refer to this one.
pub const GUEST: &str = "kring-guest";

/// libvirt's own filter against false addresses.
pub const CLEAN_TRAFFIC: &str = "clean-traffic";

/// The filter [`GUEST`]: [`CLEAN_TRAFFIC`], and before it what a DHCP server would send. Clients look
/// at the port that an answer is for, servers send from theirs: a guest may use neither that way. What
/// the network's own service sends comes from no guest's card and passes.
#[must_use]
pub fn guest() -> String {
    let udp = || Element::new("ip").attr("protocol", "udp");
    Element::new("filter")
        .attr("name", GUEST)
        .attr("chain", "root")
        .child(rule("drop", "out", -950).child(udp().attr("srcportstart", 67).attr("srcportend", 67)))
        .child(rule("drop", "out", -940).child(udp().attr("dstportstart", 68).attr("dstportend", 68)))
        .child(Element::new("filterref").attr("filter", CLEAN_TRAFFIC))
        .render()
}

/// Priority at which a referenced filter is applied, as libvirt orders its own.
struct Part {
    name: &'static str,
    chain: &'static str,
    priority: i32,
    rules: fn() -> Vec<Element>,
}

fn rule(action: &str, direction: &str, priority: i32) -> Element {
    Element::new("rule").attr("action", action).attr("direction", direction).attr("priority", priority)
}

/// The filters to define, in order, on a libvirt that came without its own (they are files of a
/// package that may be missing). The last one is [`CLEAN_TRAFFIC`]: outgoing frames must carry the
/// card's MAC and IP, in the ARP payload too; only IPv4 and ARP pass.
#[must_use]
pub fn clean_traffic() -> Vec<(&'static str, String)> {
    let parts = [
        Part { name: "kring-mac", chain: "mac", priority: -800, rules: mac_rules },
        Part { name: "kring-ip", chain: "ipv4-ip", priority: -710, rules: ip_rules },
        Part { name: "kring-arp", chain: "arp", priority: -650, rules: arp_rules },
        Part { name: "kring-other", chain: "root", priority: 0, rules: other_rules },
    ];
    let mut documents: Vec<_> = parts
        .iter()
        .map(|part| {
            let filter = Element::new("filter")
                .attr("name", part.name)
                .attr("chain", part.chain)
                .attr("priority", part.priority)
                .children((part.rules)());
            (part.name, filter.render())
        })
        .collect();
    let references = parts.iter().map(|part| Element::new("filterref").attr("filter", part.name));
    let whole = Element::new("filter").attr("name", CLEAN_TRAFFIC).attr("chain", "root").children(references);
    documents.push((CLEAN_TRAFFIC, whole.render()));
    documents
}

/// Whether the [`CLEAN_TRAFFIC`] of a libvirt is the one of [`clean_traffic`].
#[must_use]
pub fn is_ours(xml: &str) -> bool {
    xml.contains("kring-mac")
}

fn mac_rules() -> Vec<Element> {
    vec![
        rule("return", "out", 300).child(Element::new("mac").attr("srcmacaddr", "$MAC")),
        rule("drop", "out", 1000).child(Element::new("mac")),
    ]
}

fn ip_rules() -> Vec<Element> {
    vec![
        // A guest asks for its address from 0.0.0.0.
        rule("return", "out", 100)
            .child(Element::new("ip").attr("srcipaddr", "0.0.0.0").attr("protocol", "udp").attr("dstportstart", 67)),
        rule("return", "out", 500).child(Element::new("ip").attr("srcipaddr", "$IP")),
        rule("drop", "out", 1000).child(Element::new("ip")),
    ]
}

fn arp_rules() -> Vec<Element> {
    vec![
        rule("drop", "out", 350).child(Element::new("arp").attr("match", "no").attr("arpsrcmacaddr", "$MAC")),
        rule("return", "out", 400).child(Element::new("arp").attr("arpsrcipaddr", "$IP")),
        // An address probe (RFC 5227) has no sender address yet.
        rule("return", "out", 410).child(Element::new("arp").attr("arpsrcipaddr", "0.0.0.0")),
        rule("drop", "out", 1000).child(Element::new("arp")),
    ]
}

fn other_rules() -> Vec<Element> {
    let pass = |protocol: &str| Element::new("mac").attr("protocolid", protocol);
    vec![
        rule("accept", "inout", 100).child(pass("ipv4")),
        rule("accept", "inout", 110).child(pass("arp")),
        rule("drop", "inout", 1000).child(Element::new("mac")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_made_of_its_parts() {
        let documents = clean_traffic();
        let (name, whole) = documents.last().unwrap();
        assert_eq!(*name, CLEAN_TRAFFIC);
        for (part, _) in &documents[..documents.len() - 1] {
            assert!(whole.contains(&format!("filter=\"{part}\"")), "{part}");
        }
        assert!(is_ours(whole) && !is_ours(&guest()));
        insta::assert_snapshot!("nwfilter", documents.iter().map(|(_, xml)| xml.as_str()).collect::<String>());
        insta::assert_snapshot!("nwfilter_guest", guest());
    }
}
