//! Targets that are no regular files: they are written to, and never replaced or removed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use eplb::Result;
use eplb::atomic_file::AtomicFile;
use eplb::stats::{Counts, IdKind, IterationRange, RankDump, Rows};

fn write(path: impl AsRef<Path>, text: &str) -> Result<()> {
    AtomicFile::create(path.as_ref())?.replace(|out| out.write_all(text.as_bytes()))
}

fn failure(path: impl AsRef<Path>) -> String {
    write(path, "new").unwrap_err().to_string()
}

/// The reading and the writing end.
fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: two numbers are written, of new descriptors.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    }
}

#[test]
fn a_descriptor_is_written_at_its_position_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(dir.path().join("log"))
        .unwrap();
    let number = file.as_raw_fd();
    let link = dir.path().join("link");
    symlink(format!("/dev/fd/{number}"), &link).unwrap();
    file.write_all(b"before ").unwrap();
    let pid = std::process::id();
    for (path, text) in [
        (format!("/dev/fd/{number}"), "one "),
        (format!("/proc/self/fd/{number}"), "two "),
        (format!("/proc/{pid}/fd/{number}"), "three "),
        (format!("/proc/thread-self/fd/{number}"), "four "),
        (link.display().to_string(), "five "),
    ] {
        write(path, text).unwrap();
    }
    file.write_all(b"after").unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before one two three four five after");
    assert!(link.is_symlink());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_descriptor_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old");
    fs::write(&path, "old").unwrap();
    let file = File::open(&path).unwrap();
    let number = file.as_raw_fd();
    assert_eq!(
        failure(format!("/dev/fd/{number}")),
        format!("cannot write /dev/fd/{number}: descriptor {number} is not open for writing")
    );
    assert!(failure("/proc/self/fd/999999").ends_with("descriptor 999999 is not open"));
    let link = dir.path().join("link");
    symlink("/dev/fd/999999", &link).unwrap();
    let message = failure(&link);
    assert!(
        message.ends_with("link: descriptor 999999 is not open") && !message.contains("remove"),
        "{message}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
}

#[test]
fn devices_and_named_pipes_are_written_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let before = fs::read_dir("/dev").unwrap().count();
    write("/dev/null", "text").unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    assert_eq!(failure("/dev/full"), "cannot write /dev/full: No space left on device (os error 28)");
    assert_eq!(fs::read_dir("/dev").unwrap().count(), before);

    let named = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&named).status().unwrap().success());
    let reader = thread::spawn({
        let named = named.clone();
        move || fs::read_to_string(named).unwrap()
    });
    let text = "a line\n".repeat(100_000);
    write(&named, &text).unwrap();
    assert!(reader.join().unwrap() == text);
    assert!(fs::metadata(&named).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(
        failure(&socket).ends_with("socket: it is a socket, which cannot be opened; name a file or a pipe")
    );
}

#[test]
fn a_pipe_that_does_not_block_is_waited_for() {
    let (mut reading, writing) = pipe();
    // SAFETY: the descriptor is open.
    unsafe { libc::fcntl(writing.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    let reader = thread::spawn(move || {
        let mut text = String::new();
        reading.read_to_string(&mut text).unwrap();
        text
    });
    let text = "x".repeat(1 << 20);
    write(format!("/dev/fd/{}", writing.as_raw_fd()), &text).unwrap();
    drop(writing);
    assert!(reader.join().unwrap() == text);
}

#[test]
fn a_reader_that_leaves_early_is_an_error_and_no_signal() {
    // SAFETY: the disposition that programs in C begin with; Rust's ignore the signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let (reading, writing) = pipe();
    drop(reading);
    let path = format!("/dev/fd/{}", writing.as_raw_fd());
    for _ in 0..2 {
        assert_eq!(failure(&path), format!("cannot write {path}: Broken pipe (os error 32)"));
    }
    // SAFETY: reads this thread's signals.
    unsafe {
        let (mut pending, mut mask) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigpending(&mut pending);
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
        assert_eq!(
            [libc::sigismember(&pending, libc::SIGPIPE), libc::sigismember(&mask, libc::SIGPIPE)],
            [0, 0]
        );
    }
}

#[test]
fn a_failure_writes_nothing_more_to_a_stream() {
    let (mut reading, writing) = pipe();
    let failed =
        AtomicFile::create(Path::new(&format!("/dev/fd/{}", writing.as_raw_fd()))).unwrap().replace(|out| {
            out.write_all(b"half")?;
            Err(std::io::Error::other("on purpose"))
        });
    assert!(failed.is_err());
    drop(writing);
    let mut text = String::new();
    reading.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

#[test]
fn a_pipe_of_another_process_is_written_and_its_file_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    fs::write(&log, "theirs").unwrap();
    let file = OpenOptions::new().append(true).open(&log).unwrap();
    let mut child =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file).spawn().unwrap();
    let of_child = |number: u32| PathBuf::from(format!("/proc/{}/fd/{number}", child.id()));
    let message = failure(of_child(2));
    assert!(
        message.ends_with("it is a file that another process has open; name the file itself"),
        "{message}"
    );
    assert_eq!(fs::read_to_string(&log).unwrap(), "theirs");
    write(of_child(1), "ours").unwrap();
    drop(child.stdin.take());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "ours");
    child.wait().unwrap();
}

