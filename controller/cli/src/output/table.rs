//! Aligned tables and lists of fields, as plain text.

use super::plain;

/// What a cell says about its resource, as colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing of note.
    #[default]
    Normal,
    /// As wished.
    Good,
    /// On its way, or not known.
    Busy,
    /// Wrong.
    Bad,
    /// Of little interest.
    Faint,
}

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// How it looks.
    pub tone: Tone,
}

impl Cell {
    /// A cell of this text; nothing reads as `-`.
    pub fn new(text: impl ToString) -> Self {
        let text = plain(&text.to_string()).replace(['\n', '\t'], " ");
        Self { text: if text.is_empty() { "-".into() } else { text }, tone: Tone::Normal }
    }

    /// The same with another look.
    pub fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    /// The same with more text behind it.
    pub fn and(mut self, more: &str) -> Self {
        self.text.push_str(more);
        self
    }

    /// The word of a state, in the colour of its meaning.
    pub fn state(word: &str) -> Self {
        let tone = match word {
            "running" | "ready" | "connected" | "available" | "attached" | "succeeded" | "enabled" | "started" => {
                Tone::Good
            }
            "crashed" | "disconnected" | "failed" => Tone::Bad,
            "unknown" | "maintenance" | "disabled" | "rolling_back" | "queued" => Tone::Busy,
            _ if word.ends_with("ing") => Tone::Busy,
            "stopped" | "deleted" | "cancelled" => Tone::Faint,
            _ => Tone::Normal,
        };
        Self::new(word).tone(tone)
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn painted(&self, colour: bool) -> String {
        let code = match self.tone {
            Tone::Normal => return self.text.clone(),
            Tone::Good => "32",
            Tone::Busy => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
        };
        if colour { paint(&self.text, code) } else { self.text.clone() }
    }
}

fn paint(text: &str, code: &str) -> String {
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// A heading, and whether its column is aligned to the right.
#[derive(Clone, Debug)]
pub struct Head {
    /// What it says.
    pub text: String,
    /// Numbers are aligned to the right.
    pub right: bool,
}

/// A table, without a line break at its end.
pub fn table(heads: &[Head], rows: &[Vec<Cell>], colour: bool) -> String {
    let widths: Vec<usize> = heads
        .iter()
        .enumerate()
        .map(|(i, head)| {
            rows.iter().filter_map(|row| row.get(i)).map(Cell::width).max().unwrap_or(0).max(head.text.chars().count())
        })
        .collect();
    let mut lines = Vec::with_capacity(rows.len() + 1);
    let titles: Vec<Cell> = heads.iter().map(|h| Cell::new(h.text.to_uppercase())).collect();
    let title = one_line(heads, &widths, &titles, false);
    lines.push(if colour { paint(&title, "1") } else { title });
    lines.extend(rows.iter().map(|row| one_line(heads, &widths, row, colour)));
    lines.join("\n")
}

fn one_line(heads: &[Head], widths: &[usize], row: &[Cell], colour: bool) -> String {
    let mut line = String::new();
    let last = row.len().saturating_sub(1);
    for (i, cell) in row.iter().enumerate() {
        let gap = " ".repeat(widths.get(i).copied().unwrap_or(0).saturating_sub(cell.width()));
        let text = cell.painted(colour);
        if heads.get(i).is_some_and(|h| h.right) {
            line.push_str(&gap);
            line.push_str(&text);
        } else {
            line.push_str(&text);
            if i < last {
                line.push_str(&gap);
            }
        }
        if i < last {
            line.push_str("  ");
        }
    }
    line
}

/// Fields with their values, one on a line; a value of several lines goes on below itself.
pub fn fields(pairs: &[(String, Vec<Cell>)], colour: bool) -> String {
    let width = pairs.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for (label, cells) in pairs {
        let pad = " ".repeat(width - label.chars().count());
        let head = if colour { paint(label, "1") } else { label.clone() };
        for (i, cell) in cells.iter().enumerate() {
            let text = cell.painted(colour);
            match i {
                0 => lines.push(format!("{head}{pad}  {text}")),
                _ => lines.push(format!("{}  {text}", " ".repeat(width))),
            }
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads() -> Vec<Head> {
        vec![
            Head { text: "name".into(), right: false },
            Head { text: "vcpus".into(), right: true },
            Head { text: "state".into(), right: false },
        ]
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let rows = vec![
            vec![Cell::new("web"), Cell::new(2), Cell::state("running")],
            vec![Cell::new("a-longer-name"), Cell::new(16), Cell::new("")],
        ];
        insta::assert_snapshot!(table(&heads(), &rows, false), @r"
        NAME           VCPUS  STATE
        web                2  running
        a-longer-name     16  -
        ");
    }

    #[test]
    fn colour_changes_no_width() {
        let rows = vec![vec![Cell::new("x"), Cell::new(1), Cell::state("crashed")]];
        let painted = table(&heads(), &rows, true);
        assert!(painted.contains("\u{1b}[31mcrashed\u{1b}[0m"), "{painted:?}");
        let bare = painted.replace("\u{1b}[31m", "").replace("\u{1b}[0m", "").replace("\u{1b}[1m", "");
        assert_eq!(bare, table(&heads(), &rows, false));
    }

    #[test]
    fn a_cell_is_one_line_that_cannot_drive_the_terminal() {
        assert_eq!(Cell::new("a\nb\u{1b}[2J").text, "a b?[2J");
    }
}
