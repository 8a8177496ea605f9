//! Filters of lists: the text of `q` → a tree → SQL with bind parameters.
//!
//! Nothing that a caller wrote becomes SQL text: fields are looked up in the noun's whitelist, every
//! literal is a parameter. The language is in [`parse`]; this file knows fields and SQL.
//!
//! Meaning, the same on both databases:
//! - A comparison with something that is missing (NULL) is false, and `not` turns exactly that
//!   around: `host_id != X` also holds for what has no host.
//! - A field of a related resource (`nics.ip`) holds when it holds for one of them; its negation
//!   (`nics.ip != X`) when it holds for none.
//! - `like` knows `%` (anything), `_` (one character) and `\` before either of them, and ignores the
//!   case of ASCII letters.

mod parse;
#[cfg(test)]
mod tests;

use shared::Error;
use shared::time::Timestamp;
use shared::units::Bytes;
use uuid::Uuid;

pub use parse::{Literal, Node, Op, parse};

/// What a field holds, and so which literals it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text, a name or a word; a TEXT column.
    Text,
    /// A UUID; a TEXT column.
    Id,
    /// A whole number; a BIGINT column.
    Int,
    /// A size: bytes, or with a unit such as `4GiB`; a BIGINT column.
    Bytes,
    /// A point in time, RFC 3339 or a date; a BIGINT column of milliseconds.
    Time,
    /// `true` or `false`; a BIGINT column of 0 or 1.
    Bool,
}

/// A field that may be filtered and sorted by.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in the API, such as `host.name`.
    pub name: &'static str,
    /// The column or expression, such as `vm.name`. Written by us, never by a caller.
    pub sql: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether lists can be sorted by it: only for columns that are never NULL.
    pub sortable: bool,
    /// For a field of a related resource, where that is.
    pub through: Option<Through>,
}

/// A related table.
#[derive(Clone, Copy, Debug)]
pub struct Through {
    /// The table, such as `nic`.
    pub table: &'static str,
    /// Its column that is the same as `here`, such as `nic.vm_id`. Never NULL where it counts.
    pub there: &'static str,
    /// The column of the listed table, such as `vm.id`.
    pub here: &'static str,
}

impl Field {
    const fn new(name: &'static str, sql: &'static str, kind: Kind) -> Self {
        Self { name, sql, kind, sortable: false, through: None }
    }
    /// A text field.
    #[must_use]
    pub const fn text(name: &'static str, sql: &'static str) -> Self {
        Self::new(name, sql, Kind::Text)
    }
    /// A field that holds an id.
    #[must_use]
    pub const fn id(name: &'static str, sql: &'static str) -> Self {
        Self::new(name, sql, Kind::Id)
    }
    /// A field that holds a whole number.
    #[must_use]
    pub const fn int(name: &'static str, sql: &'static str) -> Self {
        Self::new(name, sql, Kind::Int)
    }
    /// A field that holds a size.
    #[must_use]
    pub const fn bytes(name: &'static str, sql: &'static str) -> Self {
        Self::new(name, sql, Kind::Bytes)
    }
    /// A field that holds a time.
    #[must_use]
    pub const fn time(name: &'static str, sql: &'static str) -> Self {
        Self::new(name, sql, Kind::Time)
    }
    /// A field that is true or false.
    #[must_use]
    pub const fn bool(name: &'static str, sql: &'static str) -> Self {
        Self::new(name, sql, Kind::Bool)
    }
    /// The same field, also to sort by. Only for columns that are never NULL.
    #[must_use]
    pub const fn sortable(mut self) -> Self {
        self.sortable = true;
        self
    }
    /// The same field in a related table, such as `("nic", "nic.vm_id", "vm.id")`.
    #[must_use]
    pub const fn through(mut self, table: &'static str, there: &'static str, here: &'static str) -> Self {
        self.through = Some(Through { table, there, here });
        self
    }
    /// Whether its column is BIGINT.
    pub(super) const fn is_number(&self) -> bool {
        match self.kind {
            Kind::Int | Kind::Bytes | Kind::Time | Kind::Bool => true,
            Kind::Text | Kind::Id => false,
        }
    }
}

/// A value that goes to the database as a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// Text.
    Text(String),
    /// A number, a time, a flag.
    Int(i64),
}

/// A piece of SQL and its parameters; `$n` in the text is the n-th of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sql {
    /// The text, made of our own pieces and `$n`.
    pub text: String,
    /// The parameters.
    pub binds: Vec<Bind>,
}

impl Sql {
    /// Adds text of ours.
    pub fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a parameter.
    pub fn bind(&mut self, value: Bind) -> &mut Self {
        self.binds.push(value);
        self.text.push('$');
        self.text.push_str(&self.binds.len().to_string());
        self
    }
}

/// Reads `q` and adds it to `sql` as one parenthesised condition.
///
/// # Errors
/// `invalid_request` that names `q`, the position and what was expected.
pub fn compile(q: &str, fields: &[Field], sql: &mut Sql) -> Result<(), Error> {
    let tree = parse(q)?;
    sql.push("(");
    node(&tree, false, fields, sql)?;
    sql.push(")");
    Ok(())
}

fn refuse(at: usize, message: impl std::fmt::Display) -> Error {
    Error::invalid("q", format!("at position {}: {message}", at + 1))
}

/// Finds a field by its name, or says which there are.
pub(super) fn find<'f>(fields: &'f [Field], name: &str) -> Result<&'f Field, String> {
    fields.iter().find(|field| field.name == name).ok_or_else(|| {
        let known: Vec<_> = fields.iter().map(|field| field.name).collect();
        format!("there is no field \"{name}\": give one of {}", known.join(", "))
    })
}