#[test]
fn a_dump_is_a_directory() {
    let dump = RankDump {
        rank: 0,
        num_ranks: 1,
        file: None,
        num_experts: 2,
        experts_per_token: 1,
        id_kind: IdKind::Expert,
        iterations: IterationRange { start: 0, stop: 1 },
        held: IterationRange { start: 0, stop: 1 },
        rows: Rows::default(),
        layers: &[3],
        counts: Counts::U32(&[1, 2]),
        run_id: None,
    };
    let failure = |path: &str| dump.write(Path::new(path)).unwrap_err().to_string();
    let why = "it is not a directory, which a dump of several files needs; choose another path";
    for path in ["/dev/stdout", "/dev/null"] {
        assert_eq!(failure(path), format!("cannot write {path}: {why}"));
    }
    assert_eq!(
        failure("-"),
        "cannot write -: a dump is a directory of several files, which standard output cannot be; ./- is a directory of \
         that name"
    );
    // Nor can one of its files be a device.
    for (file, num_files) in [("rank0.safetensors", 1), ("meta_info.json", 1)] {
        let dir = tempfile::tempdir().unwrap();
        symlink("/dev/null", dir.path().join(file)).unwrap();
        let message = failure(dir.path().to_str().unwrap());
        assert!(
            message.ends_with(&format!(
                "{file}: it exists and is not a regular file; remove it, or choose another directory"
            )),
            "{message}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), num_files);
    }
}

#[cfg(feature = "cli")]
mod program {
    use super::*;

    const DUMP: &str = "data/dumps/dsv2lite-translation";
    const YAML: &str = "data/expected/dsv2lite-translation.ep8.slots72.yaml";

    fn eplb(args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eplb"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args.split_whitespace());
        command
    }

    fn generate(output_path: &str) -> Command {
        eplb(&format!(
            "generate --expert_statistic_path {DUMP} --ep_size 8 --num_slots 72 --policy trtllm --output_path {output_path}"
        ))
    }

    fn in_repository(path: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    #[test]
    fn a_dash_is_standard_output_and_nothing_else_is_on_it() {
        let output = generate("-").output().unwrap();
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
        assert!(output.stdout == in_repository(YAML));

        let dir = tempfile::tempdir().unwrap();
        let map = dir.path().join("map.json");
        let convert =
            |to: &str| eplb(&format!("convert {YAML} --ep_size 8 --to vllm-ascend {to}")).output().unwrap();
        assert!(convert(map.to_str().unwrap()).status.success());
        let output = convert("-");
        assert!(output.status.success() && output.stdout == fs::read(&map).unwrap());

        let picture = dir.path().join("picture");
        for command in ["report --html", "report --svg", "sweep --ep_size 8 --num_slots 64,72 --svg"] {
            let run =
                |to: &str| eplb(&format!("{command} {to} --expert_statistic_path {DUMP}")).output().unwrap();
            assert!(run(picture.to_str().unwrap()).status.success(), "{command}");
            let output = run("-");
            assert!(output.status.success() && output.stdout == fs::read(&picture).unwrap(), "{command}");
        }
        assert!(!Path::new(env!("CARGO_MANIFEST_DIR")).join("-").exists());
    }

    #[test]
    fn standard_output_has_one_file_at_most_and_no_dump() {
        for (flags, first, second) in [
            ("--html - --svg -", "--html", "--svg"),
            ("--html - --json", "--html", "--json"),
            ("--csv --svg -", "--svg", "--csv"),
        ] {
            let output = eplb(&format!("report --expert_statistic_path {DUMP} {flags}")).output().unwrap();
            assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]));
            assert_eq!(
                String::from_utf8(output.stderr).unwrap(),
                format!(
                    "error: {first} - and {second} both go to standard output; write one of them to a file\n"
                )
            );
        }
        let output = eplb(&format!("convert {DUMP} --to dump -")).output().unwrap();
        assert_eq!(
            (output.status.code(), &String::from_utf8(output.stderr).unwrap()[..]),
            (
                Some(4),
                "error: cannot write /dev/stdout: it is not a directory, which a dump of several files needs; choose another path\n"
            )
        );
    }

    #[test]
    fn what_a_parent_writes_before_and_after_stays() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        for path in ["-", "/dev/stdout", "/proc/self/fd/1"] {
            let mut file = File::create(&log).unwrap();
            file.write_all(b"before\n").unwrap();
            let mut command = generate(path);
            let status = command.arg("--quiet").stdout(file.try_clone().unwrap()).status();
            assert!(status.unwrap().success());
            file.write_all(b"after\n").unwrap();
            assert!(
                fs::read(&log).unwrap() == [b"before\n", &in_repository(YAML)[..], b"after\n"].concat(),
                "{path}"
            );
        }
    }

    #[test]
    fn a_file_on_standard_output_is_all_that_is_printed() {
        for path in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
            let output = generate(path).output().unwrap();
            assert!(output.status.success() && output.stdout == in_repository(YAML), "{path}: {output:?}");
        }
    }

    #[test]
    fn a_reader_that_leaves_early_is_an_error() {
        let (reading, writing) = pipe();
        drop(reading);
        let output = generate("-").stdout(writing).output().unwrap();
        let message = "error: cannot write /dev/stdout: Broken pipe (os error 32)\n";
        assert_eq!(
            (output.status.code(), &String::from_utf8(output.stderr).unwrap()[..]),
            (Some(4), message)
        );
    }
}
