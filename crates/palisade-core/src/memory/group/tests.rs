use super::*;
use std::fs;

const MIB: u64 = 1 << 20;
const MACHINE: (&str, &str) = ("proc/meminfo", "MemFree: 1 kB\nMemTotal:    4096 kB\n");
const STATUS: (&str, &str) = (
    "proc/self/status",
    "Name:\tx\nVmRSS:\t    1024 kB\nThreads: 1\n",
);
const IN_A: (&str, &str) = ("proc/self/cgroup", "0::/a\n");

/// Files under a directory of their own, instead of `/`.
pub(in crate::memory) struct Root(PathBuf);

impl Root {
    pub(in crate::memory) fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let name = format!("palisade-memory-{}-{name}", std::process::id());
        let root = Self(std::env::temp_dir().join(name));
        let _ = fs::remove_dir_all(&root.0);
        for (file, text) in files {
            root.write(file, text);
        }
        root
    }

    pub(in crate::memory) fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(in crate::memory) fn open(&self) -> Groups {
        Groups::open(&self.0)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn limit_with(name: &str, files: &[(&str, &str)]) -> Option<u64> {
    Root::new(name, files).open().limit()
}

fn sample(used: u64, limit: u64) -> Option<Sample> {
    Some(Sample { used, limit })
}

#[test]
fn the_limit_is_the_least_of_the_groups_and_the_machine() {
    let group = ("proc/self/cgroup", "0::/a/b\n");
    let own = ("sys/fs/cgroup/a/b/memory.max", "3145728\n");
    let own_usage = ("sys/fs/cgroup/a/b/memory.current", "1\n");
    let above = ("sys/fs/cgroup/a/memory.max", "2097152\n");
    let above_usage = ("sys/fs/cgroup/a/memory.current", "1\n");
    let unlimited = ("sys/fs/cgroup/a/b/memory.max", "max\n");
    let high = ("sys/fs/cgroup/a/b/memory.high", "1048576\n");
    assert_eq!(limit_with("none", &[]), None);
    assert_eq!(limit_with("machine", &[MACHINE]), Some(4 * MIB));
    let files = [MACHINE, group, own, own_usage];
    assert_eq!(limit_with("own", &files), Some(3 * MIB));
    let files = [MACHINE, group, own, own_usage, above, above_usage];
    assert_eq!(limit_with("above", &files), Some(2 * MIB));
    let files = [MACHINE, group, unlimited, own_usage];
    assert_eq!(limit_with("unlimited", &files), Some(4 * MIB));
    let files = [MACHINE, group, own, own_usage, high];
    assert_eq!(limit_with("high", &files), Some(MIB));
    // In a container the group is the root of the hierarchy, under any name outside of it.
    let mounted = ("sys/fs/cgroup/memory.max", "1048576\n");
    let usage = ("sys/fs/cgroup/memory.current", "1\n");
    for name in ["0::/\n", "0::/../..\n"] {
        let group = ("proc/self/cgroup", name);
        let files = [MACHINE, group, mounted, usage];
        assert_eq!(limit_with("container", &files), Some(MIB));
    }
}

#[test]
fn what_the_kernel_can_drop_is_not_used() {
    let stat = "anon 1\nfile 3000\nkernel 7\nshmem 1000\nfile_mapped 9\n";
    let files = [
        IN_A,
        MACHINE,
        ("sys/fs/cgroup/a/memory.max", "100000\n"),
        ("sys/fs/cgroup/a/memory.current", "50000\n"),
        ("sys/fs/cgroup/a/memory.stat", stat),
    ];
    let root = Root::new("v2", &files);
    assert_eq!(root.open().sample(), sample(48_000, 100_000));
    // Version 1 beside version 2, and groups of other controllers.
    let stat = "cache 5\nrss 1\nshmem 1\ntotal_cache 3000\ntotal_rss 1\ntotal_shmem 1000\n";
    let files = [
        (
            "proc/self/cgroup",
            "5:cpu,cpuacct:/x\n4:memory:/a\n0::/\nno line\n",
        ),
        MACHINE,
        ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "100000\n"),
        ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "50000\n"),
        ("sys/fs/cgroup/memory/a/memory.stat", stat),
        (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "9223372036854771712\n",
        ),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900000\n"),
    ];
    let root = Root::new("v1", &files);
    assert_eq!(root.open().sample(), sample(48_000, 100_000));
    assert_eq!(root.open().limit(), Some(100_000));
}

