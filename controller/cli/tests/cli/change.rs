//! Changes: what is sent, how the work is waited for, and what is told.

use serde_json::json;

use super::cmd::finish;
use super::fake::{Answer, Asked, Fake, accepted, id, job, names, vm};

/// Answers names, and the rest by the closure.
async fn with_names(handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Fake {
    Fake::start(move |asked, _| match (asked.path.as_str(), asked.param("q")) {
        ("/v1/vms", "name = \"web\"") => Answer::page(vec![vm(1, "web", "stopped")]),
        ("/v1/vms", "name = \"db\"") => Answer::page(vec![vm(2, "db", "stopped")]),
        ("/v1/volumes", _) => Answer::page(vec![json!({"id": id(400), "name": "data"})]),
        _ => match names(asked).filter(|_| asked.method == "GET") {
            Some(answer) => answer,
            None => handler(asked),
        },
    })
    .await
}

#[tokio::test]
async fn a_create_sends_all_that_was_given_and_tells_where_it_went() {
    let fake = with_names(|asked| match asked.method.as_str() {
        "POST" => Answer::Json(200, job(50, "succeeded", Some("start"), 100)),
        _ => Answer::Json(200, vm(1, "web2", "running")),
    })
    .await;
    let data = fake.home.path().join("user-data");
    std::fs::write(&data, "#cloud-config\n").unwrap();
    let data = data.display().to_string();
    let args = [
        "vm",
        "create",
        "web2",
        "--image",
        "debian",
        "--vcpus",
        "2",
        "--memory",
        "512MiB",
        "--network",
        "lan,ip=10.77.0.5",
        "--network",
        "lan",
        "--ssh-key",
        "ssh-ed25519 AAAA me",
        "--user-data",
        &data,
        "--root-size",
        "10GiB",
        "--host",
        "h1",
        "--hostname",
        "www",
        "--no-start",
    ];
    let run = fake.run(&args).await.ended(0);
    assert_eq!(run.stdout, "vm web2 created: running on h1, 10.77.0.5\n");
    let post = fake.asked().into_iter().find(|a| a.method == "POST").unwrap();
    assert_eq!(post.path, "/v1/vms");
    assert_eq!(post.header("prefer"), "wait=1");
    assert!(uuid::Uuid::try_parse(post.header("idempotency-key")).is_ok());
    let mut body = post.json();
    let chosen = body.as_object_mut().unwrap().remove("id").unwrap();
    assert_eq!(
        body,
        json!({
            "name": "web2", "image_id": id(300), "vcpus": 2, "memory": 536_870_912_u64, "root_size": 10_737_418_240_u64,
            "nics": [{"network_id": id(600), "ip": "10.77.0.5"}, {"network_id": id(600)}], "hostname": "www",
            "ssh_keys": ["ssh-ed25519 AAAA me"], "user_data": "#cloud-config\n", "host_id": id(200), "start": false, "auto_start": true,
        })
    );
    // The id that the client chose is the one it asks for afterwards.
    let path = format!("/v1/vms/{}", chosen.as_str().unwrap());
    assert!(fake.asked().iter().any(|a| a.method == "GET" && a.path == path), "{:?}", fake.lines());
}

#[tokio::test]
async fn steps_are_told_as_plain_lines_where_there_is_no_terminal() {
    let fake = Fake::start(|asked, count| match asked.line().as_str() {
        line if line.ends_with("/start") => accepted(50),
        line if line.contains("/v1/jobs/") => match count {
            0..=3 => Answer::Json(200, job(50, "running", Some("define"), 40)),
            4 => Answer::Json(200, job(50, "running", Some("start"), 80)),
            _ => Answer::Json(200, job(50, "succeeded", None, 100)),
        },
        line if line.contains("/v1/hosts/") => Answer::Json(200, json!({"id": id(200), "name": "h1"})),
        _ => Answer::Json(200, vm(1, "web", "running")),
    })
    .await;
    let run = fake.run(&["vm", "start", &id(1)]).await.ended(0);
    let steps: Vec<&str> = run.stderr.lines().filter_map(|l| l.split_once(": ").map(|(_, step)| step)).collect();
    assert_eq!(steps, ["2/3 define (40 %)", "3/3 start (80 %)"]);
    assert!(run.stdout.contains("started: running on h1, 10.77.0.5  ("), "{}", run.stdout);
}

#[tokio::test]
async fn no_wait_gives_the_job() {
    let fake = with_names(|_| accepted(50)).await;
    let run = fake.run(&["vm", "start", "web", "--no-wait"]).await.ended(0);
    assert_eq!(run.stdout, format!("vm web: accepted as job {}\n", id(50)));
    assert!(run.stderr.contains(&format!("kring job wait {}", id(50))), "{}", run.stderr);
    let post = fake.asked().into_iter().find(|a| a.method == "POST").unwrap();
    assert_eq!((post.path.as_str(), post.header("prefer")), (format!("/v1/vms/{}/start", id(1)).as_str(), ""));
    let run = fake.run(&["vm", "start", "web", "--no-wait", "-o", "json"]).await.ended(0);
    assert_eq!(run.json()["job_id"], id(50));
    assert_eq!(fake.run(&["vm", "start", "web", "--no-wait", "-o", "name"]).await.stdout, format!("{}\n", id(50)));
}

#[tokio::test]
async fn a_job_that_fails_tells_why_and_what_was_undone() {
    let fake = with_names(|_| {
        let mut failed = job(50, "failed", Some("define"), 40);
        failed["error"] = json!({"code": "no_space", "message": "the volume cannot be made", "causes": ["disk full"]});
        failed["rolled_back"] = json!(["define", "reserve"]);
        failed["cleanup_owed"] = json!(["define"]);
        Answer::Json(200, failed)
    })
    .await;
    let run = fake.run(&["vm", "start", "web"]).await.ended(1);
    insta::assert_snapshot!(run.stderr, @r"
    error: vm web: the volume cannot be made
      because: disk full
      step: define
      undone: define, reserve
      still being undone: define
      job: 01939f00-3b1a-7c3e-9d5e-000000000032
      hint: free space on the host's storage, or choose another host
    ");
    assert_eq!(run.stdout, "");
    let json = fake.run(&["vm", "start", "web", "-o", "json"]).await.ended(1).stderr;
    let error: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&error["error"]["code"], &error["error"]["job_id"]), (&json!("no_space"), &json!(id(50))));
}

