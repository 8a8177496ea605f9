//! What the kernel tells of processes and of the machine.

use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use serde::Serialize;

/// Ticks of the kernel's process times in a second; the same on every Linux that Kring runs on.
const TICKS: f64 = 100.0;

/// CPU seconds that a process has used.
///
/// # Errors
/// When there is no such process.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything.
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
    let ticks =
        |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).context("a field is missing in stat");
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// CPU seconds that the processes have used which this one started and saw the end of.
fn cpu_seconds_of_ended() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}

/// A moment, from which on it is told how long something took and who worked for it.
pub struct Watch {
    pid: u32,
    begin: Instant,
    before: Spent,
}

/// Seconds since a [`Watch`] began.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// Time that has passed.
    pub wall: f64,
    /// Processor time of the process that is measured.
    pub cpu: f64,
    /// Of this one: clients and simulated hosts.
    pub bench: f64,
    /// Of everything on the machine, a database server and the kernel among it.
    pub machine: f64,
}

impl Watch {
    /// Begins now to look at a process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        Ok(Self { pid, before: Spent::until_now(pid, 0.0)?, begin: Instant::now() })
    }

    /// Time that has passed.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// What it took so far.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn spent(&self) -> anyhow::Result<Spent> {
        let now = Spent::until_now(self.pid, self.elapsed().as_secs_f64())?;
        let Spent { cpu, bench, machine, .. } = self.before;
        Ok(Spent { wall: now.wall, cpu: now.cpu - cpu, bench: now.bench - bench, machine: now.machine - machine })
    }
}

impl Spent {
    fn until_now(pid: u32, wall: f64) -> anyhow::Result<Self> {
        let (cpu, bench, machine) = (cpu_seconds(pid)?, cpu_seconds(std::process::id())?, MachineTime::now()?.busy);
        Ok(Self { wall, cpu, bench, machine })
    }

    /// Of each of so many that were done in this time.
    #[must_use]
    pub fn each(self, count: usize) -> Self {
        let count = count as f64;
        let Self { wall, cpu, bench, machine } = self;
        Self { wall: wall / count, cpu: cpu / count, bench: bench / count, machine: machine / count }
    }
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    of_status(pid, "VmRSS:")
}

/// The most resident memory that a process has ever had, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn most_resident(pid: u32) -> anyhow::Result<u64> {
    of_status(pid, "VmHWM:")
}

fn of_status(pid: u32, name: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name} in status"))?;
    let kib: u64 = line.split_whitespace().nth(1).with_context(|| format!("no number behind {name}"))?.parse()?;
    Ok(kib * 1024)
}

/// Bytes that a process had to have read from a disk, because they were not in memory.
///
/// # Errors
/// When there is no such process.
pub fn read_from_disk(pid: u32) -> anyhow::Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let bytes = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).context("no read_bytes in io")?;
    Ok(bytes.trim().parse()?)
}

/// Sockets that a process has open.
///
/// # Errors
/// When there is no such process.
pub fn sockets(pid: u32) -> anyhow::Result<usize> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    // One that is closed meanwhile is no socket any more.
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    Ok(targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count())
}

/// Connections that the kernel dropped since its start because a listener's queue was full: whoever opened one tries
/// again after a second.
///
/// # Errors
/// When the kernel does not tell.
pub fn dropped_connections() -> anyhow::Result<u64> {
    let netstat = std::fs::read_to_string("/proc/net/netstat")?;
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) =
        (lines.next().context("no TcpExt in netstat")?, lines.next().context("no values in netstat")?);
    let dropped = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "ListenOverflows");
    Ok(dropped.context("no ListenOverflows in netstat")?.1.parse()?)
}

/// Lets this process, and those that it starts, have as many files open as it may: root, as many as there can be.
///
/// # Errors
/// When the kernel refuses.
pub fn allow_files() -> anyhow::Result<()> {
    let most: u64 = std::fs::read_to_string("/proc/sys/fs/nr_open")?.trim().parse()?;
    if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok() {
        return Ok(());
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// Seconds of all processors since the machine has started.
#[derive(Clone, Copy, Debug)]
struct MachineTime {
    all: f64,
    busy: f64,
    stolen: f64,
}

impl MachineTime {
    fn now() -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        let times: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let of = |columns: &[usize]| columns.iter().filter_map(|n| times.get(*n)).sum::<f64>() / TICKS;
        // user nice system idle iowait irq softirq steal
        Ok(Self { all: of(&[0, 1, 2, 3, 4, 5, 6, 7]), busy: of(&[0, 1, 2, 5, 6]), stolen: of(&[7]) })
    }
}

/// What was used until a moment, by whom.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    bench: f64,
    programs: f64,
    machine: MachineTime,
}

/// Who used the processors between two moments, in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Used {
    /// Share of the machine's time that was taken by others, 0 to 1.
    pub stolen: f64,
    /// This program: clients, simulated hosts.
    pub cpu_of_bench: f64,
    /// The programs that it started and that have ended: controllers.
    pub cpu_of_programs: f64,
    /// The whole machine.
    pub cpu_of_machine: f64,
}

impl Usage {
    /// Until now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn now() -> anyhow::Result<Self> {
        let (bench, programs) = (cpu_seconds(std::process::id())?, cpu_seconds_of_ended()?);
        Ok(Self { bench, programs, machine: MachineTime::now()? })
    }

    /// What was used since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Used {
        let (now, then) = (self.machine, before.machine);
        Used {
            stolen: (now.stolen - then.stolen) / (now.all - then.all).max(1.0 / TICKS),
            cpu_of_bench: self.bench - before.bench,
            cpu_of_programs: self.programs - before.programs,
            cpu_of_machine: now.busy - then.busy,
        }
    }
}

/// Release of the kernel.
#[must_use]
pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string()
}

/// Processors and their model, in words.
#[must_use]
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{count} × {}", model.map_or("unknown processor", |(_, model)| model.trim()))
}