#[test]
fn the_buffers_of_sockets_are_used() {
    // `memory.current` of version 2 counts them, and the kernel cannot drop them.
    let stat = "anon 1000\nfile 3000\nkernel 9000\nsock 36000\nshmem 1000\n";
    let files = [
        IN_A,
        MACHINE,
        ("sys/fs/cgroup/a/memory.max", "100000\n"),
        ("sys/fs/cgroup/a/memory.current", "50000\n"),
        ("sys/fs/cgroup/a/memory.stat", stat),
    ];
    let root = Root::new("sock", &files);
    let mut groups = root.open();
    assert_eq!(groups.sample(), sample(48_000, 100_000));
    // Clients fill their receive queues.
    let stat = stat.replace("36000", "82000");
    root.write("sys/fs/cgroup/a/memory.stat", &stat);
    root.write("sys/fs/cgroup/a/memory.current", "96000\n");
    assert_eq!(groups.sample(), sample(94_000, 100_000));
}

#[test]
fn on_a_hybrid_system_either_version_may_have_the_memory() {
    let groups = ("proc/self/cgroup", "4:memory:/a\n1:name=systemd:/\n0::/b\n");
    let of_v1 = [
        ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "100000\n"),
        ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "50000\n"),
    ];
    let of_v2 = [
        ("sys/fs/cgroup/unified/b/memory.max", "200000\n"),
        ("sys/fs/cgroup/unified/b/memory.current", "190000\n"),
    ];
    // The group of version 2 is there, but it has no files of the memory.
    let other = ("sys/fs/cgroup/unified/b/cgroup.procs", "1\n");
    let [limit, usage] = of_v1;
    let root = Root::new("hybrid-1", &[groups, MACHINE, other, limit, usage]);
    assert_eq!(root.open().sample(), sample(50_000, 100_000));
    let [limit, usage] = of_v2;
    let root = Root::new("hybrid-2", &[groups, MACHINE, limit, usage]);
    assert_eq!(root.open().sample(), sample(190_000, 200_000));
    let [limit_of_v1, usage_of_v1] = of_v1;
    let files = [groups, MACHINE, limit, usage, limit_of_v1, usage_of_v1];
    let root = Root::new("hybrid-both", &files);
    assert_eq!(root.open().sample(), sample(190_000, 200_000));
    assert_eq!(root.open().limit(), Some(100_000));
}

#[cfg(target_os = "linux")]
#[test]
fn a_group_that_vanishes_is_no_longer_counted() {
    // Like the files of a group that was removed, a directory can be opened, and not be read.
    let folder = "sys/fs/cgroup/a";
    let names = ["memory.max", "memory.current", "memory.stat"];
    let texts = ["1000000\n", "500000\n", "file 100000\n"];
    for vanished in names {
        let files = [IN_A, MACHINE, STATUS];
        let root = Root::new("vanished", &files);
        for (name, text) in names.into_iter().zip(texts) {
            let file = format!("{folder}/{name}");
            let file = if name == vanished {
                file + "/is-a-directory"
            } else {
                file
            };
            root.write(&file, text);
        }
        let expected = if vanished == "memory.stat" {
            sample(500_000, 1_000_000) // All of it, rather than nothing.
        } else {
            sample(MIB, 4 * MIB)
        };
        assert_eq!(root.open().sample(), expected, "{vanished}");
    }
}

fn events(kills: u64, hits: u64, stall: u64) -> MemoryEvents {
    MemoryEvents {
        oom_kills: Some(kills),
        limit_hits: Some(hits),
        stall_percent: Some(stall),
    }
}

