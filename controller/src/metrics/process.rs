//! What the kernel says of this process, under the names that Prometheus has for it.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Name and value of each figure that can be read.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows only floating-point numbers")]
pub(super) fn figures() -> Vec<(&'static str, f64)> {
    let mut figures = Vec::with_capacity(5);
    if let Some((cpu, threads, started)) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(stat) {
        figures.push(("process_cpu_seconds_total", cpu));
        figures.push(("process_threads", threads));
        if let Some(boot) = fs::read_to_string("/proc/stat").ok().as_deref().and_then(boot_time) {
            figures.push(("process_start_time_seconds", boot + started));
        }
    }
    if let Some(resident) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident) {
        figures.push(("process_resident_memory_bytes", resident));
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        figures.push(("process_open_fds", open.count() as f64));
    }
    figures
}

/// Seconds of processor time, threads, and seconds from the machine's start to that of the process.
fn stat(text: &str) -> Option<(f64, f64, f64)> {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten()? as f64;
    // The name, in parentheses, may contain anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |n: usize| fields.get(n)?.parse::<f64>().ok();
    Some(((field(11)? + field(12)?) / ticks, field(17)?, field(19)? / ticks))
}

fn boot_time(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn resident(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_as_the_kernel_writes_it() {
        let text = "4711 (a (strange) name) S 1 4711 4711 0 -1 4194560 12 0 0 0 150 50 0 0 20 0 9 0 3000 1 2";
        assert_eq!(stat(text), Some((2.0, 9.0, 30.0)));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2_097_152.0));
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
        assert!(stat("nothing").is_none() && resident("").is_none() && boot_time("").is_none());
    }

    #[test]
    fn every_figure_of_this_process_can_be_read() {
        let names: Vec<_> = figures().into_iter().map(|(name, value)| (name, value > 0.0)).collect();
        assert_eq!(names.len(), 5, "{names:?}");
        assert!(names.iter().filter(|(name, _)| !name.contains("cpu")).all(|(_, positive)| *positive), "{names:?}");
    }
}
