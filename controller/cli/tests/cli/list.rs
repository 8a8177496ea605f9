//! Lists and shows: tables for people, documents for programs, lookups by name.

use serde_json::json;

use super::fake::{Answer, Fake, id, names, vm};

async fn two_vms() -> Fake {
    Fake::start(|asked, _| {
        if let Some(answer) = names(asked) {
            return answer;
        }
        match asked.path.as_str() {
            "/v1/vms" => Answer::page(vec![vm(1, "web", "running"), vm(2, "database-1", "crashed")]),
            path if path == format!("/v1/vms/{}", id(1)) => Answer::Json(200, vm(1, "web", "running")),
            _ => Answer::problem(shared::Code::NotFound, "there is no such thing"),
        }
    })
    .await
}

#[tokio::test]
async fn a_table_is_short_aligned_and_without_colour() {
    let fake = two_vms().await;
    let run = fake.run(&["vm", "list"]).await.ended(0);
    insta::assert_snapshot!(run.stdout, @r"
    NAME        STATE    VCPUS   MEMORY  ADDRESS    HOST  AGE  ID
    web         running      2  512 MiB  10.77.0.5  h1    3d   000000000001
    database-1  crashed      2  512 MiB  10.77.0.5  h1    3d   000000000002
    ");
    assert_eq!(run.stderr, "");
    let list = &fake.asked()[0];
    assert_eq!(list.header("authorization"), "Bearer secret");
    assert_eq!(list.param("limit"), "100");
}

#[tokio::test]
async fn a_vm_whose_host_does_not_answer_is_shown_as_it_was_last_known() {
    let fake = Fake::start(|asked, _| {
        let mut lost = vm(1, "web", "unknown");
        lost["last_known_state"] = json!("running");
        names(asked).unwrap_or_else(|| Answer::page(vec![lost]))
    })
    .await;
    let run = fake.run(&["vm", "list", "--columns", "name,state"]).await.ended(0);
    insta::assert_snapshot!(run.stdout, @r"
    NAME  STATE
    web   unknown, was running
    ");
}

#[tokio::test]
async fn columns_are_chosen_by_key_or_by_path() {
    let fake = two_vms().await;
    let run = fake.run(&["vm", "list", "--columns", "name,nics.0.mac,id", "--full"]).await.ended(0);
    insta::assert_snapshot!(run.stdout, @r"
    NAME        NICS.0.MAC         ID
    web         52:54:00:00:00:01  01939f00-3b1a-7c3e-9d5e-000000000001
    database-1  52:54:00:00:00:01  01939f00-3b1a-7c3e-9d5e-000000000002
    ");
}

#[tokio::test]
async fn programs_get_documents_or_names() {
    let fake = two_vms().await;
    let items = fake.run(&["vm", "list", "-o", "json"]).await.ended(0).json();
    assert_eq!(items[1]["name"], "database-1");
    assert_eq!(items[0]["memory"], 536_870_912_u64);
    assert_eq!(fake.run(&["vm", "list", "-o", "name"]).await.ended(0).stdout, "web\ndatabase-1\n");
    let yaml = fake.run(&["vm", "show", &id(1), "-o", "yaml"]).await.ended(0).stdout;
    assert!(yaml.contains("name: web\n"), "{yaml}");
}

#[tokio::test]
async fn filter_and_order_go_to_the_server() {
    let fake = two_vms().await;
    fake.run(&["vm", "list", "-q", "state = running", "--sort", "-name", "--limit", "5"]).await.ended(0);
    let asked = &fake.asked()[0];
    assert_eq!((asked.param("q"), asked.param("sort"), asked.param("limit")), ("state = running", "-name", "5"));
}

#[tokio::test]
async fn all_pages_are_read_and_a_cut_list_says_so() {
    let fake = Fake::start(|asked, _| match asked.param("cursor") {
        "" => Answer::Json(200, json!({"items": [{"id": id(1), "name": "a"}], "next_cursor": "two"})),
        _ => Answer::page(vec![json!({"id": id(2), "name": "b"})]),
    })
    .await;
    let run = fake.run(&["zone", "list", "--all", "-o", "name"]).await.ended(0);
    assert_eq!(run.stdout, "a\nb\n");
    let run = fake.run(&["zone", "list", "--limit", "1", "-o", "name"]).await.ended(0);
    assert_eq!((run.stdout.as_str(), run.stderr.trim()), ("a\n", "Only the first 1 are shown; all of them: --all"));
}

#[tokio::test]
async fn a_service_that_is_switched_off_is_shown_as_disabled() {
    let service = |name: &str, disabled: bool| {
        json!({"name": name, "started": !disabled, "disabled": disabled, "in_flight": 0, "queued": 0, "handled": 7,
            "failed": 0, "messages": []})
    };
    let fake = Fake::start(move |_, _| Answer::page(vec![service("image", true), service("vm", false)])).await;
    let run = fake.run(&["service", "list"]).await.ended(0);
    let of = |name: &str| run.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_string();
    assert!(of("image").contains("disabled") && !of("image").contains("started"), "{}", run.stdout);
    assert!(of("vm").contains("started"), "{}", run.stdout);
}

#[tokio::test]
async fn an_empty_list_is_told_on_standard_error() {
    let fake = Fake::start(|_, _| Answer::page(Vec::new())).await;
    let run = fake.run(&["vm", "list"]).await.ended(0);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", "There are no vms.\n"));
    assert_eq!(fake.run(&["vm", "list", "-o", "json"]).await.ended(0).stdout, "[]\n");
}

#[tokio::test]
async fn a_count_is_one_number() {
    let fake = Fake::start(|_, _| Answer::Json(200, json!({"items": [], "count": 31}))).await;
    assert_eq!(fake.run(&["vm", "list", "--count", "-q", "state = running"]).await.ended(0).stdout, "31\n");
    assert_eq!(fake.asked()[0].param("count"), "true");
}

#[tokio::test]
async fn a_name_is_looked_up_and_shown() {
    let fake = Fake::start(|asked, _| match (asked.path.as_str(), asked.param("q")) {
        ("/v1/vms", "name = \"web\"") => Answer::page(vec![vm(1, "web", "running")]),
        ("/v1/vms", _) => Answer::page(Vec::new()),
        (path, _) if path.starts_with("/v1/vms/") => Answer::Json(200, vm(1, "web", "running")),
        _ => names(asked).unwrap_or(Answer::page(Vec::new())),
    })
    .await;
    let run = fake.run(&["vm", "show", "web"]).await.ended(0);
    let stable: Vec<&str> = run.stdout.lines().filter(|line| !line.starts_with("created")).collect();
    insta::assert_snapshot!(stable.join("\n"), @r"
    name         web
    state        running
    vcpus        2
    memory       512 MiB
    address      10.77.0.5
    host         h1
    image        debian
    firmware     bios
    hostname     web
    since        3m
    age          3d
    id           01939f00-3b1a-7c3e-9d5e-000000000001
    root volume  01939f00-3b1a-7c3e-9d5e-000000000190
    networks     lan  10.77.0.5  52:54:00:00:00:01
    can be       stop
    ");
}

#[tokio::test]
async fn an_unknown_name_says_how_to_find_the_right_one() {
    let fake = Fake::start(|_, _| Answer::page(Vec::new())).await;
    let run = fake.run(&["vm", "show", "wbe"]).await.ended(3);
    insta::assert_snapshot!(run.stderr, @r"
    error: there is no vm wbe
      hint: see what there is: kring vm list
    ");
    // What cannot be a name is never put into a question.
    let before = fake.asked().len();
    fake.run(&["vm", "show", "x\" or name like \"%"]).await.ended(3);
    assert_eq!(fake.asked().len(), before);
}

#[tokio::test]
async fn an_ambiguous_name_lists_the_ids() {
    let fake = Fake::start(|_, _| Answer::page(vec![vm(1, "web", "running"), vm(2, "web", "stopped")])).await;
    let run = fake.run(&["vm", "show", "web"]).await.ended(4);
    assert!(run.stderr.contains(&id(1)) && run.stderr.contains(&id(2)), "{}", run.stderr);
    assert!(run.stderr.contains("give the id instead of the name"), "{}", run.stderr);
}

#[tokio::test]
async fn a_short_id_of_a_table_is_understood() {
    let fake = Fake::start(|asked, _| match asked.param("q") {
        "name = \"000000000001\"" => Answer::page(Vec::new()),
        "id like \"%-000000000001\"" => Answer::page(vec![vm(1, "web", "running")]),
        _ => Answer::Json(200, vm(1, "web", "running")),
    })
    .await;
    assert_eq!(fake.run(&["vm", "show", "000000000001", "-o", "name"]).await.ended(0).stdout, "web\n");
}

#[tokio::test]
async fn the_overview_sums_up() {
    let fake = Fake::start(|asked, _| {
        let host = |n: u64, name: &str, connection: &str| {
            json!({
                "id": id(n), "name": name, "cluster_id": id(700), "address": "10.0.0.1:8444",
                "admin_state": "enabled", "connection": connection, "facts": {}, "created_at": super::fake::ago(9),
                "capacity": {"vcpus_total": 8, "vcpus_reserved": 4, "memory_total": 17_179_869_184_u64,
                             "memory_reserved": 4_294_967_296_u64},
            })
        };
        match (asked.path.as_str(), asked.param("q")) {
            ("/v1/hosts", _) => Answer::page(vec![host(1, "h1", "connected"), host(2, "h2", "disconnected")]),
            ("/v1/vms", "" | "state = running") => Answer::Json(200, json!({"items": [], "count": 3})),
            ("/v1/jobs", _) => Answer::Json(200, json!({"items": [], "count": 1})),
            _ => Answer::Json(200, json!({"items": [], "count": 0})),
        }
    })
    .await;
    let run = fake.run(&["status"]).await.ended(0);
    insta::assert_snapshot!(run.stdout.replace(&fake.url, "http://controller"), @r"
    controller  http://controller/
    hosts       1 connected
                h2 disconnected
    vms         3 running
    vcpus       [==========          ] 4 of 8 reserved
    memory      [=====               ] 4 GiB of 16 GiB reserved
    jobs        1 going on
    ");
    let json = fake.run(&["status", "-o", "json"]).await.ended(0).json();
    assert_eq!(json["vms"]["by_state"]["running"], 3);
}