#[test]
fn what_the_kernel_reports_is_that_of_the_own_group() {
    let usage = ("sys/fs/cgroup/a/memory.current", "5\n");
    let limit = ("sys/fs/cgroup/a/memory.max", "100000\n");
    let of_machine = ("proc/pressure/memory", "some avg10=70.00 avg60=0.00\n");
    let files = [
        IN_A,
        usage,
        limit,
        of_machine,
        ("sys/fs/cgroup/memory.events", "oom_kill 9\n"),
        (
            "sys/fs/cgroup/a/memory.events",
            "low 0\nhigh 20\nmax 300\noom 2\noom_kill 1\noom_group_kill 7\n",
        ),
        (
            "sys/fs/cgroup/a/memory.pressure",
            "some avg10=3.70 avg60=1.00\nfull avg10=2.00\n",
        ),
    ];
    let root = Root::new("events-2", &files);
    let mut groups = root.open();
    assert_eq!(groups.events(), events(1, 320, 4));
    root.write("sys/fs/cgroup/a/memory.events", "max 301\noom_kill 2\n");
    assert_eq!(groups.events(), events(2, 301, 4));
    // Version 1 has no pressure: that of the machine counts.
    let files = [
        ("proc/self/cgroup", "4:memory:/a\n0::/\n"),
        of_machine,
        ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "100000\n"),
        ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "5\n"),
        ("sys/fs/cgroup/memory/a/memory.failcnt", "17\n"),
        (
            "sys/fs/cgroup/memory/a/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        ),
    ];
    let root = Root::new("events-1", &files);
    assert_eq!(root.open().events(), events(3, 17, 70));
    // Without a group, or without the files, nothing is known.
    for files in [&[][..], &[IN_A, usage, limit], &[IN_A, MACHINE]] {
        let root = Root::new("no-events", files);
        assert_eq!(root.open().events(), MemoryEvents::default());
    }
}

#[test]
fn each_group_counts_with_its_own_limit_and_the_worst_decides() {
    let files = [
        ("proc/self/cgroup", "0::/pod/server\n"),
        MACHINE,
        ("sys/fs/cgroup/pod/server/memory.max", "1000000\n"),
        ("sys/fs/cgroup/pod/server/memory.current", "500000\n"),
        ("sys/fs/cgroup/pod/memory.max", "3000000\n"),
        ("sys/fs/cgroup/pod/memory.current", "1600000\n"),
    ];
    let root = Root::new("pod", &files);
    let mut groups = root.open();
    // The usage of the pod counts other containers too.
    assert_eq!(groups.sample(), sample(1_600_000, 3_000_000));
    root.write("sys/fs/cgroup/pod/server/memory.current", "900000\n");
    assert_eq!(groups.sample(), sample(900_000, 1_000_000));
}

#[test]
fn without_a_limited_group_the_process_counts_against_the_machine() {
    let usage = ("sys/fs/cgroup/a/memory.current", "5\n");
    for limit in [
        "max\n",
        "9223372036854771712\n",
        "4194304\n",
        "18446744073709551616\n",
        "",
    ] {
        let limit = ("sys/fs/cgroup/a/memory.max", limit);
        let root = Root::new("unlimited-process", &[IN_A, MACHINE, STATUS, limit, usage]);
        assert_eq!(root.open().sample(), sample(MIB, 4 * MIB), "{limit:?}");
    }
    assert_eq!(Root::new("nothing", &[]).open().sample(), None);
    assert_eq!(Root::new("no-machine", &[STATUS]).open().sample(), None);
}

#[test]
fn a_limit_that_is_lowered_holds_from_the_next_look_on() {
    let files = [
        IN_A,
        MACHINE,
        ("sys/fs/cgroup/a/memory.max", "1000000\n"),
        ("sys/fs/cgroup/a/memory.current", "500000\n"),
    ];
    let root = Root::new("lowered", &files);
    let mut groups = root.open();
    assert_eq!(groups.sample(), sample(500_000, 1_000_000));
    root.write("sys/fs/cgroup/a/memory.max", "400000\n");
    let lowered = groups.sample().unwrap();
    assert_eq!((lowered.limit, lowered.level()), (400_000, 1.0));
    root.write("sys/fs/cgroup/a/memory.max", "0\n");
    assert_eq!(groups.sample().unwrap().level(), 1.0);
}

