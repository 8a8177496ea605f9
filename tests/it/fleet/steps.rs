//! Something happens to the owner of a job before and after each of its steps, on the way there and on the way back.
//! Here is a part of what `make chaos-steps` plays: a `kill -9` at each moment, and each other fault at one.

use harness::chaos::steps::{Case, Moment, Strike, Work, play};
use harness::fleet::{Fleet, Tally};

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_a_job_may_die_or_be_cut_off_before_and_after_each_step() -> anyhow::Result<()> {
    use Moment::{Accepted, Commanded, Done, Failed, Journalled, Undone};
    use Strike::{CutBroker, CutDatabase, CutOthers, Freeze, Kill};
    let fleet = Fleet::start(3, 2).await?;
    let cases = [
        (Work::Create, Accepted, Kill),
        (Work::Create, Commanded, Kill),
        (Work::Create, Done, Kill),
        (Work::Create, Journalled, Kill),
        (Work::Create, Failed, Kill),
        (Work::Create, Undone, Kill),
        (Work::Stop, Commanded, Freeze),
        (Work::Start, Journalled, CutDatabase),
        (Work::Delete, Done, CutBroker),
        (Work::Expunge, Done, CutOthers),
    ];
    let mut sum = Tally::default();
    for (n, (work, moment, strike)) in cases.into_iter().enumerate() {
        let case = Case { work, moment, strike };
        let tally = play(&fleet, n, case).await.inspect_err(|_| eprintln!("{case}\n{}", fleet.logs(60)))?;
        sum.add(&tally);
    }
    assert!(sum.stale_refused > 0, "late commands were refused: {sum}");
    fleet.stop().await
}
