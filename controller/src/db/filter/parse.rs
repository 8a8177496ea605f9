//! The language of `q`: lexer and parser, with positions in every error. Knows no field and no SQL.
//!
//! ```text
//! or         = and { "or" and }
//! and        = not { "and" not }
//! not        = "not" not | "(" or ")" | comparison
//! comparison = field ( ("=" | "!=" | "<" | "<=" | ">" | ">=") value
//!                    | ["not"] "like" value
//!                    | ["not"] "in" "(" value { "," value } ")"
//!                    | "is" ["not"] "null" )
//! value      = "…" | '…' | word          (in quotes, a backslash before the quote takes it as a character;
//!                                         before anything else it stays, for `like`)
//! ```
//!
//! Keywords are read in any case. Length, depth and number of terms are bounded, so that neither
//! this parser nor a database meets more than it can bear.

use shared::Error;

use super::refuse;

/// Longest filter in bytes.
const MAX_LENGTH: usize = 4096;
/// Deepest nesting of parentheses and `not`.
const MAX_DEPTH: usize = 16;
/// Most comparisons.
const MAX_TERMS: usize = 64;
/// Most values of one `in`.
const MAX_VALUES: usize = 100;

/// A value as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Literal {
    /// Where it stands: byte offset in `q`.
    pub at: usize,
    /// What it says, without quotes.
    pub text: String,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `=`
    Eq,
    /// `!=`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `like`
    Like,
    /// `not like`
    NotLike,
    /// `in`
    In,
    /// `not in`
    NotIn,
    /// `is null`
    Null,
    /// `is not null`
    NotNull,
}

impl Op {
    /// The comparison that this one is the negation of, and whether it is one.
    pub(super) const fn positive(self) -> (Self, bool) {
        match self {
            Self::Ne => (Self::Eq, true),
            Self::NotLike => (Self::Like, true),
            Self::NotIn => (Self::In, true),
            Self::Null => (Self::NotNull, true),
            other => (other, false),
        }
    }

    pub(super) const fn sql(self) -> &'static str {
        match self {
            Self::Eq => " = ",
            Self::Ne => " <> ",
            Self::Lt => " < ",
            Self::Le => " <= ",
            Self::Gt => " > ",
            Self::Ge => " >= ",
            Self::Like => " LIKE ",
            Self::NotLike => " NOT LIKE ",
            Self::In => " IN ",
            Self::NotIn => " NOT IN ",
            Self::Null => " IS NULL",
            Self::NotNull => " IS NOT NULL",
        }
    }
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// All of them.
    And(Vec<Node>),
    /// One of them.
    Or(Vec<Node>),
    /// Not this.
    Not(Box<Node>),
    /// A field compared with values.
    Compare {
        /// The field's name.
        field: String,
        /// Where it stands.
        at: usize,
        /// How.
        op: Op,
        /// With what: none for `is null`, several for `in`.
        values: Vec<Literal>,
    },
}

/// Reads a filter.
///
/// # Errors
/// `invalid_request` on `q`, with the position and what was expected there.
pub fn parse(q: &str) -> Result<Node, Error> {
    if q.len() > MAX_LENGTH {
        return Err(Error::invalid("q", format!("is longer than {MAX_LENGTH} bytes")));
    }
    let tokens = lex(q)?;
    let mut parser = Parser { tokens, next: 0, end: q.len(), terms: 0 };
    let tree = parser.or(0)?;
    match parser.peek() {
        None => Ok(tree),
        Some(_) => Err(parser.expected("\"and\", \"or\" or the end")),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A field, keyword or bare value.
    Word(String),
    /// A quoted value.
    Quoted(String),
    /// `= != < <= > >= ( ) ,`
    Sign(&'static str),
}

const SIGNS: [&str; 9] = ["!=", "<=", ">=", "=", "<", ">", "(", ")", ","];

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | ':' | '/' | '%' | '*' | '+' | '@' | '~')
}

fn lex(q: &str) -> Result<Vec<(usize, Token)>, Error> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(c) = q[at..].chars().next() {
        if c.is_whitespace() {
            at += c.len_utf8();
        } else if let Some(sign) = SIGNS.iter().find(|sign| q[at..].starts_with(**sign)) {
            tokens.push((at, Token::Sign(sign)));
            at += sign.len();
        } else if matches!(c, '"' | '\'') {
            let (text, length) =
                quoted(&q[at..], c).ok_or_else(|| refuse(at, format!("the closing {c} is missing")))?;
            tokens.push((at, Token::Quoted(text)));
            at += length;
        } else if is_word(c) {
            let length = q[at..].find(|c| !is_word(c)).unwrap_or(q.len() - at);
            tokens.push((at, Token::Word(q[at..at + length].to_string())));
            at += length;
        } else {
            return Err(refuse(at, format!("{c:?} is not understood here: put values in quotes")));
        }
    }
    Ok(tokens)
}

