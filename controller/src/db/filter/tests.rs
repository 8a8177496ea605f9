//! The filter language: what it means, what it refuses, and that no caller's text becomes SQL.

use proptest::prelude::*;

use super::*;

const FIELDS: &[Field] = &[
    Field::id("id", "vm.id").sortable(),
    Field::text("name", "vm.name").sortable(),
    Field::text("state", "vm.state"),
    Field::int("vcpus", "vm.vcpus"),
    Field::bytes("memory", "vm.memory"),
    Field::time("created_at", "vm.created_at"),
    Field::bool("deleted", "vm.deleted"),
    Field::id("host_id", "vm.host_id"),
    Field::text("nics.ip", "nic.ip").through("nic", "nic.vm_id", "vm.id"),
];

fn sql(q: &str) -> Result<Sql, String> {
    let mut sql = Sql::default();
    compile(q, FIELDS, &mut sql).map(|()| sql).map_err(|e| e.message)
}

fn text(q: &str) -> String {
    sql(q).unwrap().text
}

#[test]
fn a_filter_becomes_sql_with_parameters() {
    let made = sql("state = running and (nics.ip like \"10.0.%\" or vcpus in (1, 2)) and not name != 'a b'").unwrap();
    insta::assert_snapshot!(made.text, @r"(((vm.state = $1) AND (vm.id IN (SELECT nic.vm_id FROM nic WHERE (LOWER(nic.ip) LIKE $2 ESCAPE '\')) OR (vm.vcpus IN ($3, $4))) AND (vm.name = $5)))");
    let text = |s: &str| Bind::Text(s.into());
    assert_eq!(made.binds, [text("running"), text("10.0.%"), Bind::Int(1), Bind::Int(2), text("a b")]);
}

#[test]
fn a_missing_value_is_unequal_to_everything() {
    assert_eq!(text("name != x"), "((vm.name IS NULL OR NOT (vm.name = $1)))");
    assert_eq!(text("not name = x"), text("name != x"));
    assert_eq!(text("not not name = x"), text("name = x"));
    assert_eq!(
        text("nics.ip is null"),
        "(NOT EXISTS (SELECT 1 FROM nic WHERE nic.vm_id = vm.id AND nic.ip IS NOT NULL))"
    );
    assert_eq!(text("not nics.ip = x"), text("nics.ip != x"));
    assert_eq!(
        (text("host_id is null"), text("not host_id is null")),
        ("(vm.host_id IS NULL)".into(), "(vm.host_id IS NOT NULL)".into())
    );
    assert_eq!(text("not (vcpus = 1 and vcpus = 2)"), text("vcpus != 1 or vcpus != 2"));
}

#[test]
fn literals_have_the_type_of_their_field() {
    assert_eq!(sql("memory >= 4GiB").unwrap().binds, [Bind::Int(4 << 30)]);
    assert_eq!(sql("created_at > 1970-01-02").unwrap().binds, [Bind::Int(86_400_000)]);
    assert_eq!(sql("created_at > 1970-01-01T00:00:01Z").unwrap().binds, [Bind::Int(1000)]);
    assert_eq!(sql("deleted = true").unwrap().binds, [Bind::Int(1)]);
    let id = "01939F00-3B1A-7C3E-9D5E-0B8A6C2F4E11";
    assert_eq!(sql(&format!("host_id = {id}")).unwrap().binds, [Bind::Text(id.to_lowercase())]);
    assert_eq!(sql("name like 'A\\%_%'").unwrap().binds, [Bind::Text("a\\%_%".into())]);
    assert_eq!(sql(r#"name = "say \"hi\"""#).unwrap().binds, [Bind::Text("say \"hi\"".into())]);
}

#[test]
fn an_error_says_where_and_what_was_expected() {
    let all: Vec<_> = [
        "",
        "name",
        "name =",
        "name = a b",
        "nam = a",
        "name = \"a",
        "(name = a",
        "name in a",
        "name in (a,",
        "name is 5",
        "name not = 5",
        "vcpus = many",
        "memory > -1",
        "created_at < yesterday",
        "deleted = 1",
        "host_id = h1",
        "vcpus like 1",
        "name like 'a\\'",
        "name = a;drop",
        "name = 1 or",
    ]
    .into_iter()
    .map(|q| format!("{q:24} → {}", sql(q).unwrap_err()))
    .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn size_depth_and_number_are_bounded() {
    let deep = format!("{}name = a{}", "(".repeat(50), ")".repeat(50));
    let nots = format!("{} name = a", "not ".repeat(50));
    let terms = vec!["name = a"; 65].join(" or ");
    let values = format!("name in ({})", vec!["a"; 101].join(","));
    let long = format!("name = {}", "a".repeat(5000));
    let wild = format!("name like '{}'", "%a".repeat(9));
    for (q, what) in [(deep, "deep"), (nots, "deep"), (terms, "64"), (values, "100"), (long, "4096"), (wild, "8")] {
        assert!(sql(&q).unwrap_err().contains(what), "{}", &q[..40]);
    }
}

/// Pieces from which filters are made, so that many of them are nearly or fully valid.
fn piece() -> impl Strategy<Value = String> {
    let words = vec![
        "name",
        "nics.ip",
        "vcpus",
        "=",
        "!=",
        "<",
        ">=",
        "like",
        "not",
        "in",
        "(",
        ")",
        ",",
        "and",
        "or",
        "is",
        "null",
        "\"a'; DROP TABLE vm; --\"",
        "'x\"y'",
        "5",
        "$1",
        "\\",
        "\"",
        "é",
        "\0",
    ];
    prop_oneof![proptest::sample::select(words).prop_map(str::to_string), "\\PC{0,6}"]
}

proptest! {
    #[test]
    fn no_input_panics_and_no_input_becomes_sql(pieces in proptest::collection::vec(piece(), 0..24)) {
        let q = pieces.join(" ");
        if let Ok(made) = sql(&q) {
            // Only our own words, `$n` in order, and as many parameters as placeholders.
            let placeholders = made.text.matches('$').count();
            prop_assert_eq!(placeholders, made.binds.len());
            prop_assert!(!made.text.contains("DROP") && !made.text.contains('"') && !made.text.contains(';'));
            prop_assert_eq!(made.text.matches('(').count(), made.text.matches(')').count());
        }
    }

    #[test]
    fn any_text_is_carried_unchanged_as_a_parameter(value in "[^\\x00\"\\\\]{0,60}") {
        let made = sql(&format!("name = \"{value}\"")).unwrap();
        prop_assert_eq!(made.text, "((vm.name = $1))");
        prop_assert_eq!(made.binds, vec![Bind::Text(value)]);
    }
}