#[test]
fn files_with_any_content_do_no_harm() {
    let contents = [
        "",
        "\n",
        "max",
        "0",
        "-1",
        "1e6",
        "12 34",
        "18446744073709551615",
        "18446744073709551616",
        "file",
        "file ",
        "file x\nfile 7\n",
        "\u{fffd}",
        "4096 kB",
        "max 18446744073709551615\nhigh 18446744073709551615\noom_kill 18446744073709551616",
        "some avg10=1e38",
    ];
    let names = [
        "proc/self/cgroup",
        "proc/meminfo",
        "proc/self/status",
        "sys/fs/cgroup/a/memory.max",
        "sys/fs/cgroup/a/memory.current",
        "sys/fs/cgroup/a/memory.stat",
        "sys/fs/cgroup/a/memory.events",
        "sys/fs/cgroup/a/memory.failcnt",
        "sys/fs/cgroup/a/memory.pressure",
    ];
    let good = [
        IN_A,
        MACHINE,
        STATUS,
        ("sys/fs/cgroup/a/memory.max", "1000000\n"),
        ("sys/fs/cgroup/a/memory.current", "500000\n"),
        ("sys/fs/cgroup/a/memory.stat", "file 10\nshmem 1000\n"),
        ("sys/fs/cgroup/a/memory.events", "max 1\noom_kill 2\n"),
        ("sys/fs/cgroup/a/memory.failcnt", "3\n"),
        ("sys/fs/cgroup/a/memory.pressure", "some avg10=4.00\n"),
    ];
    let root = Root::new("content", &good);
    let mut groups = root.open();
    assert_eq!(groups.events(), events(2, 3, 4));
    assert_eq!(groups.sample(), sample(500_000, 1_000_000)); // More shmem than file.
    for name in names {
        for content in contents {
            root.write(name, content);
            for groups in [&mut groups, &mut root.open()] {
                let level = groups.sample().map_or(0.0, Sample::level);
                assert!((0.0..=1.0).contains(&level), "{name}: {content:?}");
                groups.limit();
                let stall = groups.events().stall_percent;
                assert!(
                    stall.is_none_or(|stall| stall <= 100),
                    "{name}: {content:?}"
                );
            }
        }
        let (name, text) = good.iter().find(|(good, _)| *good == name).unwrap();
        root.write(name, text);
    }
    // A file longer than the buffer is read up to there.
    root.write("sys/fs/cgroup/a/memory.stat", &"x 1\n".repeat(BUFFER_BYTES));
    assert_eq!(groups.sample(), sample(500_000, 1_000_000));
    // The group is removed.
    fs::remove_dir_all(root.0.join("sys")).unwrap();
    groups.sample();
    assert_eq!(root.open().sample(), sample(MIB, 4 * MIB));
}

#[test]
fn files_that_are_cut_in_two_do_no_harm_and_are_whole_at_the_next_look() {
    let of_v1 = [
        ("proc/self/cgroup", "4:memory:/a\n"),
        MACHINE,
        STATUS,
        ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000000\n"),
        ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "500000\n"),
        (
            "sys/fs/cgroup/memory/a/memory.stat",
            "total_cache 3000\ntotal_shmem 1000\n",
        ),
        ("sys/fs/cgroup/memory/a/memory.failcnt", "17\n"),
    ];
    let of_v2 = [
        IN_A,
        MACHINE,
        STATUS,
        ("sys/fs/cgroup/a/memory.max", "1000000\n"),
        ("sys/fs/cgroup/a/memory.current", "500000\n"),
        ("sys/fs/cgroup/a/memory.stat", "file 3000\nshmem 1000\n"),
        ("sys/fs/cgroup/a/memory.events", "max 17\noom_kill 0\n"),
    ];
    for (version, files) in [("cut-1", of_v1), ("cut-2", of_v2)] {
        let root = Root::new(version, &files);
        let mut groups = root.open();
        let whole = (groups.sample(), groups.events());
        assert_eq!(whole.0, sample(498_000, 1_000_000));
        for (name, text) in files {
            for cut in 0..text.len() {
                root.write(name, &text[..cut]);
                // A process may also begin at this moment.
                for groups in [&mut groups, &mut root.open()] {
                    let level = groups.sample().map_or(0.0, Sample::level);
                    assert!((0.0..=1.0).contains(&level), "{name}: {cut}");
                    groups.limit();
                    groups.events();
                }
                root.write(name, text);
                assert_eq!((groups.sample(), groups.events()), whole, "{name}: {cut}");
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_memory_of_this_process_is_known() {
    let mut groups = Groups::open(Path::new("/"));
    let sample = groups.sample().unwrap();
    assert!(sample.used > MIB && sample.limit > 16 * MIB, "{sample:?}");
    assert!(groups.limit().unwrap() >= sample.limit);
}
