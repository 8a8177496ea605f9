//! XML for libvirt: a small writer that escapes everything, and one file per kind of document.
//!
//! Nothing else in the agent puts XML together. What libvirt answers is read in [`read`].

pub mod device;
pub mod domain;
pub mod filter;
pub mod read;

use std::fmt::Write as _;

/// An element with its attributes and content. Names are written in the code and trusted; every
/// value is escaped, and a character that XML cannot hold becomes U+FFFD.
#[derive(Clone, Debug)]
pub struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Element>,
    text: Option<String>,
}

impl Element {
    /// An empty element.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), children: Vec::new(), text: None }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attr(mut self, name: &'static str, value: impl ToString) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    /// Adds an attribute before the others.
    pub fn put_first(&mut self, name: &'static str, value: &str) {
        self.attributes.insert(0, (name, value.to_string()));
    }

    /// Adds a child.
    #[must_use]
    pub fn child(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    /// Adds children.
    #[must_use]
    pub fn children(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children);
        self
    }

    /// Adds a child that holds only text.
    #[must_use]
    pub fn text_child(self, name: &'static str, text: impl ToString) -> Self {
        self.child(Self::new(name).text(text))
    }

    /// Sets the text. An element has either text or children.
    #[must_use]
    pub fn text(mut self, text: impl ToString) -> Self {
        self.text = Some(text.to_string());
        self
    }

    /// The document, indented by two spaces.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    fn write(&self, out: &mut String, depth: usize) {
        let indent = depth * 2;
        let _ = write!(out, "{:indent$}<{}", "", self.name);
        for (name, value) in &self.attributes {
            let _ = write!(out, " {name}=\"");
            escape(value, out);
            out.push('"');
        }
        match (&self.text, self.children.is_empty()) {
            (Some(text), _) => {
                out.push('>');
                escape(text, out);
                let _ = writeln!(out, "</{}>", self.name);
            }
            (None, true) => out.push_str("/>\n"),
            (None, false) => {
                out.push_str(">\n");
                for child in &self.children {
                    child.write(out, depth + 1);
                }
                let _ = writeln!(out, "{:indent$}</{}>", "", self.name);
            }
        }
    }
}

/// Writes `text` so that it is the same text in an attribute as in content. Line breaks and tabs are
/// written as references, because a parser would turn them into spaces in an attribute.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' | '\n' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Back {
        #[serde(rename = "@a")]
        a: String,
        #[serde(rename = "$text", default)]
        text: String,
    }

    #[test]
    fn nesting_is_indented_and_empty_elements_are_closed() {
        let xml = Element::new("a").child(Element::new("b").attr("k", 1)).text_child("c", "x").render();
        assert_eq!(xml, "<a>\n  <b k=\"1\"/>\n  <c>x</c>\n</a>\n");
    }

    #[test]
    fn hostile_values_stay_values() {
        let evil = "'/><disk a=\"&amp;\0]]>\u{1b}\n";
        let xml = Element::new("x").attr("a", evil).render();
        let back: Back = quick_xml::de::from_str(&xml).unwrap();
        assert_eq!(back.a, evil.replace(['\0', '\u{1b}'], "\u{fffd}"));
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(a in "\\PC*", text in "[a-z<>&'\"]{1,30}") {
            let xml = Element::new("x").attr("a", &a).text(&text).render();
            let back: Back = quick_xml::de::from_str(&xml).unwrap();
            prop_assert_eq!(back.a, a);
            prop_assert_eq!(back.text, text);
        }
    }
}