/// The text in quotes at the start of `s` and how many bytes it took.
fn quoted(s: &str, quote: char) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut chars = s.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            c if c == quote => return Some((text, i + 1)),
            '\\' => match chars.next()?.1 {
                c if c == quote => text.push(c),
                other => text.extend(['\\', other]),
            },
            c => text.push(c),
        }
    }
    None
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    end: usize,
    terms: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    fn expected(&self, what: &str) -> Error {
        let found = match self.peek() {
            None => "the end".to_string(),
            Some(Token::Sign(sign)) => format!("\"{sign}\""),
            Some(Token::Word(text) | Token::Quoted(text)) => {
                format!("\"{}\"", text.chars().take(40).collect::<String>())
            }
        };
        refuse(self.at(), format!("expected {what}, found {found}"))
    }

    fn keyword(&mut self, keyword: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(keyword));
        self.next += usize::from(found);
        found
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(found)) if *found == sign);
        self.next += usize::from(found);
        found
    }

    fn or(&mut self, depth: usize) -> Result<Node, Error> {
        let mut parts = vec![self.and(depth)?];
        while self.keyword("or") {
            parts.push(self.and(depth)?);
        }
        Ok(one_or(parts, Node::Or))
    }

    fn and(&mut self, depth: usize) -> Result<Node, Error> {
        let mut parts = vec![self.not(depth)?];
        while self.keyword("and") {
            parts.push(self.not(depth)?);
        }
        Ok(one_or(parts, Node::And))
    }

    fn not(&mut self, depth: usize) -> Result<Node, Error> {
        if depth > MAX_DEPTH {
            return Err(refuse(self.at(), format!("the filter is nested more than {MAX_DEPTH} deep")));
        }
        if self.keyword("not") {
            return Ok(Node::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.sign("(") {
            let inner = self.or(depth + 1)?;
            return if self.sign(")") { Ok(inner) } else { Err(self.expected("\"and\", \"or\" or \")\"")) };
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Node, Error> {
        let at = self.at();
        let field = match self.peek() {
            Some(Token::Word(word)) => word.clone(),
            _ => return Err(self.expected("a field, \"not\" or \"(\"")),
        };
        self.next += 1;
        self.terms += 1;
        if self.terms > MAX_TERMS {
            return Err(refuse(at, format!("the filter has more than {MAX_TERMS} comparisons")));
        }
        let op = self.op()?;
        let values = match op {
            Op::Null | Op::NotNull => Vec::new(),
            Op::In | Op::NotIn => self.values()?,
            _ => vec![self.value()?],
        };
        Ok(Node::Compare { field, at, op, values })
    }

    fn op(&mut self) -> Result<Op, Error> {
        const SIGNS: [(&str, Op); 6] =
            [("=", Op::Eq), ("!=", Op::Ne), ("<", Op::Lt), ("<=", Op::Le), (">", Op::Gt), (">=", Op::Ge)];
        if let Some((_, op)) = SIGNS.iter().find(|(sign, _)| self.sign(sign)) {
            return Ok(*op);
        }
        if self.keyword("is") {
            let not = self.keyword("not");
            return match (self.keyword("null"), not) {
                (true, false) => Ok(Op::Null),
                (true, true) => Ok(Op::NotNull),
                (false, false) => Err(self.expected("\"null\" or \"not null\"")),
                (false, true) => Err(self.expected("\"null\"")),
            };
        }
        let not = self.keyword("not");
        if self.keyword("like") {
            return Ok(if not { Op::NotLike } else { Op::Like });
        }
        if self.keyword("in") {
            return Ok(if not { Op::NotIn } else { Op::In });
        }
        Err(self.expected(match not {
            true => "\"like\" or \"in\"",
            false => "a comparison (= != < <= > >=, \"like\", \"in\", \"is\")",
        }))
    }

    fn value(&mut self) -> Result<Literal, Error> {
        let at = self.at();
        match self.peek() {
            Some(Token::Word(text) | Token::Quoted(text)) => {
                let literal = Literal { at, text: text.clone() };
                self.next += 1;
                Ok(literal)
            }
            _ => Err(self.expected("a value")),
        }
    }

    fn values(&mut self) -> Result<Vec<Literal>, Error> {
        if !self.sign("(") {
            return Err(self.expected("\"(\""));
        }
        let mut values = vec![self.value()?];
        while self.sign(",") {
            if values.len() == MAX_VALUES {
                return Err(refuse(self.at(), format!("more than {MAX_VALUES} values")));
            }
            values.push(self.value()?);
        }
        if self.sign(")") { Ok(values) } else { Err(self.expected("\",\" or \")\"")) }
    }
}

fn one_or(mut parts: Vec<Node>, all: fn(Vec<Node>) -> Node) -> Node {
    match parts.len() {
        1 => parts.remove(0),
        _ => all(parts),
    }
}