#[tokio::test]
async fn patience_ends_and_the_job_goes_on() {
    let fake = with_names(|asked| match asked.method.as_str() {
        "POST" => accepted(50),
        _ => Answer::Json(200, job(50, "running", Some("define"), 40)),
    })
    .await;
    let run = fake.run(&["vm", "start", "web", "--timeout", "1s"]).await.ended(6);
    assert!(run.stderr.contains("vm web is not finished after 1s; the job goes on"), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("kring job cancel {}", id(50))), "{}", run.stderr);
}

#[tokio::test]
async fn ctrl_c_says_that_the_job_goes_on() {
    let fake = with_names(|asked| match asked.method.as_str() {
        "POST" => accepted(50),
        _ => Answer::Json(200, job(50, "running", Some("define"), 40)),
    })
    .await;
    let mut command = fake.command(&["vm", "start", "web"]);
    let child = command.spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    // Once the job was asked for, the program is waiting.
    while !fake.lines().iter().any(|line| line.contains("/v1/jobs/")) {
        tokio::task::yield_now().await;
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("the job goes on") && stderr.contains(&format!("kring job cancel {}", id(50))), "{stderr}");
}

#[tokio::test]
async fn several_are_done_though_one_fails() {
    let fake = with_names(|asked| match asked.line().as_str() {
        line if line == format!("POST /v1/vms/{}/stop", id(1)) => {
            Answer::problem(shared::Code::InvalidState, "vm web is stopped already")
        }
        line if line.ends_with("/stop") => Answer::Json(200, job(51, "succeeded", None, 100)),
        _ => Answer::Json(200, vm(2, "db", "stopped")),
    })
    .await;
    let run = fake.run(&["vm", "stop", "web", "db", "--force"]).await.ended(4);
    assert!(run.stderr.contains("error: vm web is stopped already"), "{}", run.stderr);
    assert_eq!(run.stdout, "vm db stopped: stopped on h1, 10.77.0.5\n");
    let bodies: Vec<_> = fake.asked().iter().filter(|a| a.method == "POST").map(Asked::json).collect();
    assert_eq!(bodies, [json!({"mode": "force"}), json!({"mode": "force"})]);
}