/// Negation is carried down to the comparisons, so that each of them decides what a missing value means.
fn node(tree: &Node, negated: bool, fields: &[Field], sql: &mut Sql) -> Result<(), Error> {
    match tree {
        Node::Not(inner) => node(inner, !negated, fields, sql),
        Node::And(parts) | Node::Or(parts) => {
            let and = matches!(tree, Node::And(_)) != negated;
            sql.push("(");
            for (i, part) in parts.iter().enumerate() {
                if i > 0 {
                    sql.push(if and { " AND " } else { " OR " });
                }
                node(part, negated, fields, sql)?;
            }
            sql.push(")");
            Ok(())
        }
        Node::Compare { field, at, op, values } => {
            let field = find(fields, field).map_err(|message| refuse(*at, message))?;
            let (op, flip) = op.positive();
            let negated = negated != flip;
            match field.through {
                // Few are related to what is asked for, as a rule, and the database begins with them.
                Some(Through { table, there, here }) if !negated => {
                    sql.push(here).push(" IN (SELECT ").push(there).push(" FROM ").push(table).push(" WHERE ");
                    comparison(field, op, values, sql)?;
                    sql.push(")");
                }
                Some(Through { table, there, here }) => {
                    sql.push("NOT EXISTS (SELECT 1 FROM ").push(table).push(" WHERE ");
                    sql.push(there).push(" = ").push(here).push(" AND ");
                    comparison(field, op, values, sql)?;
                    sql.push(")");
                }
                None if op == Op::NotNull => {
                    sql.push(field.sql).push(if negated { " IS NULL" } else { " IS NOT NULL" });
                }
                None if negated => {
                    sql.push("(").push(field.sql).push(" IS NULL OR NOT ");
                    comparison(field, op, values, sql)?;
                    sql.push(")");
                }
                None => comparison(field, op, values, sql)?,
            }
            Ok(())
        }
    }
}

fn comparison(field: &Field, op: Op, values: &[Literal], sql: &mut Sql) -> Result<(), Error> {
    if op == Op::NotNull {
        sql.push(field.sql).push(" IS NOT NULL");
        return Ok(());
    }
    if op == Op::Like {
        return like(field, values, sql);
    }
    sql.push("(").push(field.sql).push(op.sql());
    if op == Op::In {
        sql.push("(");
    }
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            sql.push(", ");
        }
        sql.bind(bind(field, value)?);
    }
    sql.push(if op == Op::In { "))" } else { ")" });
    Ok(())
}

/// `%` that a pattern may hold: matching costs more with each of them.
const MAX_WILDCARDS: usize = 8;

fn like(field: &Field, values: &[Literal], sql: &mut Sql) -> Result<(), Error> {
    let Some(pattern) = values.first() else { return Err(Error::internal("a like without a pattern")) };
    if !matches!(field.kind, Kind::Text | Kind::Id) {
        return Err(refuse(pattern.at, format!("{} is not text: compare it with = < > or in", field.name)));
    }
    if pattern.text.matches('%').count() > MAX_WILDCARDS {
        return Err(refuse(pattern.at, format!("a pattern may hold at most {MAX_WILDCARDS} \"%\"")));
    }
    let mut escaped = false;
    for c in pattern.text.chars() {
        if escaped && !matches!(c, '%' | '_' | '\\') {
            return Err(refuse(pattern.at, "in a pattern, \\ stands only before %, _ or \\"));
        }
        escaped = c == '\\' && !escaped;
    }
    if escaped {
        return Err(refuse(pattern.at, "a pattern cannot end with a single \\"));
    }
    sql.push("(LOWER(").push(field.sql).push(") LIKE ");
    sql.bind(Bind::Text(pattern.text.to_ascii_lowercase())).push(" ESCAPE '\\')");
    Ok(())
}

/// The parameter that a literal is for this field.
fn bind(field: &Field, literal: &Literal) -> Result<Bind, Error> {
    let text = literal.text.as_str();
    let wanted = |what: &str| refuse(literal.at, format!("{} is {what}, not \"{text}\"", field.name));
    match field.kind {
        Kind::Text if text.contains('\0') => Err(wanted("text without zero bytes")),
        Kind::Text => Ok(Bind::Text(text.to_string())),
        Kind::Id => match Uuid::try_parse(text) {
            Ok(id) => Ok(Bind::Text(id.to_string())),
            Err(_) => Err(wanted("an id (a UUID)")),
        },
        Kind::Int => text.parse().map(Bind::Int).map_err(|_| wanted("a whole number")),
        Kind::Bytes => match text.parse::<Bytes>() {
            Ok(size) => Ok(Bind::Int(size.as_i64())),
            Err(_) => Err(wanted("a size (bytes, or such as 4GiB)")),
        },
        Kind::Bool => match text {
            "true" => Ok(Bind::Int(1)),
            "false" => Ok(Bind::Int(0)),
            _ => Err(wanted("true or false")),
        },
        Kind::Time => time(text)
            .map(|t| Bind::Int(t.ms()))
            .ok_or_else(|| wanted("a time (such as 2026-11-22T01:02:03Z, or a date)")),
    }
}

/// RFC 3339, or a date, which is its first moment in UTC.
fn time(text: &str) -> Option<Timestamp> {
    let read = |s: &str| serde_json::from_value(serde_json::Value::String(s.to_string())).ok();
    read(text).or_else(|| read(&format!("{text}T00:00:00Z")))
}
