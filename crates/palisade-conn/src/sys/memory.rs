//! How much memory this process may use.

use std::path::{Component, Path};

/// The bytes that this process may use: the least of what its control group, those above it, and
/// the machine have. `None` where that cannot be told.
pub(crate) fn limit() -> Option<u64> {
    limit_below(Path::new("/"))
}

fn limit_below(root: &Path) -> Option<u64> {
    let groups = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    groups
        .lines()
        .filter_map(|line| of_group(root, line))
        .chain(installed(root))
        .min()
}

/// A line of `/proc/self/cgroup`: a number, what is controlled, the path of the group. Version 2
/// controls everything in one hierarchy, and names nothing.
fn of_group(root: &Path, line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controlled, group) = rest.split_once(':')?;
    let (mounted, file) = if controlled.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controlled.split(',').any(|name| name == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    // A group outside of what is mounted here is shown as `/../..`: then what is mounted is ours.
    let parts = Path::new(group).components();
    let parts = parts.filter(|part| matches!(part, Component::Normal(_)));
    let ours = root
        .join(mounted)
        .join(parts.collect::<std::path::PathBuf>());
    let above = ours
        .ancestors()
        .take_while(|group| group.starts_with(root.join(mounted)));
    // No limit is `max`, or a number beyond any machine.
    above
        .filter_map(|group| read(&group.join(file))?.trim().parse().ok())
        .min()
}

fn installed(root: &Path) -> Option<u64> {
    let text = read(&root.join("proc/meminfo"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told below a root with these files.
    fn told(name: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = std::env::temp_dir().join(format!("palisade-{}-{name}", std::process::id()));
        for (file, text) in files {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let told = limit_below(&root);
        let _ = std::fs::remove_dir_all(root);
        told
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemFree: 1 kB\nMemTotal:    4096 kB\n");
    const MIB: u64 = 1 << 20;

    #[test]
    fn the_least_of_the_group_those_above_it_and_the_machine_counts() {
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let own = ("sys/fs/cgroup/a/b/memory.max", "3145728\n");
        let above = ("sys/fs/cgroup/a/memory.max", "2097152\n");
        let unlimited = ("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(told("none", &[]), None);
        assert_eq!(told("machine", &[MACHINE]), Some(4 * MIB));
        assert_eq!(told("own", &[MACHINE, group, own]), Some(3 * MIB));
        assert_eq!(told("above", &[MACHINE, group, own, above]), Some(2 * MIB));
        assert_eq!(
            told("unlimited", &[MACHINE, group, unlimited]),
            Some(4 * MIB)
        );
        // In a container the group is the root of what is mounted, whatever it is called outside.
        let mounted = ("sys/fs/cgroup/memory.max", "1048576\n");
        for name in ["0::/\n", "0::/../..\n"] {
            let group = ("proc/self/cgroup", name);
            assert_eq!(told("container", &[MACHINE, group, mounted]), Some(MIB));
        }
    }

    #[test]
    fn version_1_has_a_hierarchy_for_memory() {
        let groups = (
            "proc/self/cgroup",
            "5:cpu,cpuacct:/x\n4:memory:/a\n0::/\nno line\n",
        );
        let limit = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1048576\n");
        let none = (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        assert_eq!(told("v1", &[MACHINE, groups, limit, none]), Some(MIB));
        assert_eq!(told("v1-none", &[MACHINE, groups, none]), Some(4 * MIB));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_some() {
        assert!(limit().is_some_and(|bytes| bytes > 16 * MIB));
    }
}
