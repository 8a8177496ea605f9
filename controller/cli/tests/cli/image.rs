//! Images from files: the content is sent as it is, and only for an image that can be made.

use serde_json::json;

use super::fake::{Answer, Fake, ago, id, job};

#[tokio::test]
async fn a_file_is_sent_whole_after_the_image_is_made() {
    let fake = Fake::start(|asked, _| match asked.method.as_str() {
        "POST" => Answer::Json(202, json!({"job_id": id(50), "resource": {"kind": "image", "id": id(1)}})),
        "PUT" => Answer::Json(200, job(50, "succeeded", None, 100)),
        _ => Answer::Json(200, json!({"id": id(1), "name": "disk", "state": "ready", "created_at": ago(1)})),
    })
    .await;
    let content: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    let file = fake.home.path().join("disk.raw");
    std::fs::write(&file, &content).unwrap();
    let file = file.display().to_string();
    let run = fake.run(&["image", "create", "disk", "--file", &file, "--format", "raw", "--uefi"]).await.ended(0);
    assert_eq!(run.stdout, "image disk created: ready\n");
    let asked = fake.asked();
    let chosen = asked[0].json()["id"].as_str().unwrap().to_string();
    assert_eq!(asked[0].json()["source"], json!({"kind": "upload"}));
    assert_eq!((&asked[0].json()["format"], &asked[0].json()["firmware"]), (&json!("raw"), &json!("uefi")));
    assert_eq!(asked[1].line(), format!("PUT /v1/images/{chosen}/content"));
    assert_eq!(asked[1].header("content-length"), "700000");
    assert!(asked[1].body == content, "the content arrived as it was sent");
}

#[tokio::test]
async fn a_file_that_is_not_there_makes_no_image() {
    let fake = Fake::start(|_, _| panic!("nothing may be asked")).await;
    let run = fake.run(&["image", "create", "disk", "--file", "/nowhere/disk.raw"]).await.ended(2);
    assert!(run.stderr.contains("cannot read /nowhere/disk.raw"), "{}", run.stderr);
    fake.run(&["image", "create", "disk", "--file", "/etc"]).await.ended(2);
    assert_eq!(fake.asked().len(), 0);
}

#[tokio::test]
async fn a_cut_upload_says_how_to_send_it_again() {
    let fake = Fake::start(|asked, _| match asked.method.as_str() {
        "POST" => Answer::Json(202, json!({"job_id": id(50), "resource": {"kind": "image", "id": id(1)}})),
        _ => Answer::Drop,
    })
    .await;
    let file = fake.home.path().join("disk.raw");
    std::fs::write(&file, "x").unwrap();
    let run = fake.run(&["image", "create", "disk", "--file", &file.display().to_string()]).await.ended(5);
    assert!(run.stderr.contains("kring image upload disk"), "{}", run.stderr);
}
