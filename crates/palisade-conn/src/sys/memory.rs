//! The amount of memory that this process may use.

use std::path::{Component, Path};

/// Returns the number of bytes that this process may use: the least of the limits of its control
/// group and the groups above it, and of the memory of the machine. `None` if it is unknown.
pub(crate) fn memory_limit() -> Option<u64> {
    limit_under(Path::new("/"))
}

/// Returns the limit that the files under `root` give.
fn limit_under(root: &Path) -> Option<u64> {
    let groups = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    groups
        .lines()
        .filter_map(|line| group_limit(root, line))
        .chain(machine_memory(root))
        .min()
}

/// Returns the least limit of the group in a line of `/proc/self/cgroup` and of the groups above
/// it. A line has a number, the controllers, and the path of the group. Version 2 has one hierarchy
/// for all controllers, and names none.
fn group_limit(root: &Path, line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(':')?;
    let (mount, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    // A group outside of the mounted hierarchy is shown as `/../..`. Then the root of the hierarchy
    // is the group of this process.
    let parts = Path::new(group).components();
    let parts = parts.filter(|part| matches!(part, Component::Normal(_)));
    let own = root.join(mount).join(parts.collect::<std::path::PathBuf>());
    let own_and_above = own
        .ancestors()
        .take_while(|group| group.starts_with(root.join(mount)));
    // A group without a limit has `max`, or a number larger than any machine's memory.
    own_and_above
        .filter_map(|group| read(&group.join(file))?.trim().parse().ok())
        .min()
}

/// Returns the memory of the machine.
fn machine_memory(root: &Path) -> Option<u64> {
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

    /// Returns the limit under a root directory with these files.
    fn limit_with(name: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = std::env::temp_dir().join(format!("palisade-{}-{name}", std::process::id()));
        for (file, text) in files {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let limit = limit_under(&root);
        let _ = std::fs::remove_dir_all(root);
        limit
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemFree: 1 kB\nMemTotal:    4096 kB\n");
    const MIB: u64 = 1 << 20;

    #[test]
    fn the_limit_is_the_least_of_the_groups_and_the_machine() {
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let own = ("sys/fs/cgroup/a/b/memory.max", "3145728\n");
        let above = ("sys/fs/cgroup/a/memory.max", "2097152\n");
        let unlimited = ("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(limit_with("none", &[]), None);
        assert_eq!(limit_with("machine", &[MACHINE]), Some(4 * MIB));
        assert_eq!(limit_with("own", &[MACHINE, group, own]), Some(3 * MIB));
        assert_eq!(
            limit_with("above", &[MACHINE, group, own, above]),
            Some(2 * MIB)
        );
        assert_eq!(
            limit_with("unlimited", &[MACHINE, group, unlimited]),
            Some(4 * MIB)
        );
        // In a container the group is the root of the hierarchy, under any name outside of it.
        let mounted = ("sys/fs/cgroup/memory.max", "1048576\n");
        for name in ["0::/\n", "0::/../..\n"] {
            let group = ("proc/self/cgroup", name);
            assert_eq!(
                limit_with("container", &[MACHINE, group, mounted]),
                Some(MIB)
            );
        }
    }

    #[test]
    fn version_1_has_a_separate_hierarchy_for_memory() {
        let groups = (
            "proc/self/cgroup",
            "5:cpu,cpuacct:/x\n4:memory:/a\n0::/\nno line\n",
        );
        let limit = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1048576\n");
        let none = (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        assert_eq!(limit_with("v1", &[MACHINE, groups, limit, none]), Some(MIB));
        assert_eq!(
            limit_with("v1-none", &[MACHINE, groups, none]),
            Some(4 * MIB)
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_limit_of_this_machine_is_known() {
        assert!(memory_limit().is_some_and(|bytes| bytes > 16 * MIB));
    }
}
