//! Which process a partial file belongs to, and whether it still runs.

use std::fs;
use std::io;

/// The name of this host, and of its process namespace where that is not the host's own: numbers of processes are unique in it.
pub(super) fn this_host() -> String {
    /// The number that Linux gives to the namespace of the host.
    const OF_THE_HOST: &str = "pid:[4026531836]";
    // Linux has names of at most 64 bytes.
    let mut name = [0; 256];
    // SAFETY: writes into the array, and leaves its last byte 0.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let name = String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or_default());
    let namespace = fs::read_link("/proc/self/ns/pid").ok();
    let namespace = namespace.as_deref().and_then(|link| link.to_str()).filter(|&link| link != OF_THE_HOST);
    let number: String = namespace.unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    format!("{name}{}{number}", if number.is_empty() { "" } else { "-" })
}

/// This process: its number and, since numbers are used again, the time of its start.
pub(super) fn this_process() -> String {
    let number = std::process::id();
    format!("{number}-{}", Stat::of(number).map_or(0, |stat| stat.start))
}

/// Whether a process of this host, named by [`this_process`], has ended.
pub(super) fn is_gone(process: &str) -> bool {
    let Some((number, start)) = process.split_once('-') else { return false };
    let (Ok(number), Ok(start)) = (number.parse::<u32>(), start.parse::<u64>()) else { return false };
    match Stat::of(number) {
        Some(stat) => stat.is_zombie || (start != 0 && start != stat.start),
        // Processes of other users may be hidden.
        None => {
            // SAFETY: signal 0 is none.
            let found = unsafe { libc::kill(number as libc::pid_t, 0) };
            found != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
        }
    }
}

struct Stat {
    /// In clock ticks since the host was started.
    start: u64,
    /// Whether all of its threads have ended, and its parent has not waited for it yet.
    is_zombie: bool,
}

impl Stat {
    /// Reads `/proc/NUMBER/stat`: see proc(5).
    fn of(process: u32) -> Option<Self> {
        let text = fs::read(format!("/proc/{process}/stat")).ok()?;
        // The second field is the program's name in parentheses, which may have any characters.
        let after_name = text.iter().rposition(|&byte| byte == b')')? + 1;
        let fields: Vec<&str> = str::from_utf8(&text[after_name..]).ok()?.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        // A first thread that has ended is a zombie too, while others run.
        let is_zombie = matches!(fields.first(), Some(&("Z" | "X"))) && number(20)? <= 1;
        Some(Stat { start: number(22)?, is_zombie })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_gone_when_they_have_ended_or_their_number_is_used_again() {
        assert!(!is_gone(&this_process()));
        assert!(!is_gone(&format!("{}-0", std::process::id())), "without a start the number decides");
        assert!(is_gone(&format!("{}-1", std::process::id())), "another process had the number");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = format!("{}-0", child.id());
        // SAFETY: waits for the child to end without removing it, so it is a zombie.
        unsafe {
            let mut info = std::mem::zeroed();
            libc::waitid(libc::P_PID, child.id(), &mut info, libc::WEXITED | libc::WNOWAIT);
        }
        assert!(is_gone(&process), "a zombie");
        child.wait().unwrap();
        assert!(is_gone(&process));
        for unknown in ["", "7", "x-1", "1-x", "1-1-1"] {
            assert!(!is_gone(unknown), "{unknown}");
        }
    }
}