#[tokio::test]
async fn what_is_deleted_for_good_is_told_though_it_is_gone() {
    let fake = with_names(|asked| match asked.method.as_str() {
        "POST" => Answer::Json(200, job(50, "succeeded", None, 100)),
        _ => Answer::problem(shared::Code::NotFound, "there is no vm"),
    })
    .await;
    assert_eq!(fake.run(&["vm", "expunge", "web"]).await.ended(0).stdout, "vm web expunged\n");
    assert_eq!(fake.run(&["vm", "expunge", "web", "-o", "json"]).await.ended(0).json()["kind"], "vm.start");
}

#[tokio::test]
async fn a_dry_run_says_why_each_host_was_dropped() {
    let fake = with_names(|asked| {
        assert_eq!(asked.param("dry_run"), "true");
        Answer::Json(
            200,
            json!({"considered": 2, "filters": [
                {"filter": "state", "dropped": 0, "reason": "", "hosts": []},
                {"filter": "capacity", "dropped": 2, "reason": "not enough memory", "hosts": [id(200)]},
            ]}),
        )
    })
    .await;
    let args = ["vm", "create", "big", "--image", "debian", "--vcpus", "64", "--memory", "1TiB", "--dry-run"];
    let run = fake.run(&args).await.ended(0);
    insta::assert_snapshot!(run.stdout, @r"
    FILTER    DROPPED  HOSTS  REASON
    state           0  -      -
    capacity        2  h1     not enough memory
    none of 2 hosts can take it
    ");
}

#[tokio::test]
async fn what_needs_no_job_is_told_at_once() {
    let fake = with_names(|asked| match asked.method.as_str() {
        "POST" => Answer::Json(201, json!({"id": id(600), "name": "backend", "cidr": "10.78.0.0/24"})),
        "DELETE" => Answer::Json(204, json!(null)),
        _ => Answer::page(vec![json!({"id": id(600), "name": "lan"})]),
    })
    .await;
    let args = ["network", "create", "backend", "--cidr", "10.78.0.0/24", "--kind", "isolated"];
    assert_eq!(fake.run(&args).await.ended(0).stdout, "network backend created\n");
    assert_eq!(fake.run(&["network", "delete", "lan"]).await.ended(0).stdout, "network lan deleted\n");
    let deleted = fake.asked().into_iter().find(|a| a.method == "DELETE").unwrap();
    assert_eq!(deleted.path, format!("/v1/networks/{}", id(600)));
    assert!(!deleted.header("idempotency-key").is_empty());
}

#[tokio::test]
async fn a_volume_of_another_vm_is_not_detached() {
    let fake = with_names(|asked| {
        assert_eq!(asked.method, "GET", "nothing may be changed");
        Answer::Json(
            200,
            json!({
                "id": id(400), "name": "data", "account_id": id(900), "kind": "data", "state": "attached", "size": 1,
                "format": "qcow2", "storage_id": id(1), "vm_id": id(2), "created_at": super::fake::ago(1),
            }),
        )
    })
    .await;
    let run = fake.run(&["vm", "detach-volume", "web", "data"]).await.ended(4);
    assert!(run.stderr.contains("volume data is not attached to vm web"), "{}", run.stderr);
}

#[tokio::test]
async fn a_setting_is_sent_in_its_own_type() {
    let fake = Fake::start(|asked, _| {
        let value = if asked.method == "PUT" { asked.json()["value"].clone() } else { json!(60) };
        Answer::Json(
            200,
            json!({"key": "vm.stop_timeout", "value": value, "default": 60, "kind": "integer", "description": "s"}),
        )
    })
    .await;
    let run = fake.run(&["setting", "set", "vm.stop_timeout", "120"]).await.ended(0);
    assert_eq!(run.stdout, "vm.stop_timeout = 120\n");
    assert_eq!(fake.asked()[1].json(), json!({"value": 120}));
    fake.run(&["setting", "set", "vm.stop_timeout", "soon"]).await.ended(2);
    fake.run(&["setting", "reset", "vm.stop_timeout"]).await.ended(0);
    assert_eq!(fake.asked().last().unwrap().json(), json!({"value": null}));
}

#[tokio::test]
async fn a_join_token_is_all_of_standard_output() {
    let fake = Fake::start(|_, _| {
        Answer::Json(
            201,
            json!({"id": id(1), "token": "kjt.abc", "cluster_id": id(2), "expires_at": super::fake::ago(-60)}),
        )
    })
    .await;
    let run = fake.run(&["host", "join-token", "--ttl", "10m"]).await.ended(0);
    assert_eq!(run.stdout, "kjt.abc\n");
    assert_eq!(fake.asked()[0].json(), json!({"ttl_s": 600}));
}

#[tokio::test]
async fn a_host_is_told_an_address_that_leads_to_the_controller_from_there_too() {
    let fake = Fake::start(|asked, _| match asked.path.as_str() {
        "/v1/controllers" => Answer::page(vec![json!({"id": id(1), "address": "https://10.0.0.1:8443"})]),
        _ => Answer::Json(
            201,
            json!({"id": id(1), "token": "kjt.abc", "cluster_id": id(2), "expires_at": super::fake::ago(-60)}),
        ),
    })
    .await;
    let run = fake.run(&["host", "join-token"]).await.ended(0);
    assert!(run.stderr.contains("--controller https://10.0.0.1:8443 "), "{}", run.stderr);
}

#[tokio::test]
async fn a_controller_is_drained_and_works_again() {
    let fake = Fake::start(|asked, _| {
        let state = if asked.path.ends_with("/drain") { "draining" } else { "active" };
        Answer::Json(
            200,
            json!({
                "id": id(1), "state": state, "address": "https://10.0.0.1:8443", "version": "0.1.0", "generation": 7,
                "share": 0.25, "services": ["vm"], "bus": {"kind": "rabbitmq", "healthy": true},
                "database": {"kind": "postgresql", "healthy": true}, "heartbeat_at": super::fake::ago(1), "started_at": super::fake::ago(60),
            }),
        )
    })
    .await;
    let drained = fake.run(&["controller", "drain", &id(1), "-o", "json"]).await.ended(0).json();
    assert_eq!(drained["state"], "draining");
    fake.run(&["controller", "activate", &id(1)]).await.ended(0);
    fake.run(&["controller", "drain", "https://10.0.0.1:8443"]).await.ended(2);
    let shown = fake.run(&["controller", "show", &id(1)]).await.ended(0);
    assert!(shown.stdout.contains("rabbitmq"), "{}", shown.stdout);
    let path = format!("/v1/controllers/{}", id(1));
    assert_eq!(fake.lines(), [format!("POST {path}/drain"), format!("POST {path}/activate"), format!("GET {path}")]);
}

#[tokio::test]
async fn a_closed_pipe_is_no_error() {
    let fake = Fake::start(|_, _| Answer::page((0..200).map(|n| vm(n, "web", "running")).collect())).await;
    let mut command = fake.command(&["vm", "list", "-o", "json"]);
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
    let _ = finish(fake.command(&["--version"])).await.ended(0);
}
