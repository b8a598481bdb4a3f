//! Kernel settings (sysctl) of a server.

/// File below /proc/sys, value, why.
const SETTINGS: [(&str, &str, &str); 13] = [
    ("kernel/modprobe", "/init", "what the kernel asks for by alias is loaded by this program"),
    ("kernel/panic", "30", "a host that cannot go on restarts, after time to read why"),
    ("kernel/panic_on_oops", "1", "a kernel that faulted must not keep writing to guests' disks"),
    ("kernel/kptr_restrict", "2", "addresses help attackers"),
    ("kernel/dmesg_restrict", "1", "the kernel's log is read through init"),
    ("kernel/unprivileged_bpf_disabled", "1", "nothing here needs it"),
    ("kernel/yama/ptrace_scope", "2", "no unit may read another's memory"),
    ("kernel/sysrq", "0", "a keyboard, or a break on the serial line, must not reach past the login"),
    (
        "user/max_user_namespaces",
        "0",
        "nothing here needs them, and they widen what a guest's process can reach in the kernel",
    ),
    ("vm/unprivileged_userfaultfd", "0", "VMMs get theirs from hostd"),
    ("vm/max_map_count", "262144", "one VM has a mapping per memory slot and ring"),
    ("fs/protected_symlinks", "1", "state is written by more than one user"),
    ("fs/protected_hardlinks", "1", "state is written by more than one user"),
];

/// Memory that the kernel keeps free, in KiB, of `total` KiB: what it takes by itself (admin-guide/sysctl/vm.rst; the root of sixteen
/// times the memory, at most 256 MiB) where transparent huge pages do not raise it. They raise it tenfold on a small server, so that
/// pages can be joined; guests' memory is in files, which they do not apply to.
fn kept_free(total: u64) -> u64 {
    total.saturating_mul(16).isqrt().clamp(4096, 262_144)
}

fn keep_less_free() {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo").and_then(|text| {
        text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
    });
    let now = read("/proc/sys/vm/min_free_kbytes").and_then(|text| text.trim().parse::<u64>().ok());
    if let (Some(wanted), Some(now)) = (total.map(kept_free), now)
        && wanted < now
        && let Err(e) = std::fs::write("/proc/sys/vm/min_free_kbytes", wanted.to_string())
    {
        log::debug!("vm/min_free_kbytes stays at {now}: {e}");
    }
}

/// Makes them; one that this kernel lacks is passed over.
pub(crate) fn apply() {
    for (file, value, _) in SETTINGS {
        if let Err(e) = std::fs::write(format!("/proc/sys/{file}"), value) {
            log::debug!("{file} stays as it is: {e}");
        }
    }
    keep_less_free();
}

/// Lets hostd listen on port 443 without a capability; false when the kernel does not.
pub(crate) fn open_low_ports() -> bool {
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").is_ok()
}

/// Keeps the kernel's lines off the console, which dcui draws on.
pub(crate) fn quiet_console() {
    let _ = std::fs::write("/proc/sys/kernel/printk", "1 4 1 7");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_free_follows_the_memory() {
        assert_eq!(kept_free(2 << 20), 5792);
        assert_eq!(kept_free(64 << 20), 32_768);
        assert_eq!(kept_free(0), 4096);
        assert_eq!(kept_free(u64::MAX), 262_144);
    }
}
